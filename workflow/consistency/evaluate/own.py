"""A user's own metrics: rows of samples, which see the samples and their pixels.

A metric is `metric(samples, pixels, context, **params) -> float`; its row has extractor `own` and reference `none`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.registry import loaded
from ..data.prepare import as_float
from ..errors import MismatchError, PluginError, memory_advice
from ..files.storage import load_tensors
from ..flow.streams import generator
from ..networks.latents import decoder
from ..plugins import blaming
from .measure import Row, _row

LARGEST = 10_000  # samples of the data: of more, a fixed draw


@dataclass(frozen=True)
class Context:
    """What a metric sees besides samples and pixels.

    Attributes:
        labels: (n,) int64, the samples' conditions.
        sampling_steps: number of steps that they were sampled in; None of the data.
        space: of the samples: pixels, latents or coordinates.
        reference: the data, as `pixels` (m, C, H, W) or, of mixtures, as points (m, d); read when it is asked for.
    """

    labels: torch.Tensor
    sampling_steps: int | None
    space: str
    own: OwnMetrics

    @property
    def reference(self) -> torch.Tensor:
        samples, pixels, _ = self.own.data
        return samples if pixels is None else pixels


@dataclass(frozen=True)
class OwnMetrics:
    """The user's metrics of an experiment; false where there are none.

    Attributes:
        metrics: `registry.Function.call` of each.
        space: of the samples: pixels, latents or coordinates.
        reference: name of the data's tensor, train_images or test_images.
        files: the `data` as samples, and its `images`.
        vae: where samples are latents: folder, batch_size, precision.
    """

    metrics: list[dict[str, Any]]
    space: str
    reference: str
    files: dict[str, str | Path]
    vae: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.metrics)

    @cached_property
    def data(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The data as samples, pixels (None of mixtures) and labels, in the same order."""
        labels_name = self.reference.replace("images", "labels")
        tensors, _ = load_tensors(self.files["data"], [self.reference, labels_name])
        images = load_tensors(self.files["images"], [self.reference])[0][self.reference]
        order = generator(0, "own metrics", 0).permutation(len(images))[:LARGEST]
        rows = torch.from_numpy(np.sort(order))
        pixels = None if self.space == "coordinates" else as_float(images[rows]).clamp(-1, 1)
        return as_float(tensors[self.reference][rows]).float(), pixels, tensors[labels_name][rows]

    def data_rows(self) -> list[Row]:
        """A row of each metric, of the data.

        Raises:
            PluginError: as `rows`.
        """
        samples, pixels, labels = self.data
        return self._rows(samples, pixels, Context(labels, None, self.space, self), "")

    @memory_advice("lower evaluation.count")
    def rows(self, samples: np.ndarray, labels: np.ndarray, steps: int, suffix: str = "") -> list[Row]:
        """A row of each metric, of samples.

        Args:
            samples: (n, …), as sampled. labels: (n,).
            steps: number of sampling steps.
            suffix: of the metric's name, such as @budget=0.25.

        Raises:
            PluginError: a metric fails, changes what it sees, or gives no finite number; names file and metric.
        """
        tensor, pixels = torch.from_numpy(samples).float(), None
        if self.space != "coordinates":
            decode = decoder(**self.vae) if self.vae else torch.Tensor.float
            pixels = decode(tensor).clamp(-1, 1)
        return self._rows(tensor, pixels, Context(torch.from_numpy(labels), steps, self.space, self), suffix)

    def _rows(self, samples: torch.Tensor, pixels: torch.Tensor | None, context: Context, suffix: str) -> list[Row]:
        rows = []
        seen = [tensor for tensor in (samples, pixels, context.labels) if tensor is not None]
        for metric in self.metrics:
            where, function = f"{metric['file']}: {metric['name']}", loaded(metric)
            before = [tensor._version for tensor in seen]
            torch.manual_seed(0)
            with blaming(metric["file"], metric["name"]), torch.no_grad():
                value = function(samples, pixels, context, **metric["params"])
            try:
                number = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise PluginError(f"{where}: gives {str(value)[:100]}; allowed: one number") from error
            if not np.isfinite(number):
                raise PluginError(f"{where}: gives {number}; allowed: a finite number")
            if before != [tensor._version for tensor in seen]:
                raise PluginError(f"{where}: changes samples, pixels or labels in place; allowed: on a copy of its own")
            rows.append(_row(metric["name"] + suffix, number, len(samples), "own", "none", context.sampling_steps))
        return rows
