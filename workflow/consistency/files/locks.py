"""Lock files, held by a living process: the kernel releases them when it ends, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from ..errors import LockedError
from .filesystems import no_link


def hold(path: str | os.PathLike, wait: bool = False, share: bool = False) -> IO[str]:
    """Hold a lock file until it is closed or this process ends; a line in it says who holds it.

    On a shared file system the lock counts on every machine. Where the file system has no locks, a line on stderr says
    so, and nothing is held.

    Args:
        wait: for whoever holds it, with a line on stderr; otherwise that is an error.
        share: hold it beside others that share it.

    Raises:
        LockedError: it is held already; says by whom.
        OSError: it cannot be written.
    """
    path, kind = Path(path), fcntl.LOCK_SH if share else fcntl.LOCK_EX
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            other = ([*_lines(path), "another process"])[0]
            if not wait:
                file.close()
                raise LockedError(f"{path} is held by {other}") from None
            _tell(f"waiting for {other}, which holds {path}")
            fcntl.flock(file, kind)
        except OSError as error:
            _tell_no_lock(path, error)
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # `release` removed it in between
    if not share:
        file.truncate(0)
    _sign(file)
    return file


def hold_for(path: str | os.PathLike, working_folder: str | os.PathLike) -> IO[str]:
    """As `hold`, for a working folder: beside other processes of that folder, and of no other.

    Raises:
        LockedError: processes of another folder hold it; says which.
        OSError: it cannot be written, or there is no such folder.
    """
    folder = "".join(letter if letter.isprintable() else "?" for letter in os.path.realpath(working_folder))
    mine = f"in {folder} (inode {os.stat(working_folder).st_ino})"  # two machines may have a folder of that name each
    path, alone = Path(path), True
    file = _opened(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        _write(file, mine)
    except BlockingIOError:
        alone = False
    except OSError as error:
        _tell_no_lock(path, error)
        return file
    # From one kind of lock to the other a process of another folder may come between: what is read now counts.
    fcntl.flock(file, fcntl.LOCK_SH)
    lines = _lines(path)
    theirs = lines[-1] if lines else mine if alone else "of another folder"  # on a full disk there is no line
    if theirs != mine:
        file.close()
        raise LockedError(f"{path} is held by {[*lines[:-1], 'a process'][0]}, {theirs.partition(' (inode ')[0]}")
    _sign(file)
    return file


def release(file: IO[str]) -> None:
    """Remove a lock file that this process holds alone, and let it go."""
    Path(file.name).unlink(missing_ok=True)
    file.close()


def _opened(path: Path) -> IO[str]:
    """The file, to be locked in either way: on NFS a lock that is shared wants one that can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+", encoding="utf-8", buffering=1, opener=no_link)


def _sign(file: IO[str]) -> None:
    """Write who holds the file."""
    job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    _write(file, f"process {os.getpid()} on {socket.gethostname()}{job}")


def _write(file: IO[str], line: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk it is held without a word
        os.write(file.fileno(), os.fsencode(f"{line}\n"))


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        print(line, file=sys.stderr, flush=True)


def _tell_no_lock(path: Path, error: OSError) -> None:
    _tell(f"{path}: no lock ({error.strerror}), a second process is not kept out")


def _lines(path: Path) -> list[str]:
    """What the file says of its holders, the last one first."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[::-1]
    except FileNotFoundError:
        return []
