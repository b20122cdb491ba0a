"""Files that one process holds: waited for, refused, released by any death of their holder."""

import errno
import fcntl
import subprocess
import sys

import pytest
from consistency.errors import LockedError
from consistency.locks import hold, release
from helpers import ROOT

HOLDER = "import sys; sys.path.insert(0, 'workflow'); from consistency.locks import hold; "


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
