"""How a network's output becomes a point of the trajectory: the student's parameterisations.

Each is called with (network, x, t, cond, r, velocity) as `maps.FlowMap.forward` is. Those of one time estimate the
trajectory's end, f(x, t), and reach another r along the straight path through it (`Flow.ddim`, as multistep consistency
models do); `average_velocity` is trained to reach every r.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..flow.predictions import data_of
from ..flow.schedules import Flow, VESchedule, spread
from ..teachers.protocol import network_time

Tensor = torch.Tensor
Time = torch.Tensor | float


class Parameterisation:
    """A consistency function of one time; subclasses give `clean`."""

    two_times = False  # whether the network is asked with r too

    def __init__(self, flow: Flow, timestep_offset: int = -1):
        self.flow, self.timestep_offset = flow, timestep_offset

    def __call__(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor, r: Time | None, velocity: bool) -> Tensor:
        clean = self.clean(network, x, t, cond)
        point = clean if r is None else self.flow.ddim(x, clean, t, r)
        if not velocity:
            return point
        r = self.flow.end if r is None else r
        return (x - point) / (spread(t, x) - spread(r, x))

    def clean(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor) -> Tensor:
        """f(x, t), the estimate of the trajectory's end, like x (B, …)."""
        raise NotImplementedError


class Boundary(Parameterisation):
    """`f(x_t, t) = c_skip(t) x_t + c_out(t) (x_t − σ_t ε_θ(x_t, t, c)) / α_t` (section A.4).

    f(x, 0) = x exactly. There is no guidance inside: one student is distilled at one fixed w. A network that predicts v
    or x_0 is asked for what it predicts, and the estimate of x_0 is computed from that (`predictions`).
    """

    def clean(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor) -> Tensor:
        """f(x, t); t: timestep(s) 0..T."""
        t = torch.as_tensor(t).expand(len(x))
        output = network(x, network_time(t, len(x), self.timestep_offset, x.device), cond).to(x.dtype)
        estimate = data_of(network, output, x, t, self.flow)
        c_skip, c_out = boundary(t, x)
        return c_skip * x + c_out * estimate


def boundary(t: Tensor, like: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """`c_skip, c_out` of the consistency function, so that f(x, 0) = x (section A.4).

    With u = 10 t: c_skip = σ_data² / (u² + σ_data²), c_out = u / sqrt(u² + σ_data²).

    Args:
        t: timesteps 0..T, (B,).
        like: (B, …), gives dtype, device and the shape to broadcast over.
    """
    u = timestep_scaling * spread(t, like)
    return sigma_data**2 / (u**2 + sigma_data**2), u / (u**2 + sigma_data**2).sqrt()


class EDM(Parameterisation):
    """`f(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ), c)`, VE and EDM preconditioning (section B.2).

    f(x, σ_min) = x exactly. The network's time input runs over its timesteps 0..T − 1: c_noise = ¼ ln σ is
    mapped there linearly, which the embedding's first layer could undo.
    """

    flow: VESchedule

    def __init__(self, flow: VESchedule, timestep_offset: int = -1):
        super().__init__(flow, timestep_offset)
        self._low, self._high = 0.25 * math.log(flow.sigma_min), 0.25 * math.log(flow.sigma_max)

    def clean(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor) -> Tensor:
        """f(x, σ); σ in [σ_min, σ_max]."""
        sigma = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        c_skip, c_out, c_in, c_noise = self.flow.scalings(sigma, x)
        time = (c_noise - self._low) / (self._high - self._low) * (network.timesteps - 1)
        return c_skip * x + c_out * network(c_in * x, time.to(x.dtype), cond).to(x.dtype)


class Trig(Parameterisation):
    """`f(x_t, t) = cos(t) x_t − sin(t) σ_d F(x_t/σ_d, t, c)` (sCM, Lu & Song 2024, eq. 8); f(x, 0) = x exactly."""

    def clean(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor) -> Tensor:
        """f(x, t); t in [0, π/2]."""
        scale = self.flow.noise_scale
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        output = network(x / scale, time / self.flow.start * (network.timesteps - 1), cond).to(x.dtype)
        return spread(time.cos(), x) * x - spread(time.sin(), x) * scale * output


class AverageVelocity(Parameterisation):
    """`X(x, t, r) = x − (t − r) u(x, t, r, c)`, the network's output being u (MeanFlow, Geng et al. 2025).

    X(x, t, t) = x exactly. The network is asked with t and with the gap t − r, both scaled to its timesteps.
    """

    two_times = True

    def __call__(self, network: nn.Module, x: Tensor, t: Time, cond: Tensor, r: Time | None, velocity: bool) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        r = torch.as_tensor(self.flow.end if r is None else r, dtype=x.dtype, device=x.device).expand(len(x))
        scale = (network.timesteps - 1) / self.flow.start
        u = network(x, t * scale, cond, (t - r) * scale).to(x.dtype)
        return u if velocity else x - spread(t - r, x) * u


PARAMETERISATIONS: dict[str, type[Parameterisation]] = {
    "boundary": Boundary,
    "edm": EDM,
    "trigflow": Trig,
    "average_velocity": AverageVelocity,
}
