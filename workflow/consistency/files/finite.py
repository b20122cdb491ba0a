"""Numbers that are not finite are never written where a later stage would average over them."""

from __future__ import annotations

import math
import os
from importlib import import_module
from typing import Any

from ..errors import MismatchError

PIECE = 1 << 22  # bytes of an array that are looked at at once


def check_numbers(path: str | os.PathLike, value: Any, key: str = "") -> None:
    """Whether all numbers in JSON's values are finite: JSON knows no others.

    Raises:
        MismatchError: one is not; the line names its key.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            check_numbers(path, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            check_numbers(path, inner, f"{key}.{number}" if key else str(number))
    elif isinstance(value, float) and not math.isfinite(value):
        raise MismatchError(f"{path}: not written: {key} is {value}, not a finite number")


def check_rows(path: str | os.PathLike, name: str, value: Any) -> None:
    """Whether all numbers of a tensor of torch, or of a NumPy array, are finite; of any shape.

    Raises:
        MismatchError: one is not; the line says in how many rows, and the first of them.
    """
    if 0 in value.shape:
        return
    isfinite = import_module("numpy" if type(value).__module__ == "numpy" else "torch").isfinite
    rows, bad = value if value.ndim else value.reshape(1), []
    for first in range(0, len(rows), step := max(1, PIECE // rows[0].nbytes)):
        finite = isfinite(rows[first : first + step])
        if not finite.all():
            whole = finite.reshape(len(finite), -1).all(1)
            bad += [row for row, fine in enumerate(whole.tolist(), first) if not fine]
    if bad:
        raise MismatchError(
            f"{path}: not written: {name} is not finite in {len(bad)} of {len(rows)} rows, first in row {bad[0]}"
        )
