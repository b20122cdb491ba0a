"""Flows: the paths x_t = α_t x + σ_t z from data x to noise z, each with a time of its own.

    vp        α² + σ² = 1, DDPM's arrays; timesteps 0..T (paper A)
    ve        α = 1, σ = t from σ_min to σ_max (paper B, EDM)
    linear    α = 1 − t, σ = t, t in [0, 1] (flow matching, MeanFlow)
    trigflow  α = cos t, σ = sin t, t in [0, π/2] (sCM)

Each has `start`, where sampling begins, and `end`, where a sample is data; `coefficients` and `derivatives` of (α, σ)
at real-valued times; and `times`, from which a student samples in few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..errors import ConfigError
from ..runtime.devices import send

Time = torch.Tensor | float


class Flow:
    """A path from data to noise. Subclasses give `name`, `start`, `end` and the coefficients."""

    name: str
    start: float
    end: float = 0.0

    def coefficients(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α_t and σ_t at t, a scalar or (B,), shaped to broadcast over `like` (B, …)."""
        raise NotImplementedError

    def derivatives(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """dα/dt and dσ/dt at t, like `coefficients`."""
        raise NotImplementedError

    def add_noise(self, x: torch.Tensor, noise: torch.Tensor, t: Time) -> torch.Tensor:
        """`α_t x + σ_t z`; x and noise (B, …), t scalar or (B,)."""
        alpha, sigma = self.coefficients(t, x)
        return alpha * x + sigma * noise

    def velocity(self, x: torch.Tensor, noise: torch.Tensor, t: Time) -> torch.Tensor:
        """dx_t/dt = α' x + σ' z of one pair of data x and noise z (B, …); of their means given x_t the flow's own."""
        alpha, sigma = self.derivatives(t, x)
        return alpha * x + sigma * noise

    def ddim(self, x_t: torch.Tensor, clean: torch.Tensor, t: Time, r: Time) -> torch.Tensor:
        """The point at r ≤ t on the path through x_t whose data is `clean`: α_r x̂ + σ_r/σ_t (x_t − α_t x̂)."""
        alpha, sigma = self.coefficients(t, x_t)
        alpha_r, sigma_r = self.coefficients(r, x_t)
        ratio = torch.where(sigma > 0, sigma_r / sigma, torch.zeros_like(sigma))
        return alpha_r * clean + ratio * (x_t - alpha * clean)

    def times(self, steps: int, n_steps: int | None = None) -> list[float] | list[int]:
        """`steps` times to sample from, `start` first, evenly spaced.

        Args:
            n_steps: N, of a student whose times are a grid.
        """
        return [self.start + (self.end - self.start) * j / steps for j in range(steps)]

    @property
    def noise_scale(self) -> float:
        """What standard normal noise is multiplied with to be a point at `start`."""
        return 1.0


@dataclass(frozen=True)
class VPSchedule(Flow):
    """Variance-preserving DDPM schedule, `x_t = α_t x + σ_t ε` (paper A, section A.2 of the docs).

    Timesteps run over 0..T: 0 is clean data (α = 1, σ = 0), an integer t ≥ 1 is entry t − 1 of the DDPM
    arrays, and between two integers log α is linear.

    Attributes:
        steps: T, the number of timesteps.
        beta_start, beta_end: the variance of the first and the last forward step, 0 < β < 1.
        kind: "scaled_linear", β linear in its square root, or "linear".
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: str = "scaled_linear"
    name = "vp"

    @property
    def start(self) -> int:
        """T."""
        return self.steps

    @cached_property
    def _beta(self) -> torch.Tensor:
        if self.kind == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        root = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64)
        return root**2

    @cached_property
    def alpha(self) -> torch.Tensor:
        """α_t for t = 0..T, float64 (T + 1,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - self._beta).cumprod(0).sqrt()])

    @cached_property
    def sigma(self) -> torch.Tensor:
        """σ_t for t = 0..T, float64 (T + 1,)."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), (1 - (1 - self._beta).cumprod(0)).sqrt()])

    @cached_property
    def rate(self) -> torch.Tensor:
        """Continuous-time β = T β_t for t = 0..T, float64 (T + 1,); t = 0 repeats the first entry."""
        return torch.cat([self._beta[:1], self._beta]) * self.steps

    @cached_property
    def _copies(self) -> dict[tuple[int, torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]]:
        return {}  # of the arrays on GPUs

    def refined(self, factor: int = 1000) -> VPSchedule:
        """The same continuous β on a grid `factor` times as fine, whose α is the integral of β to 1e-5.

        The Euler and Heun of section A.3 integrate T β_t, while α_t multiplies up 1 − β_t: on T = 1000
        timesteps the two differ by about a percent, an error that no number of steps removes.
        """
        return VPSchedule(self.steps * factor, self.beta_start / factor, self.beta_end / factor, self.kind)

    def at(self, values: torch.Tensor, t: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
        """`values[t]` in the dtype and on the device of `like`, shaped to broadcast over it.

        Args:
            values: (T + 1,), one of alpha, sigma, rate.
            t: timestep(s) 0..T, a scalar or (B,).
            like: (B, …).
        """
        if not like.is_cuda:
            t = torch.as_tensor(t, device=values.device).cpu()
            return values[t].to(like).reshape(-1, *[1] * (like.ndim - 1))
        key = id(values), like.device, like.dtype
        if key not in self._copies:
            self._copies[key] = values, values.to(like)  # with the original, whose id is then no other's
        t = t if isinstance(t, int) else send(torch.as_tensor(t), like.device)
        return self._copies[key][1][t].reshape(-1, *[1] * (like.ndim - 1))

    def coefficients(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α_t and σ_t; at integers the arrays' own entries."""
        if not torch.as_tensor(t).is_floating_point():
            return self.at(self.alpha, t, like), self.at(self.sigma, t, like)
        below, slope = self._segment(t)
        log_alpha = self.alpha.log()[below] + (torch.as_tensor(t, dtype=torch.float64).cpu() - below) * slope
        alpha = log_alpha.exp()
        return spread(alpha, like), spread((1 - alpha**2).clamp(min=0).sqrt(), like)

    def derivatives(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """dα/dt and dσ/dt, of the segment below an integer; σ' has no value at 0, where it is taken at t = 1."""
        _, slope = self._segment(t)
        alpha, sigma = (value.double() for value in self.coefficients(t, like))
        slope = spread(slope, like).double()
        sigma = torch.where(sigma > 0, sigma, torch.full_like(sigma, self.sigma[1].item()))
        return (slope * alpha).to(like), (-slope * alpha**2 / sigma).to(like)

    def _segment(self, t: Time) -> tuple[torch.Tensor, torch.Tensor]:
        """The integer that the segment of each time begins at, and d(log α)/dt there."""
        below = (torch.as_tensor(t, dtype=torch.float64).cpu().ceil().long() - 1).clamp(0, self.steps - 1)
        return below, self.alpha.log().diff()[below]

    def times(self, steps: int, n_steps: int | None = None) -> list[int]:
        """`steps` evenly spaced times of the student's own grid of N steps, from T down (section A.7)."""
        grid = self.grid(n_steps or self.steps)
        return [grid[j * (len(grid) - 1) // steps] for j in range(steps)]

    def grid(self, n_steps: int) -> list[int]:
        """The N + 1 times T, T − T/N, …, 0 (section A.3).

        Raises:
            ConfigError: N does not divide T.
        """
        if n_steps < 1 or self.steps % n_steps:
            raise ConfigError(f"n_steps {n_steps} does not divide the schedule's {self.steps} timesteps")
        stride = self.steps // n_steps
        return list(range(self.steps, -1, -stride))


@dataclass(frozen=True)
class VESchedule(Flow):
    """Variance-exploding (EDM) schedule, `x_σ = x + σ z`; time is σ itself (paper B, section B.2).

    Attributes:
        sigma_min, sigma_max: the range of σ, 0 < σ_min < σ_max.
        rho: exponent of the Karras grid.
        sigma_data: deviation of the data that the preconditioning assumes.

    Raises:
        ConfigError: σ_min ≥ σ_max, or one that is not positive.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    name = "ve"

    @property
    def start(self) -> float:
        """σ_max."""
        return self.sigma_max

    @property
    def end(self) -> float:
        """σ_min."""
        return self.sigma_min

    @property
    def noise_scale(self) -> float:
        """σ_max."""
        return self.sigma_max

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"edm: sigma_min {self.sigma_min:g}, sigma_max {self.sigma_max:g}: 0 < sigma_min < sigma_max is needed"
            )

    def grid(self, levels: int) -> torch.Tensor:
        """Karras grid: `levels` ≥ 2 values of σ, float64, ascending from σ_min to σ_max.

        σ_i = (σ_min^(1/ρ) + (i − 1)/(levels − 1) (σ_max^(1/ρ) − σ_min^(1/ρ)))^ρ, i = 1..levels.
        """
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigmas = torch.linspace(low, high, levels, dtype=torch.float64) ** self.rho
        sigmas[0], sigmas[-1] = self.sigma_min, self.sigma_max  # free of rounding: f(x, σ_min) = x holds exactly
        return sigmas

    def coefficients(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """1 and σ."""
        sigma = spread(t, like)
        return torch.ones_like(sigma), sigma

    def derivatives(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """0 and 1."""
        sigma = spread(t, like)
        return torch.zeros_like(sigma), torch.ones_like(sigma)

    def velocity(self, x: torch.Tensor, noise: torch.Tensor, t: Time) -> torch.Tensor:
        """z itself."""
        return noise

    def times(self, steps: int, n_steps: int | None = None, levels: int = 1281) -> list[float]:
        """`steps` evenly spaced noise levels of the Karras grid of iCT's last levels, from σ_max down."""
        grid = self.grid(levels)
        return [grid[levels - 1 - j * (levels - 1) // steps].item() for j in range(steps)]

    def scalings(self, sigma: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """c_skip, c_out, c_in, c_noise at σ (B,); the first three broadcast over `like` (B, …).

        c_skip = σ_data² / ((σ − σ_min)² + σ_data²), c_out = σ_data (σ − σ_min) / sqrt(σ² + σ_data²),
        c_in = 1 / sqrt(σ² + σ_data²), c_noise = ¼ ln σ.
        """
        s, data = spread(sigma, like), self.sigma_data
        total = (s**2 + data**2).sqrt()
        skip = 1 / (1 + ((s - self.sigma_min) / data) ** 2)  # this form is exactly 1 at σ_min, for any σ_data
        return skip, data * (s - self.sigma_min) / total, 1 / total, 0.25 * sigma.log()


@dataclass(frozen=True)
class LinearFlow(Flow):
    """`x_t = (1 − t) x + t z`, t in [0, 1]; the velocity of a pair is z − x."""

    name = "linear"
    start = 1.0

    def coefficients(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """1 − t and t."""
        t = spread(t, like)
        return 1 - t, t

    def derivatives(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """−1 and 1."""
        one = torch.ones_like(spread(t, like))
        return -one, one


@dataclass(frozen=True)
class TrigFlow(Flow):
    """`x_t = cos(t) x + sin(t) z`, t in [0, π/2], of data and noise of one deviation (sCM, Lu & Song 2024).

    Attributes:
        sigma_data: deviation of the data; noise z has it too.
    """

    sigma_data: float = 0.5
    name = "trigflow"
    start = math.pi / 2

    @property
    def noise_scale(self) -> float:
        """σ_data."""
        return self.sigma_data

    def coefficients(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos t and σ_data sin t, for noise of deviation 1."""
        t = spread(t, like)
        return t.cos(), self.sigma_data * t.sin()

    def derivatives(self, t: Time, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """−sin t and σ_data cos t."""
        t = spread(t, like)
        return -t.sin(), self.sigma_data * t.cos()


def spread(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """A scalar or (B,) in the dtype and on the device of `like`, shaped to broadcast over it."""
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value.reshape(-1, *[1] * (like.ndim - 1))


def step_probabilities(sigmas: torch.Tensor, mean: float = -1.1, deviation: float = 2.0) -> torch.Tensor:
    """Discretised lognormal distribution of the step index i (section B.2).

    p(i) ∝ erf((ln σ_{i+1} − P_mean) / (√2 P_std)) − erf((ln σ_i − P_mean) / (√2 P_std)).

    Args:
        sigmas: (levels,), ascending.

    Returns:
        float64 (levels − 1,), sums to 1.
    """
    edges = torch.erf((sigmas.double().log() - mean) / (math.sqrt(2) * deviation))
    mass = edges.diff()
    return mass / mass.sum()


FLOWS: dict[str, type[Flow]] = {flow.name: flow for flow in (VPSchedule, VESchedule, LinearFlow, TrigFlow)}


def flow_of(name: str, options: dict[str, Any]) -> Flow:
    """The flow of that name with its options (of `settings.Schedule` or `settings.EDM`)."""
    return FLOWS[name](**options)
