"""The batches of a training: drawn ahead of their steps, on the device when they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..flow.streams import generator
from ..runtime.devices import send

Batch = dict[str, torch.Tensor]

# The batches of this many steps are drawn at once, if they have no more bytes than this. Right after another batch,
# with all data in the processor's caches, a small one takes a fraction of the time that it takes after a training step.
AHEAD, AHEAD_BYTES = 16, 4_000_000


class Feed:
    """Seed and batch of each step in turn, drawn ahead of it.

    Args:
        numbers: of the steps.
        rank: of the process, which has seeds of its own.
        rows: which of how many equal parts of each batch.
    """

    def __init__(
        self,
        batch_at: Callable[[int], Batch],
        seed: int,
        numbers: range,
        device: torch.device,
        rank: int = 0,
        rows: tuple[int, int] = (0, 1),
    ):
        self.batch_at, self.seed, self.numbers, self.device = batch_at, seed, numbers, device
        self.rank, self.rows, self.count = rank, rows, 1
        self.drawn: list[tuple[int, Batch]] = []  # the last one first
        self.sent: tuple[int, Batch] | None = None

    def take(self) -> tuple[int, Batch]:
        """Seed and batch of the next step, on the device."""
        if self.sent is None:
            self.send()
        (seed, batch), self.sent = self.sent, None
        return seed, batch

    def send(self) -> None:
        """Have the next batch on its way already, while the GPU computes."""
        if not self.drawn:
            now, self.numbers = self.numbers[: self.count], self.numbers[self.count :]
            self.drawn = [(_seed_of(self.seed, step, self.rank), self.batch_at(step)) for step in now][::-1]
        if self.drawn:
            seed, whole = self.drawn.pop()
            self.count = min(AHEAD, max(1, AHEAD_BYTES // sum(value.nbytes for value in whole.values())))
            part, parts = self.rows
            batch = parts_of(whole, parts)[part]
            self.sent = seed, {name: send(value, self.device) for name, value in batch.items()}


def size_of(batch: Batch) -> int:
    """B: the rows of every tensor in the batch but those without a dimension."""
    return next(len(value) for value in batch.values() if value.ndim)


def parts_of(batch: Batch, number: int) -> list[Batch]:
    """The batch in that many parts; a tensor without a dimension is in each of them."""
    if number == 1:
        return [batch]
    split = {name: value.chunk(number) for name, value in batch.items() if value.ndim}
    return [batch | {name: values[i] for name, values in split.items()} for i in range(len(next(iter(split.values()))))]


def _seed_of(seed: int, step: int, rank: int) -> int:
    """What a step's own randomness is seeded with, in each process differently."""
    return int(generator(seed, "step", step, *[rank] * (rank > 0)).integers(2**63 - 1))
