"""Files of tensors that are filled row by row: what is written is never in memory as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .filesystems import mapped, take
from .finite import check_rows
from .storage import atomic, seal_tensors, tensor_header

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
RESERVE = 1024  # bytes of the header for metadata that is known only at the end
_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}


class TensorFile(dict[str, torch.Tensor]):
    """Name → tensor in the file; `metadata` is written with it."""

    metadata: dict[str, Any]


@contextmanager
def tensor_file(path: str | os.PathLike, shapes: Shapes) -> Iterator[TensorFile]:
    """A new safetensors file whose tensors are mapped into memory to be filled; whole, sealed and in its place at the
    end, as by `storage.save_tensors`, or not there at all.

    Room is taken on the disk at once, so a full one is told before anything is computed.

    Args:
        shapes: name → dtype (float32, float64, int64, uint8) and shape.

    Raises:
        StorageError: the folder is not writable or the disk is full.
        MismatchError: a number that is not finite.
    """
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))  # each begins at a multiple of its size
    entries, size = {}, 0
    for name in order:
        dtype, shape = shapes[name]
        start, size = size, size + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, size]}

    def header(metadata: dict[str, Any]) -> bytes:
        return json.dumps({"__metadata__": tensor_header(metadata)} | entries, separators=(",", ":")).encode()

    length = -(-(len(header({})) + RESERVE) // 8) * 8
    with atomic(path) as temporary:
        take(temporary, 8 + length + size)
        tensors = TensorFile()
        tensors.metadata = {}
        with mapped(temporary) as memory:
            content = torch.frombuffer(memory, dtype=torch.uint8)[8 + length :]
            for name, (dtype, shape) in shapes.items():
                start, end = entries[name]["data_offsets"]
                tensors[name] = content[start:end].view(dtype).reshape(shape)
            yield tensors
            for name, tensor in tensors.items():
                if tensor.is_floating_point():
                    check_rows(path, name, tensor.numpy())
            head = header(tensors.metadata)
            memory[:8] = length.to_bytes(8, "little")
            memory[8 : 8 + length] = head.ljust(length)  # raises where it is longer
            tensors.clear()
        seal_tensors(temporary)
