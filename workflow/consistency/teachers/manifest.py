"""Shards of targets and the manifest that ties them together. No torch: gathering is a light job."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ..errors import MismatchError, StorageError
from ..files.storage import load_tensors, read_json, sha256, write_json


def gather(path: str | Path, shards: list[Path], settings: dict[str, Any], teacher_sha256: str) -> None:
    """Check the shards and write the manifest that students read.

    Args:
        path: the manifest, in the shards' folder.
        settings: mode, solver, n_steps, guidance, seed, count.

    Raises:
        StorageError: an unreadable shard.
        MismatchError: shards that do not cover the draws 0..count − 1 once each.
    """
    entries, position, calls, minimum = [], 0, 0, 0
    name = "x_0" if settings["mode"] == "paper" else "points"
    for shard in shards:
        tensors, metadata = load_tensors(shard, [name], framework="np", rows=1)  # all of it is checked
        if metadata.get("first") != position:
            raise MismatchError(
                f"{shard}: starts at draw {metadata.get('first')}, expected {position}; delete it and run again"
            )
        position += metadata["count"]
        calls += metadata["teacher_calls"]
        minimum += metadata["teacher_calls_minimum"]
        entries.append({"file": Path(shard).name, "count": metadata["count"], "sha256": sha256(shard)})
    if position != settings["count"]:
        raise MismatchError(f"{path}: shards hold {position} draws, the configuration says {settings['count']}")
    write_json(
        path,
        {
            **settings,
            "teacher_sha256": teacher_sha256,
            "teacher_calls": calls,
            "teacher_calls_minimum": minimum,
            "dtype": str(tensors[name].dtype),
            "sample_shape": list(tensors[name].shape[1 if settings["mode"] == "paper" else 2 :]),
            "shards": entries,
        },
    )


def read(path: str | Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        StorageError: it is missing, damaged, or something else.
    """
    manifest = read_json(path)
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        raise StorageError(
            f"{path}: no manifest of targets: {key} is {manifest.get(key)!r:.60}; delete it and run again"
        ) from error
    return manifest


class _Shard(BaseModel):
    model_config = ConfigDict(strict=True, regex_engine="python-re")
    file: str = Field(pattern=r"\A[\w.-]+\Z")  # beside the manifest
    count: PositiveInt
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)
    mode: Literal["paper", "trajectory"]
    n_steps: PositiveInt
    teacher_sha256: str
    shards: list[_Shard] = Field(min_length=1)
