"""Nothing is written through a link, or into a pipe, that lies where a file of the pipeline's own is to be."""

import os
import subprocess
import sys

import numpy as np
import pytest
from consistency.data.fetch import downloads
from consistency.errors import StorageError
from consistency.files import atomic, filesystems, locks, storage
from consistency.training import loop
from helpers import ROOT


@pytest.fixture
def victim(tmp_path):
    """Somebody's file, which must stay as it is."""
    file = tmp_path / "home" / "victim"
    file.parent.mkdir()
    file.write_text("precious\n")
    yield file
    assert file.read_text() == "precious\n"
    assert os.listdir(file.parent) == ["victim"]


WRITERS = {
    "text": lambda path: storage.write_text(path, "new"),
    "json": lambda path: storage.write_json(path, {"new": 1}),
    "records": lambda path: storage.write_records(path, [{"new": 1}]),
    "tensors": lambda path: storage.save_tensors(path, {"new": np.ones(3)}),
    "sealed": lambda path: storage.write_sealed(path, b"new"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("target", ["victim", "none", "folder"])
def test_a_link_in_the_place_of_a_result_is_replaced(tmp_path, victim, write, target):
    path = tmp_path / "results" / "file"
    path.parent.mkdir()
    path.symlink_to({"victim": victim, "none": victim.with_name("absent"), "folder": victim.parent}[target])
    write(path)
    assert path.is_file(), f"{path} is not a file"
    assert not path.is_symlink(), f"{path} is still a link to {os.readlink(path)}"


def test_a_link_in_the_place_of_a_folder_is_replaced(tmp_path, victim):
    path = tmp_path / "model"
    path.symlink_to(victim.parent)
    with storage.atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")
    assert not path.is_symlink()
    assert sorted(os.listdir(path)) == ["SHA256SUMS", "weights"]


def test_temporary_names_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(20):
        with storage.atomic(tmp_path / "a.json") as temporary:
            names.add(temporary.name)
            temporary.touch()
    assert len(names) == 20, f"{len(names)} names in 20 writes: {sorted(names)[:3]}"


def test_a_link_under_a_temporary_name_is_swept_and_its_target_is_not(tmp_path, victim):
    node = os.uname().nodename
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / f".tmp-{node}-{int(gone.stdout)}-0123abcd-a.json"
    left.symlink_to(victim.parent)
    storage.write_json(tmp_path / "a.json", {})
    assert not os.path.lexists(left)


def test_the_probe_of_a_folder_follows_no_link(tmp_path, victim):
    for pid in (os.getpid(), os.getpid() + 1):
        (tmp_path / f".tmp-{pid}-probe").symlink_to(victim.with_name("made"))
    atomic.check_writable(tmp_path)


@pytest.fixture(params=["victim", "absent"])
def link(request, tmp_path, victim):
    """A link to somebody's file, or to a name beside it that nothing has."""
    path = tmp_path / "linked"
    path.symlink_to(victim.with_name(request.param))
    return path


def test_locks_are_not_opened_through_links(link):
    for share in (False, True):
        with pytest.raises(OSError, match="symbolic links"):
            locks.hold(link, share=share)
    with pytest.raises(OSError, match="symbolic links"):
        locks.hold_for(link, os.curdir)


def test_statistics_are_not_appended_through_links(link):
    with pytest.raises(StorageError, match="linked: is a link, and nothing is written through links; remove it"):
        loop.write_stats(link, [{"step": 1}], append=True)


def test_the_caches_locks_are_not_opened_through_links(tmp_path, victim, monkeypatch):
    monkeypatch.setenv("CONSISTENCY_CACHE", str(tmp_path / "cache"))
    lock = tmp_path / "cache" / "locks" / "files--x.lock"
    lock.parent.mkdir(parents=True)
    lock.symlink_to(victim)
    with pytest.raises(StorageError, match="x.lock: cannot be written"), downloads.locked("files/x"):
        pass


def test_new_files_of_a_size_are_new(link):
    with pytest.raises(FileExistsError):
        filesystems.take(link, 10)


def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device or address"):
        filesystems.no_link(str(pipe), os.O_WRONLY | os.O_APPEND)
    with pytest.raises(StorageError, match="pipe: cannot be written"):
        loop.write_stats(pipe, [{"step": 1}], append=True)


JOB = """
import sys
from types import SimpleNamespace
sys.path.append(sys.argv[1])
from _job import job
with job(SimpleNamespace(rule="stage", log=["log"], threads=1, resources={}, output=["out"], input=[], params={})):
    open("out", "w").close()
"""


@pytest.mark.parametrize("name", ["log", "log.lock"])
@pytest.mark.parametrize("kind", ["victim", "absent", "pipe"])
def test_a_job_whose_log_or_lock_is_a_link_stops(tmp_path, victim, name, kind):
    folder = tmp_path / "run"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(victim.with_name(kind))
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(ROOT / "workflow" / "scripts")],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"stage: {name}: "), line
    assert ("is a link, and nothing is written through links; remove it" in line) == (kind != "pipe"), line
    assert not (folder / "out").exists()
