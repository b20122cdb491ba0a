"""Noise schedules and the boundary condition of the consistency function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from .errors import ConfigError


@dataclass(frozen=True)
class VPSchedule:
    """Variance-preserving DDPM schedule, `x_t = α_t x + σ_t ε` (paper A, section A.2 of the docs).

    Timesteps are integers 0..T: 0 is clean data (α = 1, σ = 0), t ≥ 1 is entry t − 1 of the DDPM
    arrays. β is linear in its square root ("scaled linear").

    Attributes:
        steps: T, the number of timesteps.
        beta_start, beta_end: the variance of the first and the last forward step, 0 < β < 1.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @cached_property
    def _beta(self) -> torch.Tensor:
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

    def at(self, values: torch.Tensor, t: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
        """`values[t]` in the dtype and on the device of `like`, shaped to broadcast over it.

        Args:
            values: (T + 1,), one of alpha, sigma, rate.
            t: timestep(s) 0..T, a scalar or (B,).
            like: (B, …).
        """
        t = torch.as_tensor(t, device=values.device).cpu()
        return values[t].to(like).reshape(-1, *[1] * (like.ndim - 1))

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
