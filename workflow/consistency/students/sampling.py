"""Samples of teacher and students from one shared initial-noise file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..config.jobs import SamplingJob
from ..config.registry import loaded
from ..errors import MismatchError, memory_advice
from ..files.storage import load_tensors
from ..files.writers import Shapes, tensor_file
from ..flow.noise import normal
from ..flow.schedules import flow_of
from ..runtime.devices import move, pick_device
from ..runtime.progress import Progress
from ..teachers.protocol import Teacher
from ..teachers.targets import solver_named, trajectory
from .maps import FlowMap, budget_name, load

Sampler = Callable[..., torch.Tensor]


def load_noise(path: str | Path, sample_shape: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The shared initial noise (count, *sample_shape) and the labels (count,).

    Raises:
        StorageError: the file is missing or damaged.
        MismatchError: another length or shape than the evaluation needs.
    """
    tensors, _ = load_tensors(path, ["noise", "labels"])
    noise, labels = tensors["noise"], tensors["labels"]
    if len(noise) != count or len(labels) != count:
        raise MismatchError(f"{path}: {len(noise)} noises and {len(labels)} labels; evaluation.count is {count}")
    if tuple(noise.shape[1:]) != tuple(sample_shape):
        raise MismatchError(f"{path}: noise of shape {tuple(noise.shape[1:])}; samples have {tuple(sample_shape)}")
    return noise, labels


def start_indices(n_steps: int, starts: int) -> list[int]:
    """At most `starts` evenly spaced indices 0..N − 1 of the grid, the first included."""
    count = min(starts, n_steps)
    return [j * n_steps // count for j in range(count)]


@memory_advice("lower evaluation.batch_size")
@torch.no_grad()
def sample_teacher(
    path: str | Path,
    teacher: Teacher,
    noise: torch.Tensor,
    labels: torch.Tensor,
    solver: str,
    n_steps: int,
    guidance: float,
    starts: int,
    batch_size: int,
) -> None:
    """Write the teacher's N-step samples: `samples` (n, …) and, for evaluation by start time,
    `points` (K, n, …), the trajectory at the K times `times` (K,)."""
    grid = teacher.schedule.grid(n_steps)
    indices = start_indices(n_steps, starts)
    progress = Progress(len(noise), f"sample teacher {solver} N={n_steps} w={guidance:g}")
    device = pick_device()
    teacher.to(device)
    shapes: Shapes = {"samples": (teacher.dtype, tuple(noise.shape)), "times": (torch.int64, (len(indices),))}
    shapes["points"] = teacher.dtype, (len(indices), *noise.shape)
    with tensor_file(path, shapes) as file:
        file.metadata |= {"solver": solver, "n_steps": n_steps, "guidance": guidance}
        file["times"][:] = torch.tensor([grid[k] for k in indices])
        for first in range(0, len(noise), batch_size):
            rows = slice(first, first + batch_size)
            eps = teacher.eps(labels[rows].to(device), guidance)
            start = noise[rows].to(device, teacher.dtype)
            points = trajectory(start, grid, solver_named(solver), eps, teacher.schedule).cpu()
            file["samples"][rows] = points[:, -1]
            file["points"][:, rows] = points[:, indices].transpose(0, 1)
            progress.update(len(points))


def sample(
    student: FlowMap,
    sampler: Sampler,
    steps: int,
    noise: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    first: int = 0,
    n_steps: int | None = None,
) -> torch.Tensor:
    """Samples in `steps` steps.

    Args:
        sampler: a function like those of `samplers`.
        noise: standard normal (B, …), the initial noise of samples first..first + B − 1.
        seed: of fresh noise; each sample and step has a stream of its own.
        n_steps: N, of a student whose times are a grid.
    """
    flow, rows = student.flow, range(first, first + len(noise))

    def fresh(step: int) -> torch.Tensor:
        return normal(seed, "renoise", rows, noise.shape[1:], step).to(noise.device)

    return sampler(student, noise * flow.noise_scale, flow.times(steps, n_steps), labels, fresh)


@memory_advice("lower evaluation.batch_size")
@torch.no_grad()
def sample_student(path: str | Path, job: SamplingJob, files: dict[str, str]) -> None:
    """Write a student's samples.

    `steps_{n}` (count, …) for each number of sampling steps; `budget_{b}` (count, …), one step, of the student after
    each share of its training; with the teacher's samples `from_{s}` (count, …), f of the teacher's own trajectory at
    each start time s.

    Args:
        files: `student` and `noise`; of students of targets `teacher_samples`, `initial` (the network under adapters)
            and, of a text-to-image network, `prompts`.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: noise or teacher's samples of another number or shape.
    """
    flow, sampler = flow_of(job.flow, job.flow_options), partial(loaded(job.sampler), **job.sampler["params"])
    shared = {"timestep_offset": job.timestep_offset, "base": files.get("initial"), "prompts": files.get("prompts")}
    final, *earlier = (
        load(files["student"], flow, job.parameterisation, snapshot=snapshot, **shared)
        for snapshot in (None, *map(budget_name, job.budgets))
    )
    device = pick_device()
    noise, labels = load_noise(files["noise"], final.network.sample_shape, job.count)
    points, starts = torch.empty(0), []
    if teacher_samples := files.get("teacher_samples"):
        reference, _ = load_tensors(teacher_samples, ["points", "times"])
        points, starts = reference["points"], reference["times"].tolist()
        if points.shape[1] != len(noise):
            raise MismatchError(f"{teacher_samples}: {points.shape[1]} samples, the noise file has {len(noise)}")
    for student in (final, *earlier):
        move(student, device, job.precision)
    sets = {f"steps_{n}": (final, n) for n in job.sampling_steps}
    sets |= {budget_name(budget): (student, 1) for budget, student in zip(job.budgets, earlier, strict=True)}
    names, progress = [*sets, *(f"from_{time}" for time in starts)], Progress(len(noise), "sample student")
    with tensor_file(path, dict.fromkeys(names, (torch.float32, tuple(noise.shape)))) as file:
        for first in range(0, len(noise), job.batch_size):
            rows = slice(first, first + job.batch_size)
            x, cond = noise[rows].to(device), labels[rows].to(device)
            for name, (student, steps) in sets.items():
                options = {"seed": job.seed, "first": first, "n_steps": job.n_steps}
                drawn = sample(student, sampler, steps, x, cond, **options)
                file[name][rows] = drawn.cpu()
            for row, time in enumerate(starts):
                file[f"from_{time}"][rows] = final(points[row, rows].to(x), time, cond).cpu()
            progress.update(len(x))
