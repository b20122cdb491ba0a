"""The teacher: one protocol, guided ε-prediction, whatever the weights came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from . import models
from .schedules import VPSchedule


class Teacher:
    """A network that predicts ε, with its schedule.

    Args:
        network: see `models`.
        schedule: the noise schedule that it was trained on.
        timestep_offset: added to the timestep 1..T before the network is called: −1 (the index the
            teacher was trained on) or 0 (as paper A's reference code calls it).
    """

    def __init__(self, network: nn.Module, schedule: VPSchedule, timestep_offset: int = -1):
        self.network, self.schedule, self.timestep_offset = network, schedule, timestep_offset
        self.calls = 0  # network evaluations so far, in samples (a guided one counts twice)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        schedule: VPSchedule,
        timestep_offset: int = -1,
        sample_shape: tuple[int, ...] | None = None,
        classes: int | None = None,
    ) -> Teacher:
        """Load from a `save_pretrained` folder; raises as `models.load`."""
        return cls(models.load(folder, sample_shape, classes), schedule, timestep_offset)

    def eps(self, cond: torch.Tensor, guidance: float) -> Callable[[torch.Tensor, torch.Tensor | int], torch.Tensor]:
        """The guided prediction `ε̃ = ε_∅ + w (ε_c − ε_∅)` as a function of (x, t) (section A.2).

        Args:
            cond: int64 (B,), class labels.
            guidance: w ≥ 0; at w = 1 the unconditional branch is not computed. Both branches go
                through the network as one batch.
        """

        @torch.no_grad()
        def predict(x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
            index = network_time(t, len(x), self.timestep_offset, x.device)
            if guidance == 1:
                self.calls += len(x)
                return self.network(x, index, cond)
            self.calls += 2 * len(x)
            null = torch.full_like(cond, self.network.classes)
            both = self.network(torch.cat([x, x]), index.repeat(2), torch.cat([null, cond]))
            unconditional, conditional = both.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        return predict


def network_time(t: torch.Tensor | int, batch: int, offset: int, device: torch.device) -> torch.Tensor:
    """The network's timestep index (B,), int64: t + offset, at least 0."""
    index = (torch.as_tensor(t, device=device, dtype=torch.int64) + offset).clamp(min=0)
    return index.expand(batch) if index.ndim == 0 else index
