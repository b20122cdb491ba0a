"""How far the velocities of single pairs are from the mean velocity of their own coupling's flow (paper B, eq. 17).

    R̃_c(σ) = E ‖z − v_c(x̃_σ)‖²,   x̃_σ = x̃ + σ z,   v_c(x̃_σ) = E_c[z | x̃_σ]

with (x̃, z) drawn as coupling c pairs them, summed over the dimensions. z is the pair's own velocity dx̃_σ/dσ. With the
independent coupling of data known in closed form v_c is exact. Otherwise it is learned, by a denoiser of each coupling
(as in the paper), from draws of its own; R̃ is then the mean over other draws, of data held out. A denoiser that is not
exact makes it larger, never smaller, so it is an upper bound: R̃ plus the mean square of the denoiser's error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..config.settings import Training
from ..flow.schedules import VESchedule, spread
from ..flow.streams import generator
from ..networks.mlp import ResidualMLP
from ..students.couplings import Generate
from ..teachers.protocol import AnalyticTeacher
from ..training.optimizers import make_optimizer, rate_at
from .coupled import Coupler, shown_levels

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # of x_σ (B, …), σ (B,), cond (B,)
TIMES = 16  # the denoiser's time input runs over 0..TIMES − 1: no faster wave than that over ln σ


def velocity_variances(
    training: Coupler,
    held_out: Coupler,
    names: list[str],
    *,
    student: Generate,
    teacher: AnalyticTeacher | None,
    steps: int,
    settings: dict[str, Any],
    seed: int,
) -> Iterator[tuple[str, float, str]]:
    """`velocity_variance`, the mean over the noise levels of the training, and `velocity_variance@sigma=…`, of each
    coupling.

    Args:
        training: draws to learn from; held_out: draws to measure on.
        student: f, whose output is one of the denoisers' inputs.
        teacher: an exact one, where there is one.
        steps: of the training's grid.
        settings: of `settings.VelocityFit`.
    """
    schedule = held_out.schedule
    levels = [("velocity_variance", held_out.levels(steps)[1])]
    for level in shown_levels(schedule):
        levels.append((f"velocity_variance@sigma={level:.4g}", level.expand(len(held_out.drawn["z"]))))
    for name in names:
        if name == "independent" and teacher is not None:
            velocity = teacher.velocity
        else:
            velocity = fit(training, name, student, teacher, settings, seed)
        for metric, sigma in levels:
            x, cond = held_out.point(name, sigma)
            yield (
                metric,
                (held_out.drawn["z"] - velocity(x, sigma, cond)).flatten(1).square().sum(1).mean().item(),
                name,
            )


def fit(
    draws: Coupler,
    name: str,
    student: Generate,
    teacher: AnalyticTeacher | None,
    settings: dict[str, Any],
    seed: int,
) -> Velocity:
    """Learn E_c[z | x_σ] of one coupling at all noise levels, by least squares on its draws.

    The network adds to the velocity of independent pairs: the exact one, or that of data N(0, σ_data² I), which is
    EDM's preconditioning. It sees x_σ and the student's f(x_σ, σ): both are functions of x_σ, and f has the sharp
    borders between modes that a small network would have to learn.

    Returns:
        float64, like x_σ.
    """
    schedule, options = draws.schedule, {key: settings[key] for key in ("steps", "batch_size", "learning_rate")}
    plan = Training(warmup_steps=100, decay_share=0.8, weight_decay=0.0, **options)
    sigma, z = draws.even_levels(), draws.drawn["z"]
    x, cond = draws.point(name, sigma)
    base, scale = _base(teacher, schedule), _scale(schedule, sigma, z)
    inputs, target = _inputs(x, sigma, cond, student, schedule), ((z - base(x, sigma, cond)) / scale).float()
    rng = generator(seed, "denoiser", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        shape, classes = list(inputs[0].shape[1:]), int(cond.max()) + 1
        network = ResidualMLP(shape, classes, TIMES, settings["width"], settings["depth"])
    optimizer = make_optimizer("adamw", list(network.parameters()), plan.learning_rate, 0.0)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(plan.steps):
        if len(order) < plan.batch_size:
            order = torch.from_numpy(rng.permutation(len(z)))
        rows, order = order[: plan.batch_size], order[plan.batch_size :]
        output = network(*(column[rows] for column in inputs))[:, : z.shape[1]]
        optimizer.zero_grad()
        (output - target[rows]).square().mean().backward()
        optimizer.param_groups[0]["lr"] = rate_at(plan, step)
        optimizer.step()

    @torch.no_grad()
    def velocity(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        output = network(*_inputs(x, sigma, cond, student, schedule))[:, : x.shape[1]]
        return base(x, sigma, cond) + _scale(schedule, sigma, x) * output

    return velocity


def _base(teacher: AnalyticTeacher | None, schedule: VESchedule) -> Velocity:
    """The velocity of independent pairs: exact, or of data N(0, σ_data² I)."""
    if teacher is not None:
        return teacher.velocity
    return lambda x, sigma, cond: spread(sigma / (sigma**2 + schedule.sigma_data**2), x) * x


def _scale(schedule: VESchedule, sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The deviation of z given x_σ where data are N(0, σ_data² I) and independent of z."""
    return spread(schedule.sigma_data / (sigma**2 + schedule.sigma_data**2).sqrt(), like)


def _inputs(
    x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, student: Generate, schedule: VESchedule
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the network sees: x_σ and f(x_σ, σ) at about unit scale, (B, 2 C, …); ln σ over its times; cond."""
    scaled = x / spread((sigma**2 + schedule.sigma_data**2).sqrt(), x)
    clean = torch.cat([part.double() for part in _in_parts(student, x, sigma, cond)]) / schedule.sigma_data
    time = (sigma / schedule.sigma_min).log() / torch.tensor(schedule.sigma_max / schedule.sigma_min).log()
    return torch.cat([scaled, clean], 1).float(), (time * (TIMES - 1)).float(), cond


def _in_parts(f: Generate, *columns: torch.Tensor) -> Iterator[torch.Tensor]:
    for part in zip(*(column.split(4096) for column in columns), strict=True):
        yield f(*part)
