"""Random numbers that belong to a sample or a step, not to a batch.

A stream belongs to (seed, purpose, index…). Its bits are those of Philox, whose key is a hash of all of these but the
last number of the index, which stands in the upper half of Philox's counter. So a value depends neither on batch size
nor on shard count nor on the order of computation, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator for one purpose and index.

    Args:
        seed: 0..2⁶⁴ − 1.
        purpose: what the numbers are for, at most 16 letters; each purpose has streams of its own.
        index: any number of integers in 0..2⁶⁴ − 1, such as the sample's number.

    Raises:
        OverflowError: a number out of its range.
    """
    *outer, number = index or (0,)
    counter = np.array([0, 0, number, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, len(index), *outer), counter=counter))


def generators(
    seed: int, purpose: str, *index: int, numbers: range | Sequence[int] | np.ndarray
) -> Iterator[np.random.Generator]:
    """What `generator(seed, purpose, *index, number)` gives for each of the numbers, several times as fast.

    One object is set anew for each number: it is the number's until the next one is asked for.

    Raises:
        OverflowError: a number out of its range.
    """
    bits = np.random.Philox(key=_key(seed, purpose, len(index) + 1, *index))
    random, state = np.random.Generator(bits), bits.state
    for number in map(int, numbers):
        state["state"]["counter"][2] = number
        bits.state = state
        yield random


def _key(seed: int, purpose: str, *numbers: int) -> int:
    """128 bits, equal only where all of these are."""
    words = np.array([seed, *numbers], "<u8").tobytes()
    return int.from_bytes(blake2b(words, digest_size=16, person=purpose.encode()).digest(), "little")
