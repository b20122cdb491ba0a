"""Progress of long work: a bar on a terminal, log lines with rate and ETA otherwise; TensorBoard for those who ask."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from pathlib import Path

log = logging.getLogger("consistency")


class Progress:
    """Counts `total` units; `update` adds some and reports at most every `every` seconds.

    On a terminal it is a tqdm bar, elsewhere a log line such as
    `train cm: 400/1500 (27%), 81.3/s, ETA 00:13, loss 0.0123`.
    """

    def __init__(self, total: int, what: str, start: int = 0, every: float = 5.0):
        from tqdm import tqdm  # Snakemake, which reads this module too, comes without it

        self.total, self.what, self.done, self.every = total, what, start, every
        self._first, self._began = start, time.monotonic()
        self._told = self._began
        self._interval = tqdm.format_interval
        self._bar = tqdm(total=total, initial=start, desc=what) if sys.stderr.isatty() else None

    def update(self, count: int, **facts: float) -> None:
        """Add `count` units; `facts` are shown beside the rate."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            if facts:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in facts.items()}, refresh=False)
            if self.done >= self.total:
                self._bar.close()
            return
        now = time.monotonic()
        if now - self._told < self.every and self.done < self.total:
            return
        self._told = now
        rate = (self.done - self._first) / max(now - self._began, 1e-9)
        left = self._interval((self.total - self.done) / max(rate, 1e-9))
        extra = "".join(f", {k} {v:.4g}" for k, v in facts.items())
        share = f"{self.done}/{self.total} ({100 * self.done // max(self.total, 1)}%)"
        log.info("%s: %s, %.1f/s, ETA %s%s", self.what, share, rate, left, extra)


class Board:
    """A training's records in TensorBoard's format."""

    def __init__(self, folder: Path, first: int):
        from torch.utils.tensorboard import SummaryWriter

        if first == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier training with this name
        self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    @staticmethod
    def ask() -> None:
        """Have trainings of this process and of those that it starts log to it."""
        os.environ["CONSISTENCY_TENSORBOARD"] = "1"

    @classmethod
    def beside(cls, side_folder: Path, first: int) -> Board | None:
        """For a training at step `first` whose side folder is `…/checkpoints/{run}`: in `…/tensorboard/{run}`.

        None unless the environment variable CONSISTENCY_TENSORBOARD is 1, which no result depends on, or where
        TensorBoard is not installed.
        """
        if os.environ.get("CONSISTENCY_TENSORBOARD") != "1":
            return None
        try:
            return cls(side_folder.parent.with_name("tensorboard") / side_folder.name, first)
        except ImportError:
            log.warning("tensorboard: not installed, nothing is logged for it (pip install tensorboard==2.21.0)")
            return None

    def add(self, record: dict[str, float]) -> None:
        """Log a record's values at its step."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
