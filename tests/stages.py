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

from helpers import Project


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
    subprocess.run(command, check=True)
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


def restore(original: Project, place: Path) -> Project:
    """Make `place`, which may hold a mounted `results`, the same as the original; a project."""
    for folder in (place / "results", place):
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.is_dir() and not path.is_symlink() and path.name != "results":
                shutil.rmtree(path)
            elif path.name != "results":
                path.unlink()
    return original.copy(place)


def full_disk(finished: Project, place: Path, same: Callable[[Path], dict[str, bytes]], again: int = 1) -> list[str]:
    """Let one job of every rule of a copy of the project meet a full disk; the rules that did.

    Args:
        again: each group of jobs whose number this divides is run again when space is free, and must end with the same bytes.
    """
    jobs = jobs_of(finished)
    by_rule: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        by_rule.setdefault(job.rule, []).append(number)
    expected = same(finished.folder / "results")
    (place / "results").mkdir(parents=True)
    with small(place / "results", "128m") as results:
        for number, group in enumerate(groups(jobs, list(by_rule.values()))):
            project = restore(finished, place)
            for path in (place / name for job in group for name in jobs[job].outputs):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            filler = fill(results)
            targets = [jobs[job].outputs[0] for job in group]
            done = project.snakemake("--keep-going", "--rerun-triggers=mtime", *targets, check=False)
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
                project.snakemake("--keep-going", "--rerun-triggers=mtime", *targets)
                found = same(results)
                assert [name for name in expected if found.get(name) != expected[name]] == []
    return sorted(by_rule)


def flip(path: Path, random: Random) -> None:
    """Flip one bit; rot leaves no trace in the file's times."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# A file of a student's folder is read by those that load it; its card by those that measure; with all parameters
# trained, sampling doesn't need what the student began with.
CARD_ALONE = {
    ("students/*", "measure_student"),
    ("teacher", "sample_student"),
    ("initial", "sample_student"),
}


def consumers(jobs: list[Job]) -> dict[str, list[tuple[int, str]]]:
    """Kind of file → the jobs that read one of it, and its name. The report, which shows files, is left out."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, job in enumerate(jobs):
        for name in sorted(name for maker in job.before for name in jobs[maker].outputs if name in job.inputs):
            parts = Path(name).parts[1:]  # below results
            kind = parts[-1] if len(parts) <= 2 else f"{parts[1]}/*{Path(name).suffix}"
            if "students" in parts:
                kind = "students/*"
            if job.rule != "report" and (kind, job.rule) not in CARD_ALONE:
                found.setdefault(kind, []).append((number, name))
    return found


def apart(jobs: list[Job], one: tuple[int, str], other: tuple[int, str]) -> bool:
    """Whether two jobs can each meet a damaged file of their own in one call of snakemake."""
    (a, of_a), (b, of_b) = one, other
    stands = a == b or a in jobs[b].before or b in jobs[a].before
    return not stands and of_a not in jobs[b].inputs and of_b not in jobs[a].inputs


def rounds(jobs: list[Job], kinds: list[str]) -> list[list[tuple[str, int, str]]]:
    """Each kind of file once, with a job that reads one, in as few calls of snakemake as is easy."""
    choices, best = consumers(jobs), None
    for seed in range(100):
        groups: list[list[tuple[str, int, str]]] = []
        for kind in Random(seed).sample(kinds, len(kinds)):
            pairs = ((group, reads) for group in groups for reads in choices[kind])
            fits = (pair for pair in pairs if all(apart(jobs, pair[1], member[1:]) for member in pair[0]))
            group, reads = next(fits, (None, choices[kind][0]))
            if group is None:
                groups.append(group := [])
            group.append((kind, *reads))
        best = groups if best is None or len(groups) < len(best) else best
    return best


def flipped_inputs(finished: Project, place: Path, kinds: list[str], seed: int) -> None:
    """Flip a bit of a file of each kind and let a job read it, through the real snakemake: it must name it and stop."""
    jobs, random = jobs_of(finished), Random(seed)
    for group in rounds(jobs, kinds):
        project, damaged = restore(finished, place), {}
        for kind, _, name in group:
            path = place / name
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
            damaged[kind] = random.choice(files) if path.is_dir() else path
            flip(damaged[kind], random)
        done = project.snakemake("--keep-going", "--force", *(jobs[job].outputs[0] for _, job, _ in group), check=False)
        assert "Traceback" not in done.stderr, done.stderr[-6000:]
        for kind, job, name in group:
            lines = [line for line in complaints(done.stderr, jobs[job].rule) if name in line]
            assert len(lines) == 1, f"{damaged[kind]} → {jobs[job].rule}: {lines}\n{done.stderr}"
            assert not any((place / output).exists() for output in jobs[job].outputs)
