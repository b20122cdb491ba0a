"""One optimiser step: forward and backward pass, clipping, update, average of the weights.

Three classes compute the same numbers: `PlainStep` can do every training, `JoinedStep` calls fewer operations for a
small network on a CPU, and `CapturedStep` starts all kernels of a GPU at once. `make_step` picks one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.settings import Training
from ..errors import TrainingError
from . import divergence
from .feed import Batch, parts_of, size_of
from .graphs import Graphed, capturable
from .optimizers import Joined, clear_gradients, clip_gradients, make_optimizer, rate_at

if TYPE_CHECKING:
    from accelerate import Accelerator

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
Objective = Callable[[nn.Module, Batch], Output]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What a model learns, and from which batches.

    Attributes:
        objective: (model, batch) → (prediction, target), or the loss of each sample (B,).
        batch_at: step → batch of CPU tensors (B, …) or (); a pure function of the step, asked for up to `feed.AHEAD`
            steps early. A step minimises the mean of the losses, each times the batch's `weight` (B,) where there is
            one. What changes with the step, such as `progress` in [0, 1], () or (B,), is a tensor in the batch.
        loss: (prediction, target) → loss of each sample (B,); not used where the objective returns losses.
        prepare: (batch on the device, the model, its average) → batch, before the objective. Without EMA the average is
            the model itself. Both are called without gradient and without dropout.
        together: whether `prepare` needs all of the batch's samples together; if not, each of several processes
            prepares its own rows.
    """

    objective: Objective
    batch_at: Callable[[int], Batch]
    loss: Loss | None = None
    prepare: Callable[[Batch, Forward, Forward], Batch] | None = None
    together: bool = True

    def loss_of(self, model: nn.Module, batch: Batch, what: str) -> tuple[torch.Tensor, Output]:
        """The mean loss of a batch, (), and what the objective returned.

        Args:
            what: the training, for messages.

        Raises:
            TrainingError: there is not one loss for each sample.
        """
        output = self.objective(model, batch)
        losses = output
        if not isinstance(losses, torch.Tensor):
            if self.loss is None:
                raise TrainingError(
                    f"{what}: the task has no loss, so its objective returns the loss of each sample; this one returns "
                    f"a {type(output).__name__}"
                )
            losses = self.loss(*output)
        if losses.shape != (allowed := (size_of(batch),)):
            raise TrainingError(f"{what}: the losses have shape {tuple(losses.shape)}; one a sample is {allowed}")
        return (losses * batch["weight"] if "weight" in batch else losses).mean(), output


def make_step(model: nn.Module, task: Task, settings: Training, accelerator: Accelerator, what: str) -> PlainStep:
    """The fastest step that can train this model; see `PlainStep` for the arguments."""
    kind, whole = PlainStep, accelerator.num_processes == settings.accumulate == 1 and accelerator.scaler is None
    if is_bare(accelerator):
        if Joined.pays([p for p in model.parameters() if p.requires_grad], settings.optimizer):
            kind = JoinedStep
    elif accelerator.device.type != "cpu" and whole and capturable(model, task.objective):
        kind = CapturedStep
    return kind(model, task, settings, accelerator, what)


def is_bare(accelerator: Accelerator) -> bool:
    """Whether accelerate has nothing to prepare, scale or unscale: one process in float32 on a CPU. Looking for it in
    every step costs accelerate a fifth of a small network's step, and a second of imports."""
    return (accelerator.device.type, accelerator.num_processes, accelerator.mixed_precision) == ("cpu", 1, "no")


class PlainStep:
    """A step as PyTorch and accelerate do it: on any device, in any precision, by one process or several, with the
    batch as a whole or in parts.

    Args:
        model: on its device, in training mode; its parameters with requires_grad are trained.
        what: the training, for messages.

    Attributes:
        weights: name → trained parameter.
        average: name → average of that parameter; None without EMA.
        current, averaged: the model and its average, in evaluation mode.
        meanwhile: called in each captured step while the GPU computes.
    """

    def __init__(self, model: nn.Module, task: Task, settings: Training, accelerator: Accelerator, what: str):
        self.model, self.task, self.settings, self.accelerator, self.what = model, task, settings, accelerator, what
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.weights.values())
        self.trained = self._lay_out()
        self.optimizer = make_optimizer(settings.optimizer, self.trained, settings.learning_rate, settings.weight_decay)
        self.limit = math.inf if settings.clip_norm is None else settings.clip_norm
        self.meanwhile: Callable[[], None] = lambda: None
        self._averages = [p.detach().clone() for p in self.trained] if settings.ema_decay else []
        self.average: dict[str, torch.Tensor] | None = None
        self.current = self.averaged = _evaluation(model)
        self._bare = is_bare(accelerator)
        if self._averages:
            self.average = dict(zip(self.weights, self._apart(self._averages), strict=True))
            if task.prepare is not None:
                self.averaged = _with(model, self.average)
        self._prepared, self._backward = model, torch.Tensor.backward
        if not self._bare:
            if isinstance(self.averaged, nn.Module):
                self.averaged = accelerator.prepare_model(self.averaged, device_placement=False, evaluation_mode=True)
            self._prepared, self.optimizer = accelerator.prepare(model, self.optimizer)
            self._backward = accelerator.backward

    def __call__(self, number: int, batch: Batch) -> tuple[float, float]:
        """Do step `number` with a batch on the device.

        Returns:
            The loss, and the norm of the gradients before they were clipped (0 where the scaler of fp16 leaves the
            step out).

        Raises:
            TrainingError: loss or gradients are not finite, and the weights are as before; or see `Task.loss_of`.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.settings, number)
        loss, norm = self._compute_gradients(number, batch)
        if not math.isfinite(norm):
            if not divergence.is_skipped(self.accelerator.scaler):
                gradients = self._gradients()
                raise TrainingError(divergence.of_gradients(self.what, number, loss, self.weights, gradients))
            norm = 0.0
        self.optimizer.step()
        if self._averages:
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self.trained, 1 - self.settings.ema_decay)
        return loss, norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, on the CPU; the same for every class of step."""
        scaler = self.accelerator.scaler
        return {
            "weights": {name: value.detach().cpu() for name, value in self.weights.items()},
            "average": {name: value.cpu() for name, value in (self.average or {}).items()},
            "optimizer": self._optimizer_state(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, of any class of step."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.weights[name].copy_(value)
            for name, value in (self.average or {}).items():
                value.copy_(state["average"][name])
        self._load_optimizer_state(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def result(self) -> dict[str, torch.Tensor]:
        """The trained parameters on the CPU: their average, where there is one."""
        return {name: value.detach().cpu() for name, value in (self.average or self.weights).items()}

    def finish(self) -> None:
        """Leave the result in the model, which goes to the CPU, in evaluation mode, with memory of its own."""
        with torch.no_grad():
            for name, value in (self.average or {}).items():
                self.weights[name].copy_(value)
        clear_gradients(self.parameters)
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
        self.model.to("cpu").eval()

    def _compute_gradients(self, number: int, batch: Batch) -> tuple[float, float]:
        """Loss, and norm of the gradients, which are computed and clipped."""
        clear_gradients(self.parameters)
        parts, total = parts_of(batch, self.settings.accumulate), 0.0
        for part in parts:
            # Several processes average their gradients once a step, with the last part.
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self._prepared):
                loss, output = self.task.loss_of(self._prepared, part, self.what)
                if len(parts) > 1:
                    loss = loss * (size_of(part) / size_of(batch))
                total += loss.item()
                if not math.isfinite(total):
                    raise TrainingError(divergence.of_loss(self.what, number, total, part, output, self.model))
                self._backward(loss)
        return total, float(self._clip())

    def _clip(self) -> torch.Tensor:
        if self._bare:
            return clip_gradients(self.trained, self.limit)
        return self.accelerator.clip_grad_norm_(self.parameters, self.limit)

    # What another layout of the parameters changes

    def _lay_out(self) -> list[nn.Parameter]:
        """The parameters, as optimiser and average see them."""
        return self.parameters

    def _apart(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors like `_lay_out`'s as tensors like the model's parameters; they share memory."""
        return tensors

    def _gradients(self) -> list[torch.Tensor | None]:
        return [p.grad for p in self.parameters]

    def _optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class JoinedStep(PlainStep):
    """A step with all parameters in one tensor (`optimizers.Joined`), for one process in float32 on a CPU."""

    def _lay_out(self) -> list[nn.Parameter]:
        self._joined = Joined(self.parameters)
        return [self._joined.weights]

    def _apart(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return self._joined.split(*tensors)

    def _clip(self) -> torch.Tensor:
        self._joined.gather()
        return clip_gradients(self.trained, self.limit, self._joined.gradients)

    def _gradients(self) -> list[torch.Tensor | None]:
        return self._joined.gradients

    def _optimizer_state(self) -> dict[str, Any]:
        return self._joined.state_dict(self.optimizer)

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        self._joined.load_state_dict(self.optimizer, state)


class CapturedStep(PlainStep):
    """A step whose passes and clipping are one CUDA graph (`graphs.Graphed`), for one process with whole batches."""

    def __init__(self, model: nn.Module, task: Task, settings: Training, accelerator: Accelerator, what: str):
        super().__init__(model, task, settings, accelerator, what)
        prepared, parameters, limit = self._prepared, self.parameters, self.limit

        # Without a reference to this object: in a circle, graph and weights would keep the GPU's memory for a while.
        def compute(batch: Batch) -> torch.Tensor:
            loss, _ = task.loss_of(prepared, batch, what)
            accelerator.backward(loss)
            return torch.stack([loss.detach(), accelerator.clip_grad_norm_(parameters, limit)])

        self._graphed = Graphed(compute, what, lambda: clear_gradients(parameters))
        self.current, self.averaged = _graphed(self.current, what), _graphed(self.averaged, what)

    def _compute_gradients(self, number: int, batch: Batch) -> tuple[float, float]:
        numbers = self._graphed(batch)
        self.meanwhile()
        loss, norm = numbers.tolist()
        if not math.isfinite(loss):
            with torch.no_grad():
                output = self.task.objective(self._prepared, batch)
            raise TrainingError(divergence.of_loss(self.what, number, loss, batch, output, self.model))
        return loss, norm


def _evaluation(model: nn.Module) -> Forward:
    """The model as a function in evaluation mode; the model is in training mode before and after each call."""

    def forward(*args: Any) -> torch.Tensor:
        model.eval()
        output = model(*args)
        model.train()
        return output

    return forward


def _with(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The model with these tensors for its parameters of their names, in evaluation mode; it shares the rest."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, parameter in model.named_parameters():
        if name in weights:
            shared[id(parameter)] = nn.Parameter(weights[name], requires_grad=False)
    return copy.deepcopy(model, shared).eval()


def _graphed(forward: Forward, what: str) -> Forward:
    """The forward pass as a CUDA graph; its results are the caller's."""
    graphed = Graphed(lambda inputs: forward(*inputs.values()), f"{what}, what batches are prepared with")
    return lambda *args: graphed({str(number): value for number, value in enumerate(args)}).clone()
