"""The jobs of a finished project, and faults at each of its rules through the real snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from helpers import Project, missing


@dataclass
class Job:
    """A job that has run."""

    rule: str
    outputs: list[str]
    inputs: set[str]
    before: set[int]  # numbers of the jobs that it stands on, directly or not


def jobs_of(project: Project) -> list[Job]:
    """The jobs of a finished project, each after what it stands on."""
    done = project.snakemake("--detailed-summary")
    found: dict[tuple[str, str], Job] = {}
    for line in done.stdout.splitlines()[1:]:
        output, _, rule, log, inputs, *_ = line.split("\t")
        job = found.setdefault((rule, log), Job(rule, [], set(inputs.split(",")) - {""}, set()))
        job.outputs.append(output)
    jobs, ordered, made = list(found.values()), [], {}
    while jobs:
        ready = [job for job in jobs if not any(i in other.outputs for other in jobs for i in job.inputs)]
        jobs = [job for job in jobs if job not in ready]
        for job in ready:
            direct = {made[i] for i in job.inputs if i in made}
            job.before = direct.union(*(ordered[number].before for number in direct))
            made |= dict.fromkeys(job.outputs, len(ordered))
            ordered.append(job)
    return ordered


def groups(jobs: list[Job], wanted: list[list[int]]) -> list[list[int]]:
    """One of the jobs of each list, in as few groups as is easy, none of a group standing on another of it."""
    found: list[list[int]] = []
    for choices in wanted:
        for group, job in ((group, job) for group in found for job in choices):
            if not any(job in jobs[other].before or other in jobs[job].before for other in group):
                group.append(job)
                break
        else:
            found.append([choices[0]])
    return found


@contextmanager
def small(place: Path, size: str = "1m", options: str = "") -> Iterator[Path]:
    """A file system of that size at `place`."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        missing(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """Write a file until no byte is free."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


def complaints(stderr: str, rule: str) -> list[str]:
    """The lines in which jobs of a rule say why they stop."""
    return [line for line in stderr.splitlines() if line.startswith(f"{rule}: ")]


def restore(original: Path, place: Path) -> Project:
    """Make `place`, which may hold a mounted `results`, the same as the original; a project."""
    for folder in (place / "results", place):
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.is_dir() and not path.is_symlink() and path.name != "results":
                shutil.rmtree(path)
            elif path.name != "results":
                path.unlink()
    shutil.copytree(original, place, symlinks=True, dirs_exist_ok=True)
    project = Project.__new__(Project)
    project.folder = place
    return project


def full_disk(finished: Project, place: Path, same: Callable[[Path], dict[str, bytes]], again: int = 1) -> list[str]:
    """Let one job of every rule of a copy of the project meet a full disk; the rules that did.

    Args:
        again: every so many-th group of jobs is run again when space is free, and must end with the same bytes.
    """
    jobs = jobs_of(finished)
    by_rule: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        by_rule.setdefault(job.rule, []).append(number)
    expected = same(finished.folder / "results")
    (place / "results").mkdir(parents=True)
    with small(place / "results", "128m") as results:
        for number, group in enumerate(groups(jobs, list(by_rule.values()))):
            project = restore(finished.folder, place)
            for path in (place / name for job in group for name in jobs[job].outputs):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            filler = fill(results)
            targets = [jobs[job].outputs[0] for job in group]
            done = project.snakemake("--keep-going", *targets, check=False)
            assert done.returncode != 0
            for job in (jobs[job] for job in group):
                lines = complaints(done.stderr, job.rule)
                assert len(lines) == 1, (job.rule, lines, done.stderr[-3000:])
                assert "disk full while writing" in lines[0], lines[0]
                assert not [name for name in job.outputs if (place / name).exists()], job.outputs
            assert "Traceback" not in done.stderr, done.stderr[-6000:]
            assert not list(results.rglob(".tmp-*"))
            filler.unlink()
            if number % again == 0:
                project.snakemake("--keep-going", *targets)
                found = same(results)
                assert [name for name in expected if found.get(name) != expected[name]] == []
    return sorted(by_rule)


def flip(path: Path, random: Random) -> None:
    """Flip one bit; rot leaves no trace in the file's times."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def consumers(jobs: list[Job]) -> dict[tuple[str, int, str], list[tuple[int, str]]]:
    """(rule that makes a kind of file, which of its outputs, rule that reads it) → jobs of the latter, and the file."""
    found: dict[tuple[str, int, str], list[tuple[int, str]]] = {}
    for number, job in enumerate(jobs):
        for maker in sorted(job.before):
            for position, name in enumerate(jobs[maker].outputs):
                if name in job.inputs:
                    found.setdefault((jobs[maker].rule, position, job.rule), []).append((number, name))
    return found


def flipped_inputs(
    finished: Project, place: Path, kinds: list[tuple[str, int, str]], rows: Callable[[Path], Any], random: Random
) -> tuple[list[str], list[str]]:
    """Flip a bit of a file of each kind and let a job of the rule read it, through the real snakemake.

    It must name the file and stop, or its output must be the same: then it doesn't use what was flipped.

    Returns:
        what stopped a job, and what a job didn't use.
    """
    jobs = jobs_of(finished)
    choices, caught, unused = consumers(jobs), [], []
    left = [(kind, choices[kind]) for kind in kinds]
    while left:
        chosen: list[tuple[tuple[str, int, str], int, str]] = []
        for kind, places in list(left):
            for job, name in places:
                apart = all(
                    job != other and job not in jobs[other].before and other not in jobs[job].before
                    and name not in jobs[other].inputs and flipped not in jobs[job].inputs
                    for _, other, flipped in chosen
                )  # fmt: skip
                if apart:
                    chosen.append((kind, job, name))
                    left.remove((kind, places))
                    break
        project = restore(finished.folder, place)
        damaged = {}
        for _, job, name in chosen:
            path = place / name
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
            damaged[job] = random.choice(files) if path.is_dir() else path
            flip(damaged[job], random)
        targets = [jobs[job].outputs[0] for _, job, _ in chosen]
        done = project.snakemake("--keep-going", "--force", *targets, check=False)
        assert "Traceback" not in done.stderr, done.stderr[-6000:]
        for kind, job, name in chosen:
            what = f"{kind[0]} → {damaged[job].name} → {kind[2]}"
            lines = [line for line in complaints(done.stderr, jobs[job].rule) if name in line]
            if lines:
                assert len(lines) == 1, lines
                assert not any((place / output).exists() for output in jobs[job].outputs)
                caught.append(what)
            else:
                for output in jobs[job].outputs:
                    original = finished.folder / output
                    assert rows(place / output) == rows(original), f"{what}: other numbers\n{done.stderr[-3000:]}"
                unused.append(what)
    return caught, unused
