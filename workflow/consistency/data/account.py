"""An account of what was read of a user's files: what was passed over and why, and the classes."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np

from ..errors import printable

log = logging.getLogger("consistency")

NAMED = 3  # of the names behind a count


class Account:
    """What a reader read, what it passed over, and what else the user should know.

    Args:
        source: what is read, as the user names it.
    """

    def __init__(self, source: str):
        self.source = source
        self.names: list[str] | None = None  # of the classes, in the order of their numbers
        self.samples: dict[str, int] = {}  # part → count
        self.classes: dict[str, list[Any]] = {}  # names, and for each part the counts in the same order
        self._seen: dict[bytes, str] = {}  # hash of an image → its name
        self._passed: dict[str, list[str]] = {}
        self._remarks: dict[str, list[str]] = {}

    def pass_over(self, name: str, reason: str) -> None:
        """Record a file that is not read; the reason continues "1 file passed over: 1 …"."""
        self._passed.setdefault(reason, []).append(name)

    def remark(self, what: str, name: str) -> None:
        """Record what is read, but may not be what the user meant."""
        self._remarks.setdefault(what, []).append(name)

    def compare(self, image: np.ndarray, name: str) -> None:
        """Remark an image that is the same as an earlier one."""
        first = self._seen.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), name)
        if first != name:
            self.remark("images that are there twice", f"{name} is {first}")

    def count(self, labels: dict[str, np.ndarray]) -> None:
        """Record samples and classes.

        Args:
            labels: part → the samples' classes, int64 (n,), from 0.
        """
        self.samples = {part: len(values) for part, values in labels.items()}
        size = 1 + int(np.concatenate(list(labels.values())).max())
        self.classes = {"names": self.names or [str(number) for number in range(size)]}
        self.classes |= {part: np.bincount(values, minlength=size).tolist() for part, values in labels.items()}

    def passed_over(self) -> str:
        """What was passed over, in a few words; empty where nothing was."""
        if not self._passed:
            return ""
        count = sum(map(len, self._passed.values()))
        reasons = "; ".join(f"{len(names)} {reason}: {_first(names)}" for reason, names in self._passed.items())
        return f"{count} file{'s' * (count > 1)} passed over ({reasons})"

    def record(self) -> dict[str, Any]:
        """The account as plain data, for a file's metadata."""
        record: dict[str, Any] = {"source": self.source, "samples": self.samples}
        record |= {"classes": self.classes} if self.classes else {}
        for key, entries in (("passed_over", self._passed), ("remarks", self._remarks)):
            record[key] = {what: {"count": len(names), "first": names[:NAMED]} for what, names in entries.items()}
        return record

    def tell(self) -> None:
        """Write the account to the log `consistency`: what was read, and as warnings what was not."""
        source = printable(self.source)
        if self.samples:
            log.info("%s: read %s", source, ", ".join(f"{part} {n}" for part, n in self.samples.items()))
        names, *counts = self.classes.values() if self.classes else [[]]
        for number, (name, *of_parts) in enumerate(zip(names, *counts, strict=True)):
            log.info("%s: class %d: %s: %s", source, number, _first([name]), " + ".join(map(str, of_parts)))
        if self._passed:
            log.warning("%s: %s", source, self.passed_over())
        for what, entries in self._remarks.items():
            log.warning("%s: %s: %d (%s)", source, what, len(entries), _first(entries))


def _first(names: list[str]) -> str:
    """The first names, in one line whatever they hold."""
    return ", ".join(printable(name) for name in names[:NAMED]) + ", …" * (len(names) > NAMED)
