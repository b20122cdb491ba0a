"""Which data point goes with which noise (paper B, section B.3). Every public function here is a
coupling that a preset may name.

A coupling is `coupling(x, z, sigma, cond, generate) -> (x, cond)`: given B data points x (B, …),
noises z (B, …), noise levels σ_i (B,) and conditions (B,), drawn independently, it returns the data
and conditions that go with z. One that looks at each sample alone says so (`per_sample`): of a batch that several
processes share, each then couples its own rows. `generate(x_σ, σ, cond)` is the current generator, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..flow.schedules import spread
from ..flow.transport import assignment
from ..plugins import coupling

Tensor = torch.Tensor
Generate = Callable[[Tensor, Tensor, Tensor], Tensor]
Coupled = tuple[Tensor, Tensor]


@coupling(per_sample=True)
def independent(x: Tensor, z: Tensor, sigma: Tensor, cond: Tensor, generate: Generate) -> Coupled:
    """IC: as drawn."""
    return x, cond


def optimal_transport(x: Tensor, z: Tensor, sigma: Tensor, cond: Tensor, generate: Generate) -> Coupled:
    """Batch-OT: the permutation of the batch's data that minimises Σ ‖x − z‖², by exact assignment.

    Data are exchanged within a condition only: across conditions the noise of a class would no longer
    be N(0, I), which sampling assumes. With one class (paper B) that is the whole batch.
    """
    data, noise, labels = x.detach().cpu().numpy(), z.detach().cpu().numpy(), cond.cpu().numpy()
    rows = np.arange(len(x))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rows[members] = members[assignment(noise[members], data[members])]
    return x[torch.from_numpy(rows).to(x.device)], cond


@coupling(per_sample=True)
def generator_induced(x: Tensor, z: Tensor, sigma: Tensor, cond: Tensor, generate: Generate) -> Coupled:
    """GC: x̂ = sg f(x + σ_i z, σ_i), what the generator makes of that noise and data."""
    return generate(x + spread(sigma, x) * z, sigma, cond), cond
