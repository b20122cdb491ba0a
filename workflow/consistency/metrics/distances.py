"""Distances between sets of features, in NumPy (no torch import: the measuring jobs stay light)."""

from __future__ import annotations

import numpy as np


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


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD with the cubic kernel `(x·y/d + 1)³` of the kernel (Inception) distance.

    All samples are used at once, without random subsets, so the value is deterministic. May be
    slightly negative.

    Args:
        a: (n, d), b: (m, d), n, m ≥ 2.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    n, m, d = len(a), len(b), a.shape[1]
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return squared.clip(min=0)


def precision_recall(samples: np.ndarray, reference: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), each in [0, 1].

    Precision is the share of samples inside the union of balls around reference points, whose
    radius is the distance to the k-th nearest neighbour; recall swaps the roles.

    Args:
        samples: (n, d), reference: (m, d).
        neighbours: k ≥ 1, less than n and m.
    """
    samples, reference = samples.astype(np.float64), reference.astype(np.float64)

    def radii(points: np.ndarray) -> np.ndarray:
        return np.partition(_squared_distances(points, points), neighbours, axis=1)[:, neighbours]

    between = _squared_distances(samples, reference)
    precision = (between <= radii(reference)[None]).any(1).mean()
    recall = (between <= radii(samples)[:, None]).any(0).mean()
    return float(precision), float(recall)
