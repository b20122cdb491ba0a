"""Mixtures of Gaussians as configured: parameters, draws, the teacher's folder. NumPy alone: light jobs.

`networks.mixture` holds their densities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files.storage import atomic, save_tensors, write_json
from ..flow.streams import generator


def parameters(dimension: int, components: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """weights (K,), means (K, d), covariances (K, d, d), float64, of `settings.Component`s."""
    means = np.zeros((len(components), dimension))
    covariances = np.zeros((len(components), dimension, dimension))
    for k, component in enumerate(components):
        means[k, : len(component["mean"])] = component["mean"]
        round_one = (component["deviation"] or 0.0) ** 2 * np.eye(dimension)
        covariances[k] = round_one if component["covariance"] is None else component["covariance"]
    return {"weights": np.array([c["weight"] for c in components]), "means": means, "covariances": covariances}


def draw(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points (count, d), float64."""
    rng = generator(seed, "mixture")
    component = rng.choice(len(weights), size=count, p=weights)
    normal = rng.standard_normal((count, means.shape[1]))
    roots = np.linalg.cholesky(covariances)
    return means[component] + np.einsum("bij,bj->bi", roots[component], normal)


def write_teacher(folder: str | Path, settings: dict[str, Any]) -> None:
    """Write the mixture that the data is drawn from as a teacher's folder: config.json, mixture.safetensors.

    Args:
        settings: of `settings.Mixture`.
    """
    with atomic(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / "mixture.safetensors", parameters(settings["dimension"], settings["components"]))
        write_json(temporary / "config.json", {"kind": "mixture", "dimension": settings["dimension"]})
