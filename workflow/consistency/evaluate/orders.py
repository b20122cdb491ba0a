"""The teacher solver's discretisation error against the ODE's true end, by number of steps."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..config.registry import BUILT_INS
from ..files.storage import load_tensors, sha256
from ..flow.schedules import VPSchedule
from ..runtime.progress import Progress
from ..runtime.provenance import environment
from ..teachers.protocol import AnalyticTeacher
from ..teachers.targets import solver_named, trajectory
from .measure import Row, _row, _squared_error, write_measured


@torch.no_grad()
def measure_orders(
    path: str | Path,
    teacher_folder: str | Path,
    noise: str | Path,
    truth: str | Path,
    schedule: VPSchedule,
    order_steps: list[int],
    *,
    count: int = 128,
) -> None:
    """Rows `ode_error` to `truth` of every solver and number of steps, on the schedule as it is and refined
    (reference `truth of the refined schedule`), over the first `count` samples of the shared noise."""
    began = time.monotonic()
    start = load_tensors(noise, ["noise"])[0]["noise"][:count].double()
    ends = load_tensors(truth, ["vp", "vp_refined"])[0]
    rows: list[Row] = []
    cases = [("truth", "vp", schedule), ("truth of the refined schedule", "vp_refined", schedule.refined())]
    solvers = BUILT_INS.names("solver")
    progress = Progress(len(solvers) * len(order_steps) * len(cases), "solver orders")
    for reference, name, used in cases:
        teacher = AnalyticTeacher.load(teacher_folder, used)
        eps = teacher.eps(torch.zeros(len(start), dtype=torch.int64), 1.0)
        for solver in solvers:
            for steps in order_steps:
                end = trajectory(start, used.grid(steps), solver_named(solver), eps, used)[:, -1]
                error = _squared_error(end.numpy(), ends[name][:count].numpy(), noise)
                row = _row("ode_error", error, len(start), "coordinates", reference, steps)
                rows.append(
                    {"run": f"order-{solver}-n{steps}", "solver": solver, "n_steps": steps, "guidance": 1.0} | row
                )
                progress.update(1)
    protocol = {"teacher_sha256": sha256(Path(teacher_folder) / "mixture.safetensors"), "truth_sha256": sha256(truth)}
    value = {"run": {"run": "orders", "method": "solver"}, "rows": rows, "protocol": protocol}
    value |= {"environment": environment(), "wall_time_s": round(time.monotonic() - began, 3)}
    write_measured(path, value)
