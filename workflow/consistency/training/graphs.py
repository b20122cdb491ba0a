"""A function of tensors as a CUDA graph: its kernels are started at once, not one by one from Python."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from ..errors import is_memory_shortage

log = logging.getLogger("consistency")

Tensors = dict[str, torch.Tensor]
WARM = 3  # calls before the capture: they choose algorithms and take the libraries' memory


class Graphed:
    """`function`, run as it is at first, captured once and replayed from then on; the same kernels on the same numbers.

    What it reads beside its arguments, such as weights, is read where it lies at the capture: it may change its values,
    not its address. Gradients that it computes keep their addresses too while there is a graph, and the next call
    overwrites them. A function that cannot be captured (it waits for the GPU, say) is run as it is, and so is any
    from its first call with arguments of other shapes on.

    Args:
        function: tensors on the GPU → a tensor.
        name: for the log.
        clear: removes gradients; called before the function is run or captured.
    """

    def __init__(
        self, function: Callable[[Tensors], torch.Tensor], name: str, clear: Callable[[], None] = lambda: None
    ):
        self.function, self.name, self.clear, self.calls = function, name, clear, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = {}
        self._output = torch.empty(0)

    def __call__(self, inputs: Tensors) -> torch.Tensor:
        """The function's result; of a replay it holds until the next call."""
        self.calls += 1
        if self.calls == WARM + 1:
            self._capture(inputs)
        if self.graph is not None and _shapes(inputs) != _shapes(self._inputs):
            log.info("%s: arguments of other shapes; from here on each step starts its kernels one by one", self.name)
            self.graph = None
        if self.graph is None:
            self.clear()
            return self.function(inputs)
        for name, value in self._inputs.items():
            value.copy_(inputs[name], non_blocking=True)
        self.graph.replay()
        return self._output

    def _capture(self, inputs: Tensors) -> None:
        kept = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        self.clear()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self.function(kept)
        except Exception as error:
            said = " ".join(str(error).split())[:150]
            tell = log.warning if is_memory_shortage(error) else log.info
            tell("%s: not captured as a CUDA graph, each step starts its kernels one by one (%s)", self.name, said)
            return
        self.graph, self._inputs, self._output = graph, kept, output


def capturable(model: nn.Module, objective: Callable[..., object]) -> bool:
    """Whether a step can be captured: objective and model's modules say so themselves (`capturable`, yes by default),
    and the model drops out nothing, since two passes of a graph cannot use the same dropout (see
    `objectives.consistency_training`)."""
    return getattr(objective, "capturable", True) and not any(
        not getattr(module, "capturable", True)
        or getattr(module, "gradient_checkpointing", False)
        or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        for module in model.modules()
    )


def _shapes(tensors: Tensors) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, value.shape, value.dtype) for name, value in tensors.items()]
