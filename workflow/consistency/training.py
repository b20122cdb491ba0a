"""One training loop for every method, the teacher and the classifier, on accelerate.

All randomness of step k is a function of (seed, k), and the checkpoint holds weights, optimiser,
EMA and step, so a run that was killed and resumed ends bit for bit as an undisturbed one (on CPU).
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .compat import without_compiler
from .devices import check_precision, pick_device
from .errors import TrainingError
from .progress import Progress
from .storage import atomic, check_sealed, explained, save_tensors, write_sealed
from .streams import generator

log = logging.getLogger("consistency")

Batch = dict[str, torch.Tensor]
Objective = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
Forward = Callable[..., torch.Tensor]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How to train; the meaning and range of each field is in `settings.Training`."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    decay_share: float = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float | None = None
    device: str = "auto"
    precision: str = "no"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    threads: int = 1
    checkpoint_every: int = 500
    log_every: int = 25

    def rate_at(self, step: int) -> float:
        """Learning rate of step 0..steps − 1: linear warm-up, constant, linear decay towards 0."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay_steps = round(self.decay_share * self.steps)
        decay = min(1.0, (self.steps - step) / max(decay_steps, 1)) if decay_steps else 1.0
        return self.learning_rate * warm * decay


def make_optimizer(name: str, weights: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW, RAdam (torch's, with decoupled decay), Lion (lion-pytorch) or 8-bit AdamW (bitsandbytes)."""
    without_compiler(torch.optim.RAdam if name == "radam" else torch.optim.AdamW)
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(weights, lr=rate, weight_decay=decay)
        except ImportError:
            log.warning("optimizer adamw8bit: bitsandbytes is not installed; using torch's AdamW, in float32")
    if name == "lion":
        from lion_pytorch import Lion

        return Lion(weights, lr=rate, weight_decay=decay)
    if name == "radam":
        return torch.optim.RAdam(weights, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)


def train(
    model: nn.Module,
    objective: Objective,
    distance: Distance,
    batch_at: Callable[[int], Batch],
    settings: Settings,
    seed: int,
    side_folder: str | Path,
    fingerprint: dict[str, Any],
    what: str = "train",
    prepare: Callable[[Batch, Forward, Forward], Batch] | None = None,
    snapshots: dict[Path, int] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place.

    Args:
        model: its parameters with requires_grad are trained; with EMA they end as the average.
        objective: (model, batch) → (prediction, target).
        distance: (prediction, target) → loss of each sample (B,); the step minimises its mean, weighted by
            the batch's `weight` (B,) where there is one.
        batch_at: step → batch of CPU tensors; a pure function of the step.
        seed: of dropout and the like, reseeded every step.
        side_folder: holds checkpoint and stats while training; removed by `finish`.
        fingerprint: what the result depends on; a checkpoint with another one is not resumed.
        prepare: (batch on the device, the model, its average) → batch, before the objective; without
            EMA the average is the model itself. Both are called without gradient and without dropout.
        snapshots: file → step after which the trained parameters (the average, where there is one) are written to it.

    Returns:
        One record per `log_every` steps: step, loss (mean since the last), grad_norm, lr, samples_per_s,
        seconds (of training so far, over all resumes).

    Raises:
        TrainingError: a loss that is not finite; names the step and what was not finite.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = pick_device(settings.device)
    check_precision(settings.precision, device)
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the process's first training
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=settings.precision)
    model.to(accelerator.device).train()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(weights.values())
    optimizer = make_optimizer(settings.optimizer, parameters, settings.learning_rate, settings.weight_decay)
    average = {k: v.detach().clone() for k, v in weights.items()} if settings.ema_decay else None
    # One process in float32 has nothing to prepare, scale or unscale, and looking for it in every step costs
    # accelerate a fifth of a small network's step, and a second of imports.
    plain = accelerator.num_processes == 1 and settings.precision == "no"
    prepared, optimizer = (model, optimizer) if plain else accelerator.prepare(model, optimizer)
    backward = torch.Tensor.backward if plain else accelerator.backward
    clip = torch.nn.utils.clip_grad_norm_ if plain else accelerator.clip_grad_norm_
    scaler = accelerator.scaler  # of fp16

    side = Path(side_folder)
    checkpoint = side / "checkpoint.pt"
    state = _read_checkpoint(checkpoint, fingerprint)
    if state is not None and any(at <= state["step"] and not file.exists() for file, at in (snapshots or {}).items()):
        log.warning("%s: a snapshot from before its step is missing; training starts from the beginning", checkpoint)
        state = None
    first, records = 0, []
    if state is not None:
        first, records = state["step"], state["records"]
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        if average is not None:
            average = {k: v.to(accelerator.device) for k, v in state["average"].items()}
        log.info("%s: resumed at step %d of %d from %s", what, first, settings.steps, checkpoint)

    def current(*args: Any) -> torch.Tensor:
        model.eval()
        output = model(*args)
        model.train()
        return output

    def averaged(*args: Any) -> torch.Tensor:
        model.eval()
        output = model(*args) if average is None else torch.func.functional_call(model, average, args)
        model.train()
        return output

    progress = Progress(settings.steps, what, start=first)
    spent = records[-1]["seconds"] if records else 0.0
    total, norms, seen, began = 0.0, 0.0, 0, time.monotonic()
    for step in range(first, settings.steps):
        _reseed(int(generator(seed, "step", step).integers(2**63 - 1)))
        batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch_at(step).items()}
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        if prepare is not None:
            with torch.no_grad():
                batch = prepare(batch, current, averaged)
        value = 0.0
        for part in _parts(batch, settings.accumulate):
            prediction, target = objective(prepared, part)
            losses = distance(prediction, target)
            loss = (losses * part["weight"]).mean() if "weight" in part else losses.mean()
            loss = loss * (len(losses) / len(next(iter(batch.values()))))
            value += loss.item()
            if not math.isfinite(value):
                raise TrainingError(_diagnose(what, step, value, part, prediction, target, model))
            backward(loss)
        norm = clip(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), parameters, 1 - settings.ema_decay)

        total, norms, seen, done = total + value, norms + float(norm), seen + 1, step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            elapsed = max(time.monotonic() - began, 1e-9)
            spent += elapsed
            records.append(
                {
                    "step": done,
                    "loss": total / seen,
                    "grad_norm": norms / seen,
                    "lr": settings.rate_at(step),
                    "samples_per_s": seen * settings.batch_size / elapsed,
                    "seconds": spent,
                }
            )
            write_stats(side / "stats.jsonl", records[-1:], append=True)
            total, norms, seen, began = 0.0, 0.0, 0, time.monotonic()
        for file in (name for name, at in (snapshots or {}).items() if at == done):
            save_tensors(file, {k: v.detach().cpu() for k, v in (average or weights).items()}, {"step": done})
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            _write_checkpoint(checkpoint, done, weights, optimizer, average, records, fingerprint, scaler)
        progress.update(1, loss=value)

    if average is not None:
        with torch.no_grad():
            for name, value in average.items():
                weights[name].copy_(value)
    model.to("cpu").eval()
    return records


def _parts(batch: Batch, number: int) -> list[Batch]:
    """The batch in that many parts."""
    if number == 1:
        return [batch]
    split = {name: value.chunk(number) for name, value in batch.items()}
    return [{name: values[i] for name, values in split.items()} for i in range(len(next(iter(split.values()))))]


def finish(side_folder: str | Path) -> None:
    """Remove the side folder once the results are written elsewhere; the checkpoint first, so that what is left
    by a kill in between is not resumed."""
    (Path(side_folder) / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(side_folder, ignore_errors=True)


def write_stats(path: str | Path, records: list[dict[str, float]], append: bool = False) -> None:
    """Write records as JSON lines; whole and atomic, or appended while training."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    if append:
        with explained(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)
    else:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _reseed(seed: int) -> None:
    """Seed what dropout draws from. `torch.manual_seed` also queues a call, with a stack trace, for a
    CUDA that is never initialised: a millisecond a step and memory that grows."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _write_checkpoint(
    path: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None,
    records: list[dict[str, float]],
    fingerprint: dict[str, Any],
    scaler: Any = None,
) -> None:
    state = {
        "step": step,
        "weights": {k: v.detach().cpu() for k, v in weights.items()},
        "optimizer": optimizer.state_dict(),
        "average": {k: v.cpu() for k, v in average.items()} if average is not None else {},
        "scaler": scaler.state_dict() if scaler is not None else {},
        "records": records,
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }
    content = io.BytesIO()  # torch.save to a file hides what the operating system says of a full disk
    torch.save(state, content)
    write_sealed(path, content.getbuffer())  # what a zip file's own checksums would tell, torch doesn't look at


def _read_checkpoint(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint's state; None where there is none, it is damaged, or it is of other settings."""
    stats = path.with_name("stats.jsonl")
    state = None
    if path.is_file():
        try:
            check_sealed(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            log.warning("%s: damaged checkpoint (%s); training starts from the beginning", path, type(error).__name__)
        if state is not None and state["fingerprint"] != json.dumps(fingerprint, sort_keys=True):
            log.warning("%s: checkpoint of other settings or inputs; training starts from the beginning", path)
            state = None
    if stats.exists():
        if state is None:
            os.unlink(stats)
        else:
            write_stats(stats, state["records"])
    return state


def _diagnose(
    what: str,
    step: int,
    value: float,
    batch: Batch,
    prediction: torch.Tensor,
    target: torch.Tensor,
    model: nn.Module,
) -> str:
    """Name the first thing that is not finite, from the inputs to the outputs."""
    for name, parameter in model.named_parameters():  # before the inputs, which a generator may have made
        if not torch.isfinite(parameter).all():
            return f"{what}: loss is {value} at step {step}: weight {name!r} is not finite; lower learning_rate"
    for name, tensor in batch.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            rows = (~torch.isfinite(tensor.reshape(len(tensor), -1))).any(1).nonzero().flatten().tolist()
            return f"{what}: loss is {value} at step {step}: input {name!r} is not finite in batch rows {rows[:5]}"
    if target.is_floating_point() and not torch.isfinite(target).all():
        return f"{what}: loss is {value} at step {step}: the target is not finite; lower learning_rate"
    if not torch.isfinite(prediction).all():
        return f"{what}: loss is {value} at step {step}: the network's output overflowed; lower learning_rate"
    return f"{what}: loss is {value} at step {step}: the distance overflowed; lower learning_rate"
