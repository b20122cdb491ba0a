"""ODE error against sample quality, by method: the papers' question in one picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ...files.storage import read_table
from ..tables import distance_label, extractors_of, leading, summarise, teacher_of, unit_of, yardstick
from . import style


def draw(pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path) -> Figure:
    """One-step samples: x ODE error, y Fréchet distance, a column per guidance scale, a row per reference.

    Points are means over seeds with 95 % t intervals; a line joins the methods of one condition. Of distances to the
    data, a star at ODE error 0 is that of the condition's teacher, and the dotted line that between halves of the data.
    """
    table = read_table(metrics)
    summary = leading(summarise(table, runs))
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
    names: dict[Axes, dict[str, list[tuple[float, float]]]] = {}
    labelled = max(sum(r["guidance"] == w for r in by_group.values()) for w in scales) <= 4
    for row, (reference, phrase) in enumerate(references.items()):
        for column, scale in enumerate(scales):
            axes = panels[row, column]
            for group in (g for g, run in by_group.items() if run["guidance"] == scale):
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
                of_teacher = yardstick(table, teacher_of(group))
                own = of_teacher[(of_teacher.metric == "frechet_distance") & (of_teacher.reference == reference)]
                for value in own["mean"].head(1):  # the leading extractor's
                    axes.plot(0, value, "*", color="0.25", markersize=7, label="the teacher itself", clip_on=False)
                names.setdefault(axes, {})[style.condition_label(group).replace(f", w = {scale:g}", "")] = line
            style.level(
                axes, yardstick(table, "data"), "frechet_distance", reference, linestyle=":", label="the data itself"
            )
            axes.margins(0.25)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
            axes.set_xlim(left=-0.05 * axes.get_xlim()[1])
            if row == 0:
                axes.set_title(f"guidance w = {scale:g}")
            else:
                axes.set_xlabel(
                    f"ODE error (mean squared error per {unit})" if len(scales) < 3 else f"ODE error\n(MSE per {unit})"
                )
            if column == 0:
                axes.set_ylabel(f"{distance} to\n{phrase}")
    note = f"{distance} in features of {extractor}; bars: 95 % interval over seeds"
    style.legend(figure, note)
    figure.draw_without_rendering()  # names are placed where nothing else is drawn
    for axes, lines in names.items() if labelled else ():
        for name, line in lines.items():
            _name(axes, name, sorted(line, reverse=True))
    return style.save(figure, pdf, png)


def _name(axes: Axes, name: str, points: list[tuple[float, float]]) -> None:
    """Write a condition's name beside one of its points, where it covers least."""
    look = {"textcoords": "offset points", "fontsize": "x-small", "color": "0.3"}
    choices = []
    for point, (side, dx), (end, dy) in product(points, (("left", 5), ("right", -5)), (("bottom", 3), ("top", -3))):
        text = axes.annotate(name, point, xytext=(dx, dy), ha=side, va=end, **look)
        choices.append((_covered(axes, text.get_window_extent()), len(choices), text))
        text.remove()
    axes.add_artist(min(choices)[2])


def _covered(axes: Axes, box: Bbox) -> float:
    """How much of a panel a box would cover: markers and texts count more than lines, its outside more than both."""
    shown = [line for line in axes.lines if line.get_marker() not in ("|", "_")]  # without the ends of bars
    drawn = [(line.get_transform(), line.get_path()) for line in shown]
    drawn += [(bars.get_transform(), path) for bars in axes.collections for path in bars.get_paths()]
    paths = [transform.transform_path(path) for transform, path in drawn]
    near = box.padded(6)
    markers = sum(near.contains(*vertex) for path in paths if len(path.vertices) == 1 for vertex in path.vertices)
    lines = sum(path.intersects_bbox(box, filled=False) for path in paths if len(path.vertices) > 1)
    texts = box.count_overlaps([text.get_window_extent() for text in axes.texts])
    outside = not all(axes.bbox.contains(*corner) for corner in box.corners())
    return lines + 5 * (markers + texts) + 50 * outside
