"""Lets torchvision be imported beside a CPU-only torch.

torchvision from the package index is built against CUDA torch; beside a CPU build its operators
fail to register and `import torchvision` raises, taking diffusers, transformers and peft along.
Defining the two missing operator schemas first is enough. Call `ensure_torchvision()` before
importing any of them; where torchvision loads by itself it does nothing.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


@cache  # keeps what is returned: a definition lives as long as its object
def ensure_torchvision() -> torch.library.Library | None:
    """Define torchvision's operator schemas where its own binary cannot."""
    if torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return None
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
