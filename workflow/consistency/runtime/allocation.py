"""How the C library keeps the memory that arrays are given and give back. Standard library alone."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for what is asked for next.

    By default it returns arrays of more than some hundred kilobytes to the system at once, and the next one is new
    pages, which the system clears one by one: a fifth of a UNet's training step on a CPU. From now on blocks of up to
    32 MB (glibc's own limit) come from its heap, of which up to 1 GB that is free stays.

    Returns:
        Whether it does so; False with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 1 << 30) and mallopt(_MMAP_THRESHOLD, 1 << 25))
