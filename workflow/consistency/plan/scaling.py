"""What presets and large sets of targets cost, as tables for docs/scaling.md: `python -m consistency.plan.scaling`."""

from __future__ import annotations

import math

from ..config.resolve import expand, load, single
from ..config.settings import Experiment
from ..config.shapes import shape_of
from .estimates import CALLS, device_of, estimate, key_of, operations

PRICE = {"GPU": 2.5, "core": 0.03}  # dollars an hour that are assumed, of a data-centre GPU and of a CPU core
LARGE = 10_000_000, 100  # targets, GPUs


def targets(
    experiment: Experiment, solver: str, n_steps: int, guidance: float, count: int, devices: int
) -> dict[str, float]:
    """Cost of `count` targets (mode `paper`) on so many devices.

    Returns:
        calls (network evaluations of a sample), flops, hours (of one device), wall (hours with all of them), bytes (on
        disk).

    Raises:
        KeyError: the operations of the teacher's network are not known.
    """
    device, teacher = device_of(experiment), experiment.teacher
    hub = teacher.hub.repo if teacher.source == "hub" else None
    network = operations()[key_of(experiment, hub)]
    calls = count * (n_steps + 1) / 2 * CALLS.get(solver, 1) * (1 if guidance == 1 else 2)
    flops = calls * network["flops"]
    kind = experiment.network.kind if hub is None else ""
    hours = device.seconds(flops, kind=kind, precision=teacher.precision, size=network["flops"]) / 3600
    stored = 3.0 * 4 * math.prod(shape_of(experiment)[0]) * count
    return {"calls": calls, "flops": flops, "hours": hours, "wall": hours / devices, "bytes": stored}


def tables() -> str:
    """Both tables as Markdown: all presets; `LARGE` targets."""
    lines = [
        "| preset | runs | teacher calls for targets | PFLOP | hours | of a | GB on disk | dollars |",
        "|---|---|---|---|---|---|---|---|",
    ]
    presets = load({"experiments": single()})[1]
    for name, experiment in presets.items():
        runs, device = expand(name, experiment), device_of(experiment)
        stages = estimate(experiment, runs, device)
        total = {}
        for key in ("flops", "hours", "bytes"):
            values = [row[key] for row in stages.values()]
            total[key] = None if None in values else sum(values)
        calls = stages.get("targets", {}).get("passes")
        dollars = None if total["hours"] is None else total["hours"] * PRICE[device.name]
        cells = [
            name,
            str(len(runs)),
            "none" if calls is None else f"{calls:,.0f}",
            _cell(total["flops"], 1e15),
            _cell(total["hours"]),
            device.name,
            _cell(total["bytes"], 1e9),
            _cell(dollars),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    count, devices = LARGE
    lines += [
        "",
        f"| {count:,} targets of | solver, N, w | teacher calls | EFLOP | GPU hours "
        f"| hours on {devices} GPUs | TB on disk | dollars |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, solver, n_steps, guidance in (
        ("cifar10", "ddim", 50, 1.0),
        ("fashion", "ddim", 50, 4.0),
        ("sdxl", "ddim", 10, 9.0),
        ("sdxl", "ddim", 100, 9.0),
    ):
        cost = targets(presets[name], solver, n_steps, guidance, count, devices)
        cells = [
            name,
            f"{solver}, {n_steps}, {guidance:g}",
            f"{cost['calls']:,.0f}",
            _cell(cost["flops"], 1e18),
            _cell(cost["hours"]),
            _cell(cost["wall"]),
            _cell(cost["bytes"], 1e12),
            _cell(cost["hours"] * PRICE["GPU"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "unknown"
    value /= unit
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


if __name__ == "__main__":
    print(tables(), end="")
