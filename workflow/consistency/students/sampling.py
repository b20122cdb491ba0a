"""Samples of teacher and students from one shared initial-noise file."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import MismatchError, memory_advice
from ..files.storage import load_tensors
from ..files.writers import Shapes, tensor_file
from ..flow.noise import normal
from ..flow.schedules import VESchedule
from ..runtime.devices import move, pick_device
from ..runtime.progress import Progress
from ..teachers.protocol import Teacher
from ..teachers.targets import solver_named, trajectory
from .maps import ConsistencyFunction, EDMConsistencyFunction


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


def ve_times(schedule: VESchedule, steps: int, levels: int = 1281) -> list[float]:
    """`steps` evenly spaced noise levels of the Karras grid of iCT's last levels, from σ_max down."""
    grid = schedule.grid(levels)
    return [grid[levels - 1 - j * (levels - 1) // steps].item() for j in range(steps)]


def few_step_times(grid: list[int], steps: int) -> list[int]:
    """`steps` evenly spaced times of the student's own grid, from T down (section A.7)."""
    return [grid[j * (len(grid) - 1) // steps] for j in range(steps)]


def few_step(
    student: ConsistencyFunction | EDMConsistencyFunction,
    noise: torch.Tensor,
    labels: torch.Tensor,
    times: list[int] | list[float],
    seed: int,
    first: int = 0,
) -> torch.Tensor:
    """f to x̂, re-noise to the next time, repeat (section A.7).

    Args:
        noise: (B, …), the initial noise of samples first..first + B − 1.
        times: descending, the first is T (or σ_max, and the noise is then at σ_max).
        seed: of the re-noising; each sample and step has a stream of its own.
    """
    clean = student(noise, times[0], labels)
    for j, time in enumerate(times[1:], start=1):
        fresh = normal(seed, "renoise", range(first, first + len(noise)), noise.shape[1:], j).to(noise.device)
        clean = student(student.schedule.add_noise(clean, fresh, time), time, labels)
    return clean


@memory_advice("lower evaluation.batch_size")
@torch.no_grad()
def sample_student(
    path: str | Path,
    student: ConsistencyFunction,
    noise: torch.Tensor,
    labels: torch.Tensor,
    n_steps: int,
    sampling_steps: list[int],
    teacher_samples: str | Path,
    seed: int,
    batch_size: int,
    precision: str = "no",
) -> None:
    """Write the student's samples: `steps_{n}` (count, …) for each number of sampling steps up to N,
    and `from_{s}` (count, …), f of the teacher's own trajectory at each start time s.

    Args:
        precision: that the student runs in; the state stays float32.

    Raises:
        MismatchError: the teacher's samples are of another number.
    """
    reference, _ = load_tensors(teacher_samples, ["points", "times"])
    if reference["points"].shape[1] != len(noise):
        raise MismatchError(
            f"{teacher_samples}: {reference['points'].shape[1]} samples, the noise file has {len(noise)}"
        )
    grid, device = student.schedule.grid(n_steps), pick_device()
    move(student, device, precision)
    progress = Progress(len(noise), "sample student")
    few, times = [steps for steps in sampling_steps if steps <= n_steps], reference["times"].tolist()
    names = [*(f"steps_{steps}" for steps in few), *(f"from_{time}" for time in times)]
    with tensor_file(path, dict.fromkeys(names, (torch.float32, tuple(noise.shape)))) as file:
        for first in range(0, len(noise), batch_size):
            rows = slice(first, first + batch_size)
            x, cond = noise[rows].to(device), labels[rows].to(device)
            for steps in few:
                sampled = few_step(student, x, cond, few_step_times(grid, steps), seed, first)
                file[f"steps_{steps}"][rows] = sampled.cpu()
            for row, time in enumerate(times):
                start = reference["points"][row, rows].to(x)
                file[f"from_{time}"][rows] = student(start, time, cond).cpu()
            progress.update(len(x))


@memory_advice("lower evaluation.batch_size")
@torch.no_grad()
def sample_pairs_student(
    path: str | Path,
    students: dict[str, EDMConsistencyFunction],
    noise: torch.Tensor,
    labels: torch.Tensor,
    sampling_steps: list[int],
    seed: int,
    batch_size: int,
    precision: str = "no",
) -> None:
    """Write the samples of a student trained from pairs, from σ_max times the shared noise.

    Args:
        students: "final" → the student: `steps_{n}` (count, …) for each number of sampling steps; the others, of
            earlier in its training, by name → `{name}` (count, …), one step.
        precision: that the students run in; the state stays float32.
    """
    device = pick_device()
    for student in students.values():
        move(student, device, precision)
    progress = Progress(len(noise), "sample student")
    sets = {f"steps_{steps}": (students["final"], steps) for steps in sampling_steps}
    sets |= {name: (student, 1) for name, student in students.items() if name != "final"}
    with tensor_file(path, dict.fromkeys(sets, (torch.float32, tuple(noise.shape)))) as file:
        for first in range(0, len(noise), batch_size):
            rows = slice(first, first + batch_size)
            for name, (student, steps) in sets.items():
                start, cond = (noise[rows] * student.schedule.sigma_max).to(device), labels[rows].to(device)
                file[name][rows] = few_step(student, start, cond, ve_times(student.schedule, steps), seed, first).cpu()
            progress.update(len(noise[rows]))
