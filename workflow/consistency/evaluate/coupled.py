"""Draws of data and noise in every coupling, for what is measured of couplings."""

from __future__ import annotations

from typing import Any

import torch

from ..flow.schedules import VESchedule, step_probabilities
from ..flow.streams import generator
from ..networks.mixture import Mixture
from ..plugins import load, options_of
from ..students.couplings import Generate
from ..teachers.truth import flow_map

TRAINED, EXACT = "generator_induced", "generator_induced exact"  # whose generator is the student, or the true flow
LEVELS = 12  # noise levels that quantities are measured at
TOLERANCE = 1e-3  # of the exact generator, relative to the data: its square is far below any variance
AT_ONCE = 4096  # samples of a coupling that looks at each alone


def draws(
    images: torch.Tensor, labels: torch.Tensor, count: int, seed: int, number: int = 0
) -> dict[str, torch.Tensor]:
    """`count` draws of data x and noise z, float64 (count, …), with cond and a uniform `quantile`, (count,).

    Args:
        images, labels: (n, …) and (n,), drawn with replacement.
        number: of the set of draws; sets of other numbers are independent.
    """
    rng = generator(seed, "pairs", 2**32 + number)
    rows = torch.from_numpy(rng.integers(len(images), size=count))
    z = torch.from_numpy(rng.standard_normal((count, *images.shape[1:])))
    quantile = torch.from_numpy(rng.random(count))
    return {"x": images[rows].double(), "z": z, "cond": labels[rows], "quantile": quantile}


def exact_generator(mixture: Mixture, schedule: VESchedule) -> Generate:
    """The true flow's end at σ_min as a generator: the ideal consistency function."""

    def generate(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return flow_map(mixture, x, sigma, schedule.sigma_min, rtol=TOLERANCE, atol=TOLERANCE * 1e-2)

    return generate


class Coupler:
    """The coupled data of the draws, batch by batch; what no noise level enters is computed once.

    Args:
        drawn: of `draws`.
        generators: `TRAINED` and, where the true flow is known, `EXACT` → the generator.
        batch_size: of couplings that look at whole batches.
        curriculum: P_mean and P_std of the training's ln σ.
    """

    def __init__(
        self,
        drawn: dict[str, torch.Tensor],
        generators: dict[str, Generate],
        batch_size: int,
        schedule: VESchedule,
        curriculum: dict[str, Any],
    ):
        self.drawn, self.generators, self.batch_size, self.schedule = drawn, generators, batch_size, schedule
        self.mean, self.deviation = curriculum["p_mean"], curriculum["p_std"]
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, name: str, sigma: torch.Tensor, first: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Data (count, …) and conditions (count,) that the coupling puts with z at σ (count,); the `first` of them at
        least."""
        if name in self._kept:
            return self._kept[name]
        function = load("coupling", name.partition(" ")[0])
        alone = options_of(function).get("per_sample")
        only = first if alone else None
        columns = [column[:only] for column in (self.drawn["x"], self.drawn["z"], sigma, self.drawn["cond"])]
        batches = zip(*(column.split(AT_ONCE if alone else self.batch_size) for column in columns), strict=True)
        parts = [function(*batch, self.generators.get(name)) for batch in batches]
        coupled = torch.cat([x for x, _ in parts]), torch.cat([cond for _, cond in parts])
        if name not in self.generators and only is None:
            self._kept[name] = coupled
        return coupled

    def levels(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """σ_i and σ_{i+1} of each draw, as the training draws them on the grid of so many steps."""
        grid = self.schedule.grid(steps + 1)
        edges = step_probabilities(grid, self.mean, self.deviation).cumsum(0)
        i = torch.searchsorted(edges, self.drawn["quantile"], right=True).clamp(max=steps - 1)
        return grid[i], grid[i + 1]

    def even_levels(self) -> torch.Tensor:
        """σ of each draw, uniform in ln σ between σ_min and σ_max."""
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        return low * (high / low) ** self.drawn["quantile"]

    def point(self, name: str, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̃ + σ z of each draw in a coupling, and the conditions."""
        x, cond = self(name, sigma)
        return self.schedule.add_noise(x, self.drawn["z"], sigma), cond


def shown_levels(schedule: VESchedule) -> torch.Tensor:
    """σ from σ_min to σ_max, evenly spaced in ln σ, float64 (LEVELS,)."""
    ends = torch.tensor([schedule.sigma_min, schedule.sigma_max]).log().tolist()
    return torch.exp(torch.linspace(*ends, LEVELS)).double()
