"""What each output was made from, kept beside it and compared with the plan before anything is called up to date.

The record of `folder/name` is `folder/.records/name.json`: the rule, its settings, and the identities of its inputs.
The identity of an input that has a record is that record's `id`, a hash over all of this, so an id stands for
everything that went into a file. The identity of an input without one, such as a user's file, is its content, or its
size and time of change. A job marks its record as unfinished before it does anything else, and completes it when its
outputs are in place. Whatever ends a job in between, the mark stays.

A job with several outputs has one record, that of the first; the records of the others name the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StorageError
from .storage import explained, read_json, sha256, write_json

FOLDER = ".records"
HASHED = 1 << 20  # bytes up to which an input without a record is identified by its content

Record = dict[str, Any]


def record_of(output: str | Path) -> Path:
    """The path of an output's record."""
    path = Path(output)
    return path.parent / FOLDER / f"{path.name}.json"


def read(output: str | Path) -> Record | None:
    """The record of the job that made an output; None without one. A damaged record is an unfinished one.

    A link leads into Snakemake's cache, which fills it without a job: whatever record lies there is of another output.
    """
    path = record_of(output)
    if os.path.islink(output):
        return None
    try:
        record = read_json(path) if path.is_file() else None
        if record and "beside" in record:
            path = record_of(Path(output).parent / record["beside"])
            record = read_json(path) if path.is_file() else None
        return record
    except StorageError:
        return {"unfinished": True}


@contextmanager
def recorded(
    outputs: Sequence[str | Path],
    rule: str,
    settings: Mapping[str, Any],
    inputs: Sequence[str | Path],
    cached: bool = False,
) -> Iterator[None]:
    """Keep the record of a job whose body runs inside.

    Args:
        settings: name → value; what JSON cannot hold is kept as text.
        cached: whether Snakemake is going to move the outputs into its cache, where other checkouts share them. They
            have no record then.

    Raises:
        StorageError: the record cannot be written.
    """
    first, *others = outputs
    record: Record = {
        "rule": rule,
        "settings": plain(settings),
        "inputs": {_relative(path, first): identity(path) for path in inputs},
    }
    record["id"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    try:
        _write(first, {"unfinished": True})
    except StorageError:  # on a full disk an old record can still be removed: it must not vouch for other outputs
        with explained(record_of(first)):
            record_of(first).unlink(missing_ok=True)
        raise
    yield
    if cached:
        record_of(first).unlink()
        return
    for output in others:
        _write(output, {"beside": _relative(first, output)})
    _write(first, record)


def _write(output: str | Path, record: Record) -> None:
    # Not synced to the disk: a record that is lost costs a job, and one that is left over does not match.
    write_json(record_of(output), record, durable=False)


def why_stale(
    outputs: Sequence[str],
    rule: str,
    settings: Callable[[], Mapping[str, Any]],
    names: set[str],
    inputs: Callable[[], Sequence[str]],
    *,
    tracked: Callable[[str], bool],
    identify: Callable[[str], Any] | None = None,
) -> str | None:
    """Why a job's outputs are not what the plan asks for, as far as their record tells; None where they are.

    Args:
        settings: gives those of the planned job that do not depend on its inputs.
        names: of all settings that the rule has.
        inputs: gives the planned job's inputs.
        tracked: whether Snakemake itself knows what an output was made from, and so compares it. An output that comes
            from its cache has no record here.
        identify: `identity`, or that of a plan, which asks for an input of thousands of jobs once.
    """
    record = read(outputs[0])
    if record is None:
        stray = any(os.path.lexists(path) and not tracked(path) for path in outputs)
        return "nothing says what it was made from" if stray else None
    if "id" not in record:
        return "its job began and did not end"
    if record["rule"] != rule:
        return f"it was made by the rule {record['rule']}"
    if changed := _changed(record["settings"], plain(settings()), names):
        return changed
    for name, before in record["inputs"].items():
        path = os.path.normpath(Path(outputs[0]).parent / name)
        now = (identify or identity)(path)
        gone = now is None and not tracked(path) and not os.path.lexists(path)
        if gone or (now is not None and now != before):
            return f"it was made from another {path}"
    planned = record["inputs"].keys()
    if not all(tracked(path) for path in outputs):
        planned = {_relative(path, outputs[0]) for path in inputs()}
    return None if planned == record["inputs"].keys() else "it was made from other inputs"


def _changed(before: Record, now: Record, names: set[str]) -> str | None:
    """The first setting with another value, in words."""
    if removed := sorted(before.keys() - names):
        return f"it was made with {removed[0]}, which its rule no longer has"
    for name in sorted(now):
        if name not in before:
            return f"it was made without {name}"
        if before[name] != now[name]:
            return _difference(name, before[name], now[name])
    return None


def _difference(name: str, before: Any, now: Any) -> str:
    """Where two values differ: the key's path and both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key))
        return _difference(f"{name}.{key}", before.get(key), now.get(key))
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return f"{name} had {len(before)} entries, has {len(now)}"
        index = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        return _difference(f"{name}.{index}", before[index], now[index])
    shown = [text if len(text := json.dumps(value)) <= 60 else f"{text[:60]}…" for value in (before, now)]
    return f"{name} was {shown[0]}, is {shown[1]}"


def plain(settings: Mapping[str, Any]) -> Record:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps(dict(settings), default=str))


def identity(path: str | Path) -> Any:
    """What tells an input from another one at its path: its record's id; without a record the sha256 of a file's
    content, of a large file its size and time of change; None of a folder without a record, or of nothing."""
    if (record := read(path)) is not None:
        return record.get("id", "unfinished")
    try:
        stat = os.stat(path)
        if not os.path.isfile(path):
            return None
        if stat.st_size > HASHED:
            return [stat.st_size, stat.st_mtime_ns]
        return sha256(path)
    except (OSError, StorageError):
        return None


def _relative(path: str | Path, output: str | Path) -> str:
    """A path as seen from an output's folder, so that a folder of results may be moved."""
    return os.path.relpath(path, Path(output).parent)
