"""How many noise levels a training from pairs has, by step. Pure Python: a configuration is checked without torch."""

from __future__ import annotations

import math

from ..errors import ConfigError


def curriculum(step: int, total: int, s0: int = 10, s1: int = 1280) -> int:
    """iCT's number of noise levels at training step k = 0..K − 1 (section B.2).

    N(k) = min(s0 · 2^⌊k/K'⌋, s1) + 1 with K' = ⌊K / (log2 ⌊s1/s0⌋ + 1)⌋; N(k) levels are N(k) − 1 steps.

    Raises:
        ConfigError: s0 > s1, or s0 < 1.
    """
    if not 1 <= s0 <= s1:
        raise ConfigError(f"curriculum: s0 {s0} and s1 {s1}: 1 <= s0 <= s1 is needed")
    length = max(1, math.floor(total / (math.log2(s1 // s0) + 1)))
    return min(s0 * 2 ** (step // length), s1) + 1


def mass(low: float, high: float, mean: float, deviation: float) -> float:
    """Share of the lognormal distribution of σ that lies in [low, high] (what `schedules.step_probabilities` divides).

    Args:
        low, high: σ_min and σ_max. mean, deviation: of ln σ.
    """
    ends = (math.erf((math.log(sigma) - mean) / (math.sqrt(2) * deviation)) for sigma in (high, low))
    return (next(ends) - next(ends)) / 2
