"""What separates consistency training (CT) of independent pairs from distillation (CD), as the grid gets finer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...files.storage import read_table
from ..tables import summarise
from . import style

_LOOK = {key: value for key, value in style.COUPLINGS["independent"].items() if key != "label"}
_LOW, _HIGH = -1, 3  # of the gradients' panel
_TITLES = (
    "loss / Δσ²\nsolid: CT, dashed: CD",
    "gap of targets CT − CD,\nsquared / Δσ²",
    "CT's gradient along CD's, relative\nsolid: pseudo-Huber, dotted: squared",
)


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """A row per method whose students are measured; x number N of grid steps.

    y: (1) loss of CT and CD, (2) squared distance of their targets, both / Δσ², with 95 % t intervals over seeds and
    limits N → ∞; (3) CT's mean gradient along CD's over CD's own: medians, and seeds (at the edge if beyond it).
    """
    table = read_table(metrics)
    summary = summarise(table, runs)
    summary[["base", "steps"]] = summary.metric.str.extract(r"^(\w+)@(?:steps=)?(\d+|limit)$")
    methods = list(dict.fromkeys(run["method"] for run in runs))
    size = style.WIDTH, 0.8 + 2.1 * len(methods)
    figure, panels = plt.subplots(len(methods), 3, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for line, method in zip(panels, methods, strict=True):
        of_method = summary[summary.method == method]
        ratios = _ratios(table[table.run.isin([run["run"] for run in runs if run["method"] == method])])
        _curve(line[0], of_method, "loss", "ct independent", "-")
        _curve(line[0], of_method, "loss", "cd", "--")
        _curve(line[1], of_method, "velocity_gap", "independent", "-")
        for distance, dash, shift in (("pseudo-Huber", "-", 1.07), ("mse", ":", 0.93)):
            chosen, colour = ratios[ratios.distance == distance], _LOOK["color"]
            line[2].plot(chosen.groupby("steps").value.median(), dash, linewidth=1.2, color=colour)
            points = {"markersize": 3, "markerfacecolor": "white" if distance == "mse" else colour, "clip_on": False}
            line[2].plot(chosen.steps * shift, chosen.value.clip(_LOW, _HIGH), "o", color=colour, zorder=3, **points)
        line[0].plot([], [], color="0.4", linewidth=2, label="limit N → ∞")
        line[2].axhline(1, color="0.5", linewidth=1, zorder=0)
        line[2].set_ylim(_LOW, _HIGH)
        label = style.method_label(method, runs)
        for axes, title in zip(line, _TITLES, strict=True):
            axes.set_xscale("log")
            style.plain_log(axes.xaxis)
            axes.xaxis.set_major_locator(LogLocator())
            axes.set_title(title if len(methods) == 1 else f"students of {label}\n{title}", fontsize="small")
            if axes is not line[2]:
                axes.set_yscale("log")
                style.plain_log(axes.yaxis)
    plt.setp(panels[-1], xlabel="grid steps N")
    style.legend(figure)
    return style.save(figure, pdf, png)


def _ratios(table: pd.DataFrame) -> pd.DataFrame:
    """⟨E g_CT, E g_CD⟩ / ⟨E g_CD, E g_CD⟩ as `value` of every run, steps and distance."""
    parts = table.reference.str.extract(r"^(?P<distance>\S+) (?P<velocity>ct|cd) independent$")
    steps = table.metric.str.extract(r"^gradient@steps=(?P<steps>\d+)$")
    products = table.join(parts).join(steps).dropna(subset=["velocity", "steps"]).astype({"steps": int})
    keys = ["run", "steps", "distance"]
    ct, cd = (products[products.velocity == velocity].set_index(keys).value for velocity in ("ct", "cd"))
    return (ct / cd).reset_index()


def _curve(axes: Axes, summary: pd.DataFrame, base: str, reference: str, dash: str) -> None:
    """Mean and band over N, and the limit as a bar at the right."""
    means = summary[(summary.base == base) & (summary.reference == reference)]
    limit, chosen = means[means.steps == "limit"], means[means.steps != "limit"].sort_values("steps", key=pd.to_numeric)
    steps = chosen.steps.astype(int)
    axes.plot(steps, chosen["mean"], markersize=3, linewidth=1.2, linestyle=dash, **_LOOK)
    if (chosen.n_seeds > 1).all():
        low = chosen.ci_low.clip(lower=chosen["mean"] * 0.2)
        axes.fill_between(steps, low, chosen.ci_high, color=_LOOK["color"], alpha=0.1, linewidth=0)
    axes.hlines(limit["mean"], 1.4 * steps.max(), 2.8 * steps.max(), _LOOK["color"], dash, linewidth=2)
