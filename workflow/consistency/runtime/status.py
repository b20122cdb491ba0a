"""What is being trained and what is finished, read from the results folder alone.

It works while jobs run, here or on a cluster, and changes nothing. Of a training it reads `training.json` and
`stats.jsonl` in its side folder (`loop.train`); of the other stages it counts outputs. Files that are not what a
training writes are left out, and names are printed without what a terminal would obey.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from ..errors import printable

# A training is called stale when its last record is older than this (s), and than three times what a record takes.
QUIET, QUIET_AT_FIRST = 60.0, 600.0
LARGEST = 1e15  # of a number that is shown
STAGES = {
    "targets": "targets/*/manifest.json",
    "students": "students/*/student.json",
    "samples": "samples/*.safetensors",
    "features": "features/*.safetensors",
    "metrics": "metrics/*.json",
}
COLUMNS = ("experiment", "training", "step", "of", "%", "loss", "grad norm", "samples/s", "ETA", "last record")


@dataclass(frozen=True)
class Training:
    """One that has begun, and whose outputs are not written yet. What has no record yet is None.

    Attributes:
        left: seconds that the other steps take at the last record's rate.
        age: seconds since its last record, or since it began.
        stale: whether that is longer than its records take, so that it has probably ended or hangs.
    """

    experiment: str
    run: str
    step: int
    steps: int
    loss: float | None
    grad_norm: float | None
    samples_per_s: float | None
    left: float | None
    age: float
    stale: bool


def trainings(results: str | Path, now: float | None = None) -> list[Training]:
    """The trainings in progress, by experiment and run.

    Args:
        now: seconds since 1970; the clock by default.
    """
    now = time.time() if now is None else now
    trainings = (_training(folder, now) for folder in sorted(Path(results).glob("*/checkpoints/*")))
    return [training for training in trainings if training is not None]


def _training(folder: Path, now: float) -> Training | None:
    """One side folder; None where it is none, or has just been removed."""
    plan, stats = folder / "training.json", folder / "stats.jsonl"
    try:
        steps = json.loads(_end_of(plan))["steps"]
        records = [record for line in _end_of(stats).splitlines() if (record := _record(line))]
        age = max(0.0, now - (stats if records else plan).stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(steps) is not int or not 1 <= steps < LARGEST:
        return None
    last = records[-1] if records else {"step": 0}
    before = records[-2] if len(records) > 1 else {"step": 0, "seconds": 0.0}
    seconds = last["seconds"] - before["seconds"] if records else None
    rate = (last["step"] - before["step"]) / seconds if seconds and seconds > 0 else None
    return Training(
        experiment=folder.parts[-3],
        run=folder.name,
        step=last["step"],
        steps=steps,
        loss=last.get("loss"),
        grad_norm=last.get("grad_norm"),
        samples_per_s=last.get("samples_per_s"),
        left=(steps - last["step"]) / rate if rate and rate > 0 else None,
        age=age,
        stale=age > (QUIET_AT_FIRST if seconds is None else max(QUIET, 3 * seconds)),
    )


def _end_of(path: Path, size: int = 4096) -> bytes:
    """The file's last bytes; none where it is no regular file, such as a pipe, which would be waited for."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()


def _record(line: bytes) -> dict[str, float]:
    """The numbers of a line of `stats.jsonl`; empty for a line that is not whole (cut, or being written) or odd."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    numbers = {key: value for key, value in record.items() if type(value) in (int, float) and abs(value) < LARGEST}
    if type(numbers.get("step")) is int and numbers["step"] >= 0 and numbers.get("seconds", -1) >= 0:
        return numbers
    return {}


def finished(results: str | Path) -> dict[str, dict[str, int]]:
    """Experiment → stage → number of outputs that are there."""
    counts = {
        folder.name: {stage: len(list(folder.glob(pattern))) for stage, pattern in STAGES.items()}
        for folder in sorted(Path(results).glob("*"))
    }
    return {experiment: stages for experiment, stages in counts.items() if any(stages.values())}


def table(results: str | Path) -> str:
    """Both as plain text."""
    rows = [
        (
            printable(t.experiment),
            printable(t.run),
            t.step,
            t.steps,
            100 * t.step // t.steps,
            _number(t.loss),
            _number(t.grad_norm),
            "" if t.samples_per_s is None else f"{t.samples_per_s:.0f}",
            "" if t.left is None or t.stale else tqdm.format_interval(t.left),
            f"{tqdm.format_interval(t.age)} ago" + (", stale" if t.stale else ""),
        )
        for t in trainings(results)
    ]
    now = tabulate(rows, COLUMNS, disable_numparse=True, colalign=("left", "left", *["right"] * 7, "left"))
    counts = [(printable(experiment), *stages.values()) for experiment, stages in finished(results).items()]
    done = tabulate(counts, ("finished", *STAGES))
    return "\n\n".join([now if rows else "no training in progress", *([done] if counts else [])])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
