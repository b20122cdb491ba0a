"""Every condition of every claim: interval, replicates, what conditions say together, verdict in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ...escape import mathtext
from ...files.storage import read_json, read_table
from ..verdicts import AS_TEXT, is_overall
from . import style

SHOWN = 40  # most conditions of a quantity
ROW, HEAD = 0.155, 0.75  # inches: a line of the figure, and what a claim's panel has besides
_COLOURS = {
    "reproduced": "#00664a",
    "contradicted": "#b3261e",
    "mixed": "#8a5a00",
    "no difference": "#2b5c9e",
    "inconclusive": "0.45",
    "unsound": "0.6",
}
_NOTE = (
    "line: 95 % interval, thin: after Holm's correction; dots: replicates; diamond: mean over conditions,\n"
    "dashed: a further condition; shaded: no practical difference"
)


def draw(
    pdf: str | Path,
    png: str | Path,
    runs: list[dict[str, Any]],
    table: str | Path,
    definitions: str | Path,
) -> Figure:
    """A panel per claim, a block of lines per quantity, x the ratio.

    Args:
        runs: of the experiment; unused, as every figure has them.
        table: claims.csv of the experiment.
        definitions: what `verdicts.check` writes beside it.
    """
    rows = read_table(table, converters=AS_TEXT)
    rows["evidence"] = read_json(definitions)["evidence"]
    rows["overall"] = rows.condition.map(is_overall).astype(bool)
    blocks = {
        claim: [_block(quantity, block) for quantity, block in of_claim.groupby("quantity", sort=False)]
        for claim, of_claim in rows.groupby("claim", sort=False)
    }
    lines = [sum(len(block) + 1 for block in of_claim) for of_claim in blocks.values()]
    height = sum(lines) * ROW + max(len(lines), 1) * HEAD
    figure, panels = plt.subplots(
        max(len(lines), 1),
        figsize=(style.WIDTH, height),
        squeeze=False,
        layout="constrained",
        height_ratios=[count * ROW + HEAD for count in lines] or [1],
    )
    for axes, (claim, of_claim) in zip(panels[:, 0], blocks.items(), strict=False):
        _panel(axes, claim, of_claim)
    figure.supxlabel(_NOTE, fontsize="x-small", color="0.35")
    return style.save(figure, pdf, png)


def _block(quantity: str, rows: pd.DataFrame) -> pd.DataFrame:
    """What is drawn of a quantity: its only condition with the overall verdict, or its conditions and all together."""
    conditions, overall = rows[~rows.overall], rows[rows.overall]
    if len(conditions) == 1:
        both = conditions.evidence.iloc[0] | {"tested": overall.evidence.iloc[0]["tested"]}
        return conditions.assign(verdict=overall.verdict.iloc[0], evidence=[both])
    if len(conditions) > SHOWN:
        heading = f"{quantity}; {SHOWN} of {len(conditions)} conditions"
        conditions = conditions.iloc[[i * len(conditions) // SHOWN for i in range(SHOWN)]].assign(quantity=heading)
    return pd.concat([conditions, overall])


def _panel(axes: Axes, claim: str, blocks: list[pd.DataFrame]) -> None:
    """One claim; lines from top to bottom, each quantity under its heading."""
    rows = pd.concat(blocks)
    points = [*rows.effect.dropna(), *(value for e in rows.evidence for value in e.get("ratios", []))]
    points += [e["bound"] * (1 + e["margin"]) ** sign for e in rows.evidence for sign in (-1, 1)]
    low, high = min(points) / 1.15, max(points) * 1.15
    y, labels = 0.0, {}
    for block in blocks:
        zone = block.evidence.iloc[0]
        axes.text(0.004, y, mathtext(block.quantity.iloc[0]), transform=axes.get_yaxis_transform(), **_HEADING)
        edges = [zone["bound"] / (1 + zone["margin"]), zone["bound"] * (1 + zone["margin"])]
        axes.fill_betweenx([y - 0.5 - len(block), y - 0.5], *edges, color="0.5", alpha=0.18, linewidth=0)
        axes.plot([zone["bound"]] * 2, [y - 0.5 - len(block), y - 0.5], color="0.4", linewidth=0.7)
        for row in block.itertuples():
            y -= 1
            labels[y] = _label(row)
            _line(axes, y, row, (low, high))
        y -= 1
    axes.set(xscale="log", xlim=(low, high), ylim=(y + 0.3, 0.7), title=mathtext(f"Claim {claim}"))
    axes.set_yticks(list(labels), labels.values(), fontsize="x-small")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    style.plain_log(axes.xaxis)
    if high < 4 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))


_HEADING = {"fontsize": "x-small", "fontweight": "bold", "va": "center"}


def _label(row: Any) -> str:
    """A condition, or all together."""
    if row.overall:
        return row.condition.replace("pooled", "Mean of conditions").replace("every", "Every")
    group, _, steps = row.condition.rpartition(", ")
    return f"{style.condition_label(group)}, {steps}"


def _line(axes: Axes, y: float, row: Any, limits: tuple[float, float]) -> None:
    """One line: prediction, interval, replicates, mean, and the verdict beside it."""
    colour, evidence, (low, high) = _COLOURS[row.verdict], row.evidence, limits
    if prediction := evidence.get("prediction"):
        axes.plot([max(low, prediction[0]), min(high, prediction[1])], [y, y], "--", color=colour, linewidth=0.7)
    if tested := evidence.get("tested"):
        axes.plot([max(low, tested[0]), min(high, tested[1])], [y, y], color=colour, linewidth=0.5)
    if row.effect == row.effect:  # of no ratio there is none
        ends = [max(low, row.ci_low), min(high, row.ci_high)]
        axes.plot(ends, [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
        beyond = [(low, "<")] * (row.ci_low < low) + [(high, ">")] * (row.ci_high > high)
        for end, marker in beyond:
            axes.plot(end, y, marker, color=colour, markersize=3.5, clip_on=False)
        axes.plot(row.effect, y, "D" if row.overall else "s", color=colour, markersize=4.5 if row.overall else 3)
    ratios = evidence.get("ratios", [])
    axes.plot(ratios, [y] * len(ratios), "o", color="0.15", markersize=1.6, alpha=0.7, zorder=3)
    words = row.verdict
    if evidence.get("tau") is not None:
        words += f"; τ = {evidence['tau']:.2g}, I² = {evidence['i2']:.0%}"
    axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), fontsize="x-small", va="center", color=colour)
