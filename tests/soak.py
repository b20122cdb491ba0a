"""Long fault runs: `make soak`, or `python tests/soak.py [--kills 2] [--seed 0]`; a short version is in the suite.

1. The small experiment of the tests is run once undisturbed, and once with random processes killed -9 in every stage
   (the job's python, or snakemake with all its children), restarting each time. Both must end with the same bytes.
2. The disk is full at every stage (`stages.py`); after space is freed the same command must finish.
3. A fuzz of the readers (`fuzz.py`).

What happened is written to benchmarks/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "workflow")]

from helpers import ROOT, Project, surroundings, wait_for  # noqa: E402
from stages import full_disk  # noqa: E402

LONGEST = 1800  # seconds of one run
# What a run leaves that depends on nothing but configuration and seeds. The rest (logs, metrics JSON, stats, cards) holds
# times; their numbers are in metrics.csv.
SAME = ("**/*.safetensors", "*/targets/*/manifest.json", "**/metrics.csv", "**/claims.csv", "tables/*")


def outcome(results: Path) -> dict[str, bytes]:
    """File → bytes of everything that must be the same."""
    found = {path for pattern in SAME for path in results.glob(pattern) if path.is_file()}
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(found)}


@dataclass
class Process:
    """A process of a run."""

    pid: int
    rule: str  # of a job; "" for others
    since: float = field(default_factory=time.monotonic)


def processes(session: int) -> dict[int, Process]:
    """The living processes of a session."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, _, _, of_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(of_session) == session and state != "Z":
            # as a word of its own, which it is not in the shell's command
            rules = [re.search(r"^/.*\.snakemake/scripts/tmp[^./]*\.(\w+)\.py$", word) for word in command[1:]]
            pid = int(folder.name)
            found[pid] = Process(pid, next((rule[1] for rule in rules if rule), ""))
    return found


class Soak:
    """Runs an experiment while its processes are killed.

    Args:
        quota: kills wanted in each stage (a stage is a script), of which about half take snakemake along.
        durations: seconds that a job of each stage takes; its death is drawn from there.
        only: the stages; all by default.
    """

    def __init__(self, project: Project, quota: int, seed: int, durations: dict[str, float], say=print, only=()):
        self.project, self.quota, self.say, self.only = project, quota, say, only
        self.random, self.durations = random.Random(seed), durations
        if quota:
            self.say(f"kills at random moments, --seed {seed}")
        self.kills: Counter[tuple[str, str]] = Counter()
        self.seen: dict[str, float] = {}

    def killed(self, stage: str) -> int:
        """Kills in a stage so far."""
        return sum(count for (name, _), count in self.kills.items() if name == stage)

    def start(self, *targets: str) -> subprocess.Popen:
        """Start snakemake in a session of its own."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *targets]
        with open(self.project.folder / "soak.log", "a") as log:
            return subprocess.Popen(
                command, cwd=self.project.folder, stdout=log, stderr=log, env=surroundings(), start_new_session=True
            )

    def run(self, *targets: str) -> None:
        """Run to the end, which comes when each stage has had its quota of kills, or was lucky."""
        code = None
        while code != 0:
            locks = self.project.folder / ".snakemake" / "locks"
            if locks.is_dir() and any(locks.iterdir()):
                self.project.snakemake("--unlock")
            before = self.total()
            code = self._once(targets)
            if code and self.total() == before:
                raise AssertionError(f"snakemake failed without a kill:\n{self.said()}")

    def said(self) -> str:
        """The end of what snakemake has said."""
        return (self.project.folder / "soak.log").read_text()[-5000:]

    def _once(self, targets: tuple[str, ...]) -> int:
        run, known, due = self.start(*targets), {}, {}
        end = time.monotonic() + LONGEST
        try:
            while run.poll() is None:
                time.sleep(0.02)
                now, alive = time.monotonic(), processes(run.pid)
                if now > end:
                    raise AssertionError(
                        f"waited for the end of snakemake: not after {LONGEST} s; seen:\n{self.said()}"
                    )
                for pid in known.keys() - alive.keys():
                    gone = known.pop(pid)
                    self.seen[gone.rule] = max(self.seen.get(gone.rule, 0), now - gone.since)
                for pid, process in alive.items():
                    if process.rule and pid not in known:
                        known[pid] = process
                        if self.killed(process.rule) < self.quota and (not self.only or process.rule in self.only):
                            longest = self.durations.get(process.rule, 3.0)
                            longest *= 1 if self.killed(process.rule) else 0.5  # the first one shall not come too late
                            # of a stage that is over in a moment, and runs once, there may be no second chance
                            soon = longest < 0.2 and not self.killed(process.rule)
                            due[pid] = now if soon else now + self.random.uniform(0.02, longest)
                for pid in [pid for pid, at in due.items() if at <= now]:
                    del due[pid]
                    if pid in alive and self._kill(run, known[pid]):
                        return -1
        finally:
            self._end(run)
        return run.returncode

    def _kill(self, run: subprocess.Popen, job: Process) -> bool:
        """Kill one job, or everything; whether it was everything."""
        everything = self.random.random() < 0.5
        try:
            os.kill(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills[job.rule, "all" if everything else "job"] += 1
        self.say(f"{self.total():4} kill -9 {'snakemake and all jobs, in' if everything else 'the job of'} {job.rule}")
        return everything

    def _end(self, run: subprocess.Popen) -> None:
        """Kill what lives in the session, until nothing does."""

        def none_left() -> bool:
            alive = processes(run.pid)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not alive

        wait_for(none_left, "the end of all killed processes", seen=lambda: processes(run.pid))
        run.wait()

    def total(self) -> int:
        """Kills so far."""
        return sum(self.kills.values())


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Files that are missing, too many or of other bytes."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def main() -> None:
    """The whole soak; exits with an error where anything differs."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=3, help="in each stage")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--fuzz", type=int, default=180_000, help="inputs of the fuzz")
    given = options.parse_args()

    import fuzz

    began, lines, disk = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        kinds = {"digits": "configure", "gaussians-modes": "configure_exact"}
        for experiment, configure in kinds.items():
            calm, rough = (Project(Path(place) / f"{experiment}-{name}") for name in ("calm", "rough"))
            for project in (calm, rough):
                getattr(project, configure)({})
            first = Soak(calm, 0, 0, {})
            first.run()
            soak = Soak(rough, given.kills, given.seed, first.seen, lambda text: print(text, flush=True))
            soak.run()
            results = rough.folder / "results"
            wrong = differences(outcome(results), outcome(calm.folder / "results"))
            left = [str(path) for path in results.rglob(".tmp-*")]
            if wrong or left or rough.jobs():
                sys.exit(f"soak: {experiment}: other bytes in {wrong}, left behind {left}, to do {rough.jobs()}")
            stages = sorted({stage for stage, _ in soak.kills})
            if missed := sorted(first.seen.keys() - set(stages)):
                sys.exit(f"soak: {experiment}: no kill in {missed}; another --seed")
            lines += [f"| {experiment} | {s} | {soak.kills[s, 'job']} | {soak.kills[s, 'all']} |" for s in stages]
            disk += full_disk(calm, Path(place) / f"{experiment}-disk", outcome)
            lines += [f"| {experiment} | *together* | {soak.total()} kills | {len(outcome(results))} files the same |"]
            print(lines[-1], flush=True)
    fuzzed = fuzz.run(given.fuzz, given.seed)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    text = f"""# Soak

`python tests/soak.py --kills {given.kills} --seed {given.seed} --fuzz {given.fuzz}` (`make soak`) at commit
{commit.stdout.strip()}, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores shared with other work, {time.monotonic() - began:.0f} s.

## Kill −9 in every stage

Against an undisturbed run: targets, weights, samples, features, metrics.csv, claims.csv and tables are the same byte for byte.

| experiment (small, of the tests) | stage | job killed | snakemake and all jobs killed |
|---|---|---|---|
{chr(10).join(lines)}

## Full disk at every stage

Each of these rules met a disk with no byte free, said so in one line, left no output and no temporary file, and the same
command finished when space was free: {", ".join(sorted(set(disk)))}.

## Fuzz of the readers

Inputs are mutations of valid files, and files that declare more than they hold. Nothing but the documented errors, no wrong
value, {fuzzed["seconds"]:.0f} s; the process held {fuzzed["grown_mb"]:.0f} MB more at the end, and at most {fuzzed["peak_mb"]:.0f} MB more.

| reader | inputs | refused | read |
|---|---|---|---|
"""
    text += "".join(f"| {name} | {n} | {bad} | {good} |\n" for name, (n, bad, good) in fuzzed["readers"].items())
    (ROOT / "benchmarks" / "soak.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
