"""One step of the teacher's probability-flow ODE, s → n, as pure functions (section A.3).

A solver is `solver(x, s, n, eps, schedule) -> x'` with x of shape (B, …), timesteps s > n ≥ 0
(scalars or (B,)), and `eps(x, t)` the guided ε-prediction. Every public function here is a solver
that a configuration may name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .schedules import VPSchedule, spread

Eps = Callable[[torch.Tensor, torch.Tensor | int], torch.Tensor]
Time = torch.Tensor | int


def ddim(x: torch.Tensor, s: Time, n: Time, eps: Eps, schedule: VPSchedule) -> torch.Tensor:
    """DDIM, the exponential integrator: exact where ε is constant along the trajectory."""
    noise = eps(x, s)
    clean = (x - schedule.at(schedule.sigma, s, x) * noise) / schedule.at(schedule.alpha, s, x)
    return schedule.at(schedule.alpha, n, x) * clean + schedule.at(schedule.sigma, n, x) * noise


def _derivative(x: torch.Tensor, t: Time, eps: Eps, schedule: VPSchedule) -> torch.Tensor:
    """`dx/dτ = −½ β x + ½ (β/σ) ε` with τ = t/T; at t = 0 the first array entry's β and σ are used."""
    t = torch.as_tensor(t).clamp(min=1)
    rate = schedule.at(schedule.rate, t, x)
    return -0.5 * rate * x + 0.5 * rate / schedule.at(schedule.sigma, t, x) * eps(x, t)


def _interval(s: Time, n: Time, x: torch.Tensor, schedule: VPSchedule) -> torch.Tensor:
    return spread((torch.as_tensor(n) - torch.as_tensor(s)).to(torch.float64) / schedule.steps, x)


def euler(x: torch.Tensor, s: Time, n: Time, eps: Eps, schedule: VPSchedule) -> torch.Tensor:
    """Explicit Euler, first order."""
    return x + _interval(s, n, x, schedule) * _derivative(x, s, eps, schedule)


def heun(x: torch.Tensor, s: Time, n: Time, eps: Eps, schedule: VPSchedule) -> torch.Tensor:
    """Heun: Euler predictor, then the average of the derivatives at s and at n; second order."""
    span = _interval(s, n, x, schedule)
    first = _derivative(x, s, eps, schedule)
    second = _derivative(x + span * first, n, eps, schedule)
    return x + 0.5 * span * (first + second)
