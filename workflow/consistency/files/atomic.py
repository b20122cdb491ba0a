"""Files and folders that are written whole or not at all.

Everything is written to a temporary name in the same folder, fsynced and renamed, so a reader sees either the whole
file or none. Temporary names cannot be guessed, and no link in the place of a file is written through.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StorageError
from .filesystems import fsync
from .hashes import write_sums

UNFINISHED: set[Path] = set()  # files and folders that `remove_unfinished` removes


def explain(error: BaseException, path: Path) -> str:
    """One line for an operating-system or serialisation error met while writing `path`."""
    code = getattr(error, "errno", None)
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free / 1e6
        return f"{path}: disk full while writing ({free:.1f} MB free); free some space and run again"
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path}: cannot be written ({os.strerror(code)}); choose a writable results folder"
    if code == errno.ELOOP:
        return f"{path}: is a link, and nothing is written through links; remove it"
    return f"{path}: cannot be written: {text}"


@contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn what the operating system or safetensors says while `path` is written into one line.

    Raises:
        StorageError: the folder is not writable, the disk is full, ….
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise StorageError(explain(error, Path(path))) from error
        raise


@contextmanager
def atomic(path: str | os.PathLike, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync and rename it, on failure remove it.

    The caller writes either one file or one folder of files under that name; a folder gets its SHA256SUMS.

    Args:
        durable: whether a power cut must not lose it; False spares the fsync.

    Raises:
        StorageError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    UNFINISHED.add(temporary)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            yield temporary
            if temporary.is_dir():
                write_sums(temporary)
                for file in temporary.rglob("*"):
                    fsync(file)
                _remove(path, quietly=False)
            if durable:
                fsync(temporary)
            os.replace(temporary, path)
            if durable:
                fsync(path.parent)
    finally:
        _remove(temporary)
        UNFINISHED.discard(temporary)


def remove_unfinished() -> None:
    """Remove what `atomic` has not finished, before a process ends without its `finally` clauses."""
    for path in UNFINISHED:
        _remove(path)


def _remove(path: Path, quietly: bool = True) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=quietly)
    else:
        path.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that were killed while they wrote `path` have left."""
    name = re.compile(rf"\.tmp-{re.escape(os.uname().nodename)}-(\d+)-[0-9a-f]{{8}}-{re.escape(path.name)}")
    for entry in os.listdir(path.parent):
        if match := name.fullmatch(entry):
            try:
                os.kill(int(match[1]), 0)
            except (ProcessLookupError, OverflowError):
                _remove(path.with_name(entry))
            except OSError:  # another user's, and alive
                pass


def check_writable(folder: str | os.PathLike) -> None:
    """Make `folder` and try to write in it.

    Raises:
        StorageError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-"):
            pass
    except OSError as error:
        raise StorageError(
            f"results: {folder} cannot be written ({os.strerror(error.errno)}); choose a writable folder"
        ) from error
