"""Precomputed ODE targets: solved once per (teacher, solver, N, w), cached, shared by all students.

Two estimators (section A.5):
    paper       each draw (x, ε, k, c) is solved from x_s = α_s x + σ_s ε at s = s_k to 0;
    trajectory  x is noised to T, solved once, and all N + 1 points are kept: each of the N starts
                pairs with the endpoint.

A draw is a function of (seed, its number) alone, so shards are the same whatever their count or
order. A shard holds, for m draws of samples (…):
    paper       x_s, x_n, x_0 (m, …), k int64 (m,), cond int64 (m,)
    trajectory  points (m, N + 1, …), cond int64 (m,)
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ..data.prepare import as_float
from ..errors import ConfigError, MismatchError, memory_advice
from ..files.storage import load_tensors
from ..files.writers import Shapes, tensor_file
from ..flow.schedules import VPSchedule
from ..flow.solvers import Eps
from ..flow.streams import generator, generators
from ..plugins import load
from ..runtime.devices import pick_device, send
from ..runtime.progress import Progress
from .manifest import read
from .protocol import Teacher

log = logging.getLogger("consistency")

Solver = Any


def solver_named(name: str) -> Solver:
    """The solver of that name."""
    return load("solver", name)


def solve(
    x: torch.Tensor,
    start: torch.Tensor,
    grid: list[int],
    solver: Solver,
    eps: Callable[[torch.Tensor], Eps],
    schedule: VPSchedule,
    batch_size: int,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    dtype: torch.dtype | None = None,
    order: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the solver from each sample's own start to time 0.

    The samples of a batch are each at a time of their own: one that is done gives its place to one that has
    not begun, so no call is spent on a finished sample and all batches but the last few are full (on a GPU these are
    filled up to an eighth). Only the batch is on the device.

    Args:
        x: (n, …), sample b at time grid[start[b]].
        start: int64 (n,), index k of the start in the grid.
        grid: the N + 1 times.
        eps: rows (B,) → Eps; gives the guided prediction for those samples.
        batch_size: samples in one call.
        device: of the calls; x stays where it is.
        progress: called with the number of samples done since.
        dtype: of the arithmetic; x's by default.
        order: int64 (n,), in which samples begin; the longest solve first wastes least. Default: as they lie.
        out: where x_n and x_0 are written; new tensors by default.

    Returns:
        x_n after each sample's first step, and x_0; both (n, …).
    """
    first, last = out or (torch.empty_like(x), torch.empty_like(x))
    device = device or x.device
    late, unit = _Late(), _unit(device, batch_size)
    times, waiting, final = torch.tensor(grid), 0, len(grid) - 1
    order = torch.arange(len(x)) if order is None else order
    rows, k, state = order[:0], start[:0], x[:0].to(device, dtype)
    while True:
        done = k == final
        if done.any():
            late.write(last, rows[done], state[_chosen(done, device)])
            if progress is not None:
                progress(int(done.sum()))
            rows, k, state = rows[~done], k[~done], state[_chosen(~done, device)]
        joining = order[waiting : waiting + batch_size - len(rows)]
        if len(joining):
            waiting += len(joining)
            rows, k = torch.cat([rows, joining]), torch.cat([k, start[joining]])
            state = torch.cat([state, send(x[joining].to(state.dtype), device)])
        if not len(rows):
            late.finish()
            return first, last
        spare = min(-len(rows) % unit, batch_size - len(rows))
        asked = torch.cat([rows, rows[-1:].expand(spare)])
        t = torch.cat([k, k[-1:].expand(spare)])
        state = torch.cat([state, state[-1:].expand(spare, *state.shape[1:])]) if spare else state
        state = solver(state, send(times[t], device), send(times[t + 1], device), eps(asked), schedule)[: len(rows)]
        late.finish()
        begun = k == start[rows]
        if begun.any():
            late.write(first, rows[begun], state[_chosen(begun, device)])
        k = k + 1


def _unit(device: torch.device, batch_size: int) -> int:
    """What the rows of a call are filled up to a multiple of. On an H100 ten calls of a small UNet with ten numbers of
    rows took 1.5 s, ten with one number 0.16 s: it seems that convolutions are planned anew for each number."""
    return max(1, batch_size // 8) if device.type == "cuda" else 1


def _chosen(mask: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What takes the rows where a mask of the CPU is true; a GPU, asked to count a mask, is waited for."""
    return mask if device.type == "cpu" else send(mask.nonzero().flatten(), device)


class _Late:
    """Rows to be written to the CPU; those of a GPU while it computes the next step."""

    def __init__(self) -> None:
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.cuda.Event]] = []

    def write(self, whole: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
        """`whole[rows] = values`, at the latest after `finish`."""
        if not values.is_cuda or whole.is_cuda:
            whole[rows.to(whole.device)] = values.to(whole)
            return
        values, arrived = values.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        self.waiting.append((whole, rows, values, arrived))

    def finish(self) -> None:
        """Write what waits."""
        for whole, rows, values, arrived in self.waiting:
            arrived.synchronize()
            whole[rows] = values.to(whole)
        self.waiting = []


def calls_of(solver: Solver, schedule: VPSchedule) -> int:
    """Predictions that one step of the solver asks for."""
    asked = []

    def eps(x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
        asked.append(t)
        return x

    solver(torch.zeros(1, 1), schedule.steps, 0, eps, schedule)
    return len(asked)


def trajectory(x: torch.Tensor, grid: list[int], solver: Solver, eps: Eps, schedule: VPSchedule) -> torch.Tensor:
    """All N + 1 points of the solve from grid[0] to 0: x (B, …) → (B, N + 1, …)."""
    points = [x]
    for s, n in itertools.pairwise(grid):
        points.append(solver(points[-1], s, n, eps, schedule))
    return torch.stack(points, dim=1)


def draw(
    images: torch.Tensor, labels: torch.Tensor, numbers: range, n_steps: int, seed: int
) -> dict[str, torch.Tensor]:
    """The draws of those numbers: x (B, …), noise (B, …), k (B,) in 0..N − 1, cond (B,)."""
    rows, starts = [], []
    noise = torch.empty(len(numbers), *images.shape[1:])
    for row, rng in zip(noise.numpy(), generators(seed, "draw", numbers=numbers), strict=True):
        rows.append(int(rng.integers(len(images))))
        starts.append(int(rng.random() * n_steps))
        rng.standard_normal(out=row, dtype="float32")
    return {
        "x": as_float(images[rows]),
        "noise": noise,
        "k": torch.tensor(starts),
        "cond": labels[rows],
    }


@memory_advice("lower targets.batch_size, or raise targets.shards")
@torch.no_grad()
def solve_shard(
    path: str | Path,
    teacher: Teacher,
    images: torch.Tensor,
    labels: torch.Tensor,
    numbers: range,
    mode: str,
    solver: str,
    n_steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
) -> None:
    """Solve the draws `numbers` and write them to `path`, `batch_size` of them in one call of the teacher."""
    device = pick_device()
    teacher.to(device)
    before = teacher.calls
    schedule, step = teacher.schedule, solver_named(solver)
    grid = schedule.grid(n_steps)
    progress = Progress(len(numbers), f"solve {mode} {solver} N={n_steps} w={guidance:g}")
    count = len(numbers)
    shapes: Shapes = {"cond": (torch.int64, (count,))}
    if mode == "paper":
        shapes |= dict.fromkeys(("x_s", "x_n", "x_0"), (torch.float32, (count, *images.shape[1:])))
        shapes["k"] = torch.int64, (count,)
    else:
        shapes["points"] = torch.float32, (count, n_steps + 1, *images.shape[1:])
    with tensor_file(path, shapes) as file:
        for first in range(0, count, batch_size):
            rows = slice(first, min(first + batch_size, count))
            drawn = draw(images, labels, numbers[rows], n_steps, seed)
            x, noise = drawn["x"].to(teacher.dtype), drawn["noise"].to(teacher.dtype)
            file["cond"][rows] = drawn["cond"]
            if mode == "paper":
                file["k"][rows] = drawn["k"]
                file["x_s"][rows] = schedule.add_noise(x, noise, torch.tensor(grid)[drawn["k"]])
                continue
            predict = teacher.eps(drawn["cond"].to(device), guidance)
            x_t = schedule.add_noise(x, noise, grid[0]).to(device)
            file["points"][rows] = trajectory(x_t, grid, step, predict, schedule).cpu()
            progress.update(len(x))
        steps = count * n_steps
        if mode == "paper":
            k, cond, ends = file["k"].clone(), file["cond"].clone(), (file["x_n"], file["x_0"])

            def eps(rows: torch.Tensor) -> Eps:
                return teacher.eps(send(cond[rows], device), guidance)

            order = torch.argsort(k, stable=True)
            options = {"batch_size": batch_size, "device": device, "dtype": teacher.dtype, "order": order, "out": ends}
            solve(file["x_s"], k, grid, step, eps, schedule, progress=progress.update, **options)
            steps -= int(k.sum())
        if not all(part.isfinite().all() for value in file.values() for part in value.split(batch_size)):
            raise MismatchError(f"{path}: the teacher's ODE solution is not finite; check teacher, solver and n_steps")
        minimum = steps * calls_of(step, schedule) * (1 if guidance == 1 else 2)
        calls = teacher.calls - before
        log.info("teacher calls: %d, the minimum is %d", calls, minimum)
        file.metadata |= {"first": numbers.start, "count": count}
        file.metadata |= {"teacher_calls": calls, "teacher_calls_minimum": minimum}


class TargetReader:
    """Batches of targets for training: a pure function of the step, one shard in use at a time.

    Shards are memory-mapped and checked against the manifest's hash when first opened. In every
    epoch the shards, and the pairs inside each shard, are visited in an order of their own; since
    draws are independent, no mixing across shards is needed. Memory does not grow with the count.
    """

    prepare, together = None, True  # of `steps.Task`: the batches are complete

    def __init__(self, manifest: str | Path, schedule: VPSchedule, batch_size: int, seed: int):
        self.folder, self.manifest = Path(manifest).parent, read(manifest)
        self.batch_size = batch_size
        self.grid = torch.tensor(schedule.grid(self.manifest["n_steps"]))
        self.pairs = 1 if self.manifest["mode"] == "paper" else self.manifest["n_steps"]
        self.batches = [entry["count"] * self.pairs // batch_size for entry in self.manifest["shards"]]
        if min(self.batches) == 0:
            raise ConfigError(
                f"{manifest}: a shard has fewer pairs than batch_size {batch_size}; raise targets.count or lower "
                "targets.shards or student.training.batch_size"
            )
        self._open: tuple[int, dict[str, torch.Tensor]] | None = None
        self._order = lru_cache(2)(partial(_order, seed))  # of an epoch's shards, and of one shard's pairs
        self._verified: set[int] = set()

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step: x_t, x_r, x_0 (B, …), t, r (B,), cond (B,) (see `objectives`)."""
        epoch, number = divmod(step, sum(self.batches))
        for shard in self._order(len(self.batches), epoch).tolist():
            if number < self.batches[shard]:
                break
            number -= self.batches[shard]
        size = self.manifest["shards"][shard]["count"] * self.pairs
        items = self._order(size, epoch, shard)[number * self.batch_size : (number + 1) * self.batch_size]
        tensors = self._tensors(shard)
        if self.manifest["mode"] == "paper":
            k = tensors["k"][items]
            stored = {"x_t": "x_s", "x_r": "x_n", "x_0": "x_0", "cond": "cond"}
            batch = {name: tensors[key].index_select(0, items) for name, key in stored.items()}
        else:
            row, k = items // self.pairs, items % self.pairs
            points = tensors["points"]
            batch = {
                "x_t": points[row, k],
                "x_r": points[row, k + 1],
                "x_0": points[row, -1],
                "cond": tensors["cond"][row],
            }
        return batch | {"t": self.grid[k], "r": self.grid[k + 1]}

    def _tensors(self, shard: int) -> dict[str, torch.Tensor]:
        if self._open is None or self._open[0] != shard:
            entry = self.manifest["shards"][shard]
            path, check = self.folder / entry["file"], shard not in self._verified
            self._open = None  # unmapped before the next one is mapped
            self._open = shard, load_tensors(path, expected_sha256=entry["sha256"], check=check)[0]
            self._verified.add(shard)
        return self._open[1]


def _order(seed: int, size: int, *index: int) -> torch.Tensor:
    return torch.from_numpy(generator(seed, "order", *index).permutation(size))
