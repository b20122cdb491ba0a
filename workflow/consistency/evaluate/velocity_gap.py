"""What separates consistency training from distillation (paper B, section B.1), measured on one student f, and what
couplings do (`velocity_variance` too).

For N grid steps, draws (x, z, i) and a coupling, x_{σ_{i+1}} = x + σ_{i+1} z is followed to σ_i along z (CT) and
along the true velocity v = E[z | x_{σ_{i+1}}] of independent pairs (CD), both from the same point:

    velocity_gap  E ‖f(x^CT_{σ_i}, σ_i) − f(x^CD_{σ_i}, σ_i)‖² / Δσ², in each coupling
    velocity_gap_tail  the share of that sum which the largest hundredth of the draws carries
    loss          E ‖f(x_{σ_{i+1}}, σ_{i+1}) − f(x_{σ_i}, σ_i)‖² / Δσ², of independent pairs
    gradient      ⟨E g_u, E g_CD⟩ for u = CT or CD, g the gradient in θ of the training loss (weight 1/Δσ, target
                  stopped), of independent pairs, at weights of early in the training; CT's over CD's is 1 where the
                  gradients agree. The two means are over separate draws, so that their noise does not add to the
                  product.
    transport_cost  E ‖x − z‖², by noise level, in each coupling

As N grows the gap tends to E ‖J_f (z − v)‖², the loss to E ‖∂_σ f + J_f u‖² with u = z or v; the limits are computed
with Jacobian-vector products at the draws of the finest grid.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..config.claims import COUPLINGS
from ..files.storage import load_tensors, save_tensors, sha256, weights_sha256
from ..flow.schedules import VESchedule
from ..flow.transport import assignment
from ..networks import is_mixture
from ..runtime.progress import Progress
from ..runtime.provenance import environment
from ..students import losses
from ..students.maps import budget_name
from ..students.maps import load as load_student
from ..students.pairs import partner
from ..teachers.protocol import AnalyticTeacher
from .coupled import EXACT, TRAINED, Coupler, draws, exact_generator, shown_levels
from .measure import Row, _row, write_measured
from .velocity_variance import velocity_variances

Value = tuple[str, float, str]  # metric, value, reference
CURVES = 12  # trajectories kept for the figure
ASSIGNED = 1024  # draws whose exact optimal transport is computed
OPTIMAL = "exact optimal transport"


def _pairs(coupled: Coupler, name: str, steps: int, teacher: AnalyticTeacher) -> dict[str, torch.Tensor]:
    """x_t and its partners ct and cd at level r; t, r, cond, and the true velocity v."""
    (n, s), z = coupled.levels(steps), coupled.drawn["z"]
    x, cond = coupled(name, n)
    x_t = coupled.schedule.add_noise(x, z, s)
    v = teacher.velocity(x_t, s, cond)
    partners = {"ct": partner(x_t, s, n, z), "cd": partner(x_t, s, n, v)}
    return {"x_t": x_t, "t": s, "r": n, "cond": cond, "v": v} | partners


def _gap(metric: str, squared: torch.Tensor, name: str) -> Iterator[Value]:
    """The mean of squared distances (count,), and its tail."""
    largest = squared.topk(max(1, len(squared) // 100)).values
    base, _, point = metric.partition("@")
    yield metric, squared.mean().item(), name
    yield f"{base}_tail@{point}", (largest.sum() / squared.sum()).item(), name


def _limits(
    f: torch.nn.Module, x: torch.Tensor, s: torch.Tensor, cond: torch.Tensor, z: torch.Tensor, v: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The closed limits of loss and gap at points x, by Jacobian-vector products, of each draw: (count,).

    J u is the derivative of wᵀJ in w, so two reverse passes do; forward mode would import the compiler.
    """
    x, s = x.clone().requires_grad_(), s.clone().requires_grad_()
    here = f(x, s, cond)
    w = torch.zeros_like(here, requires_grad=True)
    rows = torch.autograd.grad(here, (x, s), w, create_graph=True)

    def along(u: torch.Tensor, speed: float) -> torch.Tensor:
        (tangent,) = torch.autograd.grad(rows, w, (u, torch.full_like(s, speed)), retain_graph=True)
        return tangent.flatten(1).square().sum(1)

    return {"ct": along(z, 1.0), "cd": along(v, 1.0), "gap": along(z - v, 0.0)}


def _gradients(
    f: torch.nn.Module, batches: list[dict[str, torch.Tensor]], constants: dict[str, float]
) -> dict[str, float]:
    """`{distance} {u}` → ⟨E g_u, E g_CD⟩ for both distances, u = ct or cd.

    Args:
        batches: of `_pairs`, at least two.
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


def _squared(
    f: torch.nn.Module, points: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor | None = None
) -> torch.Tensor:
    """‖f(a, r) − f(b, r)‖² / Δσ² of each draw (count,), or ‖f(x_t, t) − f(a, r)‖² / Δσ² without b."""
    t, r, cond = points["t"], points["r"], points["cond"]
    with torch.no_grad():
        other = f(points["x_t"], t, cond) if b is None else f(b, r, cond)
        return (f(a, r, cond) - other).flatten(1).square().sum(1) / (t - r) ** 2


def _against_truth(
    f: torch.nn.Module,
    early: torch.nn.Module,
    coupled: Coupler,
    teacher: AnalyticTeacher,
    analysis: dict[str, Any],
    constants: dict[str, float],
) -> Iterator[Value]:
    """Gaps, losses and gradients on each grid, and their limits."""
    progress = Progress(len(analysis["steps"]), "gap between CT and CD")
    for steps in sorted(analysis["steps"]):
        for name in COUPLINGS:
            at = _pairs(coupled, name, steps, teacher)
            yield from _gap(f"velocity_gap@steps={steps}", _squared(f, at, at["ct"], at["cd"]), name)
            limits = {}
            if steps == max(analysis["steps"]):
                limits = _limits(f, at["x_t"], at["t"], at["cond"], coupled.drawn["z"], at["v"])
                yield from _gap("velocity_gap@limit", limits["gap"], name)
            if name != "independent":
                continue
            for velocity, reference in (("ct", "ct independent"), ("cd", "cd")):
                yield f"loss@steps={steps}", _squared(f, at, at[velocity]).mean().item(), reference
                if limits:
                    yield "loss@limit", limits[velocity].mean().item(), reference
            rows = torch.arange(len(at["t"])).split(analysis["batch_size"])
            batches = [{key: value[r] for key, value in at.items()} for r in rows]
            for label, product in _gradients(early, batches, constants).items():
                yield f"gradient@steps={steps}", product, f"{label} independent"
        progress.update(1)


def _transport(coupled: Coupler, steps: int) -> Iterator[Value]:
    """Transport costs of each coupling, over the levels of the grid of so many steps and at levels of their own."""
    x, z = coupled.drawn["x"], coupled.drawn["z"]
    n, _ = coupled.levels(steps)

    def cost(x: torch.Tensor) -> float:
        return (x - z).flatten(1).square().sum(1).mean().item()

    for name in COUPLINGS:
        yield "transport_cost", cost(coupled(name, n)[0]), name
        for level in shown_levels(coupled.schedule):
            yield f"transport_cost@sigma={level:.4g}", cost(coupled(name, level.expand(len(n)))[0]), name
    x, z = x[:ASSIGNED], z[:ASSIGNED]
    yield "transport_cost", cost(x[assignment(z.numpy(), x.numpy())]), OPTIMAL


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
        teacher_folder: an analytic teacher; without one neither gaps, losses and gradients nor an exact generator.
        curriculum: P_mean and P_std of the step.
        analysis: steps, count, batch_size, gradient_budget, velocity of `components.Analysis`.
        loss: of the training; its c is the pseudo-Huber distance's, where it has one.
    """
    began, schedule, finest = time.monotonic(), VESchedule(**edm), max(analysis["steps"])
    f = load_student(student_folder, schedule).double()
    tensors, _ = load_tensors(data_path, ["train_images", "train_labels", "test_images", "test_labels"])
    train, held_out = ((tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test"))

    @torch.no_grad()
    def generate(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return f(x, sigma, cond)

    generators, values, teacher = {TRAINED: generate}, [], None
    if teacher_folder is not None and is_mixture(teacher_folder):
        teacher = AnalyticTeacher.load(teacher_folder, None)
        generators[EXACT] = exact_generator(teacher.mixture, schedule)

    def coupler(data: tuple[torch.Tensor, torch.Tensor], count: int, number: int) -> Coupler:
        drawn = draws(*data, count, run["seed"], number)
        return Coupler(drawn, generators, analysis["batch_size"], schedule, curriculum)

    coupled = coupler(train, analysis["count"], 0)
    if teacher is not None:
        early = load_student(student_folder, schedule, snapshot=budget_name(analysis["gradient_budget"])).double()
        early.requires_grad_(True)
        constants = {"c": loss["c"]} if loss["kind"] == "pseudo_huber_norm" else {}
        values += _against_truth(f, early, coupled, teacher, analysis, constants)
    values += _transport(coupled, finest)
    values += velocity_variances(
        coupler(train, analysis["velocity"]["count"], 1),
        coupler(held_out, analysis["count"], 2),
        [*COUPLINGS, *[EXACT] * (teacher is not None)],
        teacher=teacher,
        steps=finest,
        settings=analysis["velocity"],
        seed=run["seed"],
    )
    save_tensors(curves, _curves(coupled, teacher))
    space = "pixels" if teacher is None else "coordinates"
    protocol = {
        "student_sha256": weights_sha256(student_folder),
        "data_sha256": sha256(data_path),
        "generator": "the student itself; of generator_induced exact the true flow",
        "loss": loss,
        "edm": edm,
        "curriculum": curriculum,
        "analysis": analysis,
    }
    counts = {OPTIMAL: min(ASSIGNED, analysis["count"])}
    rows = [
        _row(metric, value, counts.get(reference, analysis["count"]), space, reference, 1)
        for metric, value, reference in values
    ]
    value = {"run": run, "rows": rows, "protocol": protocol, "environment": environment()}
    write_measured(path, value | {"wall_time_s": round(time.monotonic() - began, 3)})


def _curves(coupled: Coupler, teacher: AnalyticTeacher | None) -> dict[str, torch.Tensor]:
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
