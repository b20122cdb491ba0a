"""Transport cost between noise and data, by noise level and coupling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...files.storage import read_table
from ..tables import summarise
from . import style


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """A column per method whose students generate: x noise level σ, y E‖x − z‖² in squared units of the data.

    Bands: 95 % t interval over seeds. Dashed: the exact optimal transport between data and noise.
    """
    summary = summarise(read_table(metrics), runs)
    summary = summary.assign(sigma=summary.metric.str.extract(r"^transport_cost@sigma=(.+)$")[0].astype(float))
    summary = summary.sort_values("sigma")
    methods = list(dict.fromkeys(run["method"] for run in runs))
    width = min(style.WIDTH, 1.2 + 2.8 * len(methods))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(width, 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, method in zip(panels[0], methods, strict=True):
        of_method = summary[summary.method == method]
        exact = of_method[(of_method.metric == "transport_cost") & (of_method.reference == "exact optimal transport")]
        levels = of_method[of_method.sigma.notna()]
        for name, coupling in style.COUPLINGS.items():
            look, chosen = coupling, levels[levels.reference == name]
            if name == "exact":
                look = {**coupling, "linestyle": "--", "label": "exact optimal transport"}
                chosen = pd.concat([exact.assign(sigma=end) for end in (levels.sigma.min(), levels.sigma.max())])
            axes.plot(chosen.sigma, chosen["mean"], markersize=3.5, linewidth=1.2, **look)
            if (chosen.n_seeds > 1).all():
                axes.fill_between(
                    chosen.sigma, chosen.ci_low, chosen.ci_high, color=look["color"], alpha=0.15, linewidth=0
                )
        axes.set_xscale("log")
        style.plain_log(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator())
        axes.set_title(f"generator: student of {style.method_label(method, runs)}")
        axes.set_xlabel("noise level σ")
    panels[0, 0].set_ylabel("transport cost E‖x − z‖²\n(squared units of the data)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return style.save(figure, pdf, png)
