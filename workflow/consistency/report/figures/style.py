"""What the figures share: colours, labels, panels, saving."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ...escape import mathtext
from ...files.storage import atomic
from .. import tables

STRATIFIED = ("stratified_wasserstein", "data")
WIDTH = 6.9  # inches: two columns of a paper
PANELS = 6  # most conditions drawn side by side

sns.set_theme(
    context="paper",
    style="ticks",
    font_scale=0.85,
    rc={"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "savefig.dpi": 200, "pdf.fonttype": 42},
)

_COLOURS = sns.color_palette("colorblind")
_FIXED = {"cm": (_COLOURS[0], "o", "-"), "direct": (_COLOURS[3], "s", "--")}
_OTHERS = [
    *((_COLOURS[i], m, d) for i, m, d in ((2, "^", "-."), (4, "D", ":"), (1, "v", "-"), (5, "P", "--"), (9, "X", ":"))),
    *((_COLOURS[i], m, d) for i, m, d in ((6, "<", "-."), (7, ">", "-"))),
    ((0.1, 0.1, 0.1), "h", "--"),
]
# The couplings of data and noise, and what is exact (the optimal transport, the true ODE).
COUPLINGS = {
    "independent": {"color": _COLOURS[0], "marker": "o", "label": "independent"},
    "optimal_transport": {"color": _COLOURS[1], "marker": "s", "label": "batch-OT"},
    "generator_induced": {"color": _COLOURS[2], "marker": "^", "label": "generator-induced"},
    "exact": {"color": "0.25", "marker": "", "label": "exact"},
}


def method_label(method: str, runs: list[dict[str, Any]]) -> str:
    """The name of a method, as text for matplotlib."""
    return mathtext(tables.method_label(method, runs))


def condition_label(group: str) -> str:
    """A condition on one line, as text for matplotlib."""
    return mathtext(tables.condition_label(group))


def looks(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method → colour, marker, dash and label; CM and Direct CM always look the same."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    others = [method for method in methods if method not in _FIXED]
    chosen = _FIXED | {method: _OTHERS[i % len(_OTHERS)] for i, method in enumerate(others)}
    return {
        method: {
            "color": chosen[method][0],
            "marker": chosen[method][1],
            "linestyle": chosen[method][2],
            "label": method_label(method, runs),
        }
        for method in methods
    }


def shown(runs: list[dict[str, Any]]) -> tuple[list[str], str]:
    """The conditions; of more than `PANELS` that many, evenly spread over the table of runs, and a note."""
    groups = list(dict.fromkeys(run["group"] for run in runs))
    if len(groups) <= PANELS:
        return groups, ""
    chosen = [groups[i * len(groups) // PANELS] for i in range(PANELS)]
    return chosen, f"{PANELS} of {len(groups)} conditions; all are in metrics.csv"


def heading(group: str) -> str:
    """A condition over two lines, for a panel's title."""
    solver, steps, guidance, *extra = condition_label(group).split(", ")
    return f"{', '.join([solver, *extra])}\n{steps}, {guidance}"


def legend(figure: Figure, note: str = "") -> None:
    """One legend above all panels, and the note below them."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=len(entries))
    if note:
        figure.supxlabel(mathtext(note), fontsize="x-small", color="0.35")


def telling(labels: dict[tuple[str, str], str], present: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the measures (metric, reference) that are present; where one sees the modes of a mixture, without the
    distances that it replaces."""
    shown = [key for key in labels if key in present]
    blind = {("wasserstein", "data"), ("frechet_distance", "data")} if STRATIFIED in shown else set()
    return [key for key in shown if key not in blind]


def level(axes: Axes, values: pd.DataFrame, metric: str, reference: str, **look: Any) -> None:
    """A thin horizontal line at a value of `tables.yardstick`, where there is one."""
    chosen = values[(values.metric == metric) & (values.reference == reference)]
    for value in chosen["mean"].head(1):  # of the leading extractor
        axes.axhline(value, **{"color": "0.4", "linewidth": 1, "zorder": 0} | look)


def levels(axes: Axes, metrics: pd.DataFrame, group: str, metric: str, reference: str) -> None:
    """What the condition's teacher has itself (dashed), and the data (dotted)."""
    teacher, data = (tables.yardstick(metrics, run) for run in (tables.teacher_of(group), "data"))
    level(axes, teacher, metric, reference, linestyle="--", label="the teacher itself")
    level(axes, data, metric, reference, linestyle=":", label="the data itself")


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, pdf: str | Path, png: str | Path) -> Figure:
    """Write both formats atomically; without dates, so that the same data give the same bytes. Returns the figure."""
    for path, metadata in ((pdf, {"CreationDate": None}), (png, {"Software": None})):
        content = io.BytesIO()  # matplotlib hides what the operating system says of a full disk
        figure.savefig(content, format=Path(path).suffix[1:], metadata=metadata)
        with atomic(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    plt.close(figure)
    return figure
