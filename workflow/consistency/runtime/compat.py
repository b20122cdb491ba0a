"""Lets torchvision be imported beside a CPU-only torch.

torchvision from the package index is built against CUDA torch; beside a CPU build its operators
fail to register and `import torchvision` raises, taking diffusers, transformers and peft along.
Defining the two missing operator schemas first is enough. Call `ensure_torchvision()` before
importing any of them; where torchvision loads by itself it does nothing.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

_kept: list[torch.library.Library] = []  # a definition lives as long as its object


def ensure_torchvision() -> None:
    """Define torchvision's operator schemas where its own binary cannot; idempotent."""
    if _kept or torch.version.cuda is not None:
        return
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def without_compiler(optimizer_class: type) -> None:
    """Keep a torch optimiser from importing the compiler (torch._dynamo) on its first step.

    torch wraps the methods of its optimisers so that the compiler leaves them alone, and imports it
    for that: 1 to 2 s in every training job, though nothing here is compiled. This calls what is
    wrapped; torch without such wrappers, or a program that compiles, is left as it is.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        wrapped = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if wrapped is not None:
            wrapped.__dynamo_disable = wrapped
    step = optimizer_class.step
    if step.__name__ == "step" and getattr(step, "__code__", None) and step.__code__.co_name == "_use_grad":
        optimizer_class.step = torch.no_grad()(step.__wrapped__)
