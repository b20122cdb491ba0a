"""Files that one process holds: waited for, refused, released by any death of their holder."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys

import pytest
from consistency.errors import LockedError
from consistency.files.locks import hold, hold_for, release
from helpers import ROOT

HOLDER = "import sys; sys.path.insert(0, 'workflow'); from consistency.files.locks import hold; "


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a file until it is killed."""
    code = HOLDER + f"file = hold({str(tmp_path / 'job.lock')!r}); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_held_by_a_living_process(tmp_path, holder):
    with pytest.raises(LockedError, match=rf"job.lock is held by process {holder.pid} on \S+$"):
        hold(tmp_path / "job.lock")


def test_waits_until_the_holder_is_killed(tmp_path, holder):
    code = HOLDER + f"hold({str(tmp_path / 'job.lock')!r}, wait=True).write('mine')"
    waiting = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    line = waiting.stderr.readline()
    assert line.startswith(f"waiting for process {holder.pid} on ")
    assert line.endswith("job.lock\n")
    assert waiting.poll() is None
    holder.kill()
    assert waiting.wait(timeout=30) == 0
    first, second = (tmp_path / "job.lock").read_text().splitlines()  # anew, not after what the other one wrote
    assert first.startswith(f"process {waiting.pid} on ")
    assert second == "mine"


def test_one_who_waited_for_a_released_lock_holds_the_new_one(tmp_path):
    """`release` removes the file; whoever waited for that file would otherwise hold one that nobody sees."""
    held = hold(tmp_path / "job.lock")
    code = (
        HOLDER + f"file = hold({str(tmp_path / 'job.lock')!r}, wait=True); print('held', flush=True); sys.stdin.read()"
    )
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    waiting = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **options)
    assert "waiting for" in waiting.stderr.readline()
    release(held)
    assert waiting.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {waiting.pid}"):
        hold(tmp_path / "job.lock")
    waiting.communicate("")


def test_shared_by_several_and_refused_to_one_who_wants_it_alone(tmp_path):
    with hold(tmp_path / "running", share=True), hold(tmp_path / "running", share=True):
        assert len((tmp_path / "running").read_text().splitlines()) == 2
        with pytest.raises(LockedError):
            hold(tmp_path / "running")
    hold(tmp_path / "running").close()


def test_a_file_system_without_locks_is_said_and_survived(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold(tmp_path / "job.lock", wait=True).close()
    assert capsys.readouterr().err == (
        f"{tmp_path / 'job.lock'}: no lock (No locks available), a second process is not kept out\n"
    )


def test_the_slurm_job_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    hold(tmp_path / "job.lock").close()
    assert (tmp_path / "job.lock").read_text().endswith(", SLURM job 17\n")


# One working folder and no other


def start_for(path, place, rest="print('held', flush=True); sys.stdin.read()"):
    """A process that holds `path` for `place`, or says why it cannot."""
    place.mkdir(exist_ok=True)
    code = HOLDER.replace("hold; ", "hold_for; ") + (
        f"from consistency.errors import LockedError\ntry: file = hold_for({str(path)!r}, {str(place)!r})\n"
        f"except LockedError as error: sys.exit(print(error))\n{rest}"
    )
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **options)


def test_beside_processes_of_the_same_folder_and_of_no_other(tmp_path):
    path, mine, other = tmp_path / "results/.running", tmp_path / "a b é", tmp_path / "other"
    first = start_for(path, mine)
    assert first.stdout.readline() == "held\n"
    with start_for(path, mine) as second:
        assert second.stdout.readline() == "held\n"
        other.mkdir()
        with pytest.raises(LockedError, match=rf"\.running is held by process {second.pid} on \S+, in {mine}$"):
            hold_for(path, other)
        second.communicate("")
    with pytest.raises(LockedError, match=rf"held by process \d+ on \S+, in {mine}$"):
        hold_for(path, other)
    first.kill()
    first.communicate()
    hold_for(path, other).close()
    with start_for(path, mine) as again:
        assert again.stdout.readline() == "held\n"
        again.communicate("")


def test_folders_of_one_name_on_two_machines(tmp_path):
    """What tells them apart is the inode; here the folder is another one of that name."""
    path, place = tmp_path / ".running", tmp_path / "checkout"
    place.mkdir()
    with hold_for(path, place):
        place.rename(tmp_path / "elsewhere")
        (tmp_path / "between").mkdir()  # lest the inode is given again
        place.mkdir()
        with pytest.raises(LockedError, match=r", in .*/checkout$"):
            hold_for(path, place)


def test_several_of_two_folders_at_once(tmp_path):
    """Of each moment's holders all are of one folder, and somebody holds it."""
    for turn in range(4):
        path = tmp_path / f"{turn}.running"
        started = [start_for(path, tmp_path / name) for name in "abab"]
        told = [process.stdout.readline() for process in started]
        held = {name for name, line in zip("abab", told) if line == "held\n"}
        assert len(held) == 1, told
        for process in started:
            process.communicate("")


def test_a_full_disk_below_the_lock_of_a_folder(small_disk, tmp_path):
    """It is held without a word, and still keeps out another folder."""
    (small_disk / ".running").touch()
    with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
    with hold_for(small_disk / ".running", places[0]):
        if (small_disk / ".running").read_text():
            pytest.skip("this file system had room for a line")
        with pytest.raises(LockedError, match="of another folder"):
            hold_for(small_disk / ".running", places[1])


def test_a_folder_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold_for(tmp_path / ".running", tmp_path).close()
    assert capsys.readouterr().err.count("no lock (Operation not supported)") == 1


def test_nobody_reads_what_is_said(tmp_path, monkeypatch):
    """A lock that is waited for is had also where standard error is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    held = hold(tmp_path / "job.lock")
    code = HOLDER + f"hold({str(tmp_path / 'job.lock')!r}, wait=True); open({str(tmp_path / 'had')!r}, 'w').close()"
    waiting = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=write)
    os.close(write)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1)
    held.close()
    waiting.wait(timeout=30)
    assert (tmp_path / "had").exists()
