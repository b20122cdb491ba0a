"""The profile and its page on a real SLURM: what happens to a student's training when the cluster, or the user,
interferes. One such cluster lives at a time, so that all tests on it are in this file.

Training is caught in its middle by stopping its process, as if the node hung; that takes no time of the machine.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys

import pytest
from cluster.conftest import succeeded
from cluster.slurm import ask
from helpers import ROOT, Project, wait_for

pytestmark = [pytest.mark.long, pytest.mark.needs("git", "bash", "make")]

# SLURM limits are whole minutes, looked at every 30 s: a warning 10 s before the end of one comes after 20 s or later.
WARNED = ("--set-resources", "train_student:slurm_extra='--signal=TERM@10'")
NOT_WARNED = ("--set-resources", "train_student:slurm_extra=''")


def two_under_a_launcher(job) -> bool:
    launchers = job.children()
    return len(launchers) == 1 and len(launchers[0].children()) == 2


def resumed_at(student) -> int:
    return int(re.search(r"resumed at step (\d+) of", student.log.read_text())[1])


def rows(path):
    with open(path, encoding="utf-8") as file:
        return sorted(tuple(row.items()) for row in csv.DictReader(file))


def jobs(folder) -> list[tuple[str, str, str]]:
    """Name, comment and state of this folder's SLURM jobs."""
    listed = ask("squeue", "--states=all", "--noheader", "--format=%j|%k|%T|%Z").splitlines()
    return [tuple(line.split("|")[:3]) for line in listed if line.split("|")[3] == str(folder)]


@pytest.fixture(scope="module")
def limited(cluster, student):
    """Two students with a minute of time each, stopped; they wait for their limit while other tests go on.

    There is no checkpoint but the one that is written because of a signal.
    """
    changes = {"runtime": 1, "training": {"checkpoint_every": 10**6}}
    found = []
    for run, options in (("direct-ddim-n5-w4-s0", NOT_WARNED), ("direct-ddim-n5-w4-s1", WARNED)):
        one = student(run, **changes)
        found.append((one, one.submit(*options)))
        one.stop(found[-1][1])
    return found


def test_the_page_from_clone_to_figures(limited, finished, environment, tmp_path):
    """docs/running-on-clusters.md, its commands line by line, with the same numbers as on one machine."""
    page = (ROOT / "docs/running-on-clusters.md").read_text(encoding="utf-8")
    script = tmp_path / "page.sh"
    script.write_text("set -euxo pipefail\n" + "".join(re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)))

    (tmp_path / "repository").mkdir()
    repository = Project(tmp_path / "repository")
    repository.configure({"runs": [{"solver": "ddim", "n_steps": 5, "guidance": [4], "seed": [0]}]})
    for path in (ROOT / "Makefile", ROOT / ".gitignore", *ROOT.glob("requirements*.lock")):
        shutil.copy(path, repository.folder)
    profile = repository.folder / "workflow/profiles/slurm/config.yaml"
    profile.write_text(re.sub(r"(?m)^(slurm-init-seconds.*:) 10$", r"\1 2", profile.read_text()))
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message=small"]):
        subprocess.run(["git", *command], cwd=repository.folder, check=True)

    variables = {"REPOSITORY": str(repository.folder), "EXPERIMENT": "digits", "VENV": str(environment)}
    done = subprocess.run(
        ["bash", script], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    place = tmp_path / "consistency"
    submitted = done.stderr.count("has been submitted with SLURM jobid")
    assert (
        submitted
        == len([0 for _, comment, state in jobs(place) if (comment[:5], state) == ("rule_", "COMPLETED")])
        > 10
    )
    assert "A1" in done.stdout  # the claims table at the end

    wait_for(
        lambda: ("consistency", "COMPLETED") in [job[::2] for job in jobs(place)],
        "the end of the job that runs snakemake",
        120,
        seen=lambda: jobs(place),
        every=0.2,
    )
    assert "Nothing to be done" in next(place.glob("snakemake-*.out")).read_text()

    found, expected = (rows(project / "results/metrics.csv") for project in (place, finished.folder))
    runs = {dict(row)["run"] for row in found}
    assert runs == {"data", "teacher-ddim-n5-w4", "cm-ddim-n5-w4-s0", "direct-ddim-n5-w4-s0"}
    assert found == [row for row in expected if dict(row)["run"] in runs]
    assert (place / "results/figures/digits-tradeoff.pdf").read_bytes().startswith(b"%PDF")


def test_a_cancelled_job_is_tried_again_and_continues(limited, student, undisturbed):
    one = student("cm-ddim-n5-w1-s0")
    process = one.submit()
    one.stop(process)
    refused = subprocess.run(
        [sys.executable, "workflow/scripts/resume.py"], cwd=one.folder, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert re.fullmatch(r"resume: a snakemake lives in this folder; .*process \d+ on .*\)\n", refused.stderr)
    subprocess.run(["scancel", one.jobs()[0]["id"]], check=True)
    succeeded(process, one)
    assert one.states() == ["CANCELLED", "COMPLETED"]
    assert resumed_at(one) > 0
    assert one.model() == undisturbed(one.run)


def test_a_killed_snakemake_is_resumed_and_no_two_jobs_write_the_same(limited, student, undisturbed, watch):
    one = student("cm-ddim-n5-w1-s1")
    process = one.submit()
    one.stop(process)
    process.kill()
    process.wait()
    counted = watch(one)
    assert one.states() == ["RUNNING"]  # nobody waits for it any more
    said = succeeded(one.resume("slurm", *one.quickly), one)
    assert f"resume: cancels 1 SLURM jobs of an earlier snakemake: {one.jobs()[0]['id']}" in said
    assert one.states() == ["CANCELLED", "COMPLETED"]
    assert counted.most == 1
    assert resumed_at(one) > 0
    assert one.model() == undisturbed(one.run)
    assert "Nothing to be done" in succeeded(one.resume("slurm"), one)


def test_a_preempted_job_is_started_again_by_slurm_and_continues(limited, student):
    one = student("cm-ddim-n5-w4-s0")
    process = one.submit()
    one.stop(process)
    subprocess.run(["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"], check=True)
    succeeded(process, one)
    assert one.states() == ["COMPLETED"]
    assert "Restarts=1" in ask("scontrol", "show", "job", one.jobs()[0]["id"])
    assert resumed_at(one) > 0


def test_two_gpus_and_a_drained_node(cluster, student, tmp_path):
    """The job waits for the node, gets its partition and its GPUs; its script starts once, and two processes of its own
    (on the CPU, as the GPUs are none)."""
    partitions = tmp_path / "partitions.yaml"
    partitions.write_text("partitions:\n  cpu: {max_threads: 4}\n  gpu: {max_threads: 4, max_gpu: 2}\n")
    one = student("cm-ddim-n5-w4-s1", gpu=2)
    node = ask("sinfo", "--noheader", "--format=%n")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=drain", "reason=test"], check=True)
    try:
        process = one.submit(SNAKEMAKE_SLURM_PARTITIONS=str(partitions), CONSISTENCY_CPU_FOR_GPU="1")
        one.waits_for(lambda: any("DRAIN" in job["reason"] for job in one.jobs()), "a job that waits for the node")
        assert process.poll() is None
    finally:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
    job = one.jobs()[0]
    one.waits_for(lambda: one.states() == ["RUNNING"], "the job to start")
    told = ask("scontrol", "--details", "show", "job", job["id"])
    assert re.search(r"TresPerJob=gres:gpu:2\b", told)
    assert re.search(r"GRES=gpu:2\(IDX:0-1\)", told)
    assert job["partition"] == "gpu"
    one.waits_for(one.lock.exists, "the script to start")
    one.waits_for(lambda: two_under_a_launcher(one.trainer()), "two processes under a launcher")
    succeeded(process, one)
    assert one.states() == ["COMPLETED"]
    logs = [path.read_text() for path in one.folder.glob(".snakemake/slurm_logs/rule_train_student/*/*.log")]
    assert len(logs) == 1
    assert logs[0].count("localrule train_student:") == 1


def test_training_is_warned_before_its_limit_and_continues(limited):
    one, process = limited[1]
    succeeded(process, one)
    assert [(job["state"], job["limit"]) for job in one.jobs()] == [("FAILED", "1:00"), ("COMPLETED", "2:00")]
    assert resumed_at(one) > 0


def test_a_job_out_of_time_is_tried_with_more_and_continues(limited):
    one, process = limited[0]
    succeeded(process, one)
    assert [(job["state"], job["limit"]) for job in one.jobs()] == [("TIMEOUT", "1:00"), ("COMPLETED", "2:00")]
    assert resumed_at(one) > 0
