"""Files: written atomically, hashed, memory-mapped when read, never unpickled without weights_only.

Everything is written to a temporary name in the same folder, fsynced and renamed, so a reader
sees either the whole file or none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StorageError

if TYPE_CHECKING:
    import numpy as np
    import torch


def _explain(error: BaseException, path: Path) -> str:
    """One line for an operating-system or serialisation error met while writing `path`."""
    code = getattr(error, "errno", None)
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        free = shutil.disk_usage(path.parent).free / 1e6
        return f"{path}: disk full while writing ({free:.1f} MB free); free some space and run again"
    if code in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path}: cannot be written ({os.strerror(code)}); choose a writable results folder"
    return f"{path}: cannot be written: {text}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync and rename it, on failure remove it.

    The caller writes either one file or one folder of files under that name.

    Raises:
        StorageError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            for file in temporary.rglob("*"):
                _fsync(file)
            if path.exists():
                shutil.rmtree(path)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise StorageError(_explain(error, path)) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise StorageError(_explain(error, path)) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def check_writable(folder: str | os.PathLike) -> None:
    """Make `folder` and try to write in it.

    Raises:
        StorageError: it cannot be made or written.
    """
    folder = Path(folder)
    probe = folder / f".tmp-{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"results: {folder} cannot be written ({os.strerror(error.errno)}); choose a writable folder"
        ) from error


def sha256(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        StorageError: the file is missing or unreadable.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error


def weights_sha256(folder: str | Path) -> str:
    """sha256 of the folder's one safetensors file.

    Raises:
        StorageError: none or several of them.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if len(files) != 1:
        raise StorageError(f"{folder}: one .safetensors file expected, found {len(files)}")
    return sha256(files[0])


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON.

    Raises:
        StorageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
    except ValueError as error:
        raise StorageError(f"{path}: is not valid JSON ({error}); delete it and run again") from error


def save_tensors(
    path: str | os.PathLike,
    tensors: dict[str, torch.Tensor] | dict[str, np.ndarray],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write tensors (of torch, or NumPy arrays) to one safetensors file; `metadata` is stored as one JSON string.

    One key only: safetensors writes several in a random order, and equal content shall give equal bytes.
    """
    header = {"json": json.dumps(metadata or {}, sort_keys=True)}
    with atomic(path) as temporary:
        if all(type(v).__module__ == "numpy" for v in tensors.values()):
            from numpy import ascontiguousarray
            from safetensors.numpy import save_file

            save_file({k: ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata=header)
        else:
            from safetensors.torch import save_file

            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=header)


def load_tensors(
    path: str | os.PathLike,
    names: list[str] | None = None,
    expected_sha256: str | None = None,
    framework: str = "pt",
    rows: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Memory-map the tensors of a safetensors file (pages are read on use) with its metadata.

    Args:
        names: which tensors; all by default.
        expected_sha256: checked against the file's bytes before anything is used.
        framework: "pt" for torch tensors, "np" for NumPy arrays (no torch import).
        rows: read only the first rows of each tensor; all by default.

    Raises:
        StorageError: missing, truncated, changed, or a name that the file does not hold.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file; it is made by an earlier stage, run that first")
    if expected_sha256 is not None and (found := sha256(path)) != expected_sha256:
        raise StorageError(
            f"{path}: damaged: sha256 is {found[:12]}…, recorded was {expected_sha256[:12]}…; "
            "delete the file and run again"
        )
    try:
        with safe_open(path, framework=framework) as file:
            known = set(file.keys())
            wanted = sorted(known) if names is None else names
            if missing := [name for name in wanted if name not in known]:
                raise StorageError(f"{path}: holds no tensor {missing[0]!r}; it has {sorted(known)}")
            tensors = {name: file.get_tensor(name) if rows is None else _first(file, name, rows) for name in wanted}
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
    except (SafetensorError, ValueError) as error:
        raise StorageError(
            f"{path}: not a readable safetensors file (truncated or damaged: {error}); delete it and run again"
        ) from error
    return tensors, metadata


def _first(file: Any, name: str, rows: int) -> Any:
    """The first rows of a tensor of an open safetensors file, or all of a shorter one."""
    part = file.get_slice(name)
    return part[: min(rows, part.get_shape()[0])]
