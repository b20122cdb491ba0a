"""Files: written atomically (`atomic`), with their sha256 (`hashes`), checked before use, memory-mapped when read."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import StorageError
from . import bounds
from .atomic import UNFINISHED, atomic, check_writable, explain, explained, remove_unfinished  # noqa: F401 (one door for users)
from .filesystems import read_tensors
from .finite import check_numbers, check_rows
from .hashes import (  # noqa: F401 (one door for users)
    AGAIN,
    SUMS,
    ZEROS,
    check_folder,
    check_seal,
    same,
    sha256,
    weights_file,
    weights_sha256,
    write_sums,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

_SEAL = b'{"sha256": "%s"}\n'


def write_text(path: str | os.PathLike, text: str, durable: bool = True) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic(path, durable) as temporary, open(temporary, "x", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: dict[str, Any], durable: bool = True) -> None:
    """Write `value` as indented JSON, atomically, with one key more: its own sha256 (see `hashes`).

    Raises:
        MismatchError: a number that is not finite; no later stage shall average over it.
    """
    check_numbers(path, value)

    def text(digest: str) -> str:
        return json.dumps(value | {"sha256": digest}, indent=2, sort_keys=True) + "\n"

    write_text(path, text(hashlib.sha256(text(ZEROS).encode()).hexdigest()), durable)


def read_json(path: str | os.PathLike, sealed: bool = True, most: int | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        sealed: written by `write_json`, and checked; False for files from elsewhere.
        most: bytes that it may have; by default `bounds.RECORDS`, and of files from elsewhere `bounds.CONFIG`.

    Raises:
        StorageError: the file is missing, damaged, larger, or is not a JSON object.
    """
    content = bounds.read(path, most or (bounds.RECORDS if sealed else bounds.CONFIG))
    value = _parse(path, content)
    if sealed:
        check_seal(path, content, value)
        del value["sha256"]
    return value


def _parse(path: str | os.PathLike, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is not valid JSON ({error}); {AGAIN}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path}: is not a JSON object; {AGAIN}")
    return value


def write_records(path: str | os.PathLike, records: list[dict[str, Any]]) -> None:
    """Write records (at least one) as JSON lines, atomically; the last one has the file's own sha256 as a key more.

    Raises:
        MismatchError: a number that is not finite.
    """
    check_numbers(path, records)

    def text(digest: str) -> str:
        return "".join(json.dumps(record) + "\n" for record in [*records[:-1], records[-1] | {"sha256": digest}])

    write_text(path, text(hashlib.sha256(text(ZEROS).encode()).hexdigest()))


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read what `write_records` wrote.

    Raises:
        StorageError: the file is missing or damaged.
    """
    content = bounds.read(path)
    records = [_parse(path, line) for line in content.splitlines()]
    check_seal(path, content, records[-1] if records else None)
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

    content, beside = bounds.read(path, bounds.RESULTS), Path(f"{path}.sha256")
    if beside.is_file():
        line = f"{hashlib.sha256(content).hexdigest()}  {Path(path).name}\n"
        if bounds.read(beside) != line.encode():
            raise StorageError(f"{path}: damaged: sha256 is {line[:12]}…, {beside} says otherwise; {AGAIN}")
    try:
        return pd.read_csv(io.BytesIO(content), **options)
    except ValueError as error:
        raise StorageError(f"{path}: is not a readable table ({' '.join(str(error).split())}); {AGAIN}") from error


def write_sealed(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write bytes atomically, after a line of JSON that holds the file's own sha256."""
    digest = hashlib.sha256(_SEAL % ZEROS.encode())
    digest.update(content)
    with atomic(path) as temporary, open(temporary, "xb") as file:
        file.write(_SEAL % digest.hexdigest().encode())
        file.write(content)


def read_sealed(path: str | os.PathLike, read: Callable[[BinaryIO], Any] | None = None) -> Any:
    """Compare a file of `write_sealed` with the sha256 that it states; what `read` makes of the file at its content.

    Raises:
        StorageError: the file is missing or damaged.
    """
    with bounds.readable(path), bounds.regular(path) as file:
        first = file.readline(len(_SEAL % ZEROS.encode()))
        check_seal(path, first, _parse(path, first), file)
        file.seek(len(first))
        return read(file) if read else None


def save_tensors(
    path: str | os.PathLike,
    tensors: dict[str, torch.Tensor] | dict[str, np.ndarray],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write tensors (of torch, or NumPy arrays) to one safetensors file.

    `metadata`, and the file's own sha256, are stored as one JSON string: safetensors writes several keys in a random
    order, and equal content shall give equal bytes.

    Raises:
        MismatchError: a number that is not finite; no later stage shall average over it.
    """
    check_numbers(path, metadata or {})
    header = tensor_header(metadata or {})
    light = all(type(v).__module__ == "numpy" for v in tensors.values())
    for name, value in tensors.items():
        check_rows(path, name, value)
    with atomic(path) as temporary:
        if light:
            from numpy import asarray
            from safetensors.numpy import save_file

            save_file({k: asarray(v, order="C") for k, v in tensors.items()}, temporary, metadata=header)
        else:
            from safetensors.torch import save_file

            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=header)
        seal_tensors(temporary)


def tensor_header(metadata: dict[str, Any]) -> dict[str, str]:
    """The metadata of a safetensors file before it is sealed."""
    return {"json": json.dumps(metadata | {"sha256": ZEROS}, sort_keys=True)}


def seal_tensors(path: str | os.PathLike) -> None:
    """Put the file's sha256 in the place that `tensor_header` keeps for it."""
    with open(path, "r+b") as file:
        key = rb"\"sha256\": \""
        start = 8 + file.read(int.from_bytes(file.read(8), "little")).index(key + ZEROS.encode()) + len(key)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(start)
        file.write(digest.encode())


def check_tensors(path: str | os.PathLike) -> None:
    """Compare a file of `save_tensors` with the sha256 that it states.

    Raises:
        StorageError: missing, damaged, or without one.
    """
    with bounds.readable(path), bounds.regular(path) as file:
        length = file.read(8)
        if int.from_bytes(length, "little") > os.fstat(file.fileno()).st_size - 8:
            raise StorageError(f"{path}: not a readable safetensors file (truncated or damaged); {AGAIN}")
        bounds.check_size(f"{path}: the list of its tensors", int.from_bytes(length, "little"), bounds.HEADER)
        header = file.read(int.from_bytes(length, "little"))
        metadata = _parse(path, header).get("__metadata__")
        text = metadata.get("json") if isinstance(metadata, dict) else None
        check_seal(path, length + header, _parse(path, text.encode()) if isinstance(text, str) else None, file)


def load_tensors(
    path: str | os.PathLike,
    names: list[str] | None = None,
    expected_sha256: str | None = None,
    framework: str = "pt",
    check: bool = True,
    rows: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Memory-map the tensors of a file of `save_tensors` (pages are read on use) with its metadata.

    Args:
        names: which tensors; all by default.
        expected_sha256: of the file's bytes, if it is known from elsewhere.
        framework: "pt" for torch tensors, "np" for NumPy arrays (no torch import).
        check: whether the file's bytes are compared, before anything is used, with `expected_sha256`, or without
            one with the sha256 that the file states. False where this process has done so.
        rows: read only the first rows of each tensor; all by default.

    Raises:
        StorageError: missing, truncated, changed, or a name that the file does not hold.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file; it is made by an earlier stage, run that first")
    if check and expected_sha256 is not None:
        same(Path(path), sha256(path), expected_sha256, "delete the file and run again")
    elif check:
        check_tensors(path)
    try:
        with safe_open(path, framework=framework) as file:
            wanted = _wanted(path, names, set(file.keys()))
            tensors = {name: file.get_tensor(name) if rows is None else _first(file, name, rows) for name in wanted}
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
    except OSError:  # the file system maps no files into memory
        whole, metadata = read_tensors(path, framework)
        wanted = _wanted(path, names, set(whole))
        tensors = {name: whole[name] if rows is None else whole[name][:rows] for name in wanted}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path}: not a readable safetensors file (truncated or damaged: {error}); delete it and run again"
        ) from error
    metadata.pop("sha256", None)
    return tensors, metadata


def verify(folder: str | os.PathLike) -> tuple[int, list[str]]:
    """Check every file below `folder` that carries a sha256.

    Returns:
        how many are as they were written, and a line for each that is not (of a folder, for its first).
    """
    checked, damaged = 0, []
    sealed = [path.parent for path in sorted(Path(folder).rglob(SUMS))]
    readers = {".safetensors": check_tensors, ".json": read_json, ".jsonl": read_records, ".pt": read_sealed}
    for inner in sealed:
        try:
            check_folder(inner)
            checked += sum(path.is_file() for path in inner.rglob("*"))
        except StorageError as error:
            damaged.append(str(error))
    for path in sorted(Path(folder).rglob("*")):
        beside = path.with_name(f"{path.name}.sha256").is_file()
        reader = read_table if beside else readers.get(path.suffix)
        growing = path.suffix == ".jsonl" and path.parent.parent.name == "checkpoints"  # sealed when training ends
        if reader is None or growing or not path.is_file() or any(path.is_relative_to(inner) for inner in sealed):
            continue
        try:
            reader(path)
            checked += 1 + beside
        except StorageError as error:
            damaged.append(str(error))
    return checked, damaged


def _wanted(path: str | os.PathLike, names: list[str] | None, present: set[str]) -> list[str]:
    """The names, or all that are present; raises StorageError where one is not."""
    wanted = sorted(present) if names is None else names
    if missing := [name for name in wanted if name not in present]:
        raise StorageError(f"{path}: holds no tensor {missing[0]!r}; it has {sorted(present)}")
    return wanted


def _first(file: Any, name: str, rows: int) -> Any:
    """The first rows of a tensor of an open safetensors file, or all of a shorter one."""
    part = file.get_slice(name)
    count = part.get_shape()[0]
    return part[: min(rows, count)] if count else file.get_tensor(name)
