"""Progress of long work: a bar on a terminal, log lines with rate and ETA otherwise."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("consistency")


class Progress:
    """Counts `total` units; `update` adds some and reports at most every `every` seconds.

    On a terminal it is a tqdm bar, elsewhere a log line such as
    `train cm: 400/1500 (27%), 81.3/s, ETA 00:13, loss 0.0123`.
    """

    def __init__(self, total: int, what: str, start: int = 0, every: float = 5.0):
        self.total, self.what, self.done, self.every = total, what, start, every
        self._first, self._began = start, time.monotonic()
        self._told = self._began
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
        left = tqdm.format_interval((self.total - self.done) / max(rate, 1e-9))
        extra = "".join(f", {k} {v:.4g}" for k, v in facts.items())
        share = 100 * self.done // max(self.total, 1)
        log.info("%s: %d/%d (%d%%), %.1f/s, ETA %s%s", self.what, self.done, self.total, share, rate, left, extra)
