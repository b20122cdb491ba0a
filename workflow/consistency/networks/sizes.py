"""The sizes that a network's configuration asks for, before anything of that size is made.

A configuration from elsewhere may ask for 10⁹ layers or a width of 10⁹ in a few bytes, and a network is made as its
configuration says before its weights are compared with it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import MismatchError, StorageError
from ..files import bounds
from ..files.storage import read_json, weights_file

Shapes = dict[str, tuple[int, ...]]


def shapes(folder: str | Path) -> Shapes:
    """Name → shape of the tensors in a folder's one safetensors file, whose header alone is read.

    Raises:
        StorageError: no such file, several, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    path = weights_file(folder)
    bounds.regular(path).close()
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())})") from error


def check_same(folder: str | Path, sizes: Callable[[Shapes], dict[str, int]]) -> None:
    """Compare the numbers that a folder's config.json states with those of its weights.

    Args:
        sizes: from the weights' shapes the number of each key; a list of sizes counts as their product.

    Raises:
        StorageError: missing or damaged files, or weights of another network.
        MismatchError: another number; one line with the file and the key.
    """
    path = Path(folder) / "config.json"
    stated, stored = read_json(path, sealed=False), shapes(folder)
    try:
        weights = sizes(stored)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise StorageError(f"{folder}: its weights are of another network ({error})") from error
    for key, size in weights.items():
        value = stated.get(key)
        parts = value if isinstance(value, list) else [value]
        if any(type(part) is not int or part < 0 for part in parts) or math.prod(parts) != size:
            raise MismatchError(f"{path}: {key} is {_short(value)}, but its weights have {size}")


def check_ranks(folder: str | Path) -> None:
    """Compare the ranks that an adapter's configuration states with its weights.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: one that is larger than any side of a weight.
    """
    path = Path(folder) / "adapter_config.json"
    config = read_json(path, sealed=False)
    largest = max((side for shape in shapes(folder).values() for side in shape), default=0)
    for key, value in _numbers({"r": config.get("r"), "rank_pattern": config.get("rank_pattern")}):
        if value > largest:
            raise MismatchError(f"{path}: {key} is {_short(value)}, but no side of its weights is above {largest}")


def check_config(path: str | Path) -> dict[str, Any]:
    """A configuration of diffusers or transformers, once its numbers are checked.

    Raises:
        StorageError: missing or damaged.
        MismatchError: more layers than `bounds.LAYERS`, or a larger number than `bounds.WHOLE`.
    """
    config = read_json(path, sealed=False)
    for key, value in _numbers(config):
        if abs(value) > bounds.WHOLE:
            raise MismatchError(f"{path}: {key} is {_short(value)}, allowed: whole numbers up to {bounds.WHOLE:,}")
        if key.endswith("num_labels") and value > bounds.CLASSES:
            raise MismatchError(f"{path}: {key} is {_short(value)}, allowed: at most {bounds.CLASSES:,}")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        layers = {key: value for key, value in part.items() if "layers" in key}
        blocks = {key: len(value) for key, value in part.items() if "block" in key and isinstance(value, list)}
        deep = {key: max((number for _, number in _numbers(value)), default=1) for key, value in layers.items()}
        wide = max((count for key, count in blocks.items() if key not in layers), default=1)
        if (count := math.prod(max(number, 1) for number in (*deep.values(), wide))) > bounds.LAYERS:
            keys = " and ".join(deep | blocks)
            raise MismatchError(f"{path}: {keys} ask for {count:,} layers, allowed: at most {bounds.LAYERS:,}")
    return config


def check(folder: str | Path, kind: Any) -> None:
    """Check that a folder of diffusers or transformers asks for a network no larger than its weights.

    Args:
        kind: the class that is going to be loaded.

    Raises:
        StorageError: a missing or damaged configuration, more values than the weights have bytes, or files that
            `check_files` refuses.
        MismatchError: numbers that `check_config` refuses.
    """
    path = Path(folder) / "config.json"
    check_config(path)
    check_files(folder)
    with torch.device("meta"):  # without memory for the values
        if hasattr(kind, "load_config"):
            network = kind.from_config(kind.load_config(folder, local_files_only=True))
        else:
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    values = sum(weight.numel() for weight in network.parameters())
    held = sum(file.stat().st_size for file in Path(folder).iterdir() if file.suffix in (".safetensors", ".bin"))
    if values > held:
        raise StorageError(f"{path}: asks for a network of {values:,} values, but its weights have {held:,} bytes")


def check_files(folder: str | Path) -> None:
    """Check the files that diffusers or transformers read weights from.

    Raises:
        StorageError: an index that names files elsewhere, or pickled tensors that unpack to more than their file.
    """
    folder = Path(folder)
    for path in folder.glob("*.index.json"):
        names = read_json(path, sealed=False, most=bounds.TOKENS).get("weight_map")
        for name in names.values() if isinstance(names, dict) else ():
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise StorageError(f"{path}: names {_short(repr(name))}, allowed: files beside it")
    for path in (*folder.glob("*.bin"), *folder.glob("*.pth")):
        check_stored(path)


def check_stored(path: Path) -> None:
    """Raise StorageError where a file of torch.save has compressed members, which torch never writes."""
    with bounds.regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise StorageError(f"{path}: has compressed members, which torch does not write; replace it")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Key and number of every whole number in a value, at any depth."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else name, part) for name, part in value.items()]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif type(value) is int:
            yield key, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
