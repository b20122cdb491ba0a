"""Distances between sets of features, in NumPy: no torch, and none of clean-fid's imports."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..errors import MismatchError
from ..flow.streams import generator
from ..flow.transport import squared_distances

LARGEST = 10_000  # points of a set that are compared with every point of another


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Fréchet distance between two Gaussians, `|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)`.

    tr (Σa Σb)^½ is the sum of the square roots of the eigenvalues of Σa^½ Σb Σa^½, which is
    symmetric: `eigh` is faster than a general matrix square root and never complex. Equal to
    clean-fid's `frechet_distance` (a test holds them together).

    Args:
        mean_a, mean_b: (d,). cov_a, cov_b: (d, d), symmetric positive semi-definite.
    """
    root = _root(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(min=0)) @ vectors.T


class FeatureSet:
    """Features of one set of images; what is needed of it repeatedly is computed once.

    Args:
        features: (n, d), n ≥ 2.
        mean: (d,), covariance: (d, d); computed from the features where not given.
        neighbours: k of precision and recall, less than n.
        name: of the set, for errors.

    Raises:
        MismatchError: a feature, mean or covariance that is not finite: comparisons with it are false, so precision and
            recall would be numbers all the same.
    """

    def __init__(
        self,
        features: np.ndarray,
        mean: np.ndarray | None = None,
        covariance: np.ndarray | None = None,
        neighbours: int = 3,
        name: str = "features",
    ):
        self.features, self.neighbours = features.astype(np.float64), neighbours
        bad = np.flatnonzero(~np.isfinite(self.features).all(1))
        if len(bad):
            raise MismatchError(f"{name}: not finite in {len(bad)} of {len(features)} rows, first in row {bad[0]}")
        self.mean = self.features.mean(0) if mean is None else mean
        self.covariance = np.cov(self.features.T) if covariance is None else covariance
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise MismatchError(f"{name}: their mean or covariance is not finite")

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def paired(self) -> FeatureSet:
        """What is compared point by point: of more than `LARGEST` points a fixed draw of that many."""
        if len(self) <= LARGEST:
            return self
        chosen = np.sort(generator(0, "halves", 0).permutation(len(self))[:LARGEST])
        return FeatureSet(self.features[chosen], neighbours=self.neighbours)

    @cached_property
    def root(self) -> np.ndarray:
        """Symmetric square root of the covariance, (d, d)."""
        return _root(self.covariance)

    @cached_property
    def radii(self) -> np.ndarray:
        """Distance² of each point to its k-th nearest neighbour, (n,)."""
        parts = _blocks(self.features)
        return np.concatenate([_smallest(squared_distances(part, self.features), self.neighbours) for part in parts])

    @cached_property
    def kernel_within(self) -> float:
        """Mean cubic kernel between different points."""
        total = _kernel_sum(self.features, self.features)
        itself = ((np.square(self.features).sum(1) / self.features.shape[1] + 1) ** 3).sum()
        return float((total - itself) / (len(self) * (len(self) - 1)))


def _smallest(rows: np.ndarray, k: int) -> np.ndarray:
    """The k-th smallest, from 0, of each row, (n, m) → (n,); overwrites rows. For few k faster than `partition`."""
    if k > 10:
        return np.partition(rows, k, axis=1)[:, k]
    for _ in range(k):
        rows[np.arange(len(rows)), rows.argmin(1)] = np.inf
    return rows.min(1)


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the cubic kernel over all pairs."""
    total = 0.0
    for part in _blocks(a):
        linear = part @ b.T / a.shape[1] + 1
        total += (linear * linear * linear).sum()
    return total


def frechet_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Fréchet distance between the Gaussians fitted to two sets; the second's square root is computed once.

    Of few samples in many dimensions tr (Σa Σb)^½ is the nuclear norm of the product of the centred features, over
    the root of (n − 1)(m − 1): much less work, and the same value.
    """
    if len(a) * len(b) * min(len(a), len(b)) < len(a.mean) ** 3:
        product = (a.features - a.mean) @ (b.features - b.mean).T
        cross = np.linalg.svd(product, compute_uv=False).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    else:
        cross = np.sqrt(np.linalg.eigvalsh(b.root @ a.covariance @ b.root).clip(min=0)).sum()
    means = np.square(a.mean - b.mean).sum()
    return float(means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def kernel_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Unbiased squared MMD with the cubic kernel `(x·y/d + 1)³` of the kernel (Inception) distance.

    All samples (of more than `LARGEST` a fixed draw) are used at once, without random subsets, so the value is
    deterministic. May be slightly negative.
    """
    a, b = a.paired, b.paired
    return a.kernel_within + b.kernel_within - 2 * float(_kernel_sum(a.features, b.features) / (len(a) * len(b)))


ROWS = 2048  # of one set compared with another at a time: memory is this times the other's size


def _blocks(a: np.ndarray) -> list[np.ndarray]:
    return np.array_split(a, -(-len(a) // ROWS))


def precision_recall(samples: FeatureSet, reference: FeatureSet) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), each in [0, 1].

    Precision is the share of samples inside the union of balls around reference points, whose
    radius is the distance to the k-th nearest neighbour; recall swaps the roles. Of sets of more than
    `LARGEST` points a fixed draw is taken.
    """
    samples, reference = samples.paired, reference.paired
    inside, recalled = [], np.zeros(len(reference), bool)
    for part, radii in zip(_blocks(samples.features), _blocks(samples.radii), strict=True):
        between = squared_distances(part, reference.features)
        inside.append((between <= reference.radii[None]).any(1))
        recalled |= (between <= radii[:, None]).any(0)
    return float(np.concatenate(inside).mean()), float(recalled.mean())
