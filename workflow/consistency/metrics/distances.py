"""Distances between sets of features, in NumPy: no torch, and none of clean-fid's imports."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..transport import squared_distances


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Fréchet distance between two Gaussians, `|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)`.

    tr (Σa Σb)^½ is the sum of the square roots of the eigenvalues of Σa^½ Σb Σa^½, which is
    symmetric: `eigh` is faster than a general matrix square root and never complex. Equal to
    clean-fid's `frechet_distance` (a test holds them together).

    Args:
        mean_a, mean_b: (d,). cov_a, cov_b: (d, d), symmetric positive semi-definite.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


class FeatureSet:
    """Features of one set of images; what is needed of it repeatedly is computed once.

    Args:
        features: (n, d), n ≥ 2.
        mean: (d,), covariance: (d, d); computed from the features where not given.
        neighbours: k of precision and recall, less than n.
    """

    def __init__(
        self,
        features: np.ndarray,
        mean: np.ndarray | None = None,
        covariance: np.ndarray | None = None,
        neighbours: int = 3,
    ):
        self.features, self.neighbours = features.astype(np.float64), neighbours
        self.mean = self.features.mean(0) if mean is None else mean
        self.covariance = np.cov(self.features.T) if covariance is None else covariance

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def radii(self) -> np.ndarray:
        """Distance² of each point to its k-th nearest neighbour, (n,)."""
        return np.partition(squared_distances(self.features, self.features), self.neighbours, axis=1)[
            :, self.neighbours
        ]

    @cached_property
    def kernel_within(self) -> float:
        """Mean cubic kernel between different points."""
        values = _cubic_kernel(self.features, self.features)
        return float((values.sum() - np.trace(values)) / (len(self) * (len(self) - 1)))


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    linear = a @ b.T / a.shape[1] + 1
    return linear * linear * linear


def frechet_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Fréchet distance between the Gaussians fitted to two sets."""
    return frechet(a.mean, a.covariance, b.mean, b.covariance)


def kernel_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Unbiased squared MMD with the cubic kernel `(x·y/d + 1)³` of the kernel (Inception) distance.

    All samples are used at once, without random subsets, so the value is deterministic. May be
    slightly negative.
    """
    return a.kernel_within + b.kernel_within - 2 * float(_cubic_kernel(a.features, b.features).mean())


def precision_recall(samples: FeatureSet, reference: FeatureSet) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), each in [0, 1].

    Precision is the share of samples inside the union of balls around reference points, whose
    radius is the distance to the k-th nearest neighbour; recall swaps the roles.
    """
    between = squared_distances(samples.features, reference.features)
    precision = (between <= reference.radii[None]).any(1).mean()
    recall = (between <= samples.radii[:, None]).any(0).mean()
    return float(precision), float(recall)
