"""One training loop for every method, the teacher and the classifier, on accelerate.

All randomness of step k is a function of (seed, k), and the checkpoint holds weights, optimiser,
EMA and step, so a run that was killed and resumed ends bit for bit as an undisturbed one (on CPU).

Several processes (`parallel`) share each batch: every one draws the whole batch, computes its own rows, and accelerate
averages the gradients, so weights, optimiser and EMA are the same in all of them. The first alone writes files.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, Preempted, TrainingError, memory_advice
from ..files.filesystems import no_link
from ..files.storage import explained, save_tensors, write_json, write_text
from ..runtime.devices import check_precision, pick_device
from ..runtime.preemption import SIGNALS, StopRequest, name_of
from ..runtime.progress import Board, Progress
from . import divergence
from .checkpoints import read_checkpoint, write_checkpoint
from .feed import Batch, Feed, parts_of, rows_of
from .graphs import Graphed, capturable
from .optimizers import Joined, make_optimizer

log = logging.getLogger("consistency")

Objective = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
Forward = Callable[..., torch.Tensor]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


MEMORY_ADVICE = (
    "lower training.batch_size, or keep it and raise training.accumulate; a GPU is also spared by "
    "training.gradient_checkpointing and training.precision bf16"
)


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


@memory_advice(MEMORY_ADVICE)
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
    together: bool = True,
) -> list[dict[str, float]] | None:
    """Train `model` in place.

    Args:
        model: its parameters with requires_grad are trained; with EMA they end as the average.
        objective: (model, batch) → (prediction, target).
        distance: (prediction, target) → loss of each sample (B,); the step minimises its mean, weighted by
            the batch's `weight` (B,) where there is one.
        batch_at: step → batch of CPU tensors; a pure function of the step, asked for up to `feed.AHEAD` steps early.
        seed: of dropout and the like, reseeded every step.
        side_folder: holds checkpoint, stats and `training.json` (what, steps) while training; removed by `finish`.
        fingerprint: what the result depends on; a checkpoint with another one is not resumed. The number of processes
            is not of it: it changes the rounding of sums, and which dropout masks are drawn.
        prepare: (batch on the device, the model, its average) → batch, before the objective; without
            EMA the average is the model itself. Both are called without gradient and without dropout.
        snapshots: file → step after which the trained parameters (the average, where there is one) are written to it.
        together: whether `prepare` needs all of the batch's samples together; if not, each of several processes
            prepares its own rows.

    Returns:
        One record per `log_every` steps: step, loss (mean since the last), grad_norm, lr, samples_per_s,
        seconds (of training so far, over all resumes). None in all but the first of several processes: they have
        nothing to write.

    Raises:
        TrainingError: a loss, gradients or weights that are not finite; names the step and what was not finite. None
            of them has reached the checkpoint, which stays that of an earlier step.
        Preempted: SIGTERM, SIGUSR1 or, in a job, Ctrl-C; the step was finished and the checkpoint written.
        MemoryShortage: names the step and the keys to change.
        ConfigError: the batch cannot be split evenly among the processes.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    device = pick_device(settings.device)
    check_precision(settings.precision, device)
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the process's first training
    # With this flag gradients are summed in the same order in every step. Without it torch settles on another order
    # after a process's first step, and a training of three or more that was resumed would differ in the last bits.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=settings.precision, kwargs_handlers=[ddp])
    ranks, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    if settings.batch_size % ranks:
        raise ConfigError(f"{what}: training.batch_size {settings.batch_size} cannot be shared by {ranks} processes")
    model.to(accelerator.device).train()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(weights.values())
    on_cpu = accelerator.device.type == "cpu"
    # One process in float32 has nothing to prepare, scale or unscale, and looking for it in every step costs
    # accelerate a fifth of a small network's step on a CPU, and a second of imports.
    plain = on_cpu and ranks == 1 and settings.precision == "no"
    joined = Joined(parameters) if plain and Joined.pays(parameters, settings.optimizer) else None
    trained = parameters if joined is None else [joined.weights]
    optimizer = make_optimizer(settings.optimizer, trained, settings.learning_rate, settings.weight_decay)
    averages = [p.detach().clone() for p in trained] if settings.ema_decay else []
    average = (
        dict(zip(weights, averages if joined is None else joined.split(*averages), strict=True)) if averages else None
    )
    mean = model  # with the average's weights
    if prepare is not None and average is not None:
        mean = _with(model, average)
        mean = mean if plain else accelerator.prepare_model(mean, device_placement=False, evaluation_mode=True)
    prepared, optimizer = (model, optimizer) if plain else accelerator.prepare(model, optimizer)
    backward = torch.Tensor.backward if plain else accelerator.backward
    scaler = accelerator.scaler  # of fp16

    side = Path(side_folder)
    checkpoint = side / "checkpoint.pt"
    state = read_checkpoint(checkpoint, fingerprint)
    if state is not None and any(at <= state["step"] and not file.exists() for file, at in (snapshots or {}).items()):
        log.warning("%s: a snapshot from before its step is missing; training starts from the beginning", checkpoint)
        state = None
    first, records, total, norms, seen, elapsed = 0, [], 0.0, 0.0, 0, 0.0
    if state is not None:
        first, records = state["step"], state["records"]
        total, norms, seen, elapsed = state.get("unrecorded", (0.0, 0.0, 0, 0.0))
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
            for name, value in (average or {}).items():
                value.copy_(state["average"][name])
        load = optimizer.load_state_dict if joined is None else partial(joined.load_state_dict, optimizer)
        load(state["optimizer"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        log.info("%s: resumed at step %d of %d from %s", what, first, settings.steps, checkpoint)
    board = Board.beside(side, first) if main else None

    def compute(batch: Batch) -> torch.Tensor:
        """Loss and norm of the gradients, which are made and clipped."""
        prediction, target = objective(prepared, batch)
        loss = _loss(distance(prediction, target), batch)
        backward(loss)
        return torch.stack([loss.detach(), accelerator.clip_grad_norm_(parameters, settings.clip_norm)])

    def clear() -> None:
        for parameter in parameters:  # zero_grad takes ten times as long
            parameter.grad = None

    def current(*args: Any) -> torch.Tensor:
        model.eval()
        output = model(*args)
        model.train()
        return output

    averaged = current if mean is model else mean
    replayed = None
    if not on_cpu and ranks == settings.accumulate == 1 and scaler is None and capturable(model, objective):
        replayed = Graphed(compute, what, clear)
        current, averaged = _graphed(current, what), _graphed(averaged, what)
    progress = Progress(settings.steps, what, start=first) if main else None
    spent = records[-1]["seconds"] if records else 0.0
    began, step = time.monotonic() - elapsed, first
    together = together and prepare is not None
    feed = Feed(batch_at, seed, range(first, settings.steps), rank, 1 if together else ranks, accelerator.device)
    with memory_advice(MEMORY_ADVICE, lambda: f"{what}: step {step}: "), StopRequest() as stop:
        if main:  # when it says that it trains, a signal is heard
            write_json(side / "training.json", {"what": what, "steps": settings.steps})
            write_stats(side / "stats.jsonl", records)  # without what was recorded after the checkpoint
        for step in range(first, settings.steps):
            drawn, batch = feed.take()
            _reseed(drawn)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_at(step)
            if prepare is not None:
                with torch.no_grad():
                    batch = prepare(batch, current, averaged)
                batch = rows_of(batch, rank, ranks) if together else batch
            value = 0.0
            parts = parts_of(batch, settings.accumulate) if replayed is None else []
            if replayed is not None:
                found = replayed(batch)
                feed.send()
                value, length = found.tolist()
                if not math.isfinite(value):
                    with torch.no_grad():
                        raise TrainingError(
                            divergence.of_loss(what, step, value, batch, *objective(prepared, batch), model)
                        )
            for number, part in enumerate(parts, start=1):
                # gradients of several processes are averaged once a step, with the last part
                with accelerator.no_sync(prepared) if ranks > 1 and number < len(parts) else nullcontext():
                    prediction, target = objective(prepared, part)
                    loss = _loss(distance(prediction, target), part)
                    if len(parts) > 1:
                        loss = loss * (len(prediction) / len(next(iter(batch.values()))))
                    value += loss.item()
                    if not math.isfinite(value):
                        raise TrainingError(divergence.of_loss(what, step, value, part, prediction, target, model))
                    backward(loss)
            if joined is not None:
                joined.gather()
            gradients = None if joined is None else joined.gradients
            if plain:
                length = float(_clip(trained, settings.clip_norm, gradients))
            elif replayed is None:
                length = float(accelerator.clip_grad_norm_(parameters, settings.clip_norm))
            if not math.isfinite(length):
                if not divergence.is_skipped(scaler):
                    raise TrainingError(divergence.of_gradients(what, step, value, weights, gradients))
                length = 0.0  # the scaler lets this step change nothing
            optimizer.step()
            if replayed is None:  # which clears them itself, or has them in their place
                clear()
            if averages:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, trained, 1 - settings.ema_decay)

            stopping = stop.signal
            if ranks > 1:
                value, stopping = _agree(value, stopping, accelerator)
            total, norms, seen, done = total + value, norms + length, seen + 1, step + 1
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
                if main:
                    write_stats(side / "stats.jsonl", records[-1:], append=True)
                if board is not None:
                    board.add(records[-1])
                total, norms, seen, began = 0.0, 0.0, 0, time.monotonic()
            due = done % settings.checkpoint_every == 0 or done == settings.steps or stopping
            taken = [file for file, at in (snapshots or {}).items() if at == done]
            if due or taken:
                divergence.check_weights(what, step, weights, average)
            for file in taken if main else []:
                save_tensors(file, {k: v.detach().cpu() for k, v in (average or weights).items()}, {"step": done})
            if main and due:
                unrecorded = total, norms, seen, time.monotonic() - began
                moments = optimizer.state_dict() if joined is None else joined.state_dict(optimizer)
                write_checkpoint(checkpoint, done, weights, moments, average, records, fingerprint, scaler, unrecorded)
            if stopping:
                if ranks > 1:  # nobody ends, and has the others ended, before the checkpoint is written
                    accelerator.wait_for_everyone()
                raise Preempted(
                    f"{what}: stopped by {name_of(stopping)} at step {done} of {settings.steps}; the checkpoint is in "
                    f"{checkpoint}; run again to continue"
                )
            if progress is not None:
                progress.update(1, loss=value)

    if board is not None:
        board.close()
    if not main:
        return None
    if average is not None:
        with torch.no_grad():
            for name, value in average.items():
                weights[name].copy_(value)
    clear()
    for parameter in parameters:
        parameter.data = parameter.data.clone()  # no longer a part of others' tensor
    model.to("cpu").eval()
    return records


def _with(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The model with these tensors for its parameters of their names, in evaluation mode; it shares the rest."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, parameter in model.named_parameters():
        if name in weights:
            shared[id(parameter)] = nn.Parameter(weights[name], requires_grad=False)
    return copy.deepcopy(model, shared).eval()


def _loss(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean of a batch's losses (B,), weighted where it has weights."""
    return (losses * batch["weight"]).mean() if "weight" in batch else losses.mean()


def _graphed(forward: Forward, what: str) -> Forward:
    """The forward pass as a CUDA graph; its results are the caller's."""
    replayed = Graphed(lambda given: forward(*given.values()), f"{what}, what batches are prepared with")
    return lambda *args: replayed({str(number): value for number, value in enumerate(args)}).clone()


def _clip(trained: list[nn.Parameter], limit: float, parts: list[torch.Tensor] | None = None) -> torch.Tensor:
    """`clip_grad_norm_`, which multiplies all gradients also where it multiplies them by one; returns their norm.

    Args:
        parts: of the trained parameters' gradients, whose norms are taken; the gradients themselves by default.
    """
    # as torch.nn.utils.get_total_norm and clip_grads_with_norm_, which sort them by device first
    gradients = [p.grad for p in trained if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts or gradients)))
    if norm + 1e-6 > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def _agree(value: float, number: int, accelerator: Any) -> tuple[float, int]:
    """The mean of the processes' losses; a signal that any of them was sent, or 0."""
    mine = [value, *(float(number == known) for known in SIGNALS)]
    summed = torch.tensor(mine, dtype=torch.float64, device=accelerator.device)
    loss, *told = accelerator.reduce(summed, "sum").tolist()
    return loss / accelerator.num_processes, next((n for n, count in zip(SIGNALS, told, strict=True) if count), 0)


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
            with open(path, "a", encoding="utf-8", opener=no_link) as file:
                file.write(text)
    else:
        write_text(path, text)


def _reseed(seed: int) -> None:
    """Seed what dropout draws from. `torch.manual_seed` also queues a call, with a stack trace, for a
    CUDA that is never initialised: a millisecond a step and memory that grows."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
