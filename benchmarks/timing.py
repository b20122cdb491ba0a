"""Paired measurements: A B A B … in one process, so that a machine that changes its speed changes both."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))


Row = dict[str, Any]


def row(
    section: str, case: str, setting: str, quantity: str, unit: str, value: Spread | float, *, note: str = ""
) -> Row:
    """One line of the table."""
    spread = value if isinstance(value, Spread) else Spread(float(value), float(value), float(value), 1)
    numbers = {"value": spread.median, "low": spread.low, "high": spread.high, "rounds": spread.count}
    return {
        "section": section,
        "case": case,
        "setting": setting,
        "quantity": quantity,
        "unit": unit,
        **numbers,
        "note": note,
    }


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    synchronise()
    began = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - began


def paired(functions: dict[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each function, called in turn `rounds` times after `warm` calls that don't count.

    Returns:
        name → a list of `rounds` seconds; the i-th of all functions were measured one after the other.
    """
    for _ in range(warm):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(clock(function))
    return seconds


def ratio(above: list[float], below: list[float]) -> Spread:
    """The ratio of paired measurements, round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def machine() -> dict[str, str]:
    """What was measured on: processor, threads, GPU, versions, commit."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "commit": (commit.stdout.strip() or "unknown") + (", changed files" if changed.stdout.strip() else ""),
    }
