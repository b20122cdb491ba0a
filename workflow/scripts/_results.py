"""Which folder of results `make status`, `make verify` and the summary are about: the one that the last run used."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import _surroundings  # noqa: F401 (the library's path)
from consistency.config.resolve import results_folder
from consistency.errors import ConsistencyError

RECORD = Path(".snakemake/consistency-results")


def remember(folder: str) -> None:
    """Record the folder that a run uses, whatever `--config` or `--configfile` made of it."""
    with suppress(OSError):  # where nothing can be written there is no run either
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(f"{folder}\n", encoding="utf-8")


def chosen(argument: str | None) -> Path:
    """The folder that is named, else that of the last run here, else that of config.yaml; of a bad one, one line."""
    if argument:
        return Path(argument).expanduser()
    with suppress(OSError, ValueError):
        if folder := RECORD.read_text(encoding="utf-8").removesuffix("\n"):
            return Path(folder)
    try:
        return results_folder()
    except ConsistencyError as error:
        sys.exit(f"configuration: {error}")
