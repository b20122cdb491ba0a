"""Results belong to the configuration, whatever happens between a change of it and the end of the next run."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import changes
import pytest
import soak
from helpers import Project, wait_for

pytestmark = pytest.mark.needs("linux")  # processes are looked at through /proc


@pytest.fixture
def project(finished_copy):
    """A copy of the finished project, of the same times."""
    return finished_copy


@pytest.mark.long
def test_random_changes_and_interruptions_end_as_a_run_from_nothing(tmp_path):
    changes.walk(tmp_path, range(2), seed=1, disk=False)


@pytest.mark.long
@pytest.mark.needs("small disk")
def test_more_of_them_with_full_disks(tmp_path):
    changes.walk(tmp_path, range(4), seed=2, disk=True)


def why(project):
    """What the dry run says of outputs that are not what the plan asks for."""
    said = project.snakemake("--dry-run")
    return set(re.findall(r"^made again: results/digits/(\w+)\S*: (.*)$", said.stdout + said.stderr, re.MULTILINE))


def test_results_know_what_they_are_made_from_without_snakemakes_notes(project):
    shutil.rmtree(project.folder / ".snakemake")
    assert project.jobs() == {}
    project.configure({"student": {"training": {"warmup_steps": 6}}})
    assert project.jobs()["train_student"] == 8
    assert ("students", "student.training.warmup_steps was 5, is 6") in why(project)


def test_another_checkouts_settings_are_seen_in_a_shared_folder(project, tmp_path):
    """The other checkout has no note of its own for what it finds there."""
    other, shared = Project(tmp_path / "other"), str(project.folder / "results")
    other.configure({}, results=shared)
    assert not {"train_teacher", "train_student", "sample_student"} & set(other.jobs())
    other.configure({"evaluation": {"seed": 3}}, results=shared)
    jobs = other.jobs()
    assert jobs["sample_student"] == 8
    assert "train_student" not in jobs


def test_files_of_unknown_origin_are_made_again(project):
    shutil.rmtree(project.folder / ".snakemake")
    shutil.rmtree(project.folder / "results/digits/.records")
    assert project.jobs()["train_teacher"] == 1
    assert ("teacher", "nothing says what it was made from") in why(project)


def test_a_change_that_was_stopped_and_taken_back_leaves_nothing_undone(project):
    project.configure({"teacher": {"training": {"steps": 10**6}}})
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "results/digits/teacher"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, cwd=project.folder, start_new_session=True, **quiet)
    checkpoint = project.folder / "results/digits/checkpoints/teacher/checkpoint.pt"
    wait_for(checkpoint.exists, "the teacher's first checkpoint", 120, process=run)
    while alive := soak.processes(run.pid):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.poll()
    project.snakemake("--unlock")
    project.configure({})
    assert project.jobs()["train_teacher"] == 1, "its job had removed the teacher"
    assert ("teacher", "its job began and did not end") in why(project)


def test_what_was_removed_by_hand_is_not_missed(project):
    """Targets are large; results made from them stay as they are."""
    shutil.rmtree(project.folder / "results/digits/targets/paper-ddim-n5-w1")
    assert project.jobs() == {}


def test_two_settings_that_change_places(project):
    project.configure({"evaluation": {"count": 100, "batch_size": 50}})
    project.snakemake("results/digits/samples/teacher-ddim-n5-w1.safetensors")
    project.configure({"evaluation": {"count": 50, "batch_size": 100}})
    assert "teacher_samples" in project.jobs()
