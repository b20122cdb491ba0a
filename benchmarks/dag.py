"""What is measured on the workflow: the last whole run of this checkout, nothing to do, dry runs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from consistency.files import storage
from timing import ROOT, Row, Spread, paired, row

SNAKEMAKE = [sys.executable, "-m", "snakemake"]


def jobs(folder: Path) -> list[dict[str, Any]]:
    """Rule, start and end of every job whose record Snakemake keeps in a folder's .snakemake."""
    records = {}
    for file in (folder / ".snakemake" / "metadata").rglob("*"):
        if not file.is_file():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("rule") and record.get("endtime") and record.get("log"):
            records[record["log"][0]] = {key: record[key] for key in ("rule", "starttime", "endtime")}
    return sorted(records.values(), key=lambda job: job["starttime"])


def last_run(folder: Path, cores: int) -> Iterator[Row]:
    """How well the cores were used by the whole run that a checkout holds.

    The jobs' time is from a job's start to its end as Snakemake records them, its process's start included. A checkout
    whose jobs were not all run in one go gives no efficiency.
    """
    records = jobs(folder)
    if len(records) < 10:
        return
    wall = max(job["endtime"] for job in records) - records[0]["starttime"]
    busy = sum(job["endtime"] - job["starttime"] for job in records)
    gaps = [b["starttime"] - a["starttime"] for a, b in itertools.pairwise(records)]
    setting = f"{len(records)} jobs, {cores} cores"
    if max(gaps) < 120:
        yield row("Workflow", "the last run", setting, "first job's start to last job's end", "s", wall)
        yield row("Workflow", "the last run", setting, "sum of the jobs' seconds / cores", "s", busy / cores)
        note = "job seconds include each process's start (python and torch)"
        share = busy / cores / wall
        yield row("Workflow", "the last run", setting, "share of the cores' time in jobs", "", share, note=note)
    rules: dict[str, list[float]] = {}
    for job in records:
        rules.setdefault(job["rule"], []).append(job["endtime"] - job["starttime"])
    shortest = min(Spread.of(seconds).median for seconds in rules.values())
    note = "its process's start, and little else"
    yield row(
        "Workflow", "the last run", f"{len(records)} jobs", "shortest rule: seconds of a job", "s", shortest, note=note
    )
    for rule, seconds in sorted(rules.items(), key=lambda item: -sum(item[1]))[:8]:
        what, note = f"{rule}: seconds of a job", f"{sum(seconds) / busy:.0%} of all jobs' time"
        yield row("Workflow", "the last run", f"{len(seconds)} jobs", what, "s", Spread.of(seconds), note=note)


def timed(*arguments: str) -> tuple[float, str]:
    """Seconds and output of a snakemake command in this checkout."""
    began = time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*SNAKEMAKE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"snakemake {' '.join(arguments)[:200]}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout + done.stderr


def small_file(rounds: int) -> Iterator[Row]:
    """Time to check a file as jobs of the small tiers read some of: 256 kB, hashed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.safetensors"
        storage.save_tensors(path, {"x": torch.zeros(1000, 64)})
        seconds = paired({"check": lambda: storage.check_tensors(path)}, rounds)["check"]
    yield row("Workflow", "a file is read", "256 kB", "check of its hash", "s", Spread.of(seconds))


def nothing_to_do(rounds: int) -> Iterator[Row]:
    """Time of a run that finds everything made; none where this checkout has something to do."""
    _, said = timed("--cores", "all", "--dry-run")
    if "Nothing to be done" in said:
        seconds = [timed("--cores", "all")[0] for _ in range(rounds)]
        yield row(
            "Workflow", "default experiments", "everything made", "snakemake --cores all", "s", Spread.of(seconds)
        )


def dry_runs(sizes: list[int]) -> Iterator[Row]:
    """Time of a dry run of so many runs: two methods, five seeds, as many guidance scales as it takes."""
    for size in sizes:
        scales = [1 + number / 1000 for number in range(size // 10)]
        grid = {
            "solver": "ddim",
            "n_steps": 10,
            "guidance": scales,
            "seed": [0, 1, 2, 3, 4],
            "method": ["cm", "direct"],
        }
        changed = {"digits": {"runs": [grid], "analysis": {"coupling_methods": []}, "claims": ["A1", "A2", "A3"]}}
        with tempfile.TemporaryDirectory() as folder:
            config = ["experiments=digits", f"results={folder}", f"overrides={json.dumps(changed)}"]
            seconds, said = timed("--dry-run", "--quiet", "rules", "--config", *config)
        total = next((line.split()[1] for line in said.splitlines() if line.startswith("total ")), "?")
        yield row("Workflow", "dry run", f"{size:,} runs, {total} jobs", "snakemake -n", "s", seconds)
