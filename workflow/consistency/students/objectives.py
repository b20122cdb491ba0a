"""Training objectives. Every public function here is one that a method of a preset may name; a plug-in adds others.

An objective is `objective(student, batch, context, **params)`. It returns a prediction and its target, which the
method's loss compares, or a loss for each sample (B,). It asks the student (`maps.Student`) for points of trajectories,
X(x_t, t, r) or f(x_t, t). What changes with the step is in the batch and what does not is in the context, so that on a
GPU a step can be recorded once and replayed (see `graphs`), unless its decorator says `capturable=False`.

A batch holds B draws, from precomputed `targets` or from `pairs` that are computed while training:

    x_t, t       (B, …), (B,)  a point of a trajectory and its time: α_t x + σ_t z
    x_r, r       (B, …), (B,)  a point nearer the data, r < t: of targets the teacher's next grid time, of pairs along
                               the velocity; where times are continuous, r alone
    x_0          (B, …)        of targets: the end of the teacher's solve from x_t
    velocity     (B, …)        of pairs: dx_t/dt of the pair, or of the teacher's flow
    cond         (B,)          the condition
    weight       (B,)          of pairs: what the loss of each sample is multiplied with
    progress     (B,)          the share of the training that is done

Targets were all solved beforehand by the `targets` stage, with guidance; all methods of a comparison read the same ones
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..flow.schedules import Flow
from ..plugins import objective
from .derivatives import same_random_numbers
from .maps import Student

Tensor = torch.Tensor
Targets = dict[str, Tensor]
Pairs = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What an objective may need besides student and batch.

    Attributes:
        flow: the student's.
        loss: the method's, (prediction, target) → (B,).
        n_steps, guidance: N and w of the targets; None of pairs.
    """

    flow: Flow
    loss: Callable[[Tensor, Tensor], Tensor]
    n_steps: int | None = None
    guidance: float | None = None


def consistency_distillation(student: Student, batch: Targets, context: Context) -> tuple[Tensor, Tensor]:
    """CM: `f(x_t, t)` towards `sg f(x_r, r)`, the same weights without EMA (section A.5)."""
    prediction = student(batch["x_t"], batch["t"], batch["cond"])
    with torch.no_grad():
        target = student(batch["x_r"], batch["r"], batch["cond"])
    return prediction, target


def direct(student: Student, batch: Targets, context: Context) -> tuple[Tensor, Tensor]:
    """Direct CM: `f(x_t, t)` towards the teacher's ODE solution at time 0 (section A.5)."""
    return student(batch["x_t"], batch["t"], batch["cond"]), batch["x_0"]


@objective(draws="pairs")
def consistency_training(student: Student, batch: Pairs, context: Context) -> tuple[Tensor, Tensor]:
    """CT and, with the teacher's velocity in the pair, CD in the same parameterisation: `f(x_{σ_{i+1}}, σ_{i+1})`
    towards `sg f(x_{σ_i}, σ_i)`, the same weights and the same dropout on both sides (section B.2)."""
    with same_random_numbers(batch["x_t"]):
        prediction = student(batch["x_t"], batch["t"], batch["cond"])
    with torch.no_grad():
        target = student(batch["x_r"], batch["r"], batch["cond"])
    return prediction, target
