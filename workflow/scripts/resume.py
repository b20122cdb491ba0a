"""Go on after a snakemake that was killed or lost its machine: what it left running ends first, then snakemake starts.

usage: resume.py SNAKEMAKE-ARGUMENTS, in the folder of the run; the same arguments as before.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from _surroundings import give_caches, give_name, open_streams, say
from consistency.errors import LockedError
from consistency.files.locks import hold

SECONDS = 300  # for what was left to end; SLURM itself kills 30 s (KillWait) after its first signal


def jobs_left() -> list[str]:
    """SLURM jobs that an earlier snakemake submitted from this folder, by id."""
    if not Path(".snakemake/slurm_logs").is_dir():  # of the plug-in
        return []
    command = ["squeue", f"--user={os.getuid()}", "--noheader", "--format=%i|%k|%Z"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"resume: {' '.join(command)}: {done.stderr.strip()}")
    rows = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") > 1]
    here = os.path.realpath(".")  # the plug-in's comment tells its jobs from others of this folder
    return [job for job, comment, folder in rows if comment.startswith("rule_") and os.path.realpath(folder) == here]


def scripts_left() -> dict[psutil.Process, str]:
    """Processes on this machine that run a script of this folder, and the script."""
    jobs = os.path.realpath(".snakemake/scripts") + os.sep
    scripts = {}
    for process in psutil.process_iter(["cmdline", "uids"]):
        words = process.info["cmdline"] or []
        script = next((Path(word).name for word in words[1:] if word.startswith(jobs)), None)
        if script and process.info["uids"] and process.info["uids"].real == os.getuid() and "python" in words[0]:
            scripts[process] = script
    return scripts


def end_what_is_left() -> None:
    """Cancel jobs, end scripts (training writes a checkpoint), and wait until they are gone."""
    if jobs := jobs_left():
        say(f"resume: cancels {len(jobs)} SLURM jobs of an earlier snakemake: {' '.join(jobs)}")
        subprocess.run(["scancel", *jobs], check=False)
    end = time.monotonic() + SECONDS
    while jobs := jobs_left():
        if time.monotonic() > end:
            sys.exit(f"resume: SLURM jobs {' '.join(jobs)} don't end (squeue says why); nothing was started")
        time.sleep(1)
    scripts = scripts_left()
    for process, script in scripts.items():
        say(f"resume: ends process {process.pid}: {script}")
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was stopped would not notice
    _, left = psutil.wait_procs(list(scripts), timeout=max(end - time.monotonic(), 0))
    if left:
        sys.exit(f"resume: processes {[process.pid for process in left]} don't end; nothing was started")


if __name__ == "__main__":
    open_streams()
    give_name()
    give_caches()
    try:
        alone = hold(".snakemake/running")
    except LockedError as error:
        sys.exit(f"resume: a snakemake lives in this folder; let it go on, or end it first ({error})")
    end_what_is_left()
    alone.close()
    snakemake = [sys.executable, "-m", "snakemake", *sys.argv[1:]]
    unlocked = subprocess.run([*snakemake, "--unlock"], check=False, capture_output=True, text=True)
    if unlocked.returncode:
        sys.exit(unlocked.stderr.strip())
    os.execv(sys.executable, [*snakemake, "--rerun-incomplete"])
