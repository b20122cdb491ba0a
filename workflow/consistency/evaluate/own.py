"""A user's own metrics: rows of samples, which see the samples and their pixels.

A metric is `metric(samples, pixels, context, **params) -> float`; its row has extractor `own` and reference `none`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.registry import loaded
from ..errors import PluginError, memory_advice
from ..files.storage import load_tensors, sha256
from ..flow.streams import generator
from ..plugins import blaming
from .measure import Row, _row

if TYPE_CHECKING:  # a job without metrics of the user's own does not wait for torch
    import torch

LARGEST = 10_000  # samples of the data: of more, a fixed draw


@dataclass(frozen=True)
class Context:
    """What a metric sees besides samples and pixels.

    Attributes:
        labels: (n,) int64, the samples' conditions.
        sampling_steps: number of steps that they were sampled in; None of the data.
        space: of the samples: pixels, latents or coordinates.
    """

    labels: torch.Tensor
    sampling_steps: int | None
    space: str
    own: OwnMetrics

    @property
    def reference(self) -> torch.Tensor:
        """The data: pixels (m, C, H, W), or of mixtures points (m, d). Read when it is asked for."""
        samples, pixels, _ = self.own.data_samples
        return samples if pixels is None else pixels


@dataclass(frozen=True)
class OwnMetrics:
    """The user's metrics of an experiment; false where there are none.

    Attributes:
        metrics: `registry.Function.call` of each.
        space: of the samples: pixels, latents or coordinates.
        reference: name of the data's tensor, train_images or test_images.
        vae: where samples are latents: folder, batch_size, precision.
        data, images: files of the data, as samples and as images; needed with metrics.
    """

    metrics: list[dict[str, Any]]
    space: str
    reference: str
    vae: dict[str, Any] | None = None
    data: str | Path | None = None
    images: str | Path | None = None

    def __bool__(self) -> bool:
        return bool(self.metrics)

    def protocol(self) -> dict[str, Any]:
        """What they are made of, for the protocol of a file of metrics."""
        return {"own_metrics": self.metrics, "data_sha256": sha256(self.data)}

    @cached_property
    def data_samples(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The data as samples (m, …), pixels (m, C, H, W) or None of mixtures, and labels (m,)."""
        from ..data.prepare import as_float

        labels = self.reference.replace("images", "labels")
        tensors = load_tensors(self.data, [self.reference, labels])[0]
        images = load_tensors(self.images, [self.reference])[0][self.reference]
        rows = np.sort(generator(0, "halves", 0).permutation(len(images))[:LARGEST])
        pixels = None if self.space == "coordinates" else as_float(images[rows]).clamp(-1, 1)
        return as_float(tensors[self.reference][rows]), pixels, tensors[labels][rows]

    def of_data(self) -> list[Row]:
        """A row of each metric, of the data; raises as `of_samples`."""
        samples, pixels, labels = self.data_samples
        return self._rows(samples, pixels, Context(labels, None, self.space, self), "")

    @memory_advice("lower evaluation.count")
    def of_samples(self, samples: np.ndarray, labels: np.ndarray, steps: int, suffix: str = "") -> list[Row]:
        """A row of each metric, of samples.

        Args:
            samples: (n, …), as sampled. labels: (n,).
            steps: number of sampling steps.
            suffix: of the metrics' names, such as @budget=0.25.

        Raises:
            PluginError: a metric fails, changes what it sees, or gives no finite number; names file and metric.
        """
        if not self:
            return []
        import torch

        from ..networks.latents import decoder

        tensor, pixels = torch.tensor(samples, dtype=torch.float32), None
        if self.space != "coordinates":
            pixels = (decoder(**self.vae)(tensor) if self.vae else tensor).clamp(-1, 1)
        return self._rows(tensor, pixels, Context(torch.tensor(labels), steps, self.space, self), suffix)

    def _rows(self, samples: torch.Tensor, pixels: torch.Tensor | None, context: Context, suffix: str) -> list[Row]:
        import torch

        rows, seen = [], [tensor for tensor in (samples, pixels, context.labels) if tensor is not None]
        for metric in self.metrics:
            where, function = f"{metric['file']}: {metric['name']}", loaded(metric)
            versions = [tensor._version for tensor in seen]  # counts the changes in place
            torch.manual_seed(0)
            with blaming(metric["file"], metric["name"]), torch.no_grad():
                value = function(samples, pixels, context, **metric["params"])
            try:
                number = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise PluginError(f"{where}: gives {str(value)[:100]}; allowed: one number") from error
            if not np.isfinite(number):
                raise PluginError(f"{where}: gives {number}; allowed: a finite number")
            if versions != [tensor._version for tensor in seen]:
                raise PluginError(f"{where}: changes its samples, pixels or labels; allowed: to change a copy")
            rows.append(_row(metric["name"] + suffix, number, len(samples), "own", "none", context.sampling_steps))
        return rows
