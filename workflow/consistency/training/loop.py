"""One training loop for every method, the teacher and the classifier, on accelerate.

All randomness of step k is a function of (seed, k), and the checkpoint holds weights, optimiser,
EMA and step, so a run that was killed and resumed ends bit for bit as an undisturbed one (on CPU).

Several processes (`parallel`) share each batch: every one draws the whole batch, computes its own rows, and accelerate
averages the gradients, so weights, optimiser and EMA are the same in all of them. The first alone writes files.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.settings import Training
from ..errors import ConfigError, Preempted, memory_advice
from ..files.filesystems import no_link
from ..files.storage import explained, save_tensors, write_json, write_text
from ..runtime.devices import check_precision, pick_device
from ..runtime.preemption import SIGNALS, StopRequest, name_of
from ..runtime.progress import Board, Progress
from .checkpoints import read_checkpoint, write_checkpoint
from .divergence import check_weights
from .feed import Feed, parts_of
from .optimizers import rate_at
from .steps import Task, make_step

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("consistency")

MEMORY_ADVICE = (
    "lower training.batch_size, or keep it and raise training.accumulate; a GPU is also spared by "
    "training.gradient_checkpointing and training.precision bf16"
)


@memory_advice(MEMORY_ADVICE)
def train(
    model: nn.Module,
    task: Task,
    settings: Training,
    *,
    seed: int,
    side_folder: str | Path,
    fingerprint: dict[str, Any],
    what: str = "train",
    snapshots: dict[Path, int] | None = None,
) -> list[dict[str, float]] | None:
    """Train `model` itself, not a copy.

    Args:
        model: its parameters with requires_grad are trained; with EMA they end as the average.
        seed: of dropout and the like, reseeded every step.
        side_folder: holds checkpoint, stats and `training.json` (what, steps) while training; removed by `finish`.
        fingerprint: what the result depends on; a checkpoint with another one is not resumed. The number of processes
            is not of it: it changes the rounding of sums, and which dropout masks are drawn.
        what: the training, for messages.
        snapshots: file → step after which the trained parameters (the average, where there is one) are written to it.

    Returns:
        One record per `log_every` steps: step, loss (mean since the last), grad_norm, lr, samples_per_s,
        seconds (of training so far, over all resumes). None in all but the first of several processes: they have
        nothing to write.

    Raises:
        TrainingError: a loss, gradients or weights that are not finite; names the step and what was not finite. None
            of them has reached the checkpoint, which stays that of an earlier step. Or the task's losses are not one
            for each sample.
        Preempted: SIGTERM, SIGUSR1 or, in a job, Ctrl-C; the step was finished and the checkpoint written.
        MemoryShortage: names the step and the keys to change.
        ConfigError: the device or precision is not there, or the batch cannot be split evenly among the processes.
    """
    accelerator = _accelerator(settings, what)
    ranks, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    side, snapshots = Path(side_folder), snapshots or {}
    checkpoint = side / "checkpoint.pt"
    state = read_checkpoint(checkpoint, fingerprint, snapshots)
    number = first = state["step"] if state is not None else 0
    step = make_step(model.to(accelerator.device).train(), task, settings, accelerator, what)
    if state is not None:
        step.load_state(state)
        log.info("%s: resumed at step %d of %d from %s", what, first, settings.steps, checkpoint)
    rows = (rank, ranks) if task.prepare is None or not task.together else (0, 1)  # of the batches, before `prepare`
    feed = Feed(task.batch_at, seed, range(first, settings.steps), accelerator.device, rank, rows)
    step.meanwhile = feed.send
    with memory_advice(MEMORY_ADVICE, lambda: f"{what}: step {number}: "), StopRequest() as stop:
        records = Records(settings, what, side if main else None, state)
        for number in range(first, settings.steps):
            step_seed, batch = feed.take()
            _reseed(step_seed)
            if task.prepare is not None:
                with torch.no_grad():
                    batch = task.prepare(batch, step.current, step.averaged)
                batch = parts_of(batch, ranks)[rank] if task.together else batch
            loss, norm = step(number, batch)
            done, stopping = number + 1, stop.signal
            if ranks > 1:
                loss, stopping = _agree(loss, stopping, accelerator)
            records.add(done, loss, norm)
            due = done % settings.checkpoint_every == 0 or done == settings.steps or stopping
            files = [file for file, at in snapshots.items() if at == done]
            if due or files:
                check_weights(what, number, step.weights, step.average)
            for file in files if main else []:
                save_tensors(file, step.result(), {"step": done})
            if main and due:
                write_checkpoint(checkpoint, {"step": done} | step.state() | records.state(), fingerprint)
            if stopping:
                accelerator.wait_for_everyone()  # no process ends, and ends the others, before the checkpoint is there
                at = f"stopped by {name_of(stopping)} at step {done} of {settings.steps}"
                raise Preempted(f"{what}: {at}; the checkpoint is in {checkpoint}; run again to continue")
    if not main:
        return None
    records.close()
    step.finish()
    return records.all


class Records:
    """What a training records every `log_every` steps (see `train`), in its side folder and for TensorBoard, and its
    progress on the terminal.

    Args:
        side: the side folder; None in all but the first of several processes, which show and write nothing.
        state: of the checkpoint that the training goes on from.

    Attributes:
        all: the records so far.
    """

    def __init__(self, settings: Training, what: str, side: Path | None, state: dict[str, Any] | None):
        start = state or {"step": 0, "records": [], "unrecorded": (0.0, 0.0, 0, 0.0)}
        self.settings, self._side, self._board = settings, side, None
        self.all: list[dict[str, float]] = start["records"]
        self._losses, self._norms, self._steps, elapsed = start["unrecorded"]
        if side is not None:
            self._board = Board.beside(side, start["step"])
            self._progress = Progress(settings.steps, what, start=start["step"])
            write_json(side / "training.json", {"what": what, "steps": settings.steps})
            write_stats(side / "stats.jsonl", self.all)  # without what was recorded after the checkpoint
        self._began = time.monotonic() - elapsed

    def add(self, done: int, loss: float, norm: float) -> None:
        """Count the step that ends with `done` steps done."""
        self._losses, self._norms, self._steps = self._losses + loss, self._norms + norm, self._steps + 1
        if done % self.settings.log_every == 0 or done == self.settings.steps:
            elapsed = max(time.monotonic() - self._began, 1e-9)
            record = {
                "step": done,
                "loss": self._losses / self._steps,
                "grad_norm": self._norms / self._steps,
                "lr": rate_at(self.settings, done - 1),
                "samples_per_s": self._steps * self.settings.batch_size / elapsed,
                "seconds": elapsed + (self.all[-1]["seconds"] if self.all else 0.0),
            }
            self.all.append(record)
            self._losses, self._norms, self._steps, self._began = 0.0, 0.0, 0, time.monotonic()
            if self._side is not None:
                write_stats(self._side / "stats.jsonl", [record], append=True)
            if self._board is not None:
                self._board.add(record)
        if self._side is not None:
            self._progress.update(1, loss=loss)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: the records; sums of losses and norms, steps and seconds since the last one."""
        since = self._losses, self._norms, self._steps, time.monotonic() - self._began
        return {"records": self.all, "unrecorded": since}

    def close(self) -> None:
        """Write what TensorBoard has not yet got."""
        if self._board is not None:
            self._board.close()


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


def _accelerator(settings: Training, what: str) -> Accelerator:
    """accelerate on the configured device, in the configured precision, for the processes that there are."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    device = pick_device(settings.device)
    check_precision(settings.precision, device)
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the process's first training
    # With this flag gradients are summed in the same order in every step. Without it torch settles on another order
    # after a process's first step, and a training of three or more that was resumed would differ in the last bits.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=settings.precision, kwargs_handlers=[ddp])
    if settings.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"{what}: training.batch_size {settings.batch_size} cannot be shared by {accelerator.num_processes} "
            "processes"
        )
    return accelerator


def _agree(loss: float, stopping: int, accelerator: Accelerator) -> tuple[float, int]:
    """The mean of the processes' losses; a signal that any of them was sent, or 0."""
    mine = [loss, *(float(stopping == number) for number in SIGNALS)]
    summed = torch.tensor(mine, dtype=torch.float64, device=accelerator.device)
    total, *counts = accelerator.reduce(summed, "sum").tolist()
    return total / accelerator.num_processes, next((n for n, count in zip(SIGNALS, counts, strict=True) if count), 0)


def _reseed(seed: int) -> None:
    """Seed what dropout draws from. `torch.manual_seed` also queues a call, with a stack trace, for a
    CUDA that is never initialised: a millisecond a step and memory that grows."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
