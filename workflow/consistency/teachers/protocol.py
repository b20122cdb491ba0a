"""The teacher: one protocol, guided ε-prediction, whatever the weights came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .. import networks
from ..errors import ConfigError
from ..flow.predictions import kind_of, noise_of
from ..flow.schedules import VPSchedule, spread
from ..networks.mixture import Mixture
from ..runtime.devices import move


class Teacher:
    """A network that predicts ε, or what ε is made of (`predictions`), with its schedule.

    Args:
        network: see `networks`.
        schedule: the noise schedule that it was trained on.
        timestep_offset: added to the timestep 1..T before the network is called: −1 (the index the
            teacher was trained on) or 0 (as paper A's reference code calls it).
        precision: "no", "bf16" or "fp16", that the network computes in; the state stays float32.
        compiled: whether a network that can (`compile_blocks`) is compiled on a GPU.
    """

    dtype = torch.float32  # of the arithmetic that it is solved in

    def __init__(
        self,
        network: nn.Module,
        schedule: VPSchedule,
        timestep_offset: int = -1,
        precision: str = "no",
        compiled: bool = False,
    ):
        self.network, self.schedule, self.timestep_offset = network, schedule, timestep_offset
        self.precision, self.compiled = precision, compiled
        self.calls = 0  # network evaluations so far, in samples (a guided one counts twice)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        schedule: VPSchedule,
        timestep_offset: int = -1,
        sample_shape: tuple[int, ...] | None = None,
        classes: int | None = None,
        prompts: str | Path | None = None,
        precision: str = "no",
        compiled: bool = False,
    ) -> Teacher:
        """Load from a `save_pretrained` folder, or from a mixture's; raises as `networks.load`."""
        if networks.is_mixture(folder):
            return AnalyticTeacher(Mixture.load(folder), schedule)
        return cls(
            networks.load(folder, sample_shape, classes, prompts), schedule, timestep_offset, precision, compiled
        )

    def to(self, device: torch.device) -> Teacher:
        """Move the network, its weights in the teacher's precision.

        Raises:
            ConfigError: fp16 on the CPU.
        """
        move(self.network, device, self.precision)
        if self.compiled and device.type == "cuda" and hasattr(self.network, "compile_blocks"):
            self.network.compile_blocks()
        return self

    @property
    def prediction(self) -> str:
        """What the network predicts, of `predictions.KINDS`."""
        return kind_of(self.network)

    @torch.no_grad()
    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """dx/dσ of the VE probability-flow ODE, `E[z | x + σ z]`, without guidance (section B.1).

        A VP network is asked at x / sqrt(1 + σ²) and the timestep whose σ_t/α_t is nearest to σ.

        Args:
            x: (B, …) at the noise levels σ (B,); cond: (B,).
        """
        ratio = (self.schedule.sigma[1:] / self.schedule.alpha[1:]).log()
        level = sigma.double().cpu().log()
        above = torch.searchsorted(ratio, level).clamp(1, len(ratio) - 1)
        t = torch.where(level - ratio[above - 1] < ratio[above] - level, above, above + 1).to(x.device)
        return self.eps(cond, 1.0)(x / spread((1 + sigma**2).sqrt(), x), t)

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
                return noise_of(self.network, self.network(x, index, cond).to(x.dtype), x, t, self.schedule)
            self.calls += 2 * len(x)
            null = torch.full_like(cond, self.network.classes)
            both = self.network(torch.cat([x, x]), index.repeat(2), torch.cat([null, cond])).to(x.dtype)
            unconditional, conditional = both.chunk(2)
            guided = unconditional + guidance * (conditional - unconditional)
            return noise_of(self.network, guided, x, t, self.schedule)  # linear in it: the same as guiding ε

        return predict


class AnalyticTeacher(Teacher):
    """The exact ε-prediction of a mixture of Gaussians, in float64. It has one class, so no guidance."""

    dtype = torch.float64
    prediction = "epsilon"

    def __init__(self, mixture: Mixture, schedule: VPSchedule):
        self.mixture, self.schedule, self.calls = mixture, schedule, 0

    def to(self, device: torch.device) -> AnalyticTeacher:
        """Move the mixture."""
        self.mixture.to(device)
        return self

    def eps(self, cond: torch.Tensor, guidance: float) -> Callable[[torch.Tensor, torch.Tensor | int], torch.Tensor]:
        """The exact prediction as a function of (x, t).

        Raises:
            ConfigError: w other than 1.
        """
        if guidance != 1:
            raise ConfigError(f"guidance {guidance:g} with an analytic teacher; allowed: 1 (it has one class)")

        def predict(x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
            self.calls += len(x)
            t = torch.as_tensor(t).cpu()
            return self.mixture.eps(x, self.schedule.alpha[t], self.schedule.sigma[t]).to(x.dtype)

        return predict

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The exact dx/dσ of the VE probability-flow ODE; x (B, …), σ (B,)."""
        return self.mixture.eps(x, 1.0, sigma).to(x.dtype)


def network_time(t: torch.Tensor | float, batch: int, offset: int, device: torch.device) -> torch.Tensor:
    """The network's timestep index (B,): t + offset, at least 0; int64, or real where t is."""
    index = torch.as_tensor(t, device=device)
    index = ((index if index.is_floating_point() else index.long()) + offset).clamp(min=0)
    return index.expand(batch) if index.ndim == 0 else index
