"""What a pipeline's scheduler says of its network: what the network predicts, and on which noise schedule.

A network's own config.json says neither. diffusers keeps both in scheduler_config.json, beside the network's files (as
google/ddpm-cifar10-32 does) or in the folder `scheduler` of the pipeline (as SDXL does).
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MismatchError
from ..flow.predictions import KINDS
from ..runtime.compat import ensure_torchvision
from . import sizes

if TYPE_CHECKING:
    from ..flow.schedules import VPSchedule

FILE = "scheduler_config.json"
# diffusers' name → the preset's key below `schedule`
_KEYS = {"num_train_timesteps": "steps", "beta_schedule": "kind", "beta_start": "beta_start", "beta_end": "beta_end"}
_BETAS = ("beta_schedule", "beta_start", "beta_end")  # which `trained_betas` takes the place of


def read(folder: Path) -> dict[str, Any] | None:
    """The configuration of the scheduler of the network in `folder`, with its class's defaults for keys that it does
    not state; None where there is none beside the network, nor in the pipeline around it.

    Raises:
        StorageError: it is no JSON object.
        MismatchError: it states larger numbers than any scheduler has.
    """
    for source in (folder, folder / "scheduler", folder.parent / "scheduler", folder.parent):
        if (source / FILE).is_file():
            config = sizes.check_config(source / FILE)
            return config if {"prediction_type", *_KEYS} <= set(config) else _defaults(config) | config
    return None


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write a configuration into the folder of its network, where diffusers' schedulers read it too."""
    (folder / FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def prediction_of(config: dict[str, Any] | None, where: Path) -> str:
    """What the network predicts; ε where nothing is said.

    Raises:
        MismatchError: something that cannot be converted to ε.
    """
    kind = (config or {}).get("prediction_type", "epsilon")
    if kind not in KINDS:
        raise MismatchError(
            f"{where}: the scheduler's prediction_type is {_short(kind)}; a teacher's is {' or '.join(KINDS)}"
        )
    return kind


def check(config: dict[str, Any], schedule: VPSchedule, where: Path) -> None:
    """Compare the scheduler's noise schedule with the preset's.

    Raises:
        MismatchError: they differ; names the scheduler's keys and values, and the preset's.
    """
    name, trained = config.get("_class_name"), config.get("trained_betas")
    if absent := [key for key in _KEYS if key not in config]:
        raise MismatchError(
            f"{where}: its scheduler, {name}, states no {absent[0]}: it is none of a DDPM's noise schedule"
        )
    differing = []
    for key, ours in _KEYS.items():
        value, expected = config[key], getattr(schedule, ours)
        if not (_equal(value, expected) or (trained is not None and key in _BETAS)):
            differing.append(f"{key} is {_short(value)} and schedule.{ours} {_short(expected)}")
    if config.get("rescale_betas_zero_snr"):
        differing.append("rescale_betas_zero_snr is true, which no schedule of a preset can be")
    if not differing and not _same_betas(config, schedule):
        what = "trained_betas" if trained is not None else f"betas of {name}"
        differing.append(f"its {what} are others than those of schedule.kind {schedule.kind}")
    if differing:
        raise MismatchError(
            f"{where}: its scheduler's noise schedule is not the preset's: {', '.join(differing)}; "
            "set `schedule` to the teacher's (kinds: scaled_linear, linear), or choose another teacher"
        )


def _class_of(config: dict[str, Any]) -> type | None:
    """diffusers' class of a scheduler, where it has it."""
    ensure_torchvision()
    import diffusers

    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return kind if inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin) else None


def _defaults(config: dict[str, Any]) -> dict[str, Any]:
    kind = _class_of(config)
    options = inspect.signature(kind.__init__).parameters.values() if kind else ()
    return {option.name: option.default for option in options if option.default is not option.empty}


def _same_betas(config: dict[str, Any], schedule: VPSchedule) -> bool:
    """Whether the scheduler itself, as diffusers makes it, has the preset's ᾱ (float32, so to 1e-3)."""
    kind = _class_of(config)
    if kind is None:  # one that needs a package which is not here
        return config.get("trained_betas") is None
    try:
        squares = torch.as_tensor(kind.from_config(config).alphas_cumprod, dtype=torch.float64)
    except Exception:  # values that it does not take
        return False
    expected = schedule.alpha[1:] ** 2
    return squares.shape == expected.shape and torch.allclose(squares, expected, rtol=1e-3, atol=0)


def _equal(a: Any, b: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    try:
        return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b
    except OverflowError:  # an integer beyond every float
        return False


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]
