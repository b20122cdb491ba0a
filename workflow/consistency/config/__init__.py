"""The configuration: its keys, where data and weights come from, every check, and experiments resolved from presets.

`config.load` and the other names of `resolve` are imported when they are asked for: most jobs read settings or claims
alone.
"""

from typing import Any

__all__ = [
    "LARGEST_TABLE",
    "PRESETS",
    "SCHEMAS",
    "expand",
    "lenders",
    "load",
    "load_experiment",
    "results_folder",
    "schemas",
    "warnings",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import resolve

    return getattr(resolve, name)
