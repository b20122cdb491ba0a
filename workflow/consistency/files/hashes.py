"""Hashes: of files and folders, and those that files carry.

Everything that `storage` writes carries a sha256, so that a flipped bit is found before it becomes a number. One rule
says where: inside the file, under the key sha256, as the hash of the file with these 64 digits replaced by zeros.

    safetensors                     in the metadata
    JSON, JSON lines                in the object, in the last object
    checkpoints                     in a line of JSON before torch's archive
    folders, CSV                    have no room: in a list that `sha256sum -c` reads, SHA256SUMS or NAME.csv.sha256

Inside, because Snakemake moves, caches and deletes a file without what lies beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import StorageError
from . import bounds

SUMS = "SHA256SUMS"  # of a folder
ZEROS = "0" * 64
AGAIN = "delete it and run again"


def sha256(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        StorageError: the file is missing, unreadable, or no regular file.
    """
    with bounds.readable(path), bounds.regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_file(folder: str | Path) -> Path:
    """The folder's one safetensors file.

    Raises:
        StorageError: none or several of them.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if len(files) != 1:
        raise StorageError(f"{folder}: one .safetensors file expected, found {len(files)}")
    return files[0]


def weights_sha256(folder: str | Path) -> str:
    """sha256 of the folder's one safetensors file, which must be as the folder's SHA256SUMS says, where there is one.

    Raises:
        StorageError: none or several of them, or a damaged one.
    """
    file = weights_file(folder)
    sums = _sums(folder)
    return same(file, sha256(file), sums.get(file, ZEROS) if sums else None)


def same(path: Path, digest: str, recorded: str | None, again: str = AGAIN) -> str:
    """`digest`; raises StorageError where another sha256 than it is recorded."""
    if recorded is not None and digest != recorded:
        raise StorageError(f"{path}: damaged: sha256 is {digest[:12]}…, recorded was {recorded[:12]}…; {again}")
    return digest


def _files(folder: Path) -> list[Path]:
    """The folder's files but for SHA256SUMS and hidden ones, which Snakemake adds."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if file.name != SUMS and not file.name.startswith(".")]


def write_sums(folder: Path) -> None:
    """Write the folder's SHA256SUMS."""
    names = sorted(file.relative_to(folder).as_posix() for file in _files(folder))
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _sums(folder: str | Path) -> dict[Path, str]:
    """What the SHA256SUMS of the folder, or of the folder above it (of a pipeline), says of the folder's files."""
    folder = Path(folder)
    for root in (folder, folder.parent):
        if (root / SUMS).is_file():
            lines = bounds.read(root / SUMS, bounds.CONFIG).decode(errors="replace").split("\n")
            parts = [line.partition("  ") for line in lines]
            for _, _, name in parts[:-1]:
                # A link in the folder is followed: Snakemake's cache leaves links to its files.
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                    raise StorageError(f"{root / SUMS}: names {name!r}, which lies elsewhere; allowed: files in {root}")
            sums = {root / (name or "?"): digest for digest, _, name in parts[:-1]}
            sums = {file: digest for file, digest in sums.items() if file.is_relative_to(folder)}
            # in folders that it names: Snakemake's cache, filled twice at once, leaves a copy in a folder below
            named = {folder, *(file.parent for file in sums)}
            unknown = (file for file in _files(folder) if file.parent in named and file not in sums)
            if parts[-1] != ("", "", "") or any(unknown):
                raise StorageError(f"{root / SUMS}: damaged: not the list of the files; delete {root} and run again")
            return sums
    return {}


def check_folder(folder: str | Path, without: tuple[str, ...] = ()) -> None:
    """Compare the folder's files with its SHA256SUMS; of a folder from elsewhere, which has none, check kinds and sizes
    of the files alone.

    Args:
        without: sub-folders that are not going to be read.

    Raises:
        StorageError: a file that is missing or damaged; a FIFO, a device or a socket; a text larger than any model's.
    """
    _check_kinds(Path(folder))
    for file, recorded in _sums(folder).items():
        if not {*file.relative_to(folder).parts[:1]} & {*without}:
            if not file.is_file():
                raise StorageError(f"{file}: no such file, which {SUMS} names; delete {folder} and run again")
            again = f"delete {folder} and run again (or, if the change is yours, its {SUMS})"
            same(file, sha256(file), recorded, again)


def _check_kinds(folder: Path) -> None:
    """Look at the files that a library is going to open, which would wait for a FIFO and read a text of any size."""
    for file in folder.rglob("*"):
        try:
            status = file.stat()
        except OSError:  # a link that leads nowhere: the library says that the file is missing
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise bounds.irregular(file)
        if file.suffix in (".json", ".txt"):
            bounds.check_size(file, status.st_size, bounds.TOKENS)


def check_seal(path: str | os.PathLike, content: bytes, sealed: Any, rest: BinaryIO | None = None) -> None:
    """Raise unless `content`, and what is left of the file `rest`, has the sha256 that `sealed` states."""
    stated = sealed.get("sha256") if isinstance(sealed, dict) else None
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated) or content.count(stated.encode()) != 1:
        raise StorageError(f"{path}: damaged, or not written by this pipeline: it states no sha256; {AGAIN}")
    digest = hashlib.sha256(content.replace(stated.encode(), ZEROS.encode()))
    if rest is not None:
        digest = hashlib.file_digest(rest, lambda: digest)
    same(Path(path), digest.hexdigest(), stated)
