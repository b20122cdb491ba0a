"""What some file systems refuse (network shares, shared folders of virtual machines, FUSE), done in another way."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("consistency")

PIECE = 1 << 22  # bytes that are written at once
# Of a file system, or of the kernel before it, that cannot do what it is asked at all.
_UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
# Of one that does it for files only, or of a folder that may be written and not read.
_NO_FOLDERS = _UNABLE | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


def no_link(path: str, flags: int) -> int:
    """An opener, for `open`, of a file that is written: a link in its place is not followed, a pipe not waited for.

    Raises:
        OSError: ELOOP of a link, ENXIO of a pipe that nobody reads.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def fsync(path: str | os.PathLike) -> None:
    """Have a file's content, or a folder's entries, written to the disk.

    A file system that cannot do this for folders writes entries in its own time: no reason to stop. Whoever loses power
    there may find a file of before in the place of a new one, never half of it.

    Raises:
        OSError: of a file, that it is not on the disk; of a folder, a full or failing disk.
    """
    folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno not in _NO_FOLDERS:
            raise


def take(path: str | os.PathLike, size: int) -> None:
    """Write a new file of `size` bytes, all zero, with its place on the disk.

    Raises:
        OSError: no such place is free, or the folder cannot be written.
    """
    with open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            try:
                return os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in _UNABLE:
                    raise
        for first in range(0, size, PIECE):
            file.write(bytes(min(PIECE, size - first)))


@contextmanager
def mapped(path: str | os.PathLike) -> Iterator[mmap.mmap]:
    """A file's content as memory, to be changed; the changes are in the file at the end.

    Raises:
        OSError: the file cannot be opened or written.
    """
    with open(path, "r+b") as file:
        try:
            memory, held = mmap.mmap(file.fileno(), 0), False
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            size, held = os.fstat(file.fileno()).st_size, True
            memory = mmap.mmap(-1, size)
            log.warning("%s: the file system maps no files into memory; all %d MB are held there", path, size >> 20)
        yield memory
        if held:
            file.write(memory)
        else:
            memory.flush()


def read_tensors(path: str | os.PathLike, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All tensors and the metadata of a file of `storage.save_tensors`, read and not mapped.

    Args:
        framework: "pt" for torch tensors, "np" for NumPy arrays.

    Raises:
        OSError: the file cannot be read.
    """
    if framework == "np":
        from safetensors.numpy import load
    else:
        from safetensors.torch import load
    with open(path, "rb") as file:
        content = file.read()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), json.loads(header.get("__metadata__", {}).get("json", "{}"))
