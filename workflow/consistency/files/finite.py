"""Numbers that are not finite are never written where a later stage would average over them."""

from __future__ import annotations

import math
import os
from typing import Any

from ..errors import MismatchError


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
