"""Sample quality while consistency training goes on, by iterations and by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ...files.storage import read_records, read_table
from ..tables import leading, summarise, yardstick
from . import style

_ROWS = {
    ("stratified_wasserstein", "data"): "Stratified Wasserstein\ndistance to data",
    ("wasserstein", "data"): "Wasserstein\ndistance to data",
    ("frechet_distance", "data"): "Fréchet\ndistance to data",
    ("ode_error", "truth"): "ODE error to truth\n(MSE per coordinate)",
}
_ELSEWHERE = ("ct-gc03", "ct-gc07")  # in the figure of shares
_COLOURS = sns.color_palette("colorblind")
_LOOKS = {
    "cd": {"color": "0.15", "marker": "D"},
    "ct-ic": style.COUPLINGS["independent"],
    "ct-ot": style.COUPLINGS["optimal_transport"],
    "ct-gc": style.COUPLINGS["generator_induced"],
    "ct-gc1": {"color": _COLOURS[4], "marker": "v"},
    "ct-gc-frozen": {"color": _COLOURS[9], "marker": "P"},
}
_OTHERS = [{"color": _COLOURS[3], "marker": "X"}, {"color": _COLOURS[5], "marker": "<"}]


def draw(
    pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path, stats: list[str | Path]
) -> Figure:
    """One-step samples: y distance to the data or ODE error, x iterations (left) and seconds of training (right).

    Bands: 95 % t interval over seeds. Dotted: what the data has itself. `stats` is in runs' order.
    """
    table = read_table(metrics)
    summary = leading(summarise(table[table.sampling_steps == 1], runs))
    summary[["base", "budget"]] = summary.metric.str.extract(r"^([^@]+)(?:@budget=(.+))?$")
    summary = summary.dropna(subset="base").assign(budget=lambda s: s.budget.fillna(1).astype(float))
    summary = summary.drop_duplicates(["method", "base", "reference", "budget"]).sort_values("budget")
    methods = [method for method in dict.fromkeys(run["method"] for run in runs) if method not in _ELSEWHERE]
    others = [method for method in methods if method not in _LOOKS]
    looks = _LOOKS | {method: _OTHERS[i % len(_OTHERS)] for i, method in enumerate(others)}
    present = set(zip(summary.base, summary.reference, strict=True))
    shown = style.telling(_ROWS, present)
    stats = [stats] if isinstance(stats, str | Path) else stats
    clocks = {run["run"]: _clock(path) for run, path in zip(runs, stats, strict=True)}

    size = style.WIDTH, 0.7 + 1.6 * len(shown)
    figure, panels = plt.subplots(
        len(shown), 2, figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    for (base, reference), line in zip(shown, panels, strict=True):
        for method in methods:
            of_method = [run for run in runs if run["method"] == method]
            chosen = summary[(summary.method == method) & (summary.base == base) & (summary.reference == reference)]
            steps = chosen.budget * of_method[0]["steps"]
            seconds = np.mean([np.interp(steps, *clocks[run["run"]]) for run in of_method], axis=0)
            look = {**looks[method], "label": style.method_label(method, runs)}
            low = chosen.ci_low.clip(lower=chosen["mean"] * 0.2)
            for axes, x in zip(line, (steps, seconds), strict=True):
                axes.plot(x, chosen["mean"], markersize=3.5, linewidth=1.2, **look)
                if (chosen.n_seeds > 1).all():
                    axes.fill_between(x, low, chosen.ci_high, color=look["color"], alpha=0.1, linewidth=0)
        for axes in line:
            of_data = yardstick(table, "data")
            style.level(axes, of_data, base, reference, linestyle=":", label="the data itself")
            axes.set(xscale="log", yscale="log")
            style.plain_log(axes.xaxis)
            style.plain_log(axes.yaxis)
        line[0].set_ylabel(_ROWS[base, reference])
    panels[-1, 0].set_xlabel("training iterations")
    panels[-1, 1].set_xlabel("training time (s, mean over seeds)")
    entries = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)
    return style.save(figure, pdf, png)


def _clock(path: str | Path) -> tuple[list[float], list[float]]:
    """Steps and the seconds of training until then, from the start on."""
    records = read_records(path)
    return [0, *(r["step"] for r in records)], [0, *(r["seconds"] for r in records)]
