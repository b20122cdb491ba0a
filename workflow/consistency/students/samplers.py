"""Samplers of students. Every public function here is one that a method of a preset may name; a plug-in adds others.

A sampler is `sampler(student, x, times, cond, noise, **params) -> samples`: from points x (B, …) at times[0] through
the descending `times` to the flow's end. `noise(j)` is fresh standard normal noise like x for step j = 1, 2, …
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from .maps import FlowMap

Tensor = torch.Tensor
Noise = Callable[[int], Tensor]


def renoise(student: FlowMap, x: Tensor, times: Sequence[float], cond: Tensor, noise: Noise) -> Tensor:
    """f to x̂, noise to the next time, repeat (section A.7)."""
    clean = student(x, times[0], cond)
    for j, time in enumerate(times[1:], start=1):
        clean = student(student.flow.add_noise(clean, noise(j), time), time, cond)
    return clean


def flow_map(student: FlowMap, x: Tensor, times: Sequence[float], cond: Tensor, noise: Noise) -> Tensor:
    """X from each time to the next, then to the end; deterministic."""
    for time, following in itertools.pairwise(times):
        x = student(x, time, cond, following)
    return student(x, times[-1], cond)


def ddim(student: FlowMap, x: Tensor, times: Sequence[float], cond: Tensor, noise: Noise) -> Tensor:
    """f to x̂, along the straight path through it to the next time, repeat; deterministic."""
    for time, following in itertools.pairwise(times):
        x = student.flow.ddim(x, student(x, time, cond), time, following)
    return student(x, times[-1], cond)
