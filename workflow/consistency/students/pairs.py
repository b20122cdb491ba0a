"""Pairs of points of one trajectory, made while training: consistency training, and distillation in
the same parameterisation (paper B, sections B.2 and B.3).

A step draws data x, noise z and a step index i, lets the coupling choose which x goes with which z,
and forms x_{σ_{i+1}} = x + σ_{i+1} z. Its partner at σ_i lies along a velocity u:

    x_{σ_i} = x_{σ_{i+1}} + (σ_i − σ_{i+1}) u,   u = z (CT) or u = the teacher's v(x_{σ_{i+1}}) (CD)

With u = z this is x + σ_i z. CT and CD differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..data.prepare import as_float
from ..flow.curricula import curriculum
from ..flow.schedules import VESchedule, spread, step_probabilities
from ..flow.streams import generator
from .couplings import PER_SAMPLE, Generate

Batch = dict[str, torch.Tensor]
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Steps:
    """Curriculum and distribution of the step index; see `settings.EDM`."""

    s0: int = 10
    s1: int = 1280
    p_mean: float = -1.1
    p_std: float = 2.0


def coupling_named(name: str) -> Callable:
    """The public function of `couplings` with that name."""
    from . import couplings

    return getattr(couplings, name)


def couple(
    name: str,
    share: float,
    x: torch.Tensor,
    z: torch.Tensor,
    sigma: torch.Tensor,
    cond: torch.Tensor,
    mixed: torch.Tensor,
    generate: Generate,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply a coupling to each sample with probability `share`, the independent coupling to the others.

    Args:
        name: a function of `couplings`.
        share: μ in [0, 1]; at 0 nothing is computed and the draws come back as they are.
        mixed: uniform draws in [0, 1), (B,); a sample is coupled where its draw is below `share`.
    """
    if share == 0 or name == "independent":
        return x, cond
    coupled, labels = coupling_named(name)(x, z, sigma, cond, generate)
    if share == 1:
        return coupled, labels
    chosen = mixed < share
    return torch.where(spread(chosen, x).bool(), coupled, x), torch.where(chosen, labels, cond)


def partner(x_s: torch.Tensor, s: torch.Tensor, n: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One Euler step of dx/dσ = u from σ = s to σ = n: x_s (B, …), s and n (B,), u (B, …)."""
    return x_s + spread(n - s, x_s) * u


class PairSource:
    """Batches of `objectives.Pairs`. A draw is a pure function of (seed, step); the coupling also
    depends on the generator's weights.

    Args:
        images, labels: the training data (n, …) and (n,).
        total: K, training steps, for the curriculum.
        coupling: a function of `couplings`; share: μ in [0, 1].
        generator_model: "ema" or "online" (the student's average, or the student itself), or a frozen
            model's function.
        velocity: None for CT, the teacher's v(x, σ, cond) for CD.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        schedule: VESchedule,
        steps: Steps,
        total: int,
        batch_size: int,
        seed: int,
        coupling: str = "independent",
        share: float = 1.0,
        generator_model: str | Generate = "ema",
        velocity: Velocity | None = None,
    ):
        self.images, self.labels, self.schedule, self.steps, self.total = images, labels, schedule, steps, total
        self.batch_size, self.seed, self.coupling, self.share = batch_size, seed, coupling, share
        self.generator_model, self.velocity = generator_model, velocity
        self.together = coupling not in PER_SAMPLE  # whether `prepare` needs a whole batch
        self._levels, self._sigmas, self._edges = 0, torch.empty(0), torch.empty(0)

    def __call__(self, step: int) -> Batch:
        """The draws of a step, on the CPU: x, z, s = σ_{i+1}, n = σ_i, weight, cond, mixed."""
        levels = curriculum(step, self.total, self.steps.s0, self.steps.s1)
        if levels != self._levels:
            self._levels, self._sigmas = levels, self.schedule.grid(levels)
            self._edges = step_probabilities(self._sigmas, self.steps.p_mean, self.steps.p_std).cumsum(0)
        rng, size = generator(self.seed, "pairs", step), self.batch_size
        rows = torch.from_numpy(rng.integers(len(self.images), size=size))
        z = torch.from_numpy(rng.standard_normal((size, *self.images.shape[1:]), dtype="float32"))
        i = torch.searchsorted(self._edges, torch.from_numpy(rng.random(size)), right=True).clamp(max=levels - 2)
        s, n = self._sigmas[i + 1], self._sigmas[i]
        return {
            "x": as_float(self.images[rows]),
            "z": z,
            "s": s,
            "n": n,
            "weight": (1 / (s - n)).float(),
            "cond": self.labels[rows],
            "mixed": torch.from_numpy(rng.random(size)),
        }

    def prepare(self, batch: Batch, model: Generate, average: Generate) -> Batch:
        """Couple the draws and form the pair (see the module's text)."""
        generate = {"ema": average, "online": model}.get(self.generator_model, self.generator_model)
        x, z, s, n = batch["x"], batch["z"], batch["s"], batch["n"]
        x, cond = couple(self.coupling, self.share, x, z, n, batch["cond"], batch["mixed"], generate)
        x_s = self.schedule.add_noise(x, z, s)
        if self.velocity is None:
            x_n = self.schedule.add_noise(x, z, n)
        else:
            x_n = partner(x_s, s, n, self.velocity(x_s, s, cond))
        return {"x_s": x_s, "x_n": x_n, "s": s, "n": n, "cond": cond, "weight": batch["weight"]}
