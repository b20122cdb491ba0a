"""What a coupling does to consistency training (paper B, section B.1), measured on one student f.

For N grid steps, draws (x, z, i) and a coupling, x_{σ_{i+1}} = x + σ_{i+1} z is followed to σ_i along z (CT) and
along the true velocity v = E[z | x_{σ_{i+1}}] (CD), both from the same point:

    loss          E ‖f(x_{σ_{i+1}}, σ_{i+1}) − f(x_{σ_i}, σ_i)‖² / Δσ²
    velocity_gap  E ‖f(x^CT_{σ_i}, σ_i) − f(x^CD_{σ_i}, σ_i)‖² / Δσ²
    gradient      ⟨E g_u, E g_CD⟩ for u = CT or CD, g the gradient in θ of the training loss (weight 1/Δσ, target
                  stopped), at weights of early in the training; CT's over CD's is 1 where the gradients agree.
                  The two means are over separate draws, so that their noise does not add to the product.
    transport_cost  E ‖x − z‖², by noise level

As N grows the first tends to E ‖∂_σ f + J_f u‖² with u = z or v, the second to E ‖J_f (z − v)‖²; both limits are
computed with Jacobian-vector products at the draws of the finest grid.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.claims import COUPLINGS
from ..files.storage import load_tensors, save_tensors, sha256, weights_sha256
from ..flow.schedules import VESchedule, step_probabilities
from ..flow.streams import generator
from ..flow.transport import assignment
from ..networks import is_mixture
from ..plugins import load, options_of
from ..runtime.progress import Progress
from ..runtime.provenance import environment
from ..students import losses
from ..students.couplings import Generate
from ..students.maps import budget_name
from ..students.maps import load as load_student
from ..students.pairs import partner
from ..teachers.protocol import AnalyticTeacher
from .measure import Row, _row, write_measured

Value = tuple[str, float, str]  # metric, value, reference
LEVELS = 12  # noise levels of the transport cost
CURVES = 12  # trajectories kept for the figure
EXACT = "exact optimal transport"


def _draws(images: torch.Tensor, labels: torch.Tensor, count: int, seed: int) -> dict[str, torch.Tensor]:
    rng = generator(seed, "pairs", 2**32)
    rows = torch.from_numpy(rng.integers(len(images), size=count))
    z = torch.from_numpy(rng.standard_normal((count, *images.shape[1:])))
    quantile = torch.from_numpy(rng.random(count))
    return {"x": images[rows].double(), "z": z, "cond": labels[rows], "quantile": quantile}


class _Coupler:
    """The coupled data of the draws, batch by batch; what no noise level enters is computed once."""

    def __init__(
        self,
        drawn: dict[str, torch.Tensor],
        generate: Generate,
        batch_size: int,
        schedule: VESchedule,
        curriculum: dict[str, Any],
    ):
        self.drawn, self.generate, self.batch_size, self.schedule = drawn, generate, batch_size, schedule
        self.mean, self.deviation = curriculum["p_mean"], curriculum["p_std"]  # of the step's ln σ
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, name: str, sigma: torch.Tensor, first: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Data (count, …) and conditions (count,) that the coupling puts with z at σ (count,); the `first` of them at
        least."""
        if name in self._kept:
            return self._kept[name]
        only = first if options_of(load("coupling", name)).get("per_sample") else None
        columns = [column[:only] for column in (self.drawn["x"], self.drawn["z"], sigma, self.drawn["cond"])]
        batches = zip(*(column.split(self.batch_size) for column in columns), strict=True)
        parts = [load("coupling", name)(*batch, self.generate) for batch in batches]
        coupled = torch.cat([x for x, _ in parts]), torch.cat([cond for _, cond in parts])
        if name != "generator_induced" and only is None:
            self._kept[name] = coupled
        return coupled

    def levels(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """σ_i and σ_{i+1} of each draw on the grid of so many steps."""
        grid = self.schedule.grid(steps + 1)
        edges = step_probabilities(grid, self.mean, self.deviation).cumsum(0)
        i = torch.searchsorted(edges, self.drawn["quantile"], right=True).clamp(max=steps - 1)
        return grid[i], grid[i + 1]

    def pairs(self, name: str, steps: int, teacher: AnalyticTeacher) -> dict[str, torch.Tensor]:
        """x_t and its partners ct and cd at level r; t, r, cond, and the true velocity v."""
        (n, s), z = self.levels(steps), self.drawn["z"]
        x, cond = self(name, n)
        x_t = self.schedule.add_noise(x, z, s)
        v = teacher.velocity(x_t, s, cond)
        partners = {"ct": partner(x_t, s, n, z), "cd": partner(x_t, s, n, v)}
        return {"x_t": x_t, "t": s, "r": n, "cond": cond, "v": v} | partners


def _per_step(squared: torch.Tensor, delta: torch.Tensor) -> float:
    return (squared.flatten(1).sum(1) / delta**2).mean().item()


def _limits(
    f: torch.nn.Module, x: torch.Tensor, s: torch.Tensor, cond: torch.Tensor, z: torch.Tensor, v: torch.Tensor
) -> dict[str, float]:
    """The closed limits of loss and gap at points x, by Jacobian-vector products.

    J u is the derivative of wᵀJ in w, so two reverse passes do; forward mode would import the compiler.
    """
    x, s = x.clone().requires_grad_(), s.clone().requires_grad_()
    here = f(x, s, cond)
    w = torch.zeros_like(here, requires_grad=True)
    rows = torch.autograd.grad(here, (x, s), w, create_graph=True)

    def along(u: torch.Tensor, speed: float) -> float:
        (tangent,) = torch.autograd.grad(rows, w, (u, torch.full_like(s, speed)), retain_graph=True)
        return tangent.flatten(1).square().sum(1).mean().item()

    return {"ct": along(z, 1.0), "cd": along(v, 1.0), "gap": along(z - v, 0.0)}


def _gradients(
    f: torch.nn.Module, batches: list[dict[str, torch.Tensor]], constants: dict[str, float]
) -> dict[str, float]:
    """`{distance} {u}` → ⟨E g_u, E g_CD⟩ for both distances, u = ct or cd.

    Args:
        batches: of `_Coupler.pairs`, at least two.
    """
    weights = list(f.parameters())
    by_name = {"mse": losses.mse, "pseudo-Huber": lambda a, b: losses.pseudo_huber_norm(a, b, **constants)}
    products = {}
    for name, distance in by_name.items():
        means: dict[str, list[torch.Tensor]] = {"ct": [], "cd": []}
        for half in (batches[0::2], batches[1::2]):
            for target, kept in means.items():
                total = 0.0
                for batch in half:
                    with torch.no_grad():
                        fixed = f(batch[target], batch["r"], batch["cond"])
                    values = distance(f(batch["x_t"], batch["t"], batch["cond"]), fixed) / (batch["t"] - batch["r"])
                    total = total + values.mean() / len(half)
                kept.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)]))
        for target, (a, b) in means.items():
            reference = means["cd"]
            products[f"{name} {target}"] = 0.5 * (a @ reference[1] + b @ reference[0]).item()
    return products


def _labelled(velocity: str, name: str) -> str:
    """The reference of a loss: along the true velocity the independent coupling is plain consistency distillation."""
    return "cd" if (velocity, name) == ("cd", "independent") else f"{velocity} {name}"


def _gaps(f: torch.nn.Module, points: dict[str, torch.Tensor], name: str, steps: int) -> Iterator[Value]:
    """Losses of CT and CD, and the gap of their targets."""
    s, n, cond = points["t"], points["r"], points["cond"]
    with torch.no_grad():
        here = f(points["x_t"], s, cond)
        there = {velocity: f(points[velocity], n, cond) for velocity in ("ct", "cd")}
    for velocity, target in there.items():
        yield f"loss@steps={steps}", _per_step((here - target).square(), s - n), _labelled(velocity, name)
    yield f"velocity_gap@steps={steps}", _per_step((there["ct"] - there["cd"]).square(), s - n), name


def _transport(coupled: _Coupler, steps: int) -> Iterator[Value]:
    """Transport costs of each coupling, over the levels of the grid of so many steps and at levels of their own."""
    x, z, schedule = coupled.drawn["x"], coupled.drawn["z"], coupled.schedule
    n, _ = coupled.levels(steps)
    grid = torch.exp(torch.linspace(*(float(np.log(b)) for b in (schedule.sigma_min, schedule.sigma_max)), LEVELS))

    def cost(x: torch.Tensor) -> float:
        return (x - z).flatten(1).square().sum(1).mean().item()

    for name in COUPLINGS:
        yield "transport_cost", cost(coupled(name, n)[0]), name
        for level in grid.double():
            yield f"transport_cost@sigma={level:.4g}", cost(coupled(name, level.expand(len(n)))[0]), name
    yield "transport_cost", cost(x[assignment(z.numpy(), x.numpy())]), EXACT


def measure_couplings(
    path: str | Path,
    curves: str | Path,
    run: Row,
    *,
    student_folder: str | Path,
    data_path: str | Path,
    teacher_folder: str | Path | None,
    edm: dict[str, Any],
    curriculum: dict[str, Any],
    analysis: dict[str, Any],
    loss: dict[str, Any],
) -> None:
    """Measure every coupling with one student as f and as generator.

    Args:
        path: the JSON of rows; `reference` is the coupling (losses: with ct or cd; gradients: with the distance too).
        curves: x̃ + σ z over σ of some draws in each coupling, and the true ODE's curve; for the figure.
        teacher_folder: an analytic teacher; without one there are transport costs only.
        curriculum: P_mean and P_std of the step.
        analysis: steps, count, batch_size, gradient_budget of `settings.Analysis`.
        loss: of the training; its c is the pseudo-Huber distance's, where it has one.
    """
    began, schedule, finest = time.monotonic(), VESchedule(**edm), max(analysis["steps"])
    f = load_student(student_folder, schedule).double()
    tensors, _ = load_tensors(data_path, ["train_images", "train_labels"])
    drawn = _draws(tensors["train_images"], tensors["train_labels"], analysis["count"], run["seed"])

    @torch.no_grad()
    def generate(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return f(x, sigma, cond)

    coupled = _Coupler(drawn, generate, analysis["batch_size"], schedule, curriculum)
    values, teacher = [], None
    if teacher_folder is not None and is_mixture(teacher_folder):
        teacher = AnalyticTeacher.load(teacher_folder, None)
        early = load_student(student_folder, schedule, snapshot=budget_name(analysis["gradient_budget"])).double()
        early.requires_grad_(True)
        constants = {"c": loss["c"]} if loss["kind"] == "pseudo_huber_norm" else {}
        progress = Progress(len(analysis["steps"]), "gap between CT and CD")
        for steps in sorted(analysis["steps"]):
            for name in COUPLINGS:
                at = coupled.pairs(name, steps, teacher)
                values += _gaps(f, at, name, steps)
                rows = torch.arange(len(at["t"])).split(analysis["batch_size"])
                batches = [{key: value[r] for key, value in at.items()} for r in rows]
                for label, product in _gradients(early, batches, constants).items():
                    values.append((f"gradient@steps={steps}", product, f"{label} {name}"))
                if steps == finest:
                    limit = _limits(f, at["x_t"], at["t"], at["cond"], drawn["z"], at["v"])
                    values += [("loss@limit", limit[key], _labelled(key, name)) for key in ("ct", "cd")]
                    values.append(("velocity_gap@limit", limit["gap"], name))
            progress.update(1)
    values += _transport(coupled, finest)

    save_tensors(curves, _curves(coupled, teacher))
    space = "pixels" if teacher is None else "coordinates"
    protocol = {
        "student_sha256": weights_sha256(student_folder),
        "data_sha256": sha256(data_path),
        "generator": "the student itself",
        "loss": loss,
        "edm": edm,
        "curriculum": curriculum,
        "analysis": analysis,
    }
    rows = [_row(metric, value, analysis["count"], space, reference, 1) for metric, value, reference in values]
    value = {"run": run, "rows": rows, "protocol": protocol, "environment": environment()}
    write_measured(path, value | {"wall_time_s": round(time.monotonic() - began, 3)})


def _curves(coupled: _Coupler, teacher: AnalyticTeacher | None) -> dict[str, torch.Tensor]:
    """`sigmas` (L,), `{coupling}` (P, L, …): x̃ + σ z, and `ode` (P, L, …): the true flow from the same noise."""
    schedule, z = coupled.schedule, coupled.drawn["z"]
    sigmas = schedule.grid(65)
    out = {"sigmas": sigmas}
    for name in COUPLINGS:
        data = [coupled(name, sigma.expand(len(z)), CURVES)[0][:CURVES] for sigma in sigmas]
        points = [schedule.add_noise(x, z[:CURVES], sigma) for x, sigma in zip(data, sigmas, strict=True)]
        out[name] = torch.stack(points, dim=1)
    if teacher is not None:
        from ..teachers.truth import endpoint

        points = [z[:CURVES] * sigmas[-1]]
        for high, low in itertools.pairwise(sigmas.flip(0).tolist()):
            points.append(endpoint(teacher.mixture, points[-1], high, low, rtol=1e-6, atol=1e-8))
        out["ode"] = torch.stack(points[::-1], dim=1)
    return out
