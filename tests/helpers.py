"""What several test modules share: waiting, a process's environment, and copies of the project to play with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def wait_for(
    condition: Callable[[], object],
    what: str,
    seconds: float = 60,
    *,
    seen: Callable[[], object] | None = None,
    process: subprocess.Popen | None = None,
    every: float = 0.02,
) -> object:
    """Wait until `condition` returns something true, and return that.

    Args:
        what: what is waited for, for the error.
        seconds: the longest wait.
        seen: gives what is there instead, for the error: a log, a list of jobs.
        process: what is to bring it about; when it has ended, waiting ends.

    Raises:
        AssertionError: says what was waited for and what was seen instead.
    """
    end = time.monotonic() + seconds
    while True:
        over = process is not None and process.poll() is not None  # asked first: its last act may be what is waited for
        if result := condition():
            return result
        if over or time.monotonic() > end:
            why = f"the process ended with {process.returncode}" if over else f"not after {seconds:g} s"
            instead = seen() if seen else f"the condition gave {result!r}"
            raise AssertionError(f"waited for {what}: {why}; seen instead:\n{instead}")
        time.sleep(every)


def ended(process: subprocess.Popen, what: str, seconds: float = 300, seen: Callable[[], object] = str) -> int:
    """A process's exit status, once it has ended; see `wait_for`."""
    wait_for(lambda: process.poll() is not None, f"the end of {what}", seconds, seen=seen)
    return process.returncode


def surroundings(**changes: str) -> dict[str, str]:
    """The environment for a snakemake: this one's without what would reach into it, and with changes."""
    own = ("PYTHONPATH", "CONSISTENCY_WARM")
    return {key: value for key, value in os.environ.items() if key not in own} | changes


# Small and quick, with the shape of the real thing: two solvers, two seeds, both methods.
SMALL = {
    "network": {"width": 32, "depth": 1},
    "teacher": {"training": {"steps": 120, "batch_size": 32, "checkpoint_every": 50, "log_every": 20}},
    "classifier": {"channels": 8, "training": {"steps": 60}},
    "targets": {"count": 256, "batch_size": 128, "shards": 2},
    "student": {
        "training": {"steps": 40, "batch_size": 32, "warmup_steps": 5, "checkpoint_every": 20, "log_every": 10}
    },
    "evaluation": {"count": 100, "sampling_steps": [1, 2]},
    "runs": [{"solver": "ddim", "n_steps": 5, "guidance": [1, 4], "seed": [0, 1]}],
    "replicates": "students",
}


# The digits with methods of both papers.
BOTH = {"runs": [{"seed": [0]}, {"method": ["ct-ic", "ct-ot", "ct-gc"], "seed": [0]}]}


# The exact tier and paper B's methods.
SMALL_EXACT = {
    "data": {"train_count": 256, "test_count": 128},
    "network": {"width": 32, "depth": 1},
    "teacher": {"training": {"steps": 60, "batch_size": 64}},
    "targets": {"count": 256, "batch_size": 256},
    "student": {"training": {"steps": 40, "batch_size": 32, "warmup_steps": 5}},
    "consistency_training": {"budgets": [0.25], "training": {"steps": 40, "batch_size": 32, "warmup_steps": 5}},
    "methods": {
        "cm": {"objective": "consistency_distillation"},
        "direct": {"objective": "direct"},
        "ct-gc-frozen": {"coupling": {"generator": {"method": "ct-ic", "budget": 0.25}}},
    },
    "evaluation": {"count": 64, "sampling_steps": [1, 2]},
    "analysis": {
        "coupling_methods": ["cd"],
        "steps": [10, 320, 1280],
        "count": 64,
        "batch_size": 32,
        "gradient_budget": 0.25,
        "order_steps": [5, 10],
        "velocity": {"steps": 20, "count": 256},
    },
    "runs": [
        {"method": ["cm", "direct"], "n_steps": 5, "seed": [0, 1]},
        {"method": ["cd", "ct-ic", "ct-ot", "ct-gc", "ct-gc-frozen"], "seed": [0, 1]},
    ],
    "replicates": "students",
    "claims": ["A1", "A2", "B1", "B2", "B3", "B4"],
}


class Project:
    """A checkout to play with."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "workflow", "envs"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        (folder / "profiles").symlink_to("workflow/profiles")
        self.configure({})

    def copy(self, folder: Path) -> Project:
        """A copy in `folder`, as it stands: with results, records and times, so that nothing is to be run again there.

        Snakemake records the code of figures and pages, and the report's folder, by absolute paths.
        """
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        for record in (folder / ".snakemake/metadata").rglob("*"):
            if record.is_file():
                text = record.read_text(encoding="utf-8")
                moved = re.sub(rf"{re.escape(str(self.folder))}(?![\w-])", str(folder), text)
                record.write_text(moved, encoding="utf-8")
        copy = Project.__new__(Project)
        copy.folder = folder
        return copy

    def configure(self, changes: dict, **keys) -> None:
        """Write config.yaml: the small experiment with changes laid over it."""
        from consistency.config.resolve import _merge

        settings = {"experiments": ["digits"], "results": "results", "overrides": {"digits": _merge(SMALL, changes)}}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings | keys))

    def configure_exact(self, changes: dict) -> None:
        """Write config.yaml: the small experiment on two modes with changes laid over it."""
        from consistency.config.resolve import _merge

        settings = {"experiments": ["gaussians-modes"], "overrides": {"gaussians-modes": _merge(SMALL_EXACT, changes)}}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))

    def snakemake(self, *arguments: str, check: bool = True, cores: str = "2") -> subprocess.CompletedProcess:
        """Run the real snakemake here."""
        command = [sys.executable, "-m", "snakemake", "--cores", cores, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=surroundings())
        if check and done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return done

    def jobs(self, *arguments: str) -> dict[str, int]:
        """Rule → number of jobs that a run would start."""
        done = self.snakemake("--dry-run", *arguments)
        rows = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
        return {rule: int(count) for rule, count in rows if rule not in ("total", "all", "paper")}


def solved_targets(folder: Path, digits: Path, teacher_folder: Path, count: int) -> Path:
    """The manifest of so many draws, N = 10, in one shard in `folder`."""
    from consistency.data import prepare
    from consistency.files import storage
    from consistency.flow.schedules import VPSchedule
    from consistency.teachers import manifest, targets
    from consistency.teachers.protocol import Teacher

    tensors, _ = prepare.load(digits)
    shard, path = folder / "shard-0.safetensors", folder / "manifest.json"
    pool = tensors["train_images"], tensors["train_labels"]
    teacher = Teacher.load(teacher_folder, VPSchedule())
    targets.solve_shard(shard, teacher, *pool, range(count), "paper", "ddim", 10, 1.0, 0, count)
    chosen = {"mode": "paper", "solver": "ddim", "n_steps": 10, "guidance": 1.0, "seed": 0, "count": count}
    manifest.gather(path, [shard], chosen, storage.weights_sha256(teacher_folder))
    return path


def registry_of(text: str) -> object:
    """The built-in functions and those of a user's file of this text."""
    from consistency.config.registry import Registry

    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "mine.py").write_text(text, encoding="utf-8")
        return Registry.read([file])


def registry_of_metrics(*names: str) -> object:
    """The built-in functions and metrics of these names."""
    metrics = "".join(f"@metric\ndef {name}(samples, pixels, context):\n    return 0\n" for name in names)
    return registry_of(f"from consistency.plugins import metric\n{metrics}")


def constant_rate(**changes: object) -> object:
    """Settings of a training without warm-up, decay of the learning rate or weight decay."""
    from consistency.config.settings import Training

    return Training(**{"warmup_steps": 0, "decay_share": 0, "weight_decay": 0, "learning_rate": 1e-2} | changes)


def write_any_json(path: Path, value: dict) -> None:
    """A JSON file as `storage.write_json` writes it, also of values that are not finite, which it refuses."""
    from consistency.files.hashes import ZEROS

    text = json.dumps(value | {"sha256": ZEROS}, indent=2, sort_keys=True) + "\n"
    sealed = json.dumps(value | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=2, sort_keys=True) + "\n"
    path.write_text(sealed, encoding="utf-8")
