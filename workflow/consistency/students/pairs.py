"""Pairs of points of one trajectory, drawn while training: consistency training, distillation in the same
parameterisation (paper B, sections B.2 and B.3), and methods of continuous time.

A step draws data x, noise z and times r < t (`times`), lets the coupling choose which x goes with which z, and forms
x_t = α_t x + σ_t z. The velocity there is the pair's own, α' x + σ' z, or the teacher's. On the grid of a curriculum
the partner is one Euler step away:

    x_r = x_t + (r − t) u,   u = z (CT) or u = the teacher's v(x_t) (CD),   t = σ_{i+1}, r = σ_i

With u = z this is x + σ_i z. CT and CD differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..data.prepare import as_float
from ..flow.curricula import curriculum
from ..flow.schedules import Flow, VESchedule, spread, step_probabilities
from ..flow.streams import generator
from ..plugins import options_of
from ..teachers.protocol import Teacher
from .couplings import Generate

Batch = dict[str, torch.Tensor]
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class CurriculumTimes:
    """Neighbouring levels σ_{i+1}, σ_i of a Karras grid that grows over the training (iCT, section B.2).

    Args:
        total: K, training steps.
        s0, s1, p_mean, p_std: see `settings.Curriculum`.
    """

    def __init__(
        self, flow: VESchedule, total: int, s0: int = 10, s1: int = 1280, p_mean: float = -1.1, p_std: float = 2.0
    ):
        self.flow, self.total, self.s0, self.s1, self.p_mean, self.p_std = flow, total, s0, s1, p_mean, p_std
        self._levels, self._sigmas, self._edges = 0, torch.empty(0), torch.empty(0)

    def __call__(self, rng: np.random.Generator, size: int, step: int) -> Batch:
        """t = σ_{i+1} and r = σ_i, float64 (B,), and weight 1 / (σ_{i+1} − σ_i)."""
        levels = curriculum(step, self.total, self.s0, self.s1)
        if levels != self._levels:
            self._levels, self._sigmas = levels, self.flow.grid(levels)
            self._edges = step_probabilities(self._sigmas, self.p_mean, self.p_std).cumsum(0)
        i = torch.searchsorted(self._edges, torch.from_numpy(rng.random(size)), right=True).clamp(max=levels - 2)
        t, r = self._sigmas[i + 1], self._sigmas[i]
        return {"t": t, "r": r, "weight": (1 / (t - r)).float()}


@dataclass(frozen=True)
class LogitNormalTimes:
    """Times t and r of which each is logit-normal on the flow's range, the larger one t (MeanFlow, section 4.3).

    Attributes:
        mean, deviation: of the logit.
        distinct: share of samples with r < t; of the others r = t.
    """

    flow: Flow
    mean: float = -0.4
    deviation: float = 1.0
    distinct: float = 0.25

    def __call__(self, rng: np.random.Generator, size: int, step: int) -> Batch:
        """t and r, float32 (B,), and weight 1."""
        drawn = torch.from_numpy(self.mean + self.deviation * rng.standard_normal((2, size))).sigmoid()
        times = self.flow.end + (self.flow.start - self.flow.end) * drawn
        t, r = times.amax(0), times.amin(0)
        r = torch.where(torch.from_numpy(rng.random(size)) < self.distinct, r, t)
        return {"t": t.float(), "r": r.float(), "weight": torch.ones(size)}


Times = CurriculumTimes | LogitNormalTimes


def couple(
    coupling: Callable | None, share: float, draws: Batch, generate: Generate
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply a coupling to each sample with probability `share`, the independent coupling to the others.

    Args:
        coupling: a function like those of `couplings`; None leaves the draws as they are.
        share: μ in [0, 1]; at 0 nothing is computed.
        draws: x, z, r, cond, and `mixed`, uniform draws in [0, 1), (B,): a sample is coupled where its draw is below
            `share`.

    Returns:
        Data and conditions.
    """
    x, cond = draws["x"], draws["cond"]
    if share == 0 or coupling is None:
        return x, cond
    coupled, labels = coupling(x, draws["z"], draws["r"], cond, generate)
    if share == 1:
        return coupled, labels
    chosen = draws["mixed"] < share
    return torch.where(spread(chosen, x).bool(), coupled, x), torch.where(chosen, labels, cond)


def partner(x_t: torch.Tensor, t: torch.Tensor, r: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One Euler step along u from t to r: x_t (B, …), t and r (B,), u = dx_t/dt (B, …)."""
    return x_t + spread(r - t, x_t) * u


def velocity_of(teacher: Teacher, flow: Flow) -> Velocity:
    """The teacher's dx_t/dt of a flow as a function of (x_t, t, cond), without guidance.

    The teacher estimates the noise at x_t/α_t, whose noise-to-signal ratio is σ_t/α_t; the data follow from it.
    """
    if flow.name == "ve":
        return teacher.velocity

    def velocity(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        alpha, sigma = flow.coefficients(t, x)
        noise = teacher.velocity(x / alpha, (sigma / alpha).flatten(), cond)
        return flow.velocity((x - sigma * noise) / alpha, noise, t)

    return velocity


class PairSource:
    """Batches of `objectives.Pairs`. A draw is a pure function of (seed, step); the coupling also
    depends on the generator's weights.

    Args:
        images, labels: the training data (n, …) and (n,).
        coupling: a function like those of `couplings`, None for independent pairs; share: μ in [0, 1].
        generator_model: "ema" or "online" (the student's average, or the student itself), or a frozen
            model's function.
        velocity: None for the pair's own, or the teacher's v(x, t, cond).
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        flow: Flow,
        times: Times,
        *,
        batch_size: int,
        seed: int,
        coupling: Callable | None = None,
        share: float = 1.0,
        generator_model: str | Generate = "ema",
        velocity: Velocity | None = None,
    ):
        self.images, self.labels, self.flow, self.times = images, labels, flow, times
        self.batch_size, self.seed, self.coupling, self.share = batch_size, seed, coupling, share
        self.generator_model, self.velocity = generator_model, velocity
        # whether `prepare` needs a whole batch
        self.together = coupling is not None and not options_of(coupling).get("per_sample")

    def __call__(self, step: int) -> Batch:
        """The draws of a step, on the CPU: x, z, t, r, weight, cond, mixed."""
        rng, size = generator(self.seed, "pairs", step), self.batch_size
        rows = torch.from_numpy(rng.integers(len(self.images), size=size))
        z = torch.from_numpy(rng.standard_normal((size, *self.images.shape[1:]), dtype="float32"))
        return {
            "x": as_float(self.images[rows]),
            "z": z,
            "cond": self.labels[rows],
            **self.times(rng, size, step),
            "mixed": torch.from_numpy(rng.random(size)),
        }

    def prepare(self, batch: Batch, model: Generate, average: Generate) -> Batch:
        """Couple the draws and form the pair (see the module's text)."""
        generate = {"ema": average, "online": model}.get(self.generator_model, self.generator_model)
        x, cond = couple(self.coupling, self.share, batch, generate)
        z, t, r = batch["z"], batch["t"], batch["r"]
        x_t = self.flow.add_noise(x, z, t)
        if self.velocity is None:
            velocity, x_r = self.flow.velocity(x, z, t), self.flow.add_noise(x, z, r)
        else:
            velocity = self.velocity(x_t, t, cond)
            x_r = partner(x_t, t, r, velocity)
        rest = {name: batch[name] for name in ("t", "r", "weight", "progress") if name in batch}
        return {"x_t": x_t, "x_r": x_r, "velocity": velocity, "cond": cond, **rest}
