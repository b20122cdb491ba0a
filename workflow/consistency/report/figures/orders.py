"""How the error of the teacher's solvers falls with the number of steps."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ...escape import mathtext
from ...files.storage import read_table
from . import style

REFINED = "truth of the refined schedule"
_NAMES = {"ddim": "DDIM", "euler": "Euler", "heun": "Heun"}
_COLOURS = sns.color_palette("colorblind")
_MARKS = ((0, "o"), (1, "s"), (2, "^"), (4, "D"))


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """x steps N of the solver, y root of its mean squared error to the ODE's true end, per coordinate.

    Solid: noise schedule refined; dotted: as it is (T = 1000). Order: the slope between the two largest N, refined.
    """
    table = read_table(metrics)
    table = table[(table.method == "solver") & (table.metric == "ode_error")].sort_values("n_steps")
    table = table.assign(error=np.sqrt(table.value))
    figure, axes = plt.subplots(figsize=(0.75 * style.WIDTH, 3.4), layout="constrained")
    for (colour, marker), (solver, rows) in zip(cycle(_MARKS), table.groupby("solver"), strict=False):
        name = mathtext(_NAMES.get(solver, solver))
        look = {"color": _COLOURS[colour], "linewidth": 1.2}
        refined, plain = rows[rows.reference == REFINED], rows[rows.reference == "truth"]
        last = refined.iloc[-2:]
        order = -np.diff(np.log(last.error))[0] / np.diff(np.log(last.n_steps))[0] if len(last) > 1 else np.nan
        axes.plot(refined.n_steps, refined.error, **look, label=f"{name}, refined schedule: order {order:.2f}")
        axes.plot(
            plain.n_steps, plain.error, ":", **look, marker=marker, markersize=3.5, label=f"{name}, schedule as it is"
        )
    axes.set(xscale="log", yscale="log", xlabel="steps N of the solver")
    axes.set_ylabel("error to the true ODE end\n(root mean square, per coordinate)")
    first, low = table.n_steps.min(), 0.6 * table.error.min()
    for order in (1, 2):
        high = low * 4**order
        axes.plot([first, 4 * first], [high, low], color="0.6", linewidth=1, zorder=0)
        axes.annotate(
            f"order {order}", (first, high), (0, 3), textcoords="offset points", fontsize="x-small", color="0.4"
        )
    style.plain_log(axes.xaxis)
    handles = axes.get_legend_handles_labels()[0]
    figure.legend(handles=handles[0::2] + handles[1::2], loc="outside upper center", ncols=2)
    return style.save(figure, pdf, png)
