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
from pathlib import Path
from typing import Any

import torch

from .data import as_float
from .devices import pick_device
from .errors import ConfigError, MismatchError, memory_advice
from .manifest import read
from .progress import Progress
from .schedules import VPSchedule
from .solvers import Eps
from .storage import load_tensors, save_tensors
from .streams import generator, generators
from .teachers import Teacher

log = logging.getLogger("consistency")

Solver = Any


def solver_named(name: str) -> Solver:
    """The public function of `solvers` with that name."""
    from . import solvers

    return getattr(solvers, name)


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the solver from each sample's own start to time 0.

    The samples of a batch are each at a time of their own: one that is done gives its place to one that has
    not begun, so no call is spent on a finished sample and all batches but the last few are full.

    Args:
        x: (n, …), sample b at time grid[start[b]].
        start: int64 (n,), index k of the start in the grid; ascending (the longest solve first) wastes least.
        grid: the N + 1 times.
        eps: rows (B,) → Eps; gives the guided prediction for those samples.
        batch_size: samples in one call.
        device: of the calls; x stays where it is.
        progress: called with the number of samples done since.

    Returns:
        x_n after each sample's first step, and x_0; both (n, …).
    """
    x, first, times = x.clone(), x.clone(), torch.tensor(grid)
    place, waiting = start.clone(), 0
    rows = torch.empty(0, dtype=torch.int64)
    while True:
        done = place[rows] == len(grid) - 1
        if progress is not None and done.any():
            progress(int(done.sum()))
        rows = rows[~done]
        joining = min(batch_size - len(rows), len(x) - waiting)
        rows, waiting = torch.cat([rows, torch.arange(waiting, waiting + joining)]), waiting + joining
        if not len(rows):
            return first, x
        k = place[rows]
        stepped = solver(x[rows].to(device), times[k], times[k + 1], eps(rows), schedule).to(x.device)
        x[rows] = stepped
        begun = k == start[rows]
        first[rows[begun]] = stepped[begun]
        place[rows] += 1


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
    drawn = draw(images, labels, numbers, n_steps, seed)
    x, noise, cond = drawn["x"].to(teacher.dtype), drawn["noise"].to(teacher.dtype), drawn["cond"]
    if mode == "paper":
        k, order = torch.sort(drawn["k"], stable=True)
        x_s, cond = schedule.add_noise(x[order], noise[order], torch.tensor(grid)[k]), cond[order]

        def eps(rows: torch.Tensor) -> Eps:
            return teacher.eps(cond[rows].to(device), guidance)

        x_n, x_0 = solve(x_s, k, grid, step, eps, schedule, batch_size, device, progress.update)
        back = torch.argsort(order)
        tensors = {"x_s": x_s, "x_n": x_n, "x_0": x_0, "k": k, "cond": cond}
        tensors = {name: value[back] for name, value in tensors.items()}
        steps = int((n_steps - k).sum())
    else:
        parts = []
        for rows in torch.arange(len(numbers)).split(batch_size):
            x_t = schedule.add_noise(x[rows], noise[rows], grid[0]).to(device)
            predict = teacher.eps(cond[rows].to(device), guidance)
            parts.append(trajectory(x_t, grid, step, predict, schedule).cpu())
            progress.update(len(rows))
        tensors, steps = {"points": torch.cat(parts), "cond": cond}, len(numbers) * n_steps
    tensors = {name: v.to(torch.float32) if v.is_floating_point() else v for name, v in tensors.items()}
    if not all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point()):
        raise MismatchError(f"{path}: the teacher's ODE solution is not finite; check teacher, solver and n_steps")
    minimum = steps * calls_of(step, schedule) * (1 if guidance == 1 else 2)
    calls = teacher.calls - before
    log.info("teacher calls: %d, the minimum is %d", calls, minimum)
    counts = {"teacher_calls": calls, "teacher_calls_minimum": minimum}
    save_tensors(path, tensors, {"first": numbers.start, "count": len(numbers), **counts})


class TargetReader:
    """Batches of targets for training: a pure function of the step, one shard in use at a time.

    Shards are memory-mapped and checked against the manifest's hash when first opened. In every
    epoch the shards, and the pairs inside each shard, are visited in an order of their own; since
    draws are independent, no mixing across shards is needed. Memory does not grow with the count.
    """

    def __init__(self, manifest: str | Path, schedule: VPSchedule, batch_size: int, seed: int):
        self.folder, self.manifest = Path(manifest).parent, read(manifest)
        self.batch_size, self.seed = batch_size, seed
        self.grid = torch.tensor(schedule.grid(self.manifest["n_steps"]))
        self.pairs = 1 if self.manifest["mode"] == "paper" else self.manifest["n_steps"]
        self.batches = [entry["count"] * self.pairs // batch_size for entry in self.manifest["shards"]]
        if min(self.batches) == 0:
            raise ConfigError(
                f"{manifest}: a shard has fewer pairs than batch_size {batch_size}; raise targets.count or lower "
                "targets.shards or student.training.batch_size"
            )
        self._open: tuple[int, dict[str, torch.Tensor]] | None = None
        self._order: tuple[tuple[int, int], torch.Tensor] | None = None
        self._verified: set[int] = set()

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step: x_s, x_n, x_0 (B, …), s, n (B,), cond (B,) (see `objectives`)."""
        epoch, place = divmod(step, sum(self.batches))
        for shard in generator(self.seed, "order", epoch).permutation(len(self.batches)):
            if place < self.batches[shard]:
                break
            place -= self.batches[shard]
        shard = int(shard)
        items = self._permutation(epoch, shard)[place * self.batch_size : (place + 1) * self.batch_size]
        tensors = self._tensors(shard)
        if self.manifest["mode"] == "paper":
            k = tensors["k"][items]
            pair = {name: tensors[name][items] for name in ("x_s", "x_n", "x_0", "cond")}
        else:
            row, k = items // self.pairs, items % self.pairs
            points = tensors["points"]
            pair = {
                "x_s": points[row, k],
                "x_n": points[row, k + 1],
                "x_0": points[row, -1],
                "cond": tensors["cond"][row],
            }
        return pair | {"s": self.grid[k], "n": self.grid[k + 1]}

    def _permutation(self, epoch: int, shard: int) -> torch.Tensor:
        if self._order is None or self._order[0] != (epoch, shard):
            size = self.manifest["shards"][shard]["count"] * self.pairs
            order = generator(self.seed, "order", epoch, shard).permutation(size)
            self._order = (epoch, shard), torch.from_numpy(order)
        return self._order[1]

    def _tensors(self, shard: int) -> dict[str, torch.Tensor]:
        if self._open is None or self._open[0] != shard:
            entry = self.manifest["shards"][shard]
            path, check = self.folder / entry["file"], shard not in self._verified
            self._open = None  # unmapped before the next one is mapped
            self._open = shard, load_tensors(path, expected_sha256=entry["sha256"], check=check)[0]
            self._verified.add(shard)
        return self._open[1]
