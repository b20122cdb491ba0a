"""Intervals of means, random effects over conditions, and Holm's correction: the numbers that verdicts are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
SAMPLED = 3  # conditions from which on they are a sample of all such conditions
Interval = tuple[float, float, float]  # mean, low, high
Item = TypeVar("Item")


@dataclass(frozen=True)
class Estimate:
    """A mean with the independent parts of its error.

    Attributes:
        count: values that it is the mean of.
        parts: of each the variance that it adds to the mean, and that variance's degrees of freedom.
    """

    mean: float
    count: int
    parts: tuple[tuple[float, int], ...]

    def interval(self, level: float = LEVEL) -> Interval:
        """The mean and its interval at 1 − level: of one part Student's t, of several the half-widths of each, added as
        squares (Howe 1974). Infinite for one value; all is NaN for none."""
        from scipy.special import stdtrit

        if not self.count:
            return math.nan, math.nan, math.nan
        if self.count < 2:
            return self.mean, -math.inf, math.inf
        half = math.sqrt(sum(float(stdtrit(df, 1 - level / 2)) ** 2 * variance for variance, df in self.parts))
        return self.mean, self.mean - half, self.mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its error."""
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n if n > 1 else math.inf
    return Estimate(mean, n, ((variance, n - 1),))


def t_interval(values: Sequence[float], confidence: float = 1 - LEVEL) -> Interval:
    """Mean and Student's t interval; the interval is infinite for one value, and all is NaN for none."""
    return estimate(values).interval(1 - confidence)


@dataclass(frozen=True)
class Pooled:
    """What all conditions of a quantity say together.

    Attributes:
        estimate: their mean: of three or more as of a sample of conditions, else of these alone.
        tau: deviation between the conditions' true values.
        i2: share of the conditions' variance that is no error of theirs, from 0 to 1.
        prediction: 95 % interval of the true value of one more condition; infinite for fewer than three.
    """

    estimate: Estimate
    tau: float = 0.0
    i2: float = 0.0
    prediction: tuple[float, float] = (-math.inf, math.inf)


def pooled(values: np.ndarray) -> Pooled:
    """Random effects of conditions that share their replicates.

    A value is μ + c_k + a_r + e_kr of condition k and replicate r. Conditions of one replicate share its teacher,
    targets and noise, a_r, so they are not the independent studies of a meta-analysis. The error of the mean has two
    parts. That of replicates, from each replicate's mean over conditions: it holds a_r and e_kr, however large. And
    that of conditions, as Hartung and Knapp estimate it in a meta-analysis of the conditions' means, each with the
    variance of e_kr alone: of what is left after the means of conditions and of replicates. e_kr is in both parts, so
    the interval is rather too wide. All conditions have one weight, because variances of a few replicates are too
    rough to weigh by. Two conditions are too few to tell how conditions vary: their mean has the error of replicates
    alone, and speaks of these two. `benchmarks/verdict_errors.py` measures how often verdicts are false.

    Args:
        values: (conditions, replicates), all finite.
    """
    conditions, replicates = values.shape
    mean = estimate(values.mean(0).tolist())
    if conditions < SAMPLED or replicates < 2:
        return Pooled(mean)

    import numpy as np
    from scipy.special import stdtrit
    from statsmodels.stats.meta_analysis import combine_effects

    effects = values.mean(1)
    error = values - effects[:, None] - values.mean(0) + values.mean()
    variance = (error**2).sum() / ((conditions - 1) * (replicates - 1)) / replicates
    with np.errstate(divide="ignore"):  # of conditions with the same mean
        combined = combine_effects(effects, np.full(conditions, max(variance, 1e-9)))  # less does not converge
    between = (float(combined.sd_eff_w_re_hksj) ** 2, conditions - 1)
    whole = Estimate(mean.mean, mean.count, (*mean.parts, between))
    tau2, error_of_mean = float(combined.tau2), sum(variance for variance, _ in whole.parts)
    # Higgins, Thompson and Spiegelhalter 2009, equation 12
    half = float(stdtrit(conditions - 2, 1 - LEVEL / 2)) * math.sqrt(tau2 + error_of_mean)
    prediction = (mean.mean - half, mean.mean + half)
    return Pooled(whole, math.sqrt(tau2), max(0.0, float(combined.i2)), prediction)


def holm(items: Sequence[Item], decided: Callable[[Item, float], bool], level: float = LEVEL) -> list[float]:
    """Holm's correction: the level at which each item is tested, so that any error among all is at most `level`.

    Those that are decided at level / n leave, and the others are tested at level / (how many are left), until none
    leaves.
    """
    levels, left = [level] * len(items), list(range(len(items)))
    while left:
        for number in left:
            levels[number] = level / len(left)
        rest = [number for number in left if not decided(items[number], levels[number])]
        if rest == left:
            break
        left = rest
    return levels
