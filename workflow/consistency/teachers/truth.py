"""The true end of the probability-flow ODE, for teachers that are known in closed form.

With y = x/α and s = σ/α every schedule has the same ODE, `dy/ds = E[z | y]` (paper B's VE form), so
one solve gives the truth for VP and for VE. It is integrated by SciPy's DOP853 (order 8, adaptive)
and checked on part of the samples by LSODA, a method of another family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MismatchError
from ..files.storage import save_tensors
from ..flow.schedules import Flow, VPSchedule, flow_of
from ..networks.mixture import Mixture
from ..runtime.progress import Progress

RTOL, ATOL = 1e-12, 1e-13  # of the true end
FAR = 1e5  # s that stands for infinity: its terms of order 1/s² are below the integrator's error


def endpoint(
    mixture: Mixture,
    y: torch.Tensor,
    start: float,
    end: float = 0.0,
    method: str = "DOP853",
    rtol: float = RTOL,
    atol: float = ATOL,
) -> torch.Tensor:
    """Solve dy/ds = E[z | y] from s = start to s = end.

    Args:
        y: float64 (B, d), at noise-to-signal ratio `start`.
        method: of scipy.integrate.solve_ivp.
        rtol, atol: its tolerances, in the mean square over y, whose samples share the adaptive step.

    Returns:
        float64 (B, d).

    Raises:
        MismatchError: the integrator gave up.
    """
    from scipy.integrate import solve_ivp

    shape = y.shape

    def velocity(s: float, flat: np.ndarray) -> np.ndarray:
        return mixture.eps(torch.from_numpy(flat).view(shape), 1.0, s).numpy().ravel()

    solved = solve_ivp(velocity, (start, end), y.double().numpy().ravel(), method=method, rtol=rtol, atol=atol)
    if not solved.success:
        raise MismatchError(f"truth: {method} did not reach s = {end:g}: {solved.message}")
    return torch.from_numpy(solved.y[:, -1].copy()).view(shape)


def flow_map(
    mixture: Mixture, y: torch.Tensor, start: torch.Tensor, end: float, rtol: float = RTOL, atol: float = ATOL
) -> torch.Tensor:
    """As `endpoint`, each sample from a level of its own: start (B,) > 0, end > 0. All run evenly in ln s."""
    from scipy.integrate import solve_ivp

    start, shape = start.double(), y.shape
    rate = (end / start).log()

    def velocity(share: float, flat: np.ndarray) -> np.ndarray:
        s = start * (share * rate).exp()
        return ((s * rate)[:, None] * mixture.eps(torch.from_numpy(flat).view(shape), 1.0, s)).numpy().ravel()

    solved = solve_ivp(velocity, (0.0, 1.0), y.double().numpy().ravel(), method="DOP853", rtol=rtol, atol=atol)
    if not solved.success:
        raise MismatchError(f"truth: DOP853 did not reach s = {end:g}: {solved.message}")
    return torch.from_numpy(solved.y[:, -1].copy()).view(shape)


def flows_of(options: dict[str, dict[str, Any]]) -> dict[str, Flow]:
    """The flows with their options by name; `vp_refined` is the VP schedule on a finer grid."""
    return {
        name: VPSchedule(**chosen).refined() if name == "vp_refined" else flow_of(name, chosen)
        for name, chosen in options.items()
    }


def starts(
    noise: torch.Tensor, flows: dict[str, Flow], mean: torch.Tensor | float = 0.0
) -> dict[str, tuple[torch.Tensor, float, float]]:
    """For each flow, where its ODE starts from the shared noise, as (y, s at the start, s at the end).

    A flow that starts at noise alone has no finite s there. It is followed from s = FAR on: until then the velocity is
    that of the data's mean, up to terms of order 1/s².

    Args:
        mean: of the data, (d,).
    """
    starting = {}
    for name, flow in flows.items():
        alpha, sigma = (value.item() for value in flow.coefficients(flow.start, noise.double()))
        if alpha > 1 / FAR:
            starting[name] = noise.double() * flow.noise_scale / alpha, sigma / alpha, flow.end * (flow.name == "ve")
        else:
            starting[name] = mean + FAR * noise.double(), FAR, 0.0
    return starting


def solve(
    path: str | Path,
    mixture: Mixture,
    noise: torch.Tensor,
    flows: dict[str, Flow],
    checked: int = 4,
    tolerance: float = 1e-7,
    batch_size: int = 512,
) -> None:
    """Write the ODE's end from the shared noise, float64, one tensor (count, d) a flow.

    Flows end at clean data, VE at σ_min, where its consistency function is the identity.

    Args:
        checked: how many samples the second integrator solves too.
        tolerance: the largest difference between the two integrators that is accepted.

    Raises:
        MismatchError: they differ by more.
    """
    tensors, metadata = {}, {}
    for name, (y, start, end) in starts(noise, flows, mixture.mean).items():
        progress = Progress(len(y), f"true ODE endpoint, {name}")
        parts = []
        for part in y.split(batch_size):
            parts.append(endpoint(mixture, part, start, end))
            progress.update(len(part))
        tensors[name] = torch.cat(parts)
        some = torch.linspace(0, len(y) - 1, min(checked, len(y))).long()
        second = endpoint(mixture, y[some], start, end, "LSODA", rtol=1e-11, atol=1e-12)
        difference = (second - tensors[name][some]).abs().max().item()
        if not difference <= tolerance:
            raise MismatchError(f"truth: DOP853 and LSODA differ by {difference:.2g}; allowed: {tolerance:g}")
        metadata[name] = {"rtol": RTOL, "atol": ATOL, "checked": checked, "largest_difference_to_lsoda": difference}
    save_tensors(path, tensors, metadata)
