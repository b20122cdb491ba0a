"""Quality by μ, the share of generated pairs in consistency training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from ...files.storage import read_table
from ..tables import leading, summarise, yardstick
from . import style

_PANELS = {
    ("stratified_wasserstein", "data"): "Stratified Wasserstein\ndistance to data",
    ("wasserstein", "data"): "Wasserstein distance to data",
    ("frechet_distance", "data"): "Fréchet distance to data",
    ("ode_error", "truth"): "ODE error to truth\n(MSE per coordinate)",
}
_COLOURS = sns.color_palette("colorblind")
_BUDGETS = {
    "@budget=0.25": {"color": _COLOURS[1], "marker": "s", "linestyle": "--", "label": "after a quarter of training"},
    "": {"color": _COLOURS[0], "marker": "o", "linestyle": "-", "label": "after all of training"},
}


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """One-step samples, a panel per metric: x share μ of generated pairs, y distance to the data or ODE error.

    Points are means over seeds with 95 % t intervals; the runs without a share are left out. Dotted: what the data has
    itself.
    """
    shares = {run["method"]: run["share"] for run in runs if run["share"] is not None}
    table = read_table(metrics)
    summary = leading(summarise(table, [run for run in runs if run["method"] in shares]))
    summary = summary[summary.sampling_steps == 1]
    summary = summary.assign(share=summary.method.map(shares)).sort_values("share")
    present = set(zip(summary.metric, summary.reference, strict=True))
    shown = style.telling(_PANELS, present)
    figure, panels = plt.subplots(
        1, len(shown), figsize=(style.WIDTH, 2.5), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, (metric, reference) in zip(panels[0], shown, strict=True):
        for aside, (point, colours) in zip((-0.01, 0.01), _BUDGETS.items(), strict=True):
            chosen = summary[(summary.metric == metric + point) & (summary.reference == reference)]
            if chosen.empty:
                continue
            spread = None
            if (chosen.n_seeds > 1).all():
                low = chosen.ci_low.clip(lower=chosen["mean"] * 0.2)
                spread = chosen["mean"] - low, chosen.ci_high - chosen["mean"]
            look = {**colours, "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8, "capsize": 2}
            axes.errorbar(chosen.share + aside, chosen["mean"], spread, **look)
        style.level(axes, yardstick(table, "data"), metric, reference, linestyle=":", label="the data itself")
        axes.set_yscale("log")
        style.plain_log(axes.yaxis)
        axes.set_xticks(sorted(set(shares.values())))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("share μ of generated pairs")
        axes.set_ylabel(_PANELS[metric, reference])
    style.legend(figure)
    return style.save(figure, pdf, png)
