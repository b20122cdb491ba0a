"""Random numbers that belong to a sample or a step, not to a batch.

Every stream is keyed by (seed, purpose, index…) through NumPy's SeedSequence, so a value depends
neither on batch size nor on shard count nor on the order of computation, and a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_PURPOSES = {
    name: number
    for number, name in enumerate(
        ("split", "noise", "label", "draw", "renoise", "order", "step", "initialise", "halves", "mixture", "pairs")
    )
}


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator for one purpose and index.

    Args:
        seed: non-negative.
        purpose: a key of `_PURPOSES`; appended to, never reordered, or every stream would change.
        index: any number of non-negative integers, such as the sample's number.
    """
    entropy = np.random.SeedSequence(seed, spawn_key=(_PURPOSES[purpose], *index))
    return np.random.Generator(np.random.Philox(entropy))


def generators(
    seed: int, purpose: str, *index: int, numbers: range | Sequence[int] | np.ndarray
) -> Iterator[np.random.Generator]:
    """What `generator(seed, purpose, *index, number)` gives for each of the numbers, several times as fast.

    One object is set anew for each number: it is the number's until the next one is asked for.

    Args:
        numbers: 0..2³² − 1.
    """
    # SeedSequence's last step, for all numbers at once: the last word of entropy is mixed into its pool of four words,
    # from which Philox takes its key (documented and fixed for good by NumPy; a test compares).
    words = max(4, -(-seed.bit_length() // 32)) + 1 + sum(max(1, -(-i.bit_length() // 32)) for i in index)
    pool = np.random.SeedSequence(seed, spawn_key=(_PURPOSES[purpose], *index)).pool[:, None]
    mixed = np.uint32(0xCA01F9DD) * pool - np.uint32(0x4973F715) * _hash(
        np.asarray(numbers, np.uint32), 0x43B0D7E5 * pow(0x931E8875, 4 * words, 2**32), 0x931E8875
    )
    low_high = _hash(mixed ^ mixed >> 16, 0x8B51F9DD, 0x58F38DED).astype(np.uint64)
    keys = (low_high[::2] | low_high[1::2] << 32).T
    bits = np.random.Philox(0)
    random, state = np.random.Generator(bits), bits.state
    for key in keys:
        state["state"]["key"] = key
        bits.state = state
        yield random


def _hash(values: np.ndarray, constant: int, factor: int) -> np.ndarray:
    """SeedSequence's hash of words (n,) or (4, n), with its next four constants: uint32 (4, n)."""
    constants = [[constant * pow(factor, i, 2**32) % 2**32] for i in range(5)]
    hashed = (values ^ np.array(constants[:4], np.uint32)) * np.array(constants[1:], np.uint32)
    return hashed ^ hashed >> 16
