"""Locks on files, held by a living process: the kernel releases them when it ends, whatever ends it."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from .errors import LockedError


def hold(path: str | os.PathLike, wait: bool = False, share: bool = False) -> IO[str]:
    """The file, open for appending after a line on this process; it is held until it is closed.

    The file itself is locked, so nothing is left over. On a shared file system the lock counts on every machine; where
    the file system has no locks, a line on stderr says so, and nothing is held.

    Args:
        wait: for whoever holds it, with a line on stderr; otherwise that is an error.
        share: hold it beside others that share it; lines are added. Otherwise alone, and the file begins anew.

    Raises:
        LockedError: it is held already; says by whom, as far as the file tells.
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    kind = fcntl.LOCK_SH if share else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        other = next((line for line in _lines(path) if line.startswith("process ")), "another process")
        if not wait:
            file.close()
            raise LockedError(f"{path} is held by {other}") from None
        print(f"waiting for {other}, which holds {path}", file=sys.stderr, flush=True)
        fcntl.flock(file, kind)
    except OSError as error:
        print(f"{path}: no lock ({error.strerror}); nothing keeps a second process away", file=sys.stderr, flush=True)
    if not share:
        file.truncate(0)
    job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    file.write(f"process {os.getpid()} on {socket.gethostname()}{job}\n")
    return file


def _lines(path: Path) -> list[str]:
    """The file's lines, the last one first."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[::-1]
