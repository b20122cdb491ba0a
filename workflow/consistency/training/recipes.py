"""What is trained: the classifier, the teacher, the students. Each is data and an objective for
the one loop (`loop`).

With several processes every one calls these functions, and the first writes the outputs (`loop.train`)."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import networks
from ..config.settings import Training
from ..data import prepare
from ..data.prepare import as_float
from ..errors import MismatchError
from ..files.storage import atomic, sha256, weights_sha256, write_json, write_records
from ..flow.schedules import VESchedule, VPSchedule
from ..flow.streams import generator
from ..networks.classifier import Classifier, accuracy, classify
from ..runtime.devices import pick_device
from ..runtime.provenance import environment
from ..students import losses, maps, objectives
from ..students.pairs import PairSource, Steps
from ..teachers import targets
from ..teachers.protocol import Teacher, network_time
from . import loop
from .steps import Loss, Task

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


def distance_of(loss: dict[str, Any]) -> Loss:
    """The function of `losses` that a configured loss names, with its constants."""
    constants = {key: value for key, value in loss.items() if key != "kind"}

    def distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return getattr(losses, loss["kind"])(prediction, target, **constants)

    return distance


def fit_student(
    folder: str | Path,
    stats: str | Path,
    side_folder: str | Path,
    teacher_folder: str | Path,
    manifest: str | Path,
    run: dict[str, Any],
    objective: str,
    loss: dict[str, Any],
    parameters: str,
    lora_rank: int,
    schedule: dict[str, Any],
    timestep_offset: int,
    settings: dict[str, Any],
    initial_folder: str | Path | None = None,
    prompts: str | Path | None = None,
) -> None:
    """Distil one student from precomputed targets.

    Args:
        run: the row of the experiment's table; its seed orders the draws and starts the adapters.
        objective: a function of `objectives`.
        loss: `{"kind": "mse"}` or `{"kind": "pseudo_huber", "c": …}`.
        parameters: "full" or "lora".
        initial_folder: the network to start from, where the teacher is not one; the teacher by default.
        prompts: embeddings, for a text-to-image network.

    Raises:
        MismatchError: the targets were solved with another teacher.
    """
    began = time.monotonic()
    noise_schedule, options, seed = VPSchedule(**schedule), Training.model_validate(settings), run["seed"]
    teacher_sha256 = weights_sha256(teacher_folder)
    reader = targets.TargetReader(manifest, noise_schedule, options.batch_size, seed)
    if reader.manifest["teacher_sha256"] != teacher_sha256:
        raise MismatchError(
            f"{manifest}: targets of teacher {reader.manifest['teacher_sha256'][:12]}…, "
            f"{teacher_folder} is {teacher_sha256[:12]}…; delete the targets and run again"
        )
    initial_folder = initial_folder or teacher_folder
    student = maps.create(
        initial_folder, noise_schedule, timestep_offset, parameters, lora_rank, seed, prompts, options.precision
    )
    if options.gradient_checkpointing and hasattr(student.network, "enable_gradient_checkpointing"):
        student.network.enable_gradient_checkpointing()
    resolved = {
        "run": run,
        "objective": objective,
        "loss": loss,
        "parameters": parameters,
        "lora_rank": lora_rank if parameters == "lora" else None,
        "schedule": schedule,
        "timestep_offset": timestep_offset,
        "training": settings,
    }
    inputs = {"teacher_sha256": teacher_sha256, "targets_sha256": sha256(manifest)}
    inputs["initial_sha256"] = weights_sha256(initial_folder)
    function = getattr(objectives, objective)
    records = loop.train(
        student,
        Task(function, reader, distance_of(loss)),
        options,
        seed=seed,
        side_folder=side_folder,
        fingerprint={**resolved, **inputs},
        what=f"train {run['run']}",
    )
    if records is None:
        return
    card = {
        "settings": resolved,
        "inputs": inputs,
        "environment": environment(str(pick_device(options.device))),
    }
    maps.save(student, folder, card | {"wall_time_s": round(time.monotonic() - began, 3)})
    write_records(stats, records)
    loop.finish(side_folder)


def fit_pairs_student(
    folder: str | Path,
    stats: str | Path,
    side_folder: str | Path,
    data_path: str | Path,
    run: dict[str, Any],
    objective: str,
    coupling: dict[str, Any],
    velocity: str,
    network: dict[str, Any],
    options: dict[str, Any],
    schedule: dict[str, Any] | None = None,
    timestep_offset: int | None = None,
    teacher_folder: str | Path | None = None,
    frozen_folder: str | Path | None = None,
) -> None:
    """Train one student from scratch on pairs: consistency training, or distillation along the teacher's velocity.

    Args:
        run: the row of the experiment's table; its seed starts the network and orders the draws.
        coupling: of `settings.Coupling`.
        velocity: "pair" (CT) or "teacher" (CD).
        options: of `settings.ConsistencyTraining`, with the run's own loss.
        schedule, timestep_offset: of a teacher that is a network, for velocity "teacher".
        teacher_folder: for velocity "teacher".
        frozen_folder: the student whose snapshot is the coupling's frozen generator.

    Raises:
        StorageError: missing or damaged files, or a frozen generator without that snapshot.
    """
    began = time.monotonic()
    seed, settings = run["seed"], Training.model_validate(options["training"])
    tensors, classes = prepare.load(data_path)
    images, labels = tensors["train_images"], tensors["train_labels"]
    edm = VESchedule(**options["edm"])
    model = networks.build(network, tuple(images.shape[1:]), classes, TIME_RESOLUTION, seed)
    student = maps.EDMConsistencyFunction(model, edm)
    device, inputs = pick_device(settings.device), {"data_sha256": sha256(data_path)}
    teacher, generate = None, coupling["generator"]
    if velocity == "teacher":
        noise_schedule = VPSchedule(**(schedule or {}))
        teacher = Teacher.load(teacher_folder, noise_schedule, timestep_offset, images.shape[1:], classes)
        teacher.to(device)
        inputs["teacher_sha256"] = weights_sha256(teacher_folder)
        if teacher.prediction != "epsilon":
            inputs["teacher_prediction"] = teacher.prediction
    if isinstance(generate, dict):
        name = maps.budget_name(generate["budget"])
        generate = maps.load_edm(frozen_folder, edm, name).to(device)
        inputs["frozen_sha256"] = sha256(Path(frozen_folder) / "snapshots" / f"{name}.safetensors")
    source = PairSource(
        images,
        labels,
        edm,
        Steps(**options["curriculum"]),
        settings.steps,
        settings.batch_size,
        seed,
        coupling["kind"],
        coupling["share"],
        generate,
        None if teacher is None else teacher.velocity,
    )
    side = Path(side_folder)
    names = {maps.budget_name(budget): max(1, round(budget * settings.steps)) for budget in options["budgets"]}
    files = {name: side / f"{name}.safetensors" for name in names}
    resolved = {
        "run": run,
        "objective": objective,
        "coupling": coupling,
        "velocity": velocity,
        "network": network,
        "schedule": schedule,
        "timestep_offset": timestep_offset,
        **options,
    }
    records = loop.train(
        student,
        Task(getattr(objectives, objective), source, distance_of(options["loss"]), source.prepare, source.together),
        settings,
        seed=seed,
        side_folder=side,
        fingerprint={**resolved, **inputs},
        what=f"train {run['run']}",
        snapshots={files[name]: step for name, step in names.items()},
    )
    if records is None:
        return
    card = {"settings": resolved, "inputs": inputs, "environment": environment(str(device))}
    maps.save(student, folder, card | {"wall_time_s": round(time.monotonic() - began, 3)}, files)
    write_records(stats, records)
    loop.finish(side)
