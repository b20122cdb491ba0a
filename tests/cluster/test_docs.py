"""docs/running-on-clusters.md, its commands line by line, on a real SLURM; with the same numbers as on one machine."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess

import pytest
from cluster.slurm import ask
from helpers import ROOT, Project, wait_for


def rows(path):
    with open(path, encoding="utf-8") as file:
        return sorted(tuple(row.items()) for row in csv.DictReader(file))


@pytest.mark.needs("git", "bash", "make")
def test_the_page_from_clone_to_figures(cluster, finished, environment, tmp_path):
    page = (ROOT / "docs/running-on-clusters.md").read_text(encoding="utf-8")
    script = tmp_path / "page.sh"
    script.write_text("set -euxo pipefail\n" + "".join(re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)))

    (tmp_path / "repository").mkdir()
    repository = Project(tmp_path / "repository")
    repository.configure({"runs": [{"solver": "ddim", "n_steps": 5, "guidance": [4], "seed": [0]}]})
    for name in ("Makefile", "requirements.lock", ".gitignore"):
        shutil.copy(ROOT / name, repository.folder)
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


def jobs(folder) -> list[tuple[str, str, str]]:
    """Name, comment and state of this folder's SLURM jobs."""
    listed = ask("squeue", "--states=all", "--noheader", "--format=%j|%k|%T|%Z").splitlines()
    return [tuple(line.split("|")[:3]) for line in listed if line.split("|")[3] == str(folder)]
