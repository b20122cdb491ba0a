"""Where it runs: any character in a path, closed or broken streams, no home, no name, two checkouts on one results folder."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from helpers import ROOT, Project

DATA = "results/digits/data.safetensors"
METRICS = "digits/metrics/cm-ddim-n5-w1-s0.json"
ODD = "a b'c\"d [e] $HOME %s #1 & ; (é日本) !~,=\\"


def environment(**more):
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more


def python_in(folder):
    """An interpreter of its own with our packages, as `make` puts it into a checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = folder.glob(".venv/lib/python*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / ".venv/bin/python"


def test_any_character_in_any_path(tmp_path):
    """Of the checkout, its interpreter, results, home and caches; from data to metrics, in forks and without."""
    place = tmp_path / ODD
    project = Project(place / f"project {ODD}")
    for name in ("home", "tmp", "cache"):
        (place / name).mkdir()
    results = place / f"results {ODD}"
    project.configure({}, results=str(results))
    known = environment(HOME=str(place / "home"), TMPDIR=str(place / "tmp"), CONSISTENCY_CACHE=str(place / "cache"))
    known.pop("XDG_CACHE_HOME", None)
    command = [python_in(project.folder), "workflow/scripts/run.py", "--cores", "2", str(results / METRICS)]
    done = subprocess.run(command, cwd=project.folder, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (results / METRICS).is_file()
    again = subprocess.run(command, cwd=project.folder, env=known, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("name", "results", "said"),
    [
        ("a{b}", "results", "configuration: this workflow's folder: .*'{' in a path means something else to Snakemake"),
        ("a<b>", "results", "configuration: this workflow's folder: .*'<b>' in a path means something else"),
        ("a", "r{s}", "configuration: results: r{s}: '{' in a path means something else to Snakemake; rename it"),
        ("a<!--", "results", "configuration: this workflow's folder: .*'<!--' in a path means something else"),
        ("a", "r</Script ><b x", "configuration: results: r</Script ><b x: '</Script' in a path means something else"),
        ("a", "r<s>", "configuration: results: r<s>: '<s>' in a path means something else to Snakemake; rename it"),
    ],
)
def test_what_snakemake_cannot_do_is_said_before_any_job(tmp_path, name, results, said):
    project = Project(tmp_path / name)
    project.configure({}, results=results)
    done = project.snakemake(check=False)
    assert done.returncode == 1
    assert re.search(f"^{said}", done.stderr, re.MULTILINE), done.stderr
    assert "rule " not in done.stderr
    assert not (project.folder / results).exists()


@pytest.mark.parametrize("how", ["<&- >&- 2>&-", ">&-", "2>&-", "2>&1 | head -n 1", ">/dev/full 2>&1"])
def test_streams_that_are_closed_or_broken(tmp_path, how):
    """It runs, or ends with a status; nothing half-made is left, and the same command then runs."""
    project = Project(tmp_path)
    command = f'"$0" workflow/scripts/run.py --cores 2 {DATA} {how}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    made = (tmp_path / DATA).is_file()
    assert (done.returncode == 0) == made, done.stdout + done.stderr
    assert made or not how.endswith("&-")
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("results/**/.tmp-*"))
    project.snakemake(DATA)


@pytest.mark.parametrize("script", ["summary", "verify", "status"])
def test_what_is_printed_for_people_is_not_read(finished, script):
    """The status is that of the same command whose output is read; a full disk is said in one line."""
    command = [sys.executable, str(ROOT / f"workflow/scripts/{script}.py")]
    read, write = os.pipe()
    os.close(read)
    options = {"cwd": finished.folder, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, stdout=write, **options)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **options)
    assert (done.returncode, done.stderr) == (1, "standard output cannot be written (No space left on device)\n")
    closed = ["bash", "-c", '"$0" "$@" <&- >&- 2>&-', *command]
    assert subprocess.run(closed, stdout=subprocess.DEVNULL, **options).returncode == 0


def test_a_summary_of_nothing_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "workflow/scripts/summary.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"summary: {tmp_path}/claims.csv: cannot be read")
    assert done.stderr.count("\n") == 1


def as_nobody(folder, *arguments, **more):
    """Run `run.py` as a user without a name, who may read everything and write only in `folder`."""
    alone = ["--reuid=12345", "--regid=12345", "--clear-groups"]
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", *alone, *reads, sys.executable, "workflow/scripts/run.py", *arguments]
    names = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "PYTHONPATH")
    known = {key: value for key, value in os.environ.items() if key not in names} | more
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)


@pytest.fixture
def away():
    """A folder that every user can reach, as pytest's are not."""
    folder = Path(f"/tmp/consistency-away-{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc"])
def test_without_a_name_and_a_home(away, home):
    """No home, one that is not there, one that cannot be written: caches of libraries have a place all the same."""
    project = Project(away / "project")
    figure = "results/figures/digits-tradeoff.png" if home is None else DATA  # matplotlib and the largest part, once
    for path in (away, *away.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    cache = {"CONSISTENCY_CACHE": str(away)}
    done = as_nobody(project.folder, "--cores", "2", figure, **({"HOME": home} if home else {}), **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.folder / figure).is_file()
    caches = project.folder / ".snakemake/caches"
    assert done.stderr.count(f"cannot be written: caches of libraries go to {caches}\n") == 1
    assert (caches / "snakemake").is_dir()
    assert not (project.folder / "~").exists()


def test_a_folder_that_cannot_be_written_is_one_line(away):
    project = Project(away / "project")
    done = as_nobody(project.folder, "--cores", "1", DATA, HOME="/nonexistent")
    assert done.returncode == 1
    assert done.stderr == (
        f"run: {project.folder} cannot be written, where Snakemake keeps its records; use a copy that is yours\n"
    )


def shared(tmp_path):
    """Two checkouts with one results folder."""
    projects = [Project(tmp_path / name) for name in ("one", "two")]
    for project in projects:
        project.configure({}, results=str(tmp_path / "shared"))
    return projects, str(tmp_path / "shared/digits/data.safetensors")


def test_two_checkouts_with_one_results_folder(tmp_path):
    """The second says before any job who is at work; after kill −9 of the first it runs."""
    (one, two), target = shared(tmp_path)
    hold = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'workflow')!r}); from consistency.files.locks import hold_for\n"
        f"file = hold_for({str(tmp_path / 'shared/.running')!r}, '.'); print('held', flush=True); sys.stdin.read()"
    )
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=one.folder, **options)
    assert holder.stdout.readline() == "held\n"
    done = two.snakemake(target, check=False)
    assert done.returncode == 1
    who = rf"held by process {holder.pid} on \S+, in {one.folder}\)"
    assert re.search(rf"^results: another snakemake is at work there \(.*{who}", done.stderr, re.MULTILINE), done.stderr
    assert "rule prepare_data" not in done.stdout + done.stderr
    assert not Path(target).exists()
    one.snakemake("--nolock", target)  # of the same folder
    Path(target).unlink()
    holder.kill()
    holder.communicate()
    two.snakemake(target)


def test_two_checkouts_that_start_at_once(tmp_path):
    (one, two), target = shared(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target]
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(command, cwd=project.folder, **options) for project in (one, two)]
    said = [process.communicate(timeout=120)[0] for process in started]
    codes = [process.returncode for process in started]
    assert 0 in codes, said
    for code, text in zip(codes, said):
        assert code == 0 or "results: another snakemake is at work there" in text, text
        assert "Error in rule" not in text


def test_a_snakemake_that_runs_holds_its_results(tmp_path):
    """A real run keeps another checkout out until it ends; `make resume` of its own folder is not kept out by what it left."""
    (one, two), _ = shared(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", str(tmp_path / "shared" / METRICS)]
    first = subprocess.Popen(command, cwd=one.folder, env=environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "shared/digits").exists():
        assert first.poll() is None, "it ended before its first job"
        assert time.monotonic() < end, "no job in 60 s"
        time.sleep(0.02)
    assert "is at work there" in two.snakemake(command[-1], check=False).stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    resume = [
        sys.executable,
        "workflow/scripts/resume.py",
        "--cores",
        "2",
        str(tmp_path / "shared/digits/data.safetensors"),
    ]
    done = subprocess.run(resume, cwd=one.folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


FAULTS = """
import resource
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

arrays = [np.ones(1 << 20) for _ in range(4)]  # 8 MB each, as activations
del arrays
before = faults()
for _ in range(50):
    a, b = np.ones(1 << 20), np.ones(1 << 20)
    del a, b
print(faults() - before)
"""


@pytest.mark.needs("linux", "glibc")
def test_freed_memory_stays_with_the_processes_that_are_started():
    """Twice 2,048 pages, fifty times: those of a process that starts as jobs do, and of another."""
    prepared = f"import sys; sys.path.insert(0, {str(ROOT / 'workflow/scripts')!r})\nimport _surroundings\n"
    start = f"{{}}\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {FAULTS!r}], check=True)\n"
    plain = {key: value for key, value in environment().items() if not key.startswith("MALLOC_")}
    counts = {}
    for how, before in (("kept", prepared + "_surroundings.prepare()"), ("returned", "")):
        command = [sys.executable, "-c", start.format(before)]
        counts[how] = int(subprocess.run(command, env=plain, check=True, capture_output=True, text=True).stdout)
    assert counts["kept"] < 5_000, counts
    assert counts["returned"] > 10_000, counts


def test_what_the_user_sets_for_the_allocator_stays(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow/scripts"))
    import _surroundings

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    _surroundings.keep_freed_memory()
    assert (os.environ["MALLOC_TRIM_THRESHOLD_"], os.environ["MALLOC_MMAP_THRESHOLD_"]) == ("4096", str(1 << 25))
