"""Noise schedules, the boundary condition of the consistency function, and the iCT curriculum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import ConfigError
from ..runtime.devices import send


@dataclass(frozen=True)
class VPSchedule:
    """Variance-preserving DDPM schedule, `x_t = α_t x + σ_t ε` (paper A, section A.2 of the docs).

    Timesteps are integers 0..T: 0 is clean data (α = 1, σ = 0), t ≥ 1 is entry t − 1 of the DDPM
    arrays.

    Attributes:
        steps: T, the number of timesteps.
        beta_start, beta_end: the variance of the first and the last forward step, 0 < β < 1.
        kind: "scaled_linear", β linear in its square root, or "linear".
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: str = "scaled_linear"

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

    def add_noise(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        """`α_t x + σ_t ε`; x and noise (B, …), t scalar or (B,)."""
        return self.at(self.alpha, t, x) * x + self.at(self.sigma, t, x) * noise

    def grid(self, n_steps: int) -> list[int]:
        """The N + 1 times T, T − T/N, …, 0 (section A.3).

        Raises:
            ConfigError: N does not divide T.
        """
        if n_steps < 1 or self.steps % n_steps:
            raise ConfigError(f"n_steps {n_steps} does not divide the schedule's {self.steps} timesteps")
        stride = self.steps // n_steps
        return list(range(self.steps, -1, -stride))


def boundary(
    t: torch.Tensor, like: torch.Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`c_skip, c_out` of the consistency function, so that f(x, 0) = x (section A.4).

    With u = 10 t: c_skip = σ_data² / (u² + σ_data²), c_out = u / sqrt(u² + σ_data²).

    Args:
        t: timesteps 0..T, (B,).
        like: (B, …), gives dtype, device and the shape to broadcast over.
    """
    u = timestep_scaling * t.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return sigma_data**2 / (u**2 + sigma_data**2), u / (u**2 + sigma_data**2).sqrt()


@dataclass(frozen=True)
class VESchedule:
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

    def add_noise(self, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """`x + σ z`; x and noise (B, …), σ scalar or (B,)."""
        return x + spread(sigma, x) * noise

    def scalings(self, sigma: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """c_skip, c_out, c_in, c_noise at σ (B,); the first three broadcast over `like` (B, …).

        c_skip = σ_data² / ((σ − σ_min)² + σ_data²), c_out = σ_data (σ − σ_min) / sqrt(σ² + σ_data²),
        c_in = 1 / sqrt(σ² + σ_data²), c_noise = ¼ ln σ.
        """
        s, data = spread(sigma, like), self.sigma_data
        total = (s**2 + data**2).sqrt()
        skip = 1 / (1 + ((s - self.sigma_min) / data) ** 2)  # this form is exactly 1 at σ_min, for any σ_data
        return skip, data * (s - self.sigma_min) / total, 1 / total, 0.25 * sigma.log()


def spread(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """A scalar or (B,) in the dtype and on the device of `like`, shaped to broadcast over it."""
    value = torch.as_tensor(value, device=like.device).to(like.dtype)
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
