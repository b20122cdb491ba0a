"""Samples of teacher and students from the same noise and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ...files.storage import load_tensors
from . import style

COLUMNS = 15


def draw(
    pdf: str | Path,
    png: str | Path,
    runs: list[dict[str, Any]],
    samples: list[str],
    teacher: list[str],
    noise: str,
) -> Figure:
    """A block per condition: the teacher's N-step samples, then each method's, in its fewest steps.

    Args:
        runs: run, method, group and fewest_steps of each row, in the order of `samples` and `teacher`.
        samples, teacher: files of samples; where those are latents, of features, which hold decoded pictures.
        noise: the shared noise file, for the labels above the columns.
    """
    labels = load_tensors(noise, ["labels"], framework="np")[0]["labels"][:COLUMNS]
    blocks: dict[str, list[tuple[str, np.ndarray]]] = {}
    for run, ours, reference in zip(runs, _listed(samples), _listed(teacher), strict=True):
        if run["group"] not in blocks:
            blocks[run["group"]] = [("Teacher", _images(reference, "samples"))]
        name = style.method_label(run["method"], runs) + f", {run['fewest_steps']} steps" * (run["fewest_steps"] > 1)
        blocks[run["group"]].append((name, _images(ours, f"steps_{run['fewest_steps']}")))
    rows = sum(len(block) for block in blocks.values())
    figure = plt.figure(figsize=(style.WIDTH, 0.45 * rows + 0.4 * len(blocks)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    students = "1 step" if all(run["fewest_steps"] == 1 for run in runs) else "1 step, or as stated"
    heights = [len(block) + 0.9 for block in blocks.values()]
    for part, (group, block) in zip(
        np.atleast_1d(figure.subfigures(len(blocks), 1, height_ratios=heights)), blocks.items(), strict=True
    ):
        part.suptitle(f"{style.condition_label(group)}; teacher: N steps, students: {students}", fontsize="small")
        panels = part.subplots(len(block), len(labels), squeeze=False)
        for axes in panels.flat:
            axes.set_visible(False)
        for row, (name, images) in enumerate(block):
            for column, image in enumerate(images):
                axes = panels[row, column]
                axes.set_visible(True)
                picture = np.clip(image.transpose(1, 2, 0), -1, 1) / 2 + 0.5
                axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if row == 0:
                    axes.set_title(str(labels[column]), fontsize="x-small", pad=1)
            panels[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="x-small")
    return style.save(figure, pdf, png)


def _images(path: str, name: str) -> np.ndarray:
    """The first images of a set, in [−1, 1]."""
    tensors, _ = load_tensors(path, framework="np")
    if f"{name}.pictures" in tensors:
        return tensors[f"{name}.pictures"][:COLUMNS] / 127.5 - 1
    return tensors[name][:COLUMNS]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
