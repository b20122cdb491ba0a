"""Which tests run, and shared fixtures, made once: data, a tiny teacher, small experiments run through the workflow."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CONSISTENCY_CACHE", tempfile.mkdtemp(prefix="consistency-cache-"))
# Each worker, and what it starts, computes with one thread.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | os.environ

import needs
import pytest
import torch
from filelock import FileLock
from helpers import Project
from stages import small

IN_CI = os.environ.get("CI") == "true"
LONGEST = 1200  # seconds of a test, with what is made for it


def pytest_addoption(parser):
    group = parser.getgroup("consistency pipeline")
    group.addoption("--all", action="store_true", help="run the tests marked long too")
    group.addoption("--seed", type=int, default=0, help="of the random moments of signals and kills")


def pytest_report_header(config):
    long = "; tests marked long are left out (--all runs them)" if leaves_long_out(config) else ""
    return f"seed of random moments: {config.option.seed}{long}"


def leaves_long_out(config):
    """Whether the whole suite was asked for, without --all; of a path that is named, every test is run."""
    whole = {config.rootpath, config.rootpath / "tests"}
    named = {Path(config.invocation_params.dir, argument).resolve() for argument in config.args}
    return not config.option.all and bool(whole & named)


def needs_of(item):
    """Names of what a test needs: its own marks', and its fixtures'."""
    own = [name for mark in item.iter_markers("needs") for name in mark.args]
    return own + [name for fixture in item.fixturenames for name in needs.BY_FIXTURE.get(fixture, ())]


def pytest_collection_modifyitems(config, items):
    """Leave long tests out where they are not asked for; slow files come first."""
    for item in items:
        if unknown := set(needs_of(item)) - needs.NEEDS.keys():
            raise pytest.UsageError(f"{item.nodeid}: no such need: {', '.join(sorted(unknown))}; see tests/needs.py")
    if leaves_long_out(config):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
    # Workers take files in this order, and a slow one that is begun last would be waited for.
    items.sort(key=lambda item: item.path.is_relative_to(Path(__file__).parent / "unit"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a test that needs what is missing here, before anything is made for it; in CI that is an error."""
    absent = {name: needs.missing(name) for name in needs_of(item) if needs.missing(name)}
    reason = "; ".join(absent.values())
    if IN_CI and any(needs.NEEDS[name].in_ci for name in absent):
        pytest.fail(f"{reason}; with CI=true nothing may be missing", pytrace=False)
    if absent:
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """End a test that waits for ever, where it waits."""

    def over(number, frame):
        raise AssertionError(f"not over after {LONGEST} s; the end of this traceback says what it waited for")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def moments(request):
    """Random moments for signals and kills: the same for the same test and --seed, which is shown when it fails."""
    seed = request.config.option.seed
    print(f"random moments of --seed {seed}")
    return Random(f"{request.node.nodeid} {seed}")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits file."""
    from consistency.data import prepare

    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    prepare.prepare(path, {"kind": "digits", "test_share": 0.2, "seed": 0})
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, digits):
    """A small teacher, trained a little so that its prediction depends on time, label and input."""
    from consistency.config.settings import Training
    from consistency.training import recipes

    folder = tmp_path_factory.mktemp("teacher")
    settings = Training(steps=60, batch_size=64, learning_rate=3e-3, warmup_steps=5).model_dump()
    network = {"kind": "mlp", "width": 32, "depth": 1}
    recipes.fit_teacher(
        folder / "model", folder / "stats.jsonl", folder / "side", digits, network, {"steps": 1000}, 0.1, settings, 0
    )
    return folder / "model"


@pytest.fixture
def teacher(teacher_folder):
    """That teacher, loaded."""
    from consistency.flow.schedules import VPSchedule
    from consistency.teachers.protocol import Teacher

    return Teacher.load(teacher_folder, VPSchedule())


def once(tmp_path_factory, name, make):
    """A project that is run once for all of xdist's workers; this worker's own copy of it, which no test may edit."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    done = shared.with_suffix(".done")
    with FileLock(shared.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(shared, ignore_errors=True)  # of a worker whose run failed
            make(Project(shared))
            done.touch()
    original = Project.__new__(Project)
    original.folder = shared
    return original.copy(tmp_path_factory.mktemp(name))


def unedited(project):
    """Yield the project; afterwards no test must have edited it, as all share it."""
    before = files(project.folder)
    yield project
    after = files(project.folder)
    edited = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not edited, f"a test has edited the shared {project.folder.name}, of which it should take a copy: {edited}"


def files(folder):
    """File → size and time of everything in a folder but what snakemake keeps for itself, and Python's caches."""
    own = {".snakemake", "__pycache__"}
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and not own & set(path.parts))
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The small experiment, run once from nothing; tests only read it."""
    yield from unedited(once(tmp_path_factory, "finished", lambda project: project.snakemake()))


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """A small experiment on two modes with both papers' methods, run once; tests only read it."""

    def make(project):
        project.configure_exact({})
        project.snakemake()

    yield from unedited(once(tmp_path_factory, "exact", make))


@pytest.fixture
def finished_copy(finished, tmp_path):
    """A copy of the finished small experiment, to edit."""
    return finished.copy(tmp_path / "project")


@pytest.fixture
def exact_copy(exact, tmp_path):
    """A copy of the small experiment on two modes, to edit."""
    return exact.copy(tmp_path / "project")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    with small(tmp_path / "small") as place:
        yield place
