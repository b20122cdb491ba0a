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


def write_checkpoint(
    path: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, Any],
    average: dict[str, torch.Tensor] | None,
    records: list[dict[str, float]],
    fingerprint: dict[str, Any],
    scaler: Any = None,
    unrecorded: tuple[float, float, int, float] = (0.0, 0.0, 0, 0.0),
) -> None:
    """`unrecorded`: sums of losses and norms, steps and seconds since the last record."""
    state = {
        "step": step,
        "weights": {k: v.detach().cpu() for k, v in weights.items()},
        "optimizer": optimizer,
        "average": {k: v.cpu() for k, v in average.items()} if average is not None else {},
        "scaler": scaler.state_dict() if scaler is not None else {},
        "records": records,
        "unrecorded": unrecorded,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }
    content = io.BytesIO()  # torch.save to a file hides what the operating system says of a full disk
    torch.save(state, content)
    write_sealed(path, content.getbuffer())  # torch does not look at its archive's own checksums


def read_checkpoint(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint's state; None where there is none, it is damaged, or it is of other settings."""
    state = None
    if path.is_file():
        try:
            state = read_sealed(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:
            log.warning("%s: damaged checkpoint (%s); training starts from the beginning", path, type(error).__name__)
        if state is not None and state["fingerprint"] != json.dumps(fingerprint, sort_keys=True):
            log.warning("%s: checkpoint of other settings or inputs; training starts from the beginning", path)
            state = None
    return state
