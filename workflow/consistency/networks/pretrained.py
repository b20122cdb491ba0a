"""Folders of pretrained weights, as diffusers names their files."""

from __future__ import annotations

import re
from pathlib import Path


def variant(folder: str | Path) -> str | None:
    """The variant, such as `fp16`, of the weights in a model's folder, as diffusers names them; None where there are
    weights without one, in one file or in shards. Of several variants it is fp16, else the first by name."""
    ends = [re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", file.name) for file in Path(folder).glob("*.safetensors")]
    names = sorted(end[1] for end in ends if end)
    return None if len(names) < len(ends) or not names else "fp16" if "fp16" in names else names[0]
