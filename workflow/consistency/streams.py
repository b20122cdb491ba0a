"""Random numbers that belong to a sample or a step, not to a batch.

Every stream is keyed by (seed, purpose, index…) through NumPy's SeedSequence, so a value depends
neither on batch size nor on shard count nor on the order of computation, and a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

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
