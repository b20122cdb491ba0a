"""ODE error against sample quality, by method: the papers' question in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ...files.storage import read_table
from ..tables import distance_label, extractors_of, leading, summarise, unit_of
from . import style


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """One-step samples: x ODE error, y Fréchet distance, a column per guidance scale, a row per reference.

    Points are means over seeds with 95 % t intervals; a line joins the methods of one condition.
    """
    summary = leading(summarise(read_table(metrics), runs))
    summary = summary[summary.sampling_steps == 1]
    scales = sorted({run["guidance"] for run in runs})
    by_group = {run["group"]: run for run in runs}
    looks = style.looks(runs)
    references = {"teacher": "teacher's samples", "data": "training data"}
    extractor = extractors_of(summary)[0]
    distance = distance_label(extractor).replace("Fréchet", "Fréchet distance")
    unit = unit_of(summary)
    figure, panels = plt.subplots(
        2, len(scales), figsize=(style.WIDTH, 4.6), sharex="col", squeeze=False, layout="constrained"
    )
    labelled = max(sum(r["guidance"] == w for r in by_group.values()) for w in scales) <= 4
    for row, (reference, phrase) in enumerate(references.items()):
        for column, scale in enumerate(scales):
            axes = panels[row, column]
            for number, group in enumerate(g for g, run in by_group.items() if run["guidance"] == scale):
                line = []
                for method, look in looks.items():
                    chosen = summary[(summary.group == group) & (summary.method == method)]
                    x = chosen[chosen.metric == "ode_error"]
                    y = chosen[(chosen.metric == "frechet_distance") & (chosen.reference == reference)]
                    if x.empty or y.empty:
                        continue
                    x, y = x.iloc[0], y.iloc[0]
                    axes.errorbar(
                        x["mean"],
                        y["mean"],
                        xerr=x["mean"] - x["ci_low"] if x["n_seeds"] > 1 else None,
                        yerr=y["mean"] - y["ci_low"] if y["n_seeds"] > 1 else None,
                        **{**look, "linestyle": "none"},
                        markersize=5,
                        capsize=2,
                        elinewidth=0.8,
                    )
                    line.append((x["mean"], y["mean"]))
                axes.plot(*zip(*line, strict=True), color="0.6", linewidth=0.8, zorder=0)
                if labelled and line:
                    name = style.condition_label(group).replace(f", w = {scale:g}", "")
                    axes.annotate(
                        name,
                        max(line),
                        xytext=(4, 5 if number % 2 else -10),
                        textcoords="offset points",
                        fontsize="x-small",
                        color="0.3",
                    )
            axes.margins(0.25)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            if row == 0:
                axes.set_title(f"guidance w = {scale:g}")
            else:
                axes.set_xlabel(
                    f"ODE error (mean squared error per {unit})" if len(scales) < 3 else f"ODE error\n(MSE per {unit})"
                )
            if column == 0:
                axes.set_ylabel(f"{distance} to\n{phrase}")
    style.legend(figure, f"{distance} in features of {extractor}; bars: 95 % interval over seeds")
    return style.save(figure, pdf, png)
