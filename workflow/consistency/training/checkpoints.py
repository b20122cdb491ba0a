"""The checkpoint of a training: one sealed file that is either whole or not used."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import torch

from ..files.storage import read_sealed, write_sealed

log = logging.getLogger("consistency")


def write_checkpoint(path: Path, state: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Write a training's state, with `step`, and what its result depends on."""
    content = io.BytesIO()  # torch.save to a file hides what the operating system says of a full disk
    torch.save(state | {"fingerprint": json.dumps(fingerprint, sort_keys=True)}, content)
    write_sealed(path, content.getbuffer())  # torch does not look at its archive's own checksums


def read_checkpoint(
    path: Path, fingerprint: dict[str, Any], snapshots: dict[Path, int] | None = None
) -> dict[str, Any] | None:
    """The checkpoint's state; None where there is none, or none that training can go on from. Where there is one, the
    log says why not: it is damaged, is of other settings, or a snapshot from before its step is missing.

    Args:
        snapshots: file → step after which it is written.
    """
    if not path.is_file():
        return None
    try:
        state = read_sealed(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = f"damaged checkpoint ({type(error).__name__})"
    else:
        if state["fingerprint"] != json.dumps(fingerprint, sort_keys=True):
            reason = "checkpoint of other settings or inputs"
        elif any(step <= state["step"] and not file.exists() for file, step in (snapshots or {}).items()):
            reason = "a snapshot from before its step is missing"
        else:
            return state
    log.warning("%s: %s; training starts from the beginning", path, reason)
    return None
