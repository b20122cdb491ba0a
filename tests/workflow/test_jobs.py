"""Training jobs of the real snakemake: signals, retries, Ctrl-C, several processes, and what the user is told."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from consistency.runtime import status
from helpers import ROOT, Project, ended, surroundings, wait_for

TEACHER = {"teacher": {"training": {"steps": 1500, "checkpoint_every": 10_000, "log_every": 10}}}
TARGET = "results/digits/teacher"


class Running:
    """A snakemake in a process group of its own."""

    def __init__(self, project, *arguments, **environment):
        self.project, self.output = project, project.folder / "output.txt"
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", *arguments]
        known = surroundings(**environment)
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(
                command, cwd=project.folder, env=known, stdout=file, stderr=file, start_new_session=True
            )

    def job(self, rule):
        """The process of a rule's script, once there is one."""

        def script():
            with suppress(psutil.Error):  # it has just ended
                for child in psutil.Process(self.process.pid).children():
                    if child.is_running() and any(f".{rule}.py" in word for word in child.cmdline()):
                        return child

        return self.wait_for(script, f"a job of {rule}")

    def reaches(self, step):
        """Wait until the training has recorded that step."""

        def reached():
            return any(training.step >= step for training in status.trainings(self.project.folder / "results"))

        self.wait_for(reached, f"step {step}")

    def wait_for(self, condition, what):
        """What the condition gives once it is true, while snakemake runs."""
        return wait_for(condition, what, 120, process=self.process, seen=self.said, every=0.005)

    def end(self):
        """The exit status, once snakemake has ended."""
        return ended(self.process, "snakemake", seen=self.said)

    def said(self):
        return self.output.read_text()

    def lines(self, rule):
        """What the user was told of a rule's errors."""
        return [line for line in self.said().splitlines() if line.startswith(f"{rule}: ")]


@pytest.fixture
def run():
    """Start snakemakes; those still running at the end are killed with their jobs."""
    started = []

    def start(*arguments, **environment):
        started.append(Running(*arguments, **environment))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            for child in psutil.Process(running.process.pid).children(recursive=True):
                child.kill()
            running.process.kill()
            running.process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    project.configure(TEACHER)
    project.snakemake(TARGET)
    return project


def weights(project):
    return (project.folder / TARGET / "model.safetensors").read_bytes()


def test_signals_retries_and_ctrl_c(tmp_path, run, undisturbed, moments):
    """USR1, then TERM to the job, which snakemake retries; Ctrl-C to all; then the same command again."""
    project = Project(tmp_path)
    project.configure(TEACHER)
    first = run(project, TARGET, "--retries", "2")
    steps = [moments.randint(first, last) * 10 for first, last in ((1, 20), (30, 50), (70, 100))]
    for step, name in zip(steps[:2], ("SIGUSR1", "SIGTERM")):
        first.reaches(step)
        first.job("train_teacher").send_signal(getattr(signal, name))
        first.wait_for(
            lambda: any(name in line for line in first.lines("train_teacher")), f"the line that tells of {name}"
        )
    first.reaches(steps[2])
    os.killpg(first.process.pid, signal.SIGINT)
    assert first.end() != 0
    told = first.lines("train_teacher")
    assert [line.split(" at step ")[0] for line in told] == [
        f"train_teacher: train teacher: stopped by {name}" for name in ("SIGUSR1", "SIGTERM", "SIGINT")
    ]
    assert "Traceback" not in first.said()
    assert (project.folder / "results/digits/checkpoints/teacher/checkpoint.pt").is_file()
    assert not (project.folder / TARGET).exists()

    project.snakemake(TARGET)
    assert "resumed at step" in (project.folder / "results/logs/digits/train_teacher.log").read_text()
    assert weights(project) == weights(undisturbed)
    assert not list((project.folder / "results/digits/checkpoints").iterdir())


def test_another_stage_ends_at_once_and_leaves_nothing(tmp_path, run, undisturbed, moments):
    project = undisturbed.copy(tmp_path / "project")
    project.configure(TEACHER | {"targets": {"count": 400_000, "shards": 1}})
    shard = "results/digits/targets/paper-ddim-n5-w1/shard-0.safetensors"
    running = run(project, shard)
    job = running.job("solve_targets")
    log = project.folder / "results/logs/digits/solve_targets-paper-ddim-n5-w1-0.log"
    running.wait_for(log.exists, "the log of the solve")
    time.sleep(moments.uniform(0.1, 2.5))
    job.send_signal(signal.SIGTERM)
    assert running.end() != 0
    assert running.lines("solve_targets") == ["solve_targets: stopped by SIGTERM"]
    left = [path for path in (project.folder / "results").rglob("*shard*") if path.parent.name != ".records"]
    assert not left, "of the job that was stopped"
    project.snakemake(shard)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_where_exceptions_are_swallowed(tmp_path, name):
    """Imports have such moments, where Python gives up a lock and where torch's C++ looks for NumPy; so does this."""
    text = f"""
import os, signal, sys
from types import SimpleNamespace
sys.path.append({str(ROOT / "workflow" / "scripts")!r})
from _job import job

class Swallows:
    def __del__(self):
        signal.raise_signal(signal.{name})

gpus = SimpleNamespace(gpu=0)
with job(SimpleNamespace(rule="stage", log=["log"], threads=1, resources=gpus, output=["out"], input=[], params={{}})):
    from consistency.files import storage

    storage.write_text("before", "whole")
    with storage.atomic("file") as file, storage.atomic("folder") as folder:
        file.write_text("half of it")
        folder.mkdir()
        Swallows()
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"\nstage: stopped by {name}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".records", "before", "log", "log.lock"]


@pytest.mark.long
def test_two_gpus_are_two_processes(tmp_path, run, moments):
    """Where there is no GPU two processes on the CPU take their place. Stopped, it goes on when it is retried."""
    settings = {"gpu": 2, "teacher": {"training": {"steps": 600, "checkpoint_every": 10_000, "log_every": 10}}}
    gpus = {"CONSISTENCY_CPU_FOR_GPU": "1"}
    project = Project(tmp_path)
    project.configure(settings)
    running = run(project, TARGET, "--retries", "1", "--resources", "gpu=2", **gpus)
    running.reaches(moments.randint(1, 40) * 10)
    job = running.job("train_teacher")
    (launcher,) = job.children()
    processes = launcher.children()
    assert len(processes) == 2
    job.send_signal(signal.SIGTERM)  # which passes it on
    assert running.end() == 0, running.said()
    told = running.lines("train_teacher")
    assert len(told) == 1, told
    assert told[0].startswith("train_teacher: train teacher: stopped by SIGTERM at step ")
    assert running.said().count("localrule train_teacher:") == 2  # each started its script once
    assert not any(process.is_running() for process in [launcher, *processes])
    log = (project.folder / "results/logs/digits/train_teacher.log").read_text()
    assert log.count("resumed at step") == 1
    stats = (project.folder / "results/digits/stats/teacher.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in stats] == list(range(10, 601, 10))
    assert weights(project)

    # an error in every process is told once
    project.configure(settings | {"teacher": {"training": {"steps": 600, "learning_rate": 1e30}}})
    running = run(project, TARGET, "--resources", "gpu=2", **gpus)
    assert running.end() != 0
    told = running.lines("train_teacher")
    assert len(told) == 1, told
    assert "loss is" in told[0]
    assert "lower learning_rate" in told[0]


def test_tensorboard_is_no_reason_to_train_again(tmp_path, undisturbed):
    project = undisturbed.copy(tmp_path / "project")
    project.configure(TEACHER, tensorboard=True)
    assert project.jobs(TARGET) == {}
    project.snakemake("results/digits/classifier")
    events = list((project.folder / "results/digits/tensorboard/classifier").glob("events.out.tfevents*"))
    assert len(events) == 1
