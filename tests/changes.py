"""Random changes of the configuration, interrupted in every way, and then the same command again.

A walk goes through states (settings, and the user's images). Each sequence enters one to three states whose runs don't get to
their end, then one more, and runs snakemake until it is done. What then lies in the results must be, byte for byte, what a run
from nothing makes of that state. The next sequence goes on from there.

`python tests/changes.py --sequences 200 --seed 0` is the long form; the suite has a short one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "workflow")]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from consistency.config.resolve import _merge as merged  # noqa: E402
from helpers import ROOT, Project  # noqa: E402
from PIL import Image  # noqa: E402
from soak import processes  # noqa: E402
from stages import fill, small  # noqa: E402

TRAINING = {"batch_size": 32, "warmup_steps": 5, "checkpoint_every": 10, "log_every": 10}
SETTINGS = {
    "network": {"width": 16, "depth": 1},
    "teacher": {"training": {**TRAINING, "steps": 60}},
    "classifier": {"channels": 4, "training": {"steps": 30}},
    "targets": {"count": 64, "batch_size": 64, "shards": 1},
    "student": {"training": {**TRAINING, "steps": 20}},
    "consistency_training": {"budgets": [0.25], "training": {**TRAINING, "steps": 20}},
    "evaluation": {"count": 80, "sampling_steps": [1, 2]},
    "analysis": {
        "coupling_methods": ["ct-gc"],
        "steps": [10, 1280],
        "count": 64,
        "batch_size": 32,
        "gradient_budget": 0.25,
        "velocity": {"steps": 20, "count": 256},
    },
    "runs": [{"n_steps": 5, "guidance": 1, "seed": 0}, {"method": ["ct-gc"], "seed": 0}],
    "claims": ["A1", "A2"],
}
# One of every stage.
CHANGES = (
    {"data": {"seed": 1}},
    {"schedule": {"beta_end": 0.013}},
    {"classifier": {"seed": 1}},
    {"teacher": {"training": {"steps": 70}}},
    {"teacher": {"timestep_offset": 0}},
    {"targets": {"seed": 3}},
    {"targets": {"count": 96}},
    {"student": {"training": {"learning_rate": 1e-3}}},
    {"methods": {"direct": {"loss": {"kind": "pseudo_huber"}}}},
    {"consistency_training": {"training": {"learning_rate": 1e-3}}},
    {"evaluation": {"count": 90}},
    {"evaluation": {"seed": 5}},
    {"evaluation": {"neighbours": 5}},
    {"evaluation": {"neighbours": 5, "start_times": 3}},
    {"analysis": {"steps": [10, 640]}},
    {"claims": ["A1"]},
    {"title": "Another title"},
    {"replicates": "students"},
    {"runs": [{"n_steps": 5, "guidance": 1, "seed": [0, 1]}, {"method": ["ct-gc"], "seed": [0, 1]}]},
    {"runs": [{"n_steps": 5, "guidance": [1, 4], "seed": 0}, {"method": ["ct-gc"], "seed": 0}]},
    {"runs": [{"n_steps": 5, "guidance": 4, "seed": 0}, {"method": ["ct-gc"], "seed": 0}]},
)
IMAGES = {"data": {"kind": "images", "name": "mine", "source": "data/mine", "side": 8, "labels": "folder"}}
STATES = 14
# Of every kind of rule, and by them of every stage; the other figures and pages are made alike, and take long.
TARGETS = tuple(
    f"results/{name}"
    for name in (
        "metrics.csv",
        "tables/claims.md",
        "tables/digits-main.csv",
        "figures/digits-tradeoff.png",
        "pages/digits-samples.html",
    )
)
RULES = ("prepare_data", "train_teacher", "solve_targets", "train_student", "sample_student", "measure_student")
FILES = (
    "digits/data.safetensors",
    "digits/classifier",
    "digits/teacher-s0",
    "digits/noise-s0.safetensors",
    "digits/students/ct-gc-s0",
    "digits/samples/ct-gc-s0.safetensors",
    "digits/features/data.safetensors",
    "digits/metrics/ct-gc-s0.json",
    "digits/metrics.csv",
    "claims.csv",
)
WAYS = ("interrupt", "terminate", "kill everything", "kill a job", "missing file", "until", "one file", "full disk")
# What a run leaves that depends on nothing but the state: not the logs, and not what holds measured times. A record holds
# all settings.
SAME = (
    "**/*.safetensors",
    "**/.records/*.json",
    "**/metrics.csv",
    "**/claims.csv",
    "tables/*",
    "figures/*.png",
    "pages/*",
)
TIMED = {"digits-convergence.png"}  # its second axis is seconds


@dataclass(frozen=True)
class State:
    """Settings laid over the preset, and which images the user has: version 0 is none."""

    settings: str
    images: int

    def enter(self, project: Project) -> None:
        """Write the configuration, and replace the images where they are others."""
        settings = {"experiments": ["digits"], "overrides": {"digits": json.loads(self.settings)}}
        (project.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        mark = project.folder / "data/version"
        if self.images and (not mark.is_file() or mark.read_text() != str(self.images)):
            shutil.rmtree(project.folder / "data", ignore_errors=True)
            numbers = np.random.default_rng(self.images)
            for name in ("a", "b"):
                (project.folder / "data/mine" / name).mkdir(parents=True)
                for k in range(100):
                    pixels = numbers.integers(0, 256, (8, 8, 3), np.uint8)
                    path = project.folder / f"data/mine/{name}/{k}.png"
                    Image.fromarray(pixels).save(path)
                    os.utime(path, (self.images, self.images))  # records hold times of change
            mark.write_text(str(self.images))


def states(seed: int, count: int = STATES) -> list[State]:
    """The plain settings, and others with up to three changes; some with images of the user's own."""
    numbers, found = random.Random(seed), [State(json.dumps(SETTINGS), 0)]
    while len(found) < count:
        settings = SETTINGS
        for change in numbers.sample(CHANGES, numbers.randint(1, 3)):
            settings = merged(settings, change)
        images = numbers.choice((0, 0, 1, 2))
        state = State(json.dumps(merged(settings, IMAGES) if images else settings), images)
        found += [state] * (state not in found)
    return found


def outcome(results: Path) -> dict[str, bytes]:
    """File → bytes of everything that must be the same."""
    files = {path for pattern in SAME for path in results.glob(pattern) if path.is_file() and path.name not in TIMED}
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(files)}


@dataclass
class Walk:
    """A project that goes from state to state.

    Args:
        disk: whether its results are on a small file system of their own, which can be filled.
    """

    project: Project
    seed: int
    states: list[State]
    disk: bool = False
    fresh: dict[State, dict[str, bytes]] = field(default_factory=dict)
    ways: Counter[str] = field(default_factory=Counter)
    steps: list[str] = field(default_factory=list)  # of the current sequence, for a message

    def expected(self, state: State) -> dict[str, bytes]:
        """What a run from nothing makes of a state."""
        if state not in self.fresh:
            with tempfile.TemporaryDirectory(prefix="fresh-") as place:
                project = Project(Path(place) / "project")
                state.enter(project)
                project.snakemake(*TARGETS)
                self.fresh[state] = outcome(project.folder / "results")
        return self.fresh[state]

    def sequence(self, number: int) -> list[str]:
        """One sequence; the files that are not as they should be, none where all is well."""
        numbers, self.steps = random.Random(f"{self.seed}-{number}"), []
        for _ in range(numbers.randint(1, 3)):
            self._enter(numbers)
            self._run_interrupted(numbers)
            if numbers.random() < 0.1:
                self.steps.append("Snakemake's notes removed")
                shutil.rmtree(self.project.folder / ".snakemake")
        state = self._enter(numbers)
        self._unlock()
        done = self.project.snakemake(*TARGETS, check=False)
        if done.returncode:
            return [f"the last run failed: {(done.stdout + done.stderr)[-3000:]}"]
        expected, results = self.expected(state), outcome(self.project.folder / "results")
        return [name for name, content in expected.items() if results.get(name) != content]

    def _enter(self, numbers: random.Random) -> State:
        state = numbers.choice(self.states)
        state.enter(self.project)
        self.steps.append(f"state {self.states.index(state)}")
        return state

    def _unlock(self) -> None:
        locks = self.project.folder / ".snakemake/locks"
        if locks.is_dir() and any(locks.iterdir()):
            self.project.snakemake("--unlock")

    def _run_interrupted(self, numbers: random.Random) -> None:
        way = numbers.choice(WAYS if self.disk else WAYS[:-1])
        self.ways[way] += 1
        self._unlock()
        results = self.project.folder / "results"
        if way in ("until", "one file", "missing file", "full disk"):
            name, arguments, undo = f"results/{numbers.choice(FILES)}", list(TARGETS), lambda: None
            if way == "until":
                arguments += ["--until", numbers.choice(RULES)]
            elif way == "one file":
                arguments = [name]
            elif way == "missing file" and (path := self.project.folder / name).exists():
                aside = results / "aside"
                path.rename(aside)

                def undo() -> None:
                    if path.exists():  # it was made anew
                        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
                    else:
                        aside.rename(path)
            elif way == "full disk":
                undo = fill(results).unlink
            self.steps.append(
                f"{way} ({name if way == 'missing file' else arguments[-1]})" if way != "full disk" else way
            )
            self.project.snakemake(*arguments, check=False)
            undo()
            return
        delay = numbers.uniform(1.5, 8.0)
        self.steps.append(f"{way} after {delay:.1f} s")
        self._run_and_signal(way, delay, numbers)

    def _run_and_signal(self, way: str, delay: float, numbers: random.Random) -> None:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *TARGETS]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen(command, cwd=self.project.folder, env=environment, start_new_session=True, **quiet)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(delay)
        if way == "interrupt":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGINT)
        elif way == "terminate":
            run.terminate()
        elif way == "kill a job":
            if jobs := sorted(pid for pid, process in processes(run.pid).items() if process.rule):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(numbers.choice(jobs), signal.SIGKILL)
        else:
            run.kill()
        end = time.monotonic() + 120
        while run.poll() is None or processes(run.pid):
            if way == "kill everything" or time.monotonic() > end:
                for pid in processes(run.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                run.poll()
            time.sleep(0.05)


def walk(place: Path, sequences: range, seed: int, disk: bool, say=print) -> tuple[Counter[str], float]:
    """Go through sequences; how often each way came up, and the seconds.

    Raises:
        AssertionError: results that are not those of a run from nothing, with the sequence's steps.
    """
    began = time.monotonic()
    project = Project(place / "project")
    with small(project.folder / "results", "256m") if disk else contextlib.nullcontext():
        way = Walk(project, seed, states(seed), disk)
        for number in sequences:
            wrong = way.sequence(number)
            assert not wrong, (
                f"sequence {number} of seed {seed}: {'; '.join(way.steps)}: {len(wrong)} files are not those of a run "
                f"from nothing: {wrong[:10]}"
            )
            say(f"{number:4} {'; '.join(way.steps)}: as from nothing", flush=True)
    return way.ways, time.monotonic() - began


def main() -> None:
    """The long form; exits with an error where anything differs."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--first", type=int, default=0, help="number of the first sequence")
    options.add_argument("--sequences", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-disk", action="store_true", help="without full disks, which need the right to mount")
    options.add_argument("--write", action="store_true", help="record it in benchmarks/changes.md")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="changes-") as place:
        numbers = range(chosen.first, chosen.first + chosen.sequences)
        ways, seconds = walk(Path(place), numbers, chosen.seed, not chosen.no_disk)
    text = report(chosen.sequences, chosen.seed, ways, seconds)
    if chosen.write:
        (ROOT / "benchmarks" / "changes.md").write_text(text, encoding="utf-8")
    print(text)


def report(sequences: int, seed: int, ways: Counter[str], seconds: float) -> str:
    """What is recorded of a walk."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = "".join(f"| {way} | {count} |\n" for way, count in sorted(ways.items()))
    return f"""# Changes and interruptions

`python tests/changes.py --sequences {sequences} --seed {seed} --write` (part of `make soak`) at commit {commit.stdout.strip()},
{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores, {seconds:.0f} s.

{sequences} random sequences of changes of the configuration and of the user's images, in one folder, one after the other. In each,
one to three runs did not get to their end, and the last one did. After each sequence all data, weights, targets, samples, features,
records, metrics, claims and tables, a figure and a page were byte for byte those of a run from nothing.

| a run ended by | times |
|---|---|
{rows}"""


if __name__ == "__main__":
    main()
