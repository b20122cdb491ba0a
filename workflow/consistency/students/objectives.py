"""Training objectives. Every public function here is a method that a preset may name.

An objective takes the student and a batch and returns `(prediction, target)`; the training loop
applies the configured distance to them. Objectives with a parameter `batch: Targets` learn from
precomputed targets, those with `batch: Pairs` from pairs made while training. It is a function of student and batch
alone: on a GPU it is recorded once and replayed (see `graphs`), unless it has an attribute `capturable` that is false.

A batch of `Targets` holds, for B draws of (data x, noise ε, start s_k, condition c):

    x_s   (B, …)  α_s x + σ_s ε                    s, n  (B,)  start s_k and its next grid time
    x_n   (B, …)  one teacher solver step, s → n   cond  (B,)  the condition c
    x_0   (B, …)  the teacher's solver run from (x_s, s) all the way to 0

All were solved beforehand by the `targets` stage, with guidance; both methods of a comparison read
the same ones in the same order.

A batch of `Pairs` (see `pairs`) holds two points of one trajectory, nearer the noise and nearer the data:

    x_s, x_n  (B, …)   s = σ_{i+1}, n = σ_i  (B,)   cond  (B,)   weight  (B,), 1 / (σ_{i+1} − σ_i)
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..plugins import objective

Tensor = torch.Tensor
Targets = dict[str, Tensor]
Pairs = dict[str, Tensor]
Student = Callable[[Tensor, Tensor, Tensor], Tensor]


def consistency_distillation(student: Student, batch: Targets) -> tuple[Tensor, Tensor]:
    """CM: `f(x_s, s)` towards `sg f(x_n, n)`, the same weights without EMA (section A.5)."""
    prediction = student(batch["x_s"], batch["s"], batch["cond"])
    with torch.no_grad():
        target = student(batch["x_n"], batch["n"], batch["cond"])
    return prediction, target


def direct(student: Student, batch: Targets) -> tuple[Tensor, Tensor]:
    """Direct CM: `f(x_s, s)` towards the teacher's ODE solution at time 0 (section A.5)."""
    return student(batch["x_s"], batch["s"], batch["cond"]), batch["x_0"]


@objective(draws="pairs")
def consistency_training(student: Student, batch: Pairs) -> tuple[Tensor, Tensor]:
    """CT and, with the teacher's velocity in the pair, CD in the same parameterisation: `f(x_{σ_{i+1}}, σ_{i+1})`
    towards `sg f(x_{σ_i}, σ_i)`, the same weights and the same dropout on both sides (section B.2)."""
    device = batch["x_s"].device
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    prediction = student(batch["x_s"], batch["s"], batch["cond"])
    torch.set_rng_state(before[0])
    if before[1] is not None:
        torch.cuda.set_rng_state(before[1], device)
    with torch.no_grad():
        target = student(batch["x_n"], batch["n"], batch["cond"])
    return prediction, target
