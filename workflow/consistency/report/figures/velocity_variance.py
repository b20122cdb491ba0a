"""The variance of single pairs' velocities about their coupling's own flow, by noise level (paper B's figure 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...files.storage import read_table
from ..tables import summarise
from . import style

_FLOOR = 0.2  # of the mean: the lowest that a band is drawn on logarithmic axes


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """A column per method whose students generate: x noise level σ, y R̃ = E‖z − v_c‖² summed over dimensions.

    Bands: 95 % t interval over seeds. Dashed: the true flow as generator, where it is known.
    """
    summary = summarise(read_table(metrics), runs)
    summary = summary.assign(sigma=summary.metric.str.extract(r"^velocity_variance@sigma=(.+)$")[0].astype(float))
    summary = summary[summary.sigma.notna()].sort_values("sigma")
    methods = list(dict.fromkeys(run["method"] for run in runs))
    width = min(style.WIDTH, 1.2 + 3.2 * len(methods))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(width, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    exact = {**style.COUPLINGS["generator_induced"], "linestyle": "--", "markerfacecolor": "white"}
    exact["label"] = "generator-induced, exact generator"
    looks = {name: look for name, look in style.COUPLINGS.items() if name != "exact"}
    for axes, method in zip(panels[0], methods, strict=True):
        for name, look in (looks | {"generator_induced exact": exact}).items():
            chosen = summary[(summary.method == method) & (summary.reference == name)]
            if not len(chosen):
                continue
            axes.plot(chosen.sigma, chosen["mean"], markersize=3.5, linewidth=1.2, **look)
            if (chosen.n_seeds > 1).all():
                low = chosen.ci_low.clip(lower=_FLOOR * chosen["mean"])
                axes.fill_between(chosen.sigma, low, chosen.ci_high, color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        style.plain_log(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator())
        axes.set_title(f"generator: student of {style.method_label(method, runs)}")
        axes.set_xlabel("noise level σ")
    panels[0, 0].set_ylabel("variance of the velocity\n$\\tilde{R}_c(σ) = $ E‖z − v$_c$‖²")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return style.save(figure, pdf, png)
