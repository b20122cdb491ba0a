"""What is trained: the classifier, the teacher, the students. Each is data and an objective for
the one loop (`loop`).

With several processes every one calls these functions, and the first writes the outputs (`loop.train`)."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import networks
from ..config.components import Curriculum
from ..config.jobs import StudentJob
from ..config.registry import loaded
from ..config.settings import Training
from ..data import prepare
from ..data.prepare import as_float
from ..errors import MismatchError, TrainingError
from ..files.storage import atomic, sha256, weights_sha256, write_json, write_records
from ..flow.schedules import Flow, VPSchedule, flow_of
from ..flow.streams import generator
from ..networks.classifier import Classifier, accuracy, classify
from ..plugins import blaming, options_of
from ..runtime.devices import pick_device
from ..runtime.provenance import environment
from ..students import losses, maps, objectives
from ..students.pairs import CurriculumTimes, LogitNormalTimes, PairSource, velocity_of
from ..teachers import targets
from ..teachers.protocol import Teacher, network_time
from . import loop
from .steps import Loss, Objective, Task

log = logging.getLogger("consistency")

TIME_RESOLUTION = 1000  # timesteps that the network's time input is scaled to, where time is σ


def denoise(network: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's objective: the predicted noise and the noise of x_t = α_t x + σ_t ε."""
    return network(batch["x_t"], batch["index"], batch["cond"]), batch["noise"]


def fit_classifier(
    folder: str | Path,
    stats: str | Path,
    side_folder: str | Path,
    data_path: str | Path,
    name: str,
    channels: int,
    feature_size: int,
    settings: dict[str, Any],
    seed: int,
) -> None:
    """Train the feature classifier on the training split and record its held-out accuracy.

    Writes a `save_pretrained` folder with `card.json` (name, held_out_accuracy, held_out_count,
    weights_sha256).
    """
    tensors, classes = prepare.load(data_path)
    images, labels = tensors["train_images"], tensors["train_labels"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(list(images.shape[1:]), classes, channels, feature_size)
    options = Training.model_validate(settings)

    def batch_at(step: int) -> dict[str, torch.Tensor]:
        rows = torch.from_numpy(generator(seed, "order", step).integers(len(images), size=options.batch_size))
        return {"x": as_float(images[rows]), "cond": labels[rows]}

    fingerprint = {"data": sha256(data_path), "settings": settings, "seed": seed, "size": [channels, feature_size]}
    records = loop.train(
        network,
        Task(classify, batch_at, losses.cross_entropy),
        options,
        seed=seed,
        side_folder=side_folder,
        fingerprint=fingerprint,
        what="train classifier",
    )
    if records is None:
        return
    card = {
        "name": name,
        "held_out_accuracy": accuracy(network, tensors["test_images"], tensors["test_labels"]),
        "held_out_count": len(tensors["test_labels"]),
    }
    with atomic(folder) as temporary:
        network.save_pretrained(temporary)
        card["weights_sha256"] = weights_sha256(temporary)
        write_json(temporary / "card.json", card)
    write_records(stats, records)
    loop.finish(side_folder)


def fit_teacher(
    folder: str | Path,
    stats: str | Path,
    side_folder: str | Path,
    data_path: str | Path,
    network: dict[str, Any],
    schedule: dict[str, Any],
    label_dropout: float,
    settings: dict[str, Any],
    seed: int,
) -> None:
    """Train a class-conditional ε-prediction teacher, guidance by label dropout.

    Args:
        label_dropout: probability that a label is replaced by the null class, in [0, 1).
    """
    tensors, classes = prepare.load(data_path)
    images, labels = tensors["train_images"], tensors["train_labels"]
    noise_schedule = VPSchedule(**schedule)
    model = networks.build(network, tuple(images.shape[1:]), classes, noise_schedule.steps, seed)
    options = Training.model_validate(settings)

    def batch_at(step: int) -> dict[str, torch.Tensor]:
        rng, size = generator(seed, "order", step), options.batch_size
        rows = torch.from_numpy(rng.integers(len(images), size=size))
        t = torch.from_numpy(rng.integers(1, noise_schedule.steps + 1, size=size))
        noise = torch.from_numpy(rng.standard_normal((size, *images.shape[1:]), dtype="float32"))
        dropped = torch.from_numpy(rng.random(size) < label_dropout)
        return {
            "x_t": noise_schedule.add_noise(as_float(images[rows]), noise, t),
            "index": network_time(t, size, -1, t.device),
            "noise": noise,
            "cond": labels[rows].masked_fill(dropped, classes),
        }

    fingerprint = {
        "data": sha256(data_path),
        "network": network,
        "schedule": schedule,
        "label_dropout": label_dropout,
        "settings": settings,
        "seed": seed,
    }
    records = loop.train(
        model,
        Task(denoise, batch_at, losses.mse),
        options,
        seed=seed,
        side_folder=side_folder,
        fingerprint=fingerprint,
        what="train teacher",
    )
    if records is None:
        return
    networks.save(model, folder)
    write_records(stats, records)
    loop.finish(side_folder)


def import_teacher(
    folder: str | Path,
    source: str | Path,
    data_path: str | Path,
    schedule: dict[str, Any],
    subfolder: str | None = None,
    prompts: str | Path | None = None,
) -> None:
    """Check a teacher from a `save_pretrained` folder, downloaded or of another run, and copy it.

    The copy is one file of weights, and scheduler_config.json where the source or the pipeline around it has one: from
    then on it says what the network predicts. Where nothing does, a warning says that ε is assumed.

    Args:
        schedule: of the preset; the teacher must have been trained on it.
        subfolder: of the network in a pipeline's folder.
        prompts: embeddings, for a text-to-image network.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: it is for another shape of samples, number of classes or noise schedule, its prediction cannot be
            converted to ε, or a weight is not finite.
    """
    tensors, classes = prepare.load(data_path)
    source = Path(source) / (subfolder or "")
    network = networks.load(source, tuple(tensors["train_images"].shape[1:]), classes, prompts)
    if network.scheduler is None:
        log.warning(
            "%s: no %s there or in a pipeline around it, so nothing says what the network predicts and on which noise "
            "schedule; ε on the preset's schedule is assumed",
            *(source, networks.scheduler.FILE),
        )
    else:
        networks.scheduler.check(network.scheduler, VPSchedule(**schedule), source)
        log.info("%s: prediction_type %s, on the preset's schedule", source, network.prediction)
    steps = schedule["steps"]
    if network.timesteps != steps:
        raise MismatchError(f"{source}: the network has {network.timesteps} timesteps, schedule.steps is {steps}")
    if bad := [name for name, value in network.named_parameters() if not value.isfinite().all()]:
        raise MismatchError(f"{source}: weight {bad[0]!r} is not finite ({len(bad)} such weights)")
    networks.save(network, folder)


def loss_of(loss: dict[str, Any]) -> Loss:
    """The function of `losses` that a configured loss names, with its constants."""
    constants = {key: value for key, value in loss.items() if key != "kind"}
    return partial(getattr(losses, loss["kind"]), **constants)


def objective_of(job: StudentJob, flow: Flow) -> Objective:
    """The job's objective as the loop calls it, with context and params."""
    function = loaded(job.objective)
    context = objectives.Context(flow, loss_of(job.loss.model_dump()), job.run.n_steps, job.run.guidance)

    def objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
        try:
            with blaming(job.objective["file"], job.objective["name"]) if job.objective["file"] else nullcontext():
                return function(maps.Student(model), batch, context, **job.objective["params"])
        except KeyError as error:
            raise TrainingError(
                f"{job.objective['name']}: asks the batch for {error}; draws {job.draws} have {', '.join(batch)}"
            ) from error

    objective.capturable = options_of(function).get("capturable", True)
    return objective


@dataclass
class Lesson:
    """What one student learns from: a network to start with, draws, and the hashes of what they come from."""

    network: nn.Module
    source: targets.TargetReader | PairSource
    inputs: dict[str, str]


def _from_targets(job: StudentJob, files: dict[str, str], flow: VPSchedule) -> Lesson:
    """Precomputed targets, and the teacher's weights (where it is a formula, those of a network trained like it)."""
    teacher_sha256, seed = weights_sha256(files["teacher"]), job.run.seed
    reader = targets.TargetReader(files["manifest"], flow, job.training.batch_size, seed)
    if reader.manifest["teacher_sha256"] != teacher_sha256:
        raise MismatchError(
            f"{files['manifest']}: targets of teacher {reader.manifest['teacher_sha256'][:12]}…, "
            f"{files['teacher']} is {teacher_sha256[:12]}…; delete the targets and run again"
        )
    initial = files.get("initial") or files["teacher"]
    options = {"prompts": files.get("prompts"), "precision": job.training.precision}
    network = maps.create(initial, job.parameters, job.lora_rank or 0, seed, **options)
    inputs = {"teacher_sha256": teacher_sha256, "targets_sha256": sha256(files["manifest"])}
    return Lesson(network, reader, inputs | {"initial_sha256": weights_sha256(initial)})


def _from_pairs(job: StudentJob, files: dict[str, str], flow: Flow) -> Lesson:
    """Pairs that are drawn while training, and a new network."""
    tensors, classes = prepare.load(files["data"])
    images, labels = tensors["train_images"], tensors["train_labels"]
    shape, device = tuple(images.shape[1:]), pick_device(job.training.device)
    network = networks.build(
        job.network | {"second_time": True} if maps.PARAMETERISATIONS[job.parameterisation].two_times else job.network,
        shape,
        classes,
        TIME_RESOLUTION,
        job.run.seed,
    )
    inputs, velocity = {"data_sha256": sha256(files["data"])}, None
    if job.velocity == "teacher":
        schedule = VPSchedule(**(job.teacher_schedule or {}))
        teacher = Teacher.load(files["teacher"], schedule, job.timestep_offset, shape, classes).to(device)
        velocity = velocity_of(teacher, flow)
        inputs["teacher_sha256"] = weights_sha256(files["teacher"])
        if teacher.prediction != "epsilon":
            inputs["teacher_prediction"] = teacher.prediction
    coupling = job.coupling
    generate = coupling.generator
    if not isinstance(generate, str):
        name = maps.budget_name(generate.budget)
        generate = maps.load(files["frozen"], flow, job.parameterisation, snapshot=name).to(device)
        inputs["frozen_sha256"] = sha256(Path(files["frozen"]) / "snapshots" / f"{name}.safetensors")
    if isinstance(job.times, Curriculum):
        times = CurriculumTimes(flow, job.training.steps, **job.times.model_dump())
    else:
        times = LogitNormalTimes(flow, **job.times.model_dump(exclude={"kind"}))
    source = PairSource(
        images,
        labels,
        flow,
        times,
        batch_size=job.training.batch_size,
        seed=job.run.seed,
        coupling=None if coupling.kind == "independent" else loaded(job.coupled_by),
        share=coupling.share,
        generator_model=generate,
        velocity=velocity,
    )
    return Lesson(network, source, inputs)


def lesson_of(job: StudentJob, files: dict[str, str], flow: Flow) -> Lesson:
    """What the student of a job learns from; `files` and errors as of `fit_student`."""
    return (_from_targets if job.draws == "targets" else _from_pairs)(job, files, flow)


def fit_student(
    job: StudentJob,
    files: dict[str, str],
    *,
    folder: str | Path,
    stats: str | Path,
    side_folder: str | Path,
) -> None:
    """Train one student.

    Args:
        files: of targets `manifest`, `teacher`, `initial` (the network to start from; the teacher by default) and, of
            a text-to-image network, `prompts`; of pairs `data`, with velocity teacher `teacher`, and `frozen`, the
            student whose snapshot is the coupling's generator.
        folder, stats: the outputs; side_folder: see `loop.train`.

    Raises:
        StorageError: missing or damaged files, or a frozen generator without that snapshot.
        MismatchError: the targets were solved with another teacher.
    """
    began, side = time.monotonic(), Path(side_folder)
    flow = flow_of(job.flow, job.flow_options)
    lesson = lesson_of(job, files, flow)
    student = maps.FlowMap(lesson.network, flow, job.parameterisation, job.timestep_offset)
    if job.training.gradient_checkpointing and hasattr(student.network, "enable_gradient_checkpointing"):
        student.network.enable_gradient_checkpointing()
    steps = job.training.steps
    snapshots = {maps.budget_name(budget): max(1, round(budget * steps)) for budget in job.budgets}
    paths = {name: side / f"{name}.safetensors" for name in snapshots}
    source, loss = lesson.source, loss_of(job.loss.model_dump())

    def batch_at(step: int) -> dict[str, torch.Tensor]:
        return source(step) | {"progress": torch.full((job.training.batch_size,), step / steps)}

    records = loop.train(
        student,
        Task(objective_of(job, flow), batch_at, loss, source.prepare, source.together),
        job.training,
        seed=job.run.seed,
        side_folder=side,
        fingerprint=job.model_dump() | lesson.inputs,
        what=f"train {job.run.run}",
        snapshots={paths[name]: step for name, step in snapshots.items()},
    )
    if records is None:
        return
    device = str(pick_device(job.training.device))
    card = {"settings": job.model_dump(), "inputs": lesson.inputs, "environment": environment(device)}
    maps.save(student, folder, card | {"wall_time_s": round(time.monotonic() - began, 3)}, paths)
    write_records(stats, records)
    loop.finish(side)
