"""Flipped bits, kills, full and read-only disks, two snakemakes: nothing is lost, and nothing is silently wrong."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import soak
import stages
from consistency.errors import StorageError
from consistency.files import storage
from helpers import Project, ended, wait_for

# Every kind of file that a run leaves, and what reads it. A new kind must find its place here.
READ = {
    r"\w[\w-]*/[\w/.-]+\.safetensors": storage.check_tensors,
    r"\w[\w-]*/(metrics/[\w.-]+|targets/[\w.-]+/manifest|claims)\.json": storage.read_json,
    r"\w[\w-]*/stats/[\w.-]+\.jsonl": storage.read_records,
    r"([\w-]+/)?(metrics|claims)\.csv": storage.read_table,
    r"([\w-]+/)?(metrics|claims)\.csv\.sha256": lambda path: storage.read_table(path.with_suffix("")),
}
IN_FOLDERS = r"[\w-]+/(teacher|classifier|initial|students/[\w.-]+)/.+"  # checked whole, by SHA256SUMS
ENDS = r"(figures|tables|pages|logs)/.+|report\.html|\.running|.+/\.snakemake_timestamp"  # nothing reads them


def reader(name):
    """What reads a file before it is used, given its path; None for the ends of the chain."""
    if ".records" in name.split("/"):
        return storage.read_json
    if re.fullmatch(ENDS, name):
        return None
    if inside := re.match(r"[\w-]+/(teacher|classifier|initial|students/[^/]+)(?=/)", name):
        return lambda path: storage.check_folder(Path(str(path).replace(name, inside[0])))
    (found,) = [read for pattern, read in READ.items() if re.fullmatch(pattern, name)]
    return found


@pytest.mark.parametrize("experiment", ["finished", pytest.param("exact", marks=pytest.mark.long)])
def test_a_flipped_bit_in_any_file_is_caught(experiment, request):
    """Every file of a run: eight bits at random, one at a time."""
    results, random, kinds = request.getfixturevalue(f"{experiment}_copy").folder / "results", Random(0), set()
    for path in sorted(path for path in results.rglob("*") if path.is_file()):
        if (read := reader(str(path.relative_to(results)))) is None:
            continue
        read(path)
        original = path.read_bytes()
        for _ in range(8):
            stages.flip(path, random)
            with pytest.raises(StorageError) as caught:
                read(path)
            assert "\n" not in str(caught.value)
            assert str(path.parent) in str(caught.value)
            path.write_bytes(original)
        kinds.add(path.suffix)
    assert kinds >= {".safetensors", ".json", ".jsonl", ".csv", ".sha256", ""}


KINDS = {
    "finished": {"data.safetensors", "noise.safetensors", "classifier", "teacher", "targets/*.safetensors",
                 "targets/*.json", "students/*", "stats/*.jsonl", "samples/*.safetensors", "features/*.safetensors",
                 "metrics/*.json", "metrics.csv", "claims.csv", "claims.json"},
    "exact": {"teacher", "initial", "truth.safetensors", "couplings/*.safetensors"},  # that `finished` has not
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("experiment", ["finished", "exact"])
def test_a_flipped_bit_stops_the_job_that_reads_it(experiment, request, tmp_path):
    """A job of a rule that reads it, for every kind of file."""
    project = request.getfixturevalue(experiment)
    found = set(stages.consumers(stages.jobs_of(project)))
    assert found == (
        KINDS["finished"] if experiment == "finished" else KINDS["finished"] - {"classifier"} | KINDS["exact"]
    )
    stages.flipped_inputs(project, tmp_path / "copy", sorted(KINDS[experiment]), 1)


@pytest.mark.long
def test_kills_in_every_stage_end_with_the_same_bytes(finished, tmp_path, pytestconfig):
    """The short version of `make soak`: some runs of `finished`, again, with kills."""
    project = Project(tmp_path / "rough")
    project.configure({"runs": [{"solver": "ddim", "n_steps": 5, "guidance": [1], "seed": [0]}]})
    when = dict.fromkeys(["prepare_data", "train_teacher", "solve_targets", "train_student", "measure_student"], 1.0)
    disturbed = soak.Soak(project, 2, pytestconfig.option.seed, when, only=when)
    disturbed.run("results/digits/metrics.csv")
    assert disturbed.total() >= 5
    found, expected = soak.outcome(project.folder / "results"), soak.outcome(finished.folder / "results")
    metrics = found.pop("digits/metrics.csv").decode().splitlines()
    assert set(metrics) <= set(expected["digits/metrics.csv"].decode().splitlines())
    assert len(metrics) > 20
    assert len(found) >= 15
    assert [name for name in found if found[name] != expected[name]] == []
    assert not list((project.folder / "results").rglob(".tmp-*"))


@pytest.mark.long
@pytest.mark.needs("small disk")
def test_a_full_disk_at_every_stage(finished, tmp_path):
    rules = stages.full_disk(finished, tmp_path / "copy", soak.outcome, again=3)
    assert len(rules) >= 22


@pytest.mark.needs("small disk")
@pytest.mark.parametrize("where", ["results", "results/digits"])
def test_a_read_only_folder(tmp_path, where):
    project = Project(tmp_path / "copy")
    (project.folder / where).mkdir(parents=True)
    with stages.small(project.folder / where, options=",ro"):
        done = project.snakemake("results/digits/data.safetensors", check=False)
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Read-only" in line]
    assert len(lines) == 1
    assert f"results: {where} cannot be written (Read-only file system); choose a writable folder" in lines[0]
    assert "Traceback" not in done.stdout + done.stderr


def test_two_snakemakes_in_one_folder(tmp_path):
    """The second one stops, and says why; the first one is not disturbed."""
    project = Project(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "results/digits/noise.safetensors"]
    with open(tmp_path / "first.log", "w") as log:
        first = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        locks = tmp_path / ".snakemake" / "locks"
        wait_for(
            lambda: locks.is_dir() and any(locks.iterdir()),
            "the first snakemake's lock",
            process=first,
            seen=(tmp_path / "first.log").read_text,
        )
        first.send_signal(signal.SIGSTOP)  # or it may be done before the second one looks
        second = project.snakemake("results/digits/noise.safetensors", check=False)
        first.send_signal(signal.SIGCONT)
        assert second.returncode != 0
        text = second.stdout + second.stderr
        assert "Directory cannot be locked" in text
        assert "no other Snakemake process is trying to create the same files" in text
        said = (tmp_path / "first.log").read_text
        assert ended(first, "the first snakemake", seen=said) == 0, said()
    finally:
        first.kill()
    done = project.snakemake("--dry-run", "results/digits/noise.safetensors")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_all_hashes_of_a_folder_of_results(finished_copy):
    """`make verify`."""
    results = finished_copy.folder / "results"
    command = [sys.executable, finished_copy.folder / "workflow/scripts/verify.py", results]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\d+ files are as they were written", done.stdout)
    path = results / "digits" / "samples" / "cm-ddim-n5-w1-s0.safetensors"
    stages.flip(path, Random(3))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{path}: " in done.stderr


@pytest.mark.needs("bash")
def test_hashes_by_hand(finished):
    """The commands of docs/reliability.md, with nothing but standard tools."""
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=finished.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *sums, json_, tensors = done.stdout.splitlines()
    assert len(sums) >= 4
    assert all(line.endswith(": OK") for line in sums)
    for line in (json_, tensors):
        found, stated = line.split()
        assert found == stated
