"""A method on small batches of random data, in seconds, before any teacher is trained: `make try METHOD=NAME`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import networks
from ..config import jobs
from ..config.names import nearest
from ..config.resolve import expand
from ..config.settings import Experiment, Run
from ..config.shapes import shape_of
from ..data.mixtures import write_teacher
from ..errors import ConfigError, TrainingError
from ..files.storage import load_tensors, read_records, save_tensors, weights_sha256
from ..flow.noise import draw_noise
from ..flow.schedules import VPSchedule, flow_of
from ..students import maps, sampling
from ..teachers import manifest, targets
from ..teachers.protocol import Teacher
from ..training import recipes

STEPS, BATCH, DRAWS, N = 20, 16, 64, 10  # of the trial: training steps, samples a step, targets, most teacher steps


def attempt(name: str, experiment: Experiment, method: str, folder: Path) -> Iterator[str]:
    """Train and sample one run of a method, with an untrained teacher and random data of the experiment's shape.

    Args:
        folder: a temporary one.

    Yields:
        What was seen, a line each.

    Raises:
        ConfigError: the method has no run, or cannot be tried.
        ConsistencyError: what a training or sampling job would raise.
        TrainingError: no gradient reaches a weight.
    """
    began, run = time.monotonic(), _run_of(name, experiment, method)
    experiment = _small(experiment)
    total = experiment.schedule.steps
    n_steps = run.n_steps and max(n for n in range(1, min(run.n_steps, N) + 1) if total % n == 0)
    run = run.model_copy(update={"n_steps": n_steps})
    files = _write_inputs(experiment, run, folder)
    call = experiment.registry.get("objective", run.objective).call(run.params)
    of, params = f" of {call['file']}" if call["file"] else "", ", ".join(f"{k}={v}" for k, v in call["params"].items())
    yield f"objective {call['name']}{of}{f' ({params})' * bool(params)}, draws {run.draws}, flow {run.flow}"
    source = getattr(run.coupling, "generator", None)
    if run.from_pairs and not isinstance(source, str):
        frozen = _run_of(name, experiment, source.method)
        files["frozen"] = str(folder / "frozen")
        _fit(experiment, frozen, files, folder, "frozen")
    job = _fit(experiment, run, files, folder, "student")
    records = read_records(folder / "student.jsonl")
    norms = [record["grad_norm"] for record in records]
    yield f"loss {records[0]['loss']:.4g} → {records[-1]['loss']:.4g} in {STEPS} steps of {BATCH}, finite"
    yield f"gradient norm {min(norms):.3g} to {max(norms):.3g}"
    yield _reach(job, files, folder)
    sampled = jobs.sampling_job(experiment, run)
    sampling.sample_student(folder / "samples", sampled, files | {"student": str(folder / "student")})
    samples = load_tensors(folder / "samples")[0]
    if not all(value.isfinite().all() for value in samples.values()):
        raise TrainingError(f"{method}: samples are not finite")
    yield f"samples in {', '.join(map(str, sampled.sampling_steps))} steps by {run.sampler}, finite"
    yield f"{method} fits {name} ({time.monotonic() - began:.1f} s); the data were random, so quality says nothing yet"


def chosen(experiments: dict[str, Experiment], method: str) -> tuple[str, Experiment]:
    """The first experiment with the method, and its name.

    Raises:
        ConfigError: there is none.
    """
    for name, experiment in experiments.items():
        if method in experiment.methods:
            return name, experiment
    methods = sorted({method for experiment in experiments.values() for method in experiment.methods})
    raise ConfigError(f"unknown method {method!r}; allowed: {', '.join(methods)}{nearest(method, methods)}")


def _run_of(name: str, experiment: Experiment, method: str) -> Run:
    """The first run of a method."""
    runs = [run for run in expand(name, experiment) if run.method == method]
    if not runs:
        raise ConfigError(f"{name}: methods: no run of {method!r}; allowed: {', '.join(experiment.methods)}, with runs")
    if experiment.data.kind == "captions":
        raise ConfigError(f"{name}: a method of captioned images cannot be tried with random data; try it on digits")
    return runs[0]


def _small(experiment: Experiment) -> Experiment:
    """The experiment with short trainings and few samples."""
    training = {"steps": STEPS, "batch_size": BATCH, "warmup_steps": 0, "log_every": 1, "device": "cpu"}
    training |= {"weight_decay": 0.0, "precision": "no", "accumulate": 1, "threads": 1}
    evaluation = {"count": BATCH, "batch_size": BATCH, "precision": "no"}
    small = {"evaluation": experiment.evaluation.model_copy(update=evaluation)}
    for section in ("student", "consistency_training"):
        value = getattr(experiment, section)
        small[section] = value.model_copy(update={"training": value.training.model_copy(update=training)})
    return experiment.model_copy(update=small)


def _write_inputs(experiment: Experiment, run: Run, folder: Path) -> dict[str, str]:
    """Random data, noise, an untrained teacher (or the closed form) and what it solves; name → file."""
    shape, _, classes = shape_of(experiment)
    images = torch.randn(DRAWS, *shape, generator=torch.Generator().manual_seed(0)) / 2
    labels = torch.arange(DRAWS) % classes
    paths = {name: str(folder / name) for name in ("data", "noise", "teacher", "initial")}
    save_tensors(paths["data"], {"train_images": images, "train_labels": labels}, {"classes": classes})
    save_tensors(paths["noise"], draw_noise(BATCH, shape, classes, 0))
    network = networks.build(experiment.network.model_dump(), shape, classes, experiment.schedule.steps, 0)
    networks.save(network, paths["initial"])
    if experiment.teacher.source == "analytic":
        write_teacher(paths["teacher"], experiment.data.model_dump())
    else:
        paths["teacher"] = paths.pop("initial")
    if run.from_pairs:
        return paths
    schedule = VPSchedule(**experiment.schedule.model_dump())
    teacher = Teacher.load(paths["teacher"], schedule, experiment.teacher.timestep_offset)
    condition: dict[str, Any] = {"solver": run.solver, "n_steps": run.n_steps, "guidance": run.guidance}
    shard, paths["manifest"] = folder / "shard-0.safetensors", str(folder / "manifest.json")
    options = {"mode": run.targets, **condition, "seed": 0}
    targets.solve_shard(shard, teacher, images, labels, range(DRAWS), batch_size=DRAWS, **options)
    manifest.gather(paths["manifest"], [shard], options | {"count": DRAWS}, weights_sha256(paths["teacher"]))
    paths["teacher_samples"] = str(folder / "teacher_samples")
    noise, cond = sampling.load_noise(paths["noise"], shape, BATCH)
    options = condition | {"starts": experiment.evaluation.start_times, "batch_size": BATCH}
    sampling.sample_teacher(paths["teacher_samples"], teacher, noise, cond, **options)
    return paths


def _fit(experiment: Experiment, run: Run, files: dict[str, str], folder: Path, name: str) -> jobs.StudentJob:
    """Train a run's student into `folder`/`name`."""
    job, side = jobs.training_job(experiment, run), folder / f"{name}-side"
    recipes.fit_student(job, files, folder=folder / name, stats=folder / f"{name}.jsonl", side_folder=side)
    return job


def _reach(job: jobs.StudentJob, files: dict[str, str], folder: Path) -> str:
    """Which weights the training has moved; without weight decay they are those that a gradient has reached.

    Raises:
        TrainingError: none.
    """
    initial = files.get("initial") or files["teacher"]
    if job.parameters == "lora":  # adapters move the weights that they are merged into
        before, what = networks.load(initial), "adapters move"
    else:
        lesson = recipes.lesson_of(job, files, flow_of(job.flow, job.flow_options))
        before, what = lesson.network, "the gradient reaches"
    after = dict(maps.load_network(folder / "student", base=initial).named_parameters())
    still = [name for name, value in before.named_parameters() if torch.equal(value.detach(), after[name].detach())]
    if len(still) == len(after):
        raise TrainingError(f"{job.objective['name']}: no gradient reaches the network's weights")
    missed = f"; not {', '.join(still[:3])}{', …' * (len(still) > 3)}" if still else ""
    return f"{what} {len(after) - len(still)} of {len(after)} weights{missed}"
