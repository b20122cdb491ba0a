"""Quality by number of sampling steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from ...files.storage import read_table
from ..tables import leading, summarise, unit_of
from . import style

_ROWS = {
    ("ode_error", "teacher"): "ODE error\n(MSE per {unit})",
    ("frechet_distance", "teacher"): "Fréchet distance\nto teacher",
    ("frechet_distance", "data"): "Fréchet distance\nto data",
}


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """A column per condition; rows: ODE error, Fréchet distance to teacher and to data; bands over seeds. Dashed: the
    teacher's own distance; dotted: the distance between two halves of the data."""
    table = read_table(metrics)
    summary = leading(summarise(table, runs))
    unit = unit_of(summary)
    groups, note = style.shown(runs)
    figure, panels = plt.subplots(
        len(_ROWS),
        len(groups),
        figsize=(style.WIDTH, 4.8),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, ((metric, reference), label) in enumerate(_ROWS.items()):
        for column, group in enumerate(groups):
            axes = panels[row, column]
            for method, look in style.looks(runs).items():
                chosen = summary[
                    (summary.group == group)
                    & (summary.method == method)
                    & (summary.metric == metric)
                    & (summary.reference == reference)
                ].sort_values("sampling_steps")
                axes.plot(chosen.sampling_steps, chosen["mean"], markersize=3.5, linewidth=1.2, **look)
                if (chosen.n_seeds > 1).all():
                    low = chosen.ci_low.clip(lower=chosen["mean"].min() * 0.2)
                    axes.fill_between(
                        chosen.sampling_steps, low, chosen.ci_high, color=look["color"], alpha=0.2, linewidth=0
                    )
            style.levels(axes, table, group, metric, reference)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            style.plain_log(axes.yaxis)
            axes.xaxis.set_major_locator(FixedLocator(sorted(summary.sampling_steps.dropna().unique())))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            if row == 0:
                axes.set_title(style.heading(group))
            if row == len(_ROWS) - 1:
                axes.set_xlabel("sampling steps")
            if column == 0:
                axes.set_ylabel(label.format(unit=unit))
    style.legend(figure, note)
    return style.save(figure, pdf, png)
