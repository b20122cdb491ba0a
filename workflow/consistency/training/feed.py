"""The batches of a training: made ahead of their steps, on the device when they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..flow.streams import generator
from ..runtime.devices import send

Batch = dict[str, torch.Tensor]

# So many steps' batches are made at once, of at most so many bytes: right after another one, with all it needs in the
# processor's caches, a small batch takes a fraction of the time that it takes after a training step.
AHEAD, AHEAD_BYTES = 16, 4_000_000


class Feed:
    """Seed and batch of each step in turn, made ahead of it.

    Args:
        numbers: of the steps.
        rank, ranks: whose rows of each batch.
    """

    def __init__(
        self,
        batch_at: Callable[[int], Batch],
        seed: int,
        numbers: range,
        rank: int,
        ranks: int,
        device: torch.device,
    ):
        self.batch_at, self.seed, self.numbers, self.rank, self.ranks = batch_at, seed, numbers, rank, ranks
        self.device, self.count = device, 1
        self.made: list[tuple[int, Batch]] = []  # the last one first
        self.sent: tuple[int, Batch] | None = None

    def take(self) -> tuple[int, Batch]:
        """The next step's, on the device."""
        if self.sent is None:
            self.send()
        (drawn, batch), self.sent = self.sent, None
        return drawn, batch

    def send(self) -> None:
        """Have the next batch on its way already, while the GPU computes."""
        if not self.made:
            now, self.numbers = self.numbers[: self.count], self.numbers[self.count :]
            self.made = [(_seed_of(self.seed, step, self.rank), self.batch_at(step)) for step in now][::-1]
        if self.made:
            drawn, whole = self.made.pop()
            self.count = min(AHEAD, max(1, AHEAD_BYTES // sum(value.nbytes for value in whole.values())))
            batch = rows_of(whole, self.rank, self.ranks)
            self.sent = drawn, {name: send(value, self.device) for name, value in batch.items()}


def parts_of(batch: Batch, number: int) -> list[Batch]:
    """The batch in that many parts."""
    if number == 1:
        return [batch]
    split = {name: value.chunk(number) for name, value in batch.items()}
    return [{name: values[i] for name, values in split.items()} for i in range(len(next(iter(split.values()))))]


def rows_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """One process's share of the batch."""
    return batch if ranks == 1 else {name: value.chunk(ranks)[rank] for name, value in batch.items()}


def _seed_of(seed: int, step: int, rank: int) -> int:
    """What a step's own randomness is seeded with, in each process differently."""
    return int(generator(seed, "step", step, *[rank] * (rank > 0)).integers(2**63 - 1))
