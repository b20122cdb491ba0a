"""The shape of an experiment's samples, known from its configuration alone."""

from __future__ import annotations

from .settings import Experiment

# Of the labelled data sets, by kind.
SHAPES: dict[str, tuple[tuple[int, ...], int | None, int]] = {
    "digits": ((1, 8, 8), 1797, 10),
    "fashion": ((1, 32, 32), 70_000, 10),
    "cifar10": ((3, 32, 32), 60_000, 10),
    "imagenet32": ((3, 32, 32), 1_331_167, 1000),
}


def shape_of(experiment: Experiment) -> tuple[tuple[int, ...], int | None, int]:
    """Shape of a sample, number of images, classes (of captions: of latents, and one prompt a noise)."""
    data = experiment.data
    if data.kind == "mixture":
        return (data.dimension,), data.train_count + data.test_count, 1
    if data.kind == "images":
        return (3, data.side, data.side), None, 1
    if data.kind == "captions":
        return (4, data.side // 8, data.side // 8), experiment.evaluation.count, 1
    shape, count, classes = SHAPES[data.kind]
    return shape, count, classes if getattr(data, "conditional", True) else 1
