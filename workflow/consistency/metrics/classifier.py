"""A classifier trained on the same data, whose penultimate layer gives features.

Distances in these features are named after the classifier, never FID: FID is Inception-v3 alone.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from ..errors import StorageError
from ..storage import load_tensors, read_json, save_tensors, weights_sha256


class Classifier(nn.Module, PyTorchModelHubMixin):
    """Two convolutions and a hidden layer; `forward` gives logits, `features` the hidden layer.

    Args:
        sample_shape: (C, H, W), sides divisible by 2.
        classes: number of classes.
        channels: of the first convolution; the second has twice as many.
        feature_size: of the penultimate layer.
    """

    def __init__(self, sample_shape: list[int], classes: int, channels: int, feature_size: int):
        super().__init__()
        depth, height, width = sample_shape
        self.sample_shape, self.classes = tuple(sample_shape), classes
        self.first = nn.Conv2d(depth, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.hidden = nn.Linear(2 * channels * (height // 2) * (width // 2), feature_size)
        self.head = nn.Linear(feature_size, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [−1, 1] → (B, feature_size)."""
        h = F.max_pool2d(F.relu(self.second(F.relu(self.first(x)))), 2)
        return F.relu(self.hidden(F.dropout(h.flatten(1), 0.3, self.training)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [−1, 1] → logits (B, classes)."""
        return self.head(F.dropout(self.features(x), 0.3, self.training))


def classify(network: Classifier, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The classifier's training objective: logits and labels."""
    return network(batch["x"]), batch["cond"]


@torch.no_grad()
def accuracy(network: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose predicted class is the label, in [0, 1]."""
    return (network(images).argmax(1) == labels).float().mean().item()


def load(folder: str | Path) -> tuple[Classifier, dict]:
    """The classifier in evaluation mode and its card (name, held-out accuracy).

    Raises:
        StorageError: missing or damaged files.
    """
    weights_sha256(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the hub mixin prints
            network = Classifier.from_pretrained(folder)
    except Exception as error:
        raise StorageError(f"{folder}: weights cannot be loaded ({error})") from error
    return network.eval().requires_grad_(False), read_json(Path(folder) / "card.json")


@torch.no_grad()
def extract(path: str | Path, network: Classifier, source: str | Path, sets: list[str], batch_size: int) -> None:
    """Write features and their statistics for image sets of a safetensors file.

    For each set: `{set}.features` float32 (n, d), `{set}.predicted` int64 (n,), and the statistics
    `{set}.mean` float64 (d,), `{set}.covariance` float64 (d, d). Images are clipped to [−1, 1].

    Args:
        sets: tensor names in `source`, or prefixes ending in `_` that stand for all names with it.
    """
    images, _ = load_tensors(source)
    chosen = [name for name in images if any(name == s or (s.endswith("_") and name.startswith(s)) for s in sets)]
    out: dict[str, torch.Tensor] = {}
    for name in chosen:
        features, predicted = [], []
        for batch in images[name].split(batch_size):
            hidden = network.features(batch.float().clamp(-1, 1))
            features.append(hidden)
            predicted.append(network.head(hidden).argmax(1))
        stacked = torch.cat(features)
        out[f"{name}.features"] = stacked
        out[f"{name}.predicted"] = torch.cat(predicted)
        out[f"{name}.mean"] = stacked.double().mean(0)
        out[f"{name}.covariance"] = torch.cov(stacked.double().T)
    save_tensors(path, out)
