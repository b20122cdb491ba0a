"""Features of sample sets and their statistics: of a trained classifier, or the samples themselves.

Where the data are points, not images, the samples' own coordinates are the features; the extractor
is then called `coordinates`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..storage import load_tensors, save_tensors


def extract(
    path: str | Path, source: str | Path, sets: list[str], batch_size: int, classifier_folder: str | Path | None = None
) -> dict[str, Any]:
    """Write features and statistics of sets of a safetensors file (see `classifier.extract`).

    Args:
        sets: tensor names in `source`, or prefixes ending in `_` that stand for all names with it.
        classifier_folder: of the trained classifier; None for coordinates (NumPy alone, no torch).

    Returns:
        The extractor's card: name and weights_sha256, and what else the classifier recorded.
    """
    if classifier_folder is not None:
        from . import classifier

        network, card = classifier.load(classifier_folder)
        classifier.extract(path, network, source, sets, batch_size)
        return card
    import numpy as np

    samples, _ = load_tensors(source, framework="np")
    out = {}
    for name in samples:
        if any(name == s or (s.endswith("_") and name.startswith(s)) for s in sets):
            points = samples[name].reshape(len(samples[name]), -1).astype(np.float64)
            out[f"{name}.features"] = points
            out[f"{name}.mean"] = points.mean(0)
            out[f"{name}.covariance"] = np.cov(points.T).reshape(points.shape[1], points.shape[1])
    save_tensors(path, out)
    return {"name": "coordinates", "weights_sha256": hashlib.sha256(b"").hexdigest()}
