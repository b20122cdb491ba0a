"""The sizes up to which files are read, and how a file is read up to them.

A small file may ask for gigabytes: zeros that were compressed, a header that declares a size, a sparse file. A file
that is larger than what it is for can be is refused before memory is taken for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..errors import StorageError

MB = 10**6
IMAGE = 400 * MB  # an encoded image: 120 million pixels of three bytes, uncompressed
PIXELS = 120_000_000  # of an image: above photographs of 100 megapixels; Pillow takes four bytes for each
LABEL = 1 * MB  # a label or caption beside an image
LABELS = 512 * MB  # all of them in one archive: 400 bytes for each of 1.2 million images
TABLE = 128 * MB  # a metadata table: 100 bytes for each of 1.2 million images
ROW = 1 * MB  # a line of it: JSON takes up to 24 times its size in memory
MEMBERS = 2_000_000  # files in an archive, each of which takes up to 1 KB of memory: ImageNet has 1.3 million
NAMES = 256 * MB  # their names: 100 bytes each, and pax headers allow any length
MEMBER_HEADER = 1 * MB  # the headers of one member of a tar: names and attributes, at most some KB
UNPACKED, RATIO = 1000 * MB, 100  # what an archive may unpack to: that, and 100 bytes for each of its own (PNG: 1 to 2)
LINKED = 20_000  # folders that are reached through links: links to folders of links multiply
IDX = 16 + 60_000 * 28 * 28  # the largest file of Fashion-MNIST
ARRAY = 512 * MB  # an array of ImageNet at 32×32: 128,117 images of 3,072 bytes
RECORDS = 64 * MB  # JSON and JSON lines of this pipeline, of a few MB: JSON takes up to 24 times its size in memory
RESULTS = 1000 * MB  # a CSV of this pipeline: 50 KB for each of 20,000 runs
CAPTIONS = 256 * MB  # the captions of a data set: 200 bytes for each of 1.2 million images
HEADER = 16 * MB  # a safetensors file's list of tensors: 100 bytes for each of thousands
CONFIG = 1 * MB  # a network's configuration from elsewhere, of a few KB
TOKENS = 64 * MB  # a tokenizer's vocabulary from elsewhere, of at most 20 MB
WHOLE = 1_000_000  # a whole number in such a configuration: vocabularies have up to 300,000 entries
CLASSES = 30_000  # labels that it names: the largest ImageNet has 21,843
LAYERS = 1000  # layers that it asks for: SDXL's UNet has 60


def shown(size: int) -> str:
    """A number of bytes, for messages."""
    return f"{size / MB:,.{0 if size >= 10 * MB else 1}f} MB"


@contextmanager
def readable(path: str | os.PathLike) -> Iterator[None]:
    """Turn what the operating system says while `path` is read into one line, a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error


def regular(path: str | os.PathLike) -> BinaryIO:
    """A file, opened to be read. Opening a FIFO would wait for a writer, and a device may never end.

    Raises:
        StorageError: missing, unreadable, or no regular file.
    """
    with readable(path):
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise irregular(path)
    return file


def irregular(path: str | os.PathLike) -> StorageError:
    """The error of a path that names a FIFO, a device or a socket."""
    return StorageError(f"{path}: a FIFO, a device or a socket; allowed: a regular file, put one in its place")


def check_size(what: str | os.PathLike, size: int, most: int) -> None:
    """Raise StorageError where `what` has more than `most` bytes."""
    if size > most:
        raise StorageError(f"{what}: {shown(size)}, allowed: at most {shown(most)}")


def read(path: str | os.PathLike, most: int = RECORDS) -> bytes:
    """A file's bytes, at most `most` of them.

    Raises:
        StorageError: missing, unreadable, no regular file, or larger.
    """
    with readable(path), regular(path) as file:
        check_size(path, os.fstat(file.fileno()).st_size, most)
        return file.read()


def check_linked(folder: str | os.PathLike, count: int) -> None:
    """Raise StorageError where so many folders in a folder are reached through links."""
    if count > LINKED:
        raise StorageError(
            f"{folder}: more than {LINKED:,} folders in it are reached through links, allowed: at most that"
        )
