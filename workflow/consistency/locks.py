"""Lock files, held by a living process: the kernel releases them when it ends, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from .errors import LockedError


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if share else fcntl.LOCK_EX
    while True:
        file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            other = ([*_lines(path), "another process"])[0]
            if not wait:
                file.close()
                raise LockedError(f"{path} is held by {other}") from None
            print(f"waiting for {other}, which holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, kind)
        except OSError as error:
            print(f"{path}: no lock ({error.strerror}), a second process is not kept out", file=sys.stderr, flush=True)
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # `release` removed it in between
    if not share:
        file.truncate(0)
    job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with contextlib.suppress(OSError):  # on a full disk it is held without a word
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}{job}\n".encode())
    return file


def release(file: IO[str]) -> None:
    """Remove a lock file that this process holds alone, and let it go."""
    Path(file.name).unlink(missing_ok=True)
    file.close()


def _lines(path: Path) -> list[str]:
    """What the file says of its holders, the last one first."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[::-1]
    except FileNotFoundError:
        return []
