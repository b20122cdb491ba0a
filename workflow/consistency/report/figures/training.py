"""Training curves: is every method trained to the end?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ...files.storage import read_records
from . import style


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], stats: list[str | Path]) -> Figure:
    """A column per condition; x optimiser step, y training loss of every seed.

    Args:
        stats: the stats.jsonl of the runs, in their order.
    """
    groups, note = style.shown(runs)
    looks = style.looks(runs)
    stats = [stats] if isinstance(stats, str) else stats
    figure, panels = plt.subplots(
        1, len(groups), figsize=(style.WIDTH, 2.5), sharey=True, squeeze=False, layout="constrained"
    )
    for run, path in zip(runs, stats, strict=True):
        if run["group"] not in groups:
            continue
        records = read_records(path)
        look = {**looks[run["method"]], "marker": ""}
        axes = panels[0, groups.index(run["group"])]
        axes.plot([r["step"] for r in records], [r["loss"] for r in records], linewidth=0.8, **look)
    for axes, group in zip(panels[0], groups, strict=True):
        axes.set_yscale("log")
        style.plain_log(axes.yaxis)
        axes.set_title(style.heading(group))
        axes.set_xlabel("step")
    panels[0, 0].set_ylabel("training loss\n(of its own objective)")
    style.legend(figure, note)
    return style.save(figure, pdf, png)
