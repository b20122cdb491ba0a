"""Training objectives. Every public function here is a method that a preset may name.

An objective takes the student and a batch and returns `(prediction, target)`; the training loop
applies the configured distance to them. A batch of a distillation run holds, for B draws of
(data x, noise ε, start s_k, condition c):

    x_s   (B, …)  α_s x + σ_s ε                    s, n  (B,)  start s_k and its next grid time
    x_n   (B, …)  one teacher solver step, s → n   cond  (B,)  the condition c
    x_0   (B, …)  the teacher's solver run from (x_s, s) all the way to 0

All were solved beforehand by the `targets` stage, with guidance; both methods of a comparison read
the same ones in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Batch = dict[str, Tensor]
Student = Callable[[Tensor, Tensor, Tensor], Tensor]


def consistency_distillation(student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
    """CM: `f(x_s, s)` towards `sg f(x_n, n)`, the same weights without EMA (section A.5)."""
    prediction = student(batch["x_s"], batch["s"], batch["cond"])
    with torch.no_grad():
        target = student(batch["x_n"], batch["n"], batch["cond"])
    return prediction, target


def direct(student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
    """Direct CM: `f(x_s, s)` towards the teacher's ODE solution at time 0 (section A.5)."""
    return student(batch["x_s"], batch["s"], batch["cond"]), batch["x_0"]
