"""How far the velocities of single pairs are from the mean velocity of their own coupling's flow (paper B, eq. 17).

    R̃_c(σ) = E ‖z − v_c(x̃_σ)‖²,   x̃_σ = x̃ + σ z,   v_c(x̃_σ) = E_c[z | x̃_σ]

with (x̃, z) drawn as coupling c pairs them, summed over the dimensions. z is the pair's own velocity dx̃_σ/dσ. With the
independent coupling of data known in closed form v_c is exact. Otherwise it is learned, by a denoiser of each coupling
(as in the paper), from draws of its own; R̃ is then the mean over other draws, of data held out. A denoiser that is not
exact makes it larger, never smaller, so it is an upper bound: R̃ plus the mean square of the denoiser's error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..config.settings import Training
from ..flow.schedules import spread
from ..flow.streams import generator
from ..networks.mlp import ResidualMLP
from ..teachers.protocol import AnalyticTeacher
from ..training.optimizers import make_optimizer, rate_at
from .coupled import Coupler, shown_levels

TIMES = 16  # the denoiser's time input runs over 0..TIMES − 1: no faster wave than that over ln σ


def velocity_variances(
    training: Coupler,
    held_out: Coupler,
    names: list[str],
    *,
    teacher: AnalyticTeacher | None,
    steps: int,
    settings: dict[str, Any],
    seed: int,
) -> Iterator[tuple[str, float, str]]:
    """`velocity_variance`, the mean over the noise levels of the training, `velocity_variance@sigma=…`, and once more
    at the largest σ `velocity_variance@sigma_max`, of each coupling.

    Args:
        training: draws to learn from; held_out: draws to measure on.
        teacher: an exact one, where there is one.
        steps: of the training's grid.
        settings: of `components.VelocityFit`.
    """
    schedule = held_out.schedule
    levels = [("velocity_variance", held_out.levels(steps)[1])]
    for level in shown_levels(schedule):
        levels.append((f"velocity_variance@sigma={level:.4g}", level.expand(len(held_out.drawn["z"]))))
    for name in names:
        if name == "independent" and teacher is not None:
            velocity = teacher.velocity
        else:
            velocity = MeanVelocity(training, name, teacher, settings, seed)
        for metric, sigma in levels:
            x, cond = held_out.point(name, sigma)
            squared = (held_out.drawn["z"] - velocity(x, sigma, cond)).flatten(1).square().sum(1)
            value = squared.mean().item()
            yield metric, value, name
        yield "velocity_variance@sigma_max", value, name


class MeanVelocity:
    """E_c[z | x_σ] of one coupling at all noise levels, learned by least squares on its draws.

    A residual MLP is added to the velocity of independent pairs: the exact one, or that of data N(0, σ_data² I), which
    is EDM's preconditioning. It sees x_σ, and that velocity, which shows where within a narrow mode x_σ is. Each noise
    level weighs by the inverse of the mean square that is left there; this falls by orders of magnitude with σ, and is
    learned too.

    Args:
        draws: to learn from.
        name: of the coupling.
        teacher: an exact one, where there is one.
        settings: of `components.VelocityFit`.
    """

    def __init__(self, draws: Coupler, name: str, teacher: AnalyticTeacher | None, settings: dict[str, Any], seed: int):
        self.schedule, self.teacher = draws.schedule, teacher
        sigma, z = draws.even_levels(), draws.drawn["z"]
        x, cond = draws.point(name, sigma)
        base, time = self._base(x, sigma, cond), self._time(sigma)
        near = (1 - (time[:, None] - torch.arange(TIMES)).abs()).clamp(min=0)
        self._size = (near.T @ base.flatten(1).square().mean(1) / near.sum(0)).sqrt()  # of the base, at TIMES levels
        inputs, target = self._inputs(x, base, sigma, cond), ((z - base) / self._scale(sigma, z)).float()
        rng = generator(seed, "denoiser", 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            shape, classes = list(inputs[0].shape[1:]), int(draws.drawn["cond"].max()) + 1
            self._network = ResidualMLP(shape, classes, TIMES, settings["width"], settings["depth"])
        self._learn(inputs, target, settings, rng)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """At x_σ (B, …), σ (B,) and cond (B,); float64, like x."""
        base = self._base(x, sigma, cond)
        with torch.no_grad():
            output = self._network(*self._inputs(x, base, sigma, cond))[:, : x.shape[1]]
        return base + self._scale(sigma, x) * output

    def _learn(
        self,
        inputs: tuple[torch.Tensor, ...],
        target: torch.Tensor,
        settings: dict[str, Any],
        rng: np.random.Generator,
    ) -> None:
        options = {key: settings[key] for key in ("steps", "batch_size", "learning_rate")}
        plan = Training(warmup_steps=100, decay_share=0.8, **options)
        left = torch.nn.Parameter(torch.zeros(TIMES))  # ln of the mean square that is left
        optimizer = make_optimizer("adamw", [*self._network.parameters(), left], plan.learning_rate, 0.0)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(plan.steps):
            if len(order) < plan.batch_size:
                order = torch.from_numpy(rng.permutation(len(target)))
            rows, order = order[: plan.batch_size], order[plan.batch_size :]
            batch = [column[rows] for column in inputs]
            output = self._network(*batch)[:, : target.shape[1]]
            squared, level = (output - target[rows]).square().flatten(1).mean(1), _between(left, batch[1])
            optimizer.zero_grad()
            (squared * (-level).exp() + level).mean().backward()
            optimizer.param_groups[0]["lr"] = rate_at(plan, step)
            optimizer.step()

    def _time(self, sigma: torch.Tensor) -> torch.Tensor:
        """ln σ, from 0 at σ_min to TIMES − 1 at σ_max."""
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        return (sigma / low).log() / math.log(high / low) * (TIMES - 1)

    def _base(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """The velocity of independent pairs: exact, or of data N(0, σ_data² I)."""
        if self.teacher is not None:
            return self.teacher.velocity(x, sigma, cond)
        return spread(sigma / (sigma**2 + self.schedule.sigma_data**2), x) * x

    def _scale(self, sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The deviation of z given x_σ where data are N(0, σ_data² I) and independent of z."""
        return spread(self.schedule.sigma_data / (sigma**2 + self.schedule.sigma_data**2).sqrt(), like)

    def _inputs(
        self, x: torch.Tensor, base: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network sees: x_σ and the base, at about unit scale, (B, 2 C, …); ln σ; the condition."""
        time = self._time(sigma)
        scaled = x * self._scale(sigma, x) / self.schedule.sigma_data
        size = spread(_between(self._size, time), x)
        return torch.cat([scaled, base / size], 1).float(), time.float(), cond


def _between(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Values (n,) at 0..n − 1, linear between them, at `at` (B,) in 0..n − 1."""
    below = at.long().clamp(max=len(values) - 2)
    return torch.lerp(values[below], values[below + 1], (at - below).to(values))
