"""A Direct CM step with cached targets, against steps that solve the teacher's ODE themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from consistency.data.prepare import as_float
from consistency.files.storage import load_tensors
from consistency.flow.streams import generator
from consistency.runtime.devices import pick_device, send
from consistency.teachers import targets
from consistency.teachers.protocol import Teacher, network_time
from networks import Case, Student, solve_shard
from timing import Row, Spread, paired, ratio, row

SECTION = "Direct CM step"
STUDENTS = (1, 6, 36)
STEPS = {
    "cached": "step, cached targets",
    "reference": "step, online solve as in the reference",
    "packed": "step, best online solve",
}
SOLVES = {name: STEPS[name].removeprefix("step, ") for name in ("reference", "packed")}


def reference_solve(
    x: torch.Tensor, k: torch.Tensor, cond: torch.Tensor, grid: list[int], teacher: Teacher, guidance: float
) -> torch.Tensor:
    """The end of each sample's solve as paper A's reference gets it: the whole batch goes from the largest start to 0,
    each sample joining at its own start; a guided step calls the network twice. DDIM.

    Args:
        x: (B, …), sample b at grid[k[b]].
    """
    schedule, step = teacher.schedule, targets.solver_named("ddim")
    null = torch.full_like(cond, teacher.network.classes)

    def eps(x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        index = network_time(t, len(x), teacher.timestep_offset, x.device)
        conditional = teacher.network(x, index, cond).to(x.dtype)
        teacher.calls += len(x)
        if guidance == 1:
            return conditional
        unconditional = teacher.network(x, index, null).to(x.dtype)
        teacher.calls += len(x)
        return unconditional + guidance * (conditional - unconditional)

    for j in range(int(k.min()), len(grid) - 1):
        begun = (k <= j).reshape(-1, *[1] * (x.ndim - 1)).to(x.device)
        x = torch.where(begun, step(x, grid[j], grid[j + 1], eps, schedule), x)
    return x


def packed_solve(
    x: torch.Tensor, k: torch.Tensor, cond: torch.Tensor, grid: list[int], teacher: Teacher, guidance: float
) -> torch.Tensor:
    """The same as well as it can be done in a training step: no call for samples that have not begun or are done, both
    branches of a guided step in one call."""
    k, order = torch.sort(k, stable=True)

    def eps(rows: torch.Tensor) -> Any:
        return teacher.eps(cond[order[rows]], guidance)

    options = {"schedule": teacher.schedule, "batch_size": len(x), "device": x.device}
    _, x_0 = targets.solve(x[order], k, grid, targets.solver_named("ddim"), eps, **options)
    return x_0[torch.argsort(order)]


def direct_step(case: Case, n_steps: int, guidance: float, rounds: int) -> Iterator[Row]:
    """A Direct CM step with cached targets, against the same step that solves the ODE itself."""
    teacher, student, device = case.teacher(), Student(case), pick_device()
    images, labels = case.images()
    grid, setting = teacher.schedule.grid(n_steps), f"DDIM, N = {n_steps}, w = {guidance:g}, batch {case.train_batch}"
    with tempfile.TemporaryDirectory() as folder:
        shard = solve_shard(case, teacher, Path(folder), min(case.count, 4 * case.solve_batch), n_steps, guidance)
        stored, _ = load_tensors(shard.path, ["k"])
        reader = targets.TargetReader(shard.manifest, teacher.schedule, case.train_batch, 0)
        number = iter(range(10**9))
        calls: dict[str, list[float]] = {"reference": [], "packed": []}

        names = list(reader(0))

        def cached() -> None:
            batch = reader(next(number))
            student.step({name: send(value, device) for name, value in batch.items()})

        def online(kind: str, solve: Callable[..., torch.Tensor]) -> None:
            rng, before = generator(0, "order", next(number)), teacher.calls
            rows = torch.from_numpy(rng.integers(len(images), size=case.train_batch))
            k = torch.from_numpy(rng.integers(n_steps, size=case.train_batch))
            noise = torch.from_numpy(rng.standard_normal((case.train_batch, *case.shape), dtype="float32"))
            s, n = torch.tensor(grid)[k], torch.tensor(grid)[k + 1]
            x_s = teacher.schedule.add_noise(as_float(images[rows]), noise, s).to(device)
            cond = labels[rows].to(device)
            with torch.no_grad():
                x_0 = solve(x_s, k, cond, grid, teacher, guidance)
            batch = {"x_t": x_s, "x_r": x_s, "x_0": x_0, "cond": cond, "t": s.to(device), "r": n.to(device)}
            student.step({name: batch[name] for name in names})
            calls[kind].append((teacher.calls - before) / case.train_batch)

        seconds = paired(
            {
                "cached": lambda: [cached() for _ in range(10)],
                "reference": lambda: online("reference", reference_solve),
                "packed": lambda: online("packed", packed_solve),
            },
            rounds,
        )
    times = {name: [v / (10 if name == "cached" else 1) for v in values] for name, values in seconds.items()}
    for name, values in times.items():
        yield row(SECTION, case.name, setting, STEPS[name], "ms", Spread.of([1e3 * v for v in values]))
        asked, what = Spread.of(calls[name]) if name in calls else 0.0, STEPS[name].removeprefix("step, ")
        yield row(SECTION, case.name, setting, f"teacher calls a sample, {what}", "", asked)
    for name, what in SOLVES.items():
        slower = ratio(times[name], times["cached"])
        yield row(SECTION, case.name, setting, f"times slower: {what}", "×", slower)
    middle = {name: Spread.of(values).median for name, values in times.items()}
    yield from _costs(case, setting, middle, shard.seconds / len(stored["k"]))


def _costs(case: Case, setting: str, step: dict[str, float], target: float) -> Iterator[Row]:
    """After how many steps, and for how many students, solving targets beforehand costs less.

    Args:
        step: seconds of a step, by how its targets are had.
        target: seconds in which one is solved and written.
    """
    solving = target * case.count
    note = f"{case.count:,} targets at {1e3 * target:.3g} ms, writing included"
    for name, what in SOLVES.items():
        steps = solving / (step[name] - step["cached"])
        yield row(SECTION, case.name, setting, f"break-even against {what}", "steps", steps, note=note)
        for k in STUDENTS:
            share = (solving + k * case.steps * step["cached"]) / (k * case.steps * step[name])
            cost = f"cost of {k} student{'s' * (k > 1)} of {case.steps:,} steps, cached / {what}"
            yield row(SECTION, case.name, setting, cost, "×", share, note=note)
    # With a target of its own for each draw of every student nothing is reused.
    share = (target * case.train_batch + step["cached"]) / step["packed"]
    cost, note = "one student, no target used twice, cached / best online solve", "solving, writing, reading, step"
    yield row(SECTION, case.name, setting, cost, "×", share, note=note)
