"""A figure of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...config.registry import loaded
from ...errors import PluginError
from ...files.storage import read_table
from ...plugins import blaming
from . import style


def draw(
    pdf: str | Path, png: str | Path, runs: list[dict[str, Any]], metrics: str | Path, own: dict[str, Any]
) -> Figure:
    """Whatever `own`, a `registry.Function.call`, draws from the table of metrics (a DataFrame) and the runs.

    Raises:
        PluginError: it fails, or gives no figure; names file and function.
    """
    function = loaded(own)
    with blaming(own["file"], own["name"]):
        figure = function(read_table(metrics), runs, style, **own["params"])
    if not isinstance(figure, Figure):
        raise PluginError(f"{own['file']}: {own['name']}: gives {str(figure)[:100]}; allowed: a matplotlib Figure")
    return style.save(figure, pdf, png)
