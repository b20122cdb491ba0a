"""Files: written atomically, hashed, checked before use, memory-mapped when read.

Everything is written to a temporary name in the same folder, fsynced and renamed, so a reader sees either the whole
file or none. And everything carries a sha256, so that a flipped bit is found before it becomes a number:

    safetensors, JSON, JSON lines   inside: the sha256 of the file with these 64 digits replaced by zeros
    CSV, which has no room for it   beside it, in NAME.csv.sha256, as `sha256sum -c` reads it
    folders                         in their file SHA256SUMS, over all other files
    checkpoints                     as the last line of the file

Inside, because Snakemake moves, caches and deletes a file without what lies beside it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import StorageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

SUMS = "SHA256SUMS"  # of a folder
_ZEROS = "0" * 64
_AGAIN = "delete it and run again"


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

    The caller writes either one file or one folder of files under that name; a folder gets its SHA256SUMS.

    Raises:
        StorageError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            _write_sums(temporary)
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
    return _same(file, sha256(file), _sums(folder).get(file))


def _same(path: Path, found: str, recorded: str | None, again: str = _AGAIN) -> str:
    if recorded is not None and found != recorded:
        raise StorageError(f"{path}: damaged: sha256 is {found[:12]}…, recorded was {recorded[:12]}…; {again}")
    return found


def _write_sums(folder: Path) -> None:
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _sums(folder: str | Path) -> dict[Path, str]:
    """What the SHA256SUMS of the folder, or of the folder above it (of a pipeline), says of the folder's files."""
    folder = Path(folder)
    for place in (folder, folder.parent):
        if (place / SUMS).is_file():
            lines = _bytes(place / SUMS).decode(errors="replace").splitlines()
            parts = [line.partition("  ") for line in lines]
            if not lines or not all(re.fullmatch("[0-9a-f]{64}", digest) and name for digest, _, name in parts):
                raise StorageError(f"{place / SUMS}: damaged: no list of sha256sum; delete {place} and run again")
            found = {place / name: digest for digest, _, name in parts}
            return {file: digest for file, digest in found.items() if file.is_relative_to(folder)}
    return {}


def check_folder(folder: str | Path, without: tuple[str, ...] = ()) -> None:
    """Compare the folder's files with its SHA256SUMS; a folder from elsewhere, which has none, is not checked.

    Args:
        without: sub-folders that are not going to be read.

    Raises:
        StorageError: a file that is missing or damaged.
    """
    for file, recorded in _sums(folder).items():
        if file.relative_to(folder).parts[0] not in without:
            if not file.is_file():
                raise StorageError(f"{file}: no such file, which {SUMS} names; delete {folder} and run again")
            _same(file, sha256(file), recorded, f"delete {folder} and run again")


def _bytes(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_seal(path: str | os.PathLike, content: bytes, sealed: Any, rest: BinaryIO | None = None) -> None:
    """Raise unless `content`, and what is left of the file `rest`, has the sha256 that `sealed` states."""
    stated = sealed.get("sha256") if isinstance(sealed, dict) else None
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated) or content.count(stated.encode()) != 1:
        raise StorageError(f"{path}: damaged, or not written by this pipeline: it states no sha256; {_AGAIN}")
    digest = hashlib.sha256(content.replace(stated.encode(), _ZEROS.encode()))
    if rest is not None:
        digest = hashlib.file_digest(rest, lambda: digest)
    _same(Path(path), digest.hexdigest(), stated)


def write_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON, atomically, with one key more: its own sha256 (see the module's head)."""

    def text(digest: str) -> str:
        return json.dumps(value | {"sha256": digest}, indent=2, sort_keys=True) + "\n"

    write_text(path, text(hashlib.sha256(text(_ZEROS).encode()).hexdigest()))


def read_json(path: str | os.PathLike, sealed: bool = True) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        sealed: written by `write_json`, and checked; False for files from elsewhere.

    Raises:
        StorageError: the file is missing, damaged, or is not a JSON object.
    """
    content = _bytes(path)
    value = _parse(path, content)
    if sealed:
        _check_seal(path, content, value)
        del value["sha256"]
    return value


def _parse(path: str | os.PathLike, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path}: is not a JSON object; {_AGAIN}")
    return value


def write_records(path: str | os.PathLike, records: list[dict[str, Any]]) -> None:
    """Write records (at least one) as JSON lines, atomically; the last one has the file's own sha256 as a key more."""

    def text(digest: str) -> str:
        return "".join(json.dumps(record) + "\n" for record in [*records[:-1], records[-1] | {"sha256": digest}])

    write_text(path, text(hashlib.sha256(text(_ZEROS).encode()).hexdigest()))


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read what `write_records` wrote.

    Raises:
        StorageError: the file is missing or damaged.
    """
    content = _bytes(path)
    records = [_parse(path, line) for line in content.splitlines()]
    _check_seal(path, content, records[-1] if records else None)
    del records[-1]["sha256"]
    return records


def write_table(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically, and its sha256 in a file beside it, NAME.csv.sha256."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    write_text(f"{path}.sha256", f"{sha256(path)}  {Path(path).name}\n")


def read_table(path: str | os.PathLike, **options: Any) -> pd.DataFrame:
    """Read a CSV, compared with the sha256 beside it, where there is one; `options` are of `pandas.read_csv`.

    Raises:
        StorageError: the file is missing or damaged.
    """
    import pandas as pd

    content, beside = _bytes(path), Path(f"{path}.sha256")
    if beside.is_file():
        recorded = _bytes(beside).decode(errors="replace").partition(" ")[0]
        _same(Path(path), hashlib.sha256(content).hexdigest(), recorded, f"delete it and {beside.name} and run again")
    try:
        return pd.read_csv(io.BytesIO(content), **options)
    except ValueError as error:
        raise StorageError(f"{path}: is not a readable table ({' '.join(str(error).split())}); {_AGAIN}") from error


def write_sealed(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write bytes atomically, and their sha256 as a last line."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")


def check_sealed(path: str | os.PathLike) -> None:
    """Compare a file of `write_sealed` with its last line.

    Raises:
        StorageError: the file is missing or damaged.
    """
    digest, last = hashlib.sha256(), b""
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                whole = last + piece
                digest.update(whole[:-65])
                last = whole[-65:]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
    if last != digest.hexdigest().encode() + b"\n":
        raise StorageError(f"{path}: damaged: sha256 is {digest.hexdigest()[:12]}…, its last line says otherwise")


def save_tensors(
    path: str | os.PathLike,
    tensors: dict[str, torch.Tensor] | dict[str, np.ndarray],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write tensors (of torch, or NumPy arrays) to one safetensors file.

    `metadata`, and the file's own sha256, are stored as one JSON string: safetensors writes several keys in a random
    order, and equal content shall give equal bytes.
    """
    header = {"json": json.dumps((metadata or {}) | {"sha256": _ZEROS}, sort_keys=True)}
    with atomic(path) as temporary:
        if all(type(v).__module__ == "numpy" for v in tensors.values()):
            from numpy import ascontiguousarray
            from safetensors.numpy import save_file

            save_file({k: ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata=header)
        else:
            from safetensors.torch import save_file

            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=header)
        with open(temporary, "r+b") as file:
            key = rb"\"sha256\": \""
            place = 8 + file.read(int.from_bytes(file.read(8), "little")).index(key + _ZEROS.encode()) + len(key)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(place)
            file.write(digest.encode())


def check_tensors(path: str | os.PathLike) -> None:
    """Compare a file of `save_tensors` with the sha256 that it states.

    Raises:
        StorageError: missing, damaged, or without one.
    """
    try:
        with open(path, "rb") as file:
            length = file.read(8)
            if int.from_bytes(length, "little") > os.fstat(file.fileno()).st_size - 8:
                raise StorageError(f"{path}: not a readable safetensors file (truncated or damaged); {_AGAIN}")
            header = file.read(int.from_bytes(length, "little"))
            metadata = _parse(path, header).get("__metadata__")
            text = metadata.get("json") if isinstance(metadata, dict) else None
            _check_seal(path, length + header, _parse(path, text.encode()) if isinstance(text, str) else None, file)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error


def load_tensors(
    path: str | os.PathLike,
    names: list[str] | None = None,
    expected_sha256: str | None = None,
    framework: str = "pt",
    check: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Memory-map the tensors of a file of `save_tensors` (pages are read on use) with its metadata.

    Args:
        names: which tensors; all by default.
        expected_sha256: of the file's bytes, if it is known from elsewhere.
        framework: "pt" for torch tensors, "np" for NumPy arrays (no torch import).
        check: whether the file's bytes are compared, before anything is used, with `expected_sha256`, or without
            one with the sha256 that the file states. False where this process has done so.

    Raises:
        StorageError: missing, truncated, changed, or a name that the file does not hold.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file; it is made by an earlier stage, run that first")
    if check and expected_sha256 is not None:
        _same(Path(path), sha256(path), expected_sha256, "delete the file and run again")
    elif check:
        check_tensors(path)
    try:
        with safe_open(path, framework=framework) as file:
            known = set(file.keys())
            wanted = sorted(known) if names is None else names
            if missing := [name for name in wanted if name not in known]:
                raise StorageError(f"{path}: holds no tensor {missing[0]!r}; it has {sorted(known)}")
            tensors = {name: file.get_tensor(name) for name in wanted}
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path}: not a readable safetensors file (truncated or damaged: {error}); delete it and run again"
        ) from error
    metadata.pop("sha256", None)
    return tensors, metadata
