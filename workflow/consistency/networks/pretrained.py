"""Folders of pretrained weights: the names of their files, and errors of the libraries that read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConsistencyError, StorageError


def variant(folder: str | Path) -> str | None:
    """The variant, such as `fp16`, of the weights in a model's folder, as diffusers names them; None where there are
    weights without one, in one file or in shards. Of several variants it is fp16, else the first by name."""
    ends = [re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", file.name) for file in Path(folder).glob("*.safetensors")]
    names = sorted(end[1] for end in ends if end)
    return None if len(names) < len(ends) or not names else "fp16" if "fp16" in names else names[0]


@contextmanager
def loading(what: str, longest: int | None = 300) -> Iterator[None]:
    """Turn what a library raises on reading weights into one line that begins with `what`; our own errors pass.

    Raises:
        StorageError: the library raised something; of its message, `longest` characters.
    """
    try:
        yield
    except ConsistencyError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:longest] or type(error).__name__
        raise StorageError(f"{what} cannot be loaded ({said})") from error
