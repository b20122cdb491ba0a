"""A signal that asks a training to stop: remembered, so that the loop can end at a whole step.

SIGTERM comes from a cluster that takes a job's place back, from `scancel` and `kill`; SIGUSR1 is SLURM's
warning before a time limit (`--signal=USR1@…`); SIGINT is Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StopRequest:
    """While it is entered, the signals above do nothing but set `signal` to their number (0: none came).

    The handlers before it come back afterwards. Where Ctrl-C raises KeyboardInterrupt, as in a notebook, it still
    does. Python lets the main thread alone set handlers; in another thread nothing is caught.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before is not signal.default_int_handler:  # None: not set by Python
                    self._before[number] = before
                    signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def parent_follower() -> Callable[[], object]:
    """A function that has the process that calls it killed when its parent is (on Linux), so that none is left that
    writes beside the next try. All that it needs is there when it is made, so a fork may call it."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    return partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def name_of(number: int) -> str:
    """Such as SIGTERM."""
    return signal.Signals(number).name
