"""One SLURM for all tests of this folder, and copies of the finished small experiment whose students train longer."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster.slurm import Cluster, ask
from helpers import ROOT, Project, surroundings, wait_for

# Long enough to be caught at work, and some seconds to the end.
STEPS = 1500


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """What `make` takes for an environment of its own: this one."""
    folder = tmp_path_factory.mktemp("venv")
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("installed-from"):
            (folder / part.name).symlink_to(part)
    for name in ("requirements.lock", "requirements-test.lock"):
        stamp = folder / f"installed-from-{name}"
        stamp.touch()
        os.utime(stamp, (4e9, 4e9))  # later than any checkout, so that nothing is installed
    return folder


class Student(Project):
    """A copy of the finished small experiment, of which one student is to be trained again, for longer."""

    def __init__(self, folder: Path, finished: Project, run: str, environment: Path, **changes):
        super().__init__(folder)
        for name in ("results", ".snakemake"):
            shutil.copytree(finished.folder / name, folder / name, dirs_exist_ok=True, symlinks=True)
        for path in (ROOT / "Makefile", *ROOT.glob("requirements*.lock")):
            shutil.copy2(path, folder)
        self.run, self.environment = run, environment
        training = {"steps": STEPS, "checkpoint_every": 50} | changes.pop("training", {})
        self.configure({"student": {"training": training}, **changes})
        self.target = f"results/digits/students/{run}"
        self.log = folder / f"results/logs/digits/train_student-{run}.log"
        self.lock = Path(f"{self.log}.lock")
        self.side = folder / f"results/digits/checkpoints/{run}"
        self.output = folder / "snakemake.out"

    def start(self, command: list[str], **variables: str) -> subprocess.Popen:
        """Start a command here; what it says is added to `output`."""
        with open(self.output, "a") as output:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=output, stderr=output, env=surroundings(**variables)
            )

    def submit(self, *arguments: str, **variables: str) -> subprocess.Popen:
        """Start snakemake on the cluster, for the student."""
        command = [sys.executable, "-m", "snakemake", self.target, "--workflow-profile", "slurm"]
        return self.start([*command, *self.quickly, *arguments], **variables)

    quickly = ("--slurm-init-seconds-before-status-checks", "2", "--slurm-keep-successful-logs")

    def resume(self, profile: str, *arguments: str) -> subprocess.Popen:
        """Start `make resume`, for the student."""
        settings = [f"VENV={self.environment}", f"ARGS={' '.join([self.target, *arguments])}"]
        return self.start(["make", "resume", *([f"PROFILE={profile}"] if profile else ["CORES=2"]), *settings])

    def trainer(self) -> psutil.Process:
        """The process that trains the student, by its own word."""
        return psutil.Process(int(self.lock.read_text().split()[1]))

    def said(self) -> str:
        """What snakemake has said, and make."""
        return self.output.read_text(errors="replace")[-6000:]

    def waits_for(self, condition: Callable[[], object], what: str, seconds: float = 120) -> object:
        """What the condition gives once it is true."""
        return wait_for(condition, what, seconds, seen=self.said, every=0.2)

    def stop(self, process: subprocess.Popen) -> psutil.Process:
        """Stop training in its middle, as a node or a file system that hangs would; snakemake is that process."""
        begun = (self.side / "stats.jsonl").exists
        wait_for(begun, "the training to begin", 180, seen=self.said, process=process, every=0.05)
        trainer = self.trainer()
        trainer.suspend()
        assert not (self.folder / self.target).exists(), "training was over too soon; more STEPS"
        return trainer

    def jobs(self) -> list[dict[str, str]]:
        """The student's SLURM jobs, in the order of submission."""
        keys = ("id", "state", "limit", "partition", "reason", "comment", "folder")
        rows = ask("squeue", "--states=all", "--noheader", "--format=%i|%T|%l|%P|%r|%k|%Z").splitlines()
        found = [dict(zip(keys, row.split("|"))) for row in rows]
        mine = [job for job in found if self.run in job["comment"] and job["folder"] == str(self.folder)]
        return sorted(mine, key=lambda job: int(job["id"]))

    def model(self) -> str:
        """Hash of the student's weights."""
        return hashlib.sha256((self.folder / self.target / "model.safetensors").read_bytes()).hexdigest()

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs()]

    def trainers(self) -> list[psutil.Process]:
        """Every process that runs a training script of this folder."""
        place = str(self.folder / ".snakemake/scripts/")
        return [p for p in psutil.process_iter(["cmdline"]) if any(place in w for w in p.info["cmdline"] or [])]

    def clean(self) -> None:
        """End everything that a failed test left here."""
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(self.folder):
                process.kill()


class Watch(threading.Thread):
    """Counts the training processes of a student that live at the same time."""

    def __init__(self, student: Student):
        super().__init__(daemon=True)
        self.student, self.most, self.over = student, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.most = max(self.most, len(self.student.trainers()))


@pytest.fixture
def watch():
    """watch(student) → the greatest number of training processes at once, until then."""
    watches = []

    def begin(student: Student) -> Watch:
        watches.append(Watch(student))
        watches[-1].start()
        return watches[-1]

    yield begin
    for one in watches:
        one.over.set()
        one.join()


@pytest.fixture(scope="session")
def student(finished, environment, tmp_path_factory):
    """student(run, **changes) → a folder in which that student is to be trained."""
    made = []

    def make(run: str, **changes) -> Student:
        made.append(Student(tmp_path_factory.mktemp("student"), finished, run, environment, **changes))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture(scope="session")
def undisturbed(student):
    """undisturbed(run) → hash of the weights that training reaches without any trouble, here and alone."""

    @functools.cache
    def train(run: str) -> str:
        quiet = student(run)
        quiet.snakemake(quiet.target)
        return quiet.model()

    return train


def succeeded(process: subprocess.Popen, student: Student, seconds: float = 240) -> str:
    """What snakemake said, once it has ended well."""
    try:
        student.waits_for(lambda: process.poll() is not None, "the end of snakemake", seconds)
    except AssertionError:
        process.send_signal(signal.SIGKILL)
        raise
    assert process.returncode == 0, f"snakemake ended with {process.returncode}:\n{student.said()}"
    return student.output.read_text(errors="replace")
