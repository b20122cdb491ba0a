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

from ..data.prepare import as_float
from ..files.storage import check_folder, read_json, weights_file
from . import sizes
from .pretrained import loading


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

    @staticmethod
    def sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Argument → the number that the shapes of saved weights give; of `sample_shape` the product."""
        (channels, depth, *_), (feature_size, size) = shapes["first.weight"], shapes["hidden.weight"]
        pixels = 4 * size // (2 * channels)  # each side is halved
        return {
            "channels": channels,
            "feature_size": feature_size,
            "sample_shape": depth * pixels,
            "classes": shapes["head.weight"][0],
        }

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
    right = [network(as_float(x)).argmax(1) == y for x, y in zip(images.split(2000), labels.split(2000), strict=True)]
    return torch.cat(right).float().mean().item()


def load(folder: str | Path) -> tuple[Classifier, dict]:
    """The classifier in evaluation mode and its card (name, held-out accuracy).

    Raises:
        StorageError: missing or damaged files.
    """
    weights_file(folder)
    check_folder(folder)
    sizes.check_same(folder, Classifier.sizes)
    with loading(f"{folder}: weights"), contextlib.redirect_stdout(io.StringIO()):  # the hub mixin prints
        network = Classifier.from_pretrained(folder, strict=True)
    return network.eval().requires_grad_(False), read_json(Path(folder) / "card.json")
