"""How draws are split into shards."""

from __future__ import annotations


def shard_range(count: int, shards: int, shard: int) -> range:
    """The draw numbers of one shard: contiguous, sizes differ by at most one."""
    return range(count * shard // shards, count * (shard + 1) // shards)
