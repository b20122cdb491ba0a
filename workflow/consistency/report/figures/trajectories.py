"""Curves from noise to data in the plane, under every coupling and along the true ODE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ...files.storage import load_tensors
from . import style

_TITLES = {
    "independent": "Independent (IC)",
    "optimal_transport": "Batch-OT",
    "generator_induced": "Generator-induced (GC)",
    "ode": "True PF-ODE",
}


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], curves: str | Path) -> Figure:
    """A panel per coupling, and the true ODE: x and y the first two coordinates, divided by √(1 + σ²).

    Hollow: the noise end of a curve, filled: its data end.

    Args:
        curves: sigmas (L,), and for each panel (P, L, …): the points of P curves by increasing σ.
    """
    tensors, _ = load_tensors(curves, framework="np")
    scale = np.sqrt(1 + tensors["sigmas"] ** 2)
    shown = {name: title for name, title in _TITLES.items() if name in tensors}
    figure, panels = plt.subplots(
        1, len(shown), figsize=(style.WIDTH, 2.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (name, title) in zip(panels[0], shown.items(), strict=True):
        colour = style.COUPLINGS["exact" if name == "ode" else name]["color"]
        for points in tensors[name]:
            curve = np.pad(points.reshape(len(scale), -1), ((0, 0), (0, 1)))[:, :2] / scale[:, None]
            axes.plot(*curve.T, color=colour, linewidth=0.9, alpha=0.7)
            axes.plot(*curve[-1], "o", color=colour, markersize=4, markerfacecolor="white", zorder=3)
            axes.plot(*curve[0], "o", color=colour, markersize=4, zorder=4)
        axes.set(title=title, xlabel="$x_1 / \\sqrt{1 + σ^2}$", aspect="equal")
    panels[0, 0].set_ylabel("$x_2 / \\sqrt{1 + σ^2}$")
    ends = [
        plt.Line2D([], [], color="0.25", linestyle="", marker="o", markersize=4, markerfacecolor=face, label=label)
        for face, label in (("white", "noise end (σ max)"), ("0.25", "data end (σ min)"))
    ]
    figure.legend(handles=ends, loc="outside upper center", ncols=2)
    return style.save(figure, pdf, png)
