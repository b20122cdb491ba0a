"""Samples in the plane: data, the ODE's true end, the teacher's samples and every method's in its fewest steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ...files.storage import load_tensors
from . import style

SHOWN = 1000  # most points of a panel


def draw(
    pdf: str | Path,
    png: str | Path,
    runs: list[dict[str, Any]],
    *,
    samples: list[str],
    teacher: list[str],
    truth: str,
    data: str,
) -> Figure:
    """A row per condition, a panel per source; x and y the first two coordinates, in the data's units.

    All panels have the limits of data, truth and teacher; points of a method beyond them are counted.

    Args:
        runs: run, method, group and fewest_steps of each row, in the order of `samples` and `teacher`.
        truth: the ODE's true end from the noise that teacher and methods start from.
        data: its held-out draws are shown.
    """
    looks = style.looks(runs)
    fixed = {
        "Data, held out": (_plane(data, "test_images"), "0.25"),
        "True ODE end": (_plane(truth, "vp"), "0.25"),
    }
    rows: dict[str, dict[str, tuple[np.ndarray, Any]]] = {}
    for run, ours, reference in zip(runs, _listed(samples), _listed(teacher), strict=True):
        teachers = {"Teacher, N steps": (_plane(reference, "samples"), "0.25")}
        row = rows.setdefault(run["group"], fixed | teachers)
        look = looks[run["method"]]
        name = f"{look['label']}, {run['fewest_steps']} step{'s' * (run['fewest_steps'] > 1)}"
        row[name] = _plane(ours, f"steps_{run['fewest_steps']}"), look["color"]

    shown = np.concatenate([points for row in rows.values() for points, _ in list(row.values())[:3]])
    margin = 0.08 * np.ptp(shown, axis=0).max()
    low, high = shown.min(0) - margin, shown.max(0) + margin
    columns = max(map(len, rows.values()))
    width, height = high - low
    size = style.WIDTH, len(rows) * ((style.WIDTH - 0.6) / columns * height / width + 0.25) + 0.3
    figure, panels = plt.subplots(
        len(rows), columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for line, (group, row) in zip(panels, rows.items(), strict=True):
        for axes, (name, (points, colour)) in zip(line, row.items(), strict=False):
            axes.plot(*points.T, ".", color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="$x_1$")
            axes.set_title(name, fontsize="small")
            axes.label_outer()
            if outside := int(((points < low) | (points > high)).any(1).sum()):
                axes.text(0.04, 0.04, f"{outside} outside", transform=axes.transAxes, fontsize="x-small")
        for axes in line[len(row) :]:
            axes.set_axis_off()
        line[0].set_ylabel(f"{style.condition_label(group)}\n$x_2$", fontsize="small")
    return style.save(figure, pdf, png)


def _plane(path: str | Path, name: str) -> np.ndarray:
    """The first two coordinates (P, 2) of a file's points; a single coordinate lies on a line."""
    points = load_tensors(path, [name], framework="np")[0][name][:SHOWN]
    return np.pad(points.reshape(len(points), -1), ((0, 0), (0, 1)))[:, :2]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
