"""Measures that see the modes of a mixture of Gaussians, in NumPy and SciPy.

The Fréchet distance sees two moments alone: one blob that has the data's moments scores as well as draws of the data.
The Wasserstein distance depends most on how many draws fell on each mode by chance. Here the modes are known, so how
near samples lie to them, how they are shared among them, and their shape within each are measured apart.
"""

from __future__ import annotations

import numpy as np

from ..flow.streams import generator
from ..flow.transport import squared_distances, wasserstein

PRESENT = 2  # times its fair mass that a sample may stand for: a mode with half of its share counts as covered


class Modes:
    """The components of a mixture that samples are measured by.

    A mode's cell is the set of points to which it is the most probable component. Reference draws are of the mixture,
    from a stream that no training or data set draws from; each component gives its share of them without chance.

    Args:
        weights: (K,), positive, sum 1.
        means: (K, d).
        covariances: (K, d, d), positive definite.
    """

    def __init__(self, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray):
        self.weights, self.means, self._roots = weights, means, np.linalg.cholesky(covariances)
        self._draws: dict[int, np.ndarray] = {}

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Mahalanobis distance, in deviations of the mode, of each point to each mode: (n, d) → (n, K)."""
        whitened = [np.linalg.solve(root, (x - mean).T) for root, mean in zip(self._roots, self.means, strict=True)]
        return np.sqrt([np.square(part).sum(0) for part in whitened]).T

    def posterior(self, x: np.ndarray) -> np.ndarray:
        """Probability that a point is of each component: (n, d) → (n, K)."""
        volumes = np.log(np.diagonal(self._roots, axis1=1, axis2=2)).sum(1)
        exponent = np.log(self.weights) - volumes - 0.5 * np.square(self.distances(x))
        terms = np.exp(exponent - exponent.max(1, keepdims=True))
        return terms / terms.sum(1, keepdims=True)

    def reference(self, count: int) -> np.ndarray:
        """About `count` draws of the mixture (m, d), each component's in proportion to its weight, at least one."""
        if count not in self._draws:
            parts = []
            for k, (weight, mean, root) in enumerate(zip(self.weights, self.means, self._roots, strict=True)):
                normal = generator(0, "modes", k).standard_normal((max(1, round(count * weight)), len(mean)))
                parts.append(mean + normal @ root.T)
            self._draws[count] = np.concatenate(parts)
        return self._draws[count]

    def measures(self, x: np.ndarray) -> dict[str, float]:
        """What they say of points (n, d), by the names of the metrics."""
        measures = (stratified_wasserstein, mode_distance, mode_share_error)
        return {measure.__name__: measure(self, x) for measure in measures}


def mode_distance(modes: Modes, x: np.ndarray) -> float:
    """Mean Mahalanobis distance of points (n, d) to the nearest mode, in deviations of that mode.

    Of true draws of separate modes it is that of a standard normal in d dimensions, 1.25 in the plane; samples
    that have collapsed onto the means score less, so it is to be compared with that of draws.
    """
    return float(modes.distances(x).min(1).mean())


def mode_share_error(modes: Modes, x: np.ndarray) -> float:
    """Total variation, in [0, 1], between the modes' shares of points (n, d) and the weights.

    A mode's share is its mean posterior probability, whose expectation over true draws is the weight also where
    modes overlap; of separate modes it is the share of points in the mode's cell.
    """
    return float(np.abs(modes.posterior(x).mean(0) - modes.weights).sum() / 2)


def stratified_wasserstein(modes: Modes, x: np.ndarray) -> float:
    """Wasserstein-2 distance of points (n, d) to the mixture, cell by cell, in the coordinates' units.

    The root of Σ_k q_k [s_k W²_k + (1 − s_k) D²_k]. q_k is the cell's share of the mixture; W_k the Wasserstein-2
    distance of the points in cell k to as many reference draws in it; D²_k the mean squared distance of the cell's
    draws to the nearest point outside; s_k = min(1, 2 n_k/(n q_k)) for n_k points in the cell. So the chance that
    shares draws among modes costs nothing, and a mode without points costs their distance to it.
    """
    draws = modes.reference(4 * len(x))
    ours, theirs = modes.posterior(x).argmax(1), modes.posterior(draws).argmax(1)
    total = 0.0
    for k in np.unique(theirs):
        inside, reference = x[ours == k], draws[theirs == k]
        share = len(reference) / len(draws)
        covered = min(1.0, PRESENT * len(inside) / (len(x) * share))
        count = min(len(inside), len(reference))
        cost = covered * wasserstein(inside[:count], reference[:count]) ** 2 if count else 0.0
        if covered < 1:
            nearest = squared_distances(reference[: len(x)], x[ours != k]).min(1)
            cost += (1 - covered) * nearest.mean()
        total += share * cost
    return float(np.sqrt(total))
