"""ODE error by start time: where on the teacher's trajectory a student errs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ...files.storage import read_table
from ..tables import summarise, unit_of
from . import style


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """A column per condition; x start time s, y mean squared error of f(x_s, s) to the trajectory's end."""
    summary = summarise(read_table(metrics), runs)
    summary = summary[summary.metric.str.startswith("ode_error@s=")]
    summary = summary.assign(start=summary.metric.str.removeprefix("ode_error@s=").astype(int))
    groups, note = style.shown(runs)
    figure, panels = plt.subplots(
        1, len(groups), figsize=(style.WIDTH, 2.5), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, group in zip(panels[0], groups, strict=True):
        for method, look in style.looks(runs).items():
            chosen = summary[(summary.group == group) & (summary.method == method)].sort_values("start")
            axes.plot(chosen.start, chosen["mean"], markersize=3, linewidth=1.2, **look)
            if (chosen.n_seeds > 1).all():
                low = chosen.ci_low.clip(lower=chosen["mean"] * 0.2)
                axes.fill_between(chosen.start, low, chosen.ci_high, color=look["color"], alpha=0.2, linewidth=0)
        axes.set_yscale("log")
        style.plain_log(axes.yaxis)
        axes.set_title(style.heading(group))
        axes.set_xlabel("start time s")
    panels[0, 0].set_ylabel(f"ODE error from s\n(MSE per {unit_of(summary)})")
    style.legend(figure, note)
    return style.save(figure, pdf, png)
