"""What the profile asks SLURM for, by dry runs; no SLURM is needed."""

from __future__ import annotations

import re

import pytest
from helpers import Project

TRAINS = {"train_classifier", "train_teacher", "train_initial", "train_student"}


def asked(project, *arguments):
    """Rule → its resources, of a dry run."""
    said = project.snakemake("--dry-run", "--workflow-profile", "slurm", *arguments).stdout
    found = re.findall(r"^(?:local)?rule (\w+):\n(?: +.*\n)*? +resources: (.*)$", said, re.MULTILINE)
    return {rule: dict(re.findall(r"(\w+)=([^,]*)", resources)) for rule, resources in found}


def test_resources_come_from_the_preset_and_places_from_the_environment(tmp_path, monkeypatch):
    project = Project(tmp_path)
    project.configure({"gpu": 2, "mem_mb": 7000, "runtime": 45})
    jobs = asked(project)
    for rule in ("train_student", "sample_student", "measure_student", "solve_targets", "train_teacher"):
        assert (jobs[rule]["gpu"], jobs[rule]["mem_mb"], jobs[rule]["runtime"]) == ("2", "7000", "45")
    assert {resources["tasks_per_gpu"] for resources in jobs.values()} == {"0"}
    assert {rule for rule, resources in jobs.items() if "slurm_extra" in resources} == TRAINS & set(jobs)
    assert jobs["train_teacher"]["slurm_extra"] == "--signal=TERM@120"
    assert not [rule for rule, resources in jobs.items() if "slurm_partition" in resources]
    monkeypatch.setenv("SBATCH_PARTITION", "gpu-2024")
    assert {resources["slurm_partition"] for resources in asked(project).values()} == {"gpu-2024"}


@pytest.mark.parametrize("arguments", [[], ["--profile", "workflow/profiles/slurm"]])
def test_more_gpus_than_the_limit_of_another_profile_are_not_given_silently(tmp_path, arguments):
    project = Project(tmp_path)
    project.configure({"gpu": 2})
    done = project.snakemake("--dry-run", *arguments, check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "digits: a job needs gpu=2, but --resources allows gpu=1 (as profiles/default does)" in said


def test_every_training_is_warned():
    """The profile's list of rules that train is the workflow's."""
    from helpers import ROOT

    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    scripts = {path.stem for path in (ROOT / "workflow/scripts").glob("*.py") if "training=True" in path.read_text()}
    blocks = re.split(r"^rule ", rules, flags=re.MULTILINE)[1:]
    trains = {block.split(":")[0] for block in blocks if re.search(r"scripts/(\w+)\.py", block)[1] in scripts}
    assert trains == TRAINS
