"""A fuzz of the readers of files: mutations of valid ones. Nothing but the documented errors may come, and no wrong value.

`python tests/fuzz.py [inputs] [seed]`; part of `make soak`, and a short version of the suite.
"""

from __future__ import annotations

import json
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from consistency import datasets, manifest, storage  # noqa: E402
from consistency.errors import ConsistencyError  # noqa: E402
from consistency.hashes import ZEROS  # noqa: E402
from helpers import write_any_json  # noqa: E402

SECONDS, MEGABYTES = 10, 300  # what one input may take; by how much the process may grow

TENSORS = {"x": np.arange(24, dtype=np.float32).reshape(4, 6), "k": np.arange(4), "b": np.ones((2, 3), np.uint8)}
MANIFEST = {
    "mode": "paper", "solver": "ddim", "n_steps": 5, "guidance": 1.0, "seed": 0, "count": 4, "teacher_sha256": "a" * 64,
    "teacher_calls": 3, "teacher_calls_minimum": 3, "dtype": "float32", "sample_shape": [1, 8, 8],
    "shards": [{"file": f"shard-{i}.safetensors", "count": 2, "sha256": str(i + 1) * 64} for i in range(2)],
}  # fmt: skip
WORDS = [b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'""', b"\\u0000", b"\xff",
         b'"x"', b"true", b"0", b"../../x", b"18446744073709551615"]  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three of: bits, bytes, cuts, insertions, copies, other numbers, other lengths, junk."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 4:
            data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randrange(1, 80)]
        elif kind == 5:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 6:
            digits = [i for i in range(min(len(data), 3000)) if 48 <= data[i] < 58]
            if digits:
                place = rng.choice(digits)
                data[place : place + 1] = rng.choice(
                    (b"0", b"9", b"-1", b"99999999999999999999", b"4294967296", b"1.5")
                )
        elif kind == 7:
            data[:8] = struct.pack("<Q", rng.choice((0, 1, 8, 2**31, 2**63, 2**64 - 1, len(data), rng.randrange(5000))))
        else:
            data[at : at + rng.randrange(1, 20)] = rng.choice(WORDS)
    return bytes(data)


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part taken out, put elsewhere, or replaced."""
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return rng.choice((None, 0, -1, 1.5, "", "x", "../x", [], {}, True, 10**30, value, [value], {"a": value}))
    value = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if rng.random() < 0.3:
        del value[key]
    else:
        value[key] = mutated(value[key], rng)
    return value


def resealed(content: bytes) -> bytes:
    """With a sha256 that is right again where one is stated, so that what lies behind the hash is met too."""
    import hashlib
    import re

    stated = re.search(rb'sha256\\?": \\?"([0-9a-f]{64})', content)
    if stated is None:
        return content
    zeros = content.replace(stated[1], ZEROS.encode())
    return zeros.replace(ZEROS.encode(), hashlib.sha256(zeros).hexdigest().encode())


def readers(folder: Path) -> dict[str, Callable[[random.Random], Any]]:
    """Name → a function that mutates a valid file, reads it, and returns True, or raises."""
    tensors, made, idx = (
        folder / "valid.safetensors",
        folder / "valid.json",
        b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4),
    )
    records, sealed = folder / "valid.jsonl", folder / "valid.pt"
    storage.save_tensors(tensors, TENSORS, {"first": 0, "count": 4, "name": "x"})
    storage.write_json(made, MANIFEST)
    storage.write_records(records, [{"step": i, "loss": 0.5} for i in range(5)])
    storage.write_sealed(sealed, bytes(range(256)) * 4)
    valid = {path: path.read_bytes() for path in (tensors, made, records, sealed)}
    idx += bytes(range(24))
    target = folder / "mutated"

    def write(path: Path, rng: random.Random, seal: bool = False) -> bool:
        content = mutate(valid[path], rng)
        content = resealed(content) if seal else content
        target.write_bytes(content)
        return content == valid[path]

    def same(found: dict[str, Any]) -> bool:
        return found.keys() == TENSORS.keys() and all(np.array_equal(found[k], TENSORS[k]) for k in TENSORS)

    def read_tensors(rng: random.Random) -> None:
        write(tensors, rng)
        found, metadata = storage.load_tensors(target, framework="np")
        assert same(found)
        assert metadata == {"first": 0, "count": 4, "name": "x"}

    def read_resealed_tensors(rng: random.Random) -> None:
        write(tensors, rng, seal=True)
        for value in storage.load_tensors(target, framework="np")[0].values():
            value.sum()  # touches what is mapped

    def read_manifest(rng: random.Random) -> None:
        write(made, rng)
        assert manifest.read(target) == MANIFEST

    def read_resealed_manifest(rng: random.Random) -> None:
        write(made, rng, seal=True)
        manifest.read(target)

    def read_other_manifest(rng: random.Random) -> None:
        value = mutated(MANIFEST, rng)
        write_any_json(target, value if isinstance(value, dict) else {"x": value})
        found = manifest.read(target)
        assert all("/" not in entry["file"] and entry["count"] > 0 for entry in found["shards"])

    def read_records(rng: random.Random) -> None:
        write(records, rng)
        assert len(storage.read_records(target)) == 5

    def read_checkpoint(rng: random.Random) -> None:
        same = write(sealed, rng)
        storage.check_sealed(target)
        assert same

    def read_idx(rng: random.Random) -> None:
        content = mutate(idx, rng)
        found = datasets.read_idx(content, "fuzz")
        assert found.size == len(content) - 4 - 4 * found.ndim

    return {
        "safetensors": read_tensors,
        "safetensors, hash made right": read_resealed_tensors,
        "manifest": read_manifest,
        "manifest, hash made right": read_resealed_manifest,
        "manifest of other values": read_other_manifest,
        "training records": read_records,
        "checkpoint's seal": read_checkpoint,
        "IDX": read_idx,
    }


def run(inputs: int, seed: int = 0) -> dict[str, Any]:
    """Feed that many inputs to the readers, in turn.

    Returns:
        readers: name → inputs, refused, read; seconds; grown_mb: what the process holds more than at the start.
    """

    def hung(*_: Any) -> None:
        raise TimeoutError(f"an input took more than {SECONDS} s")

    rng, counts, began = random.Random(seed), {}, time.monotonic()
    start = psutil.Process().memory_info().rss
    before = signal.signal(signal.SIGALRM, hung)
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            every = readers(Path(folder))
            for name, read in every.items():
                refused, total = 0, inputs // len(every)
                for number in range(total):
                    signal.alarm(SECONDS)
                    try:
                        read(rng)
                    except ConsistencyError as error:
                        refused += 1
                        assert "\n" not in str(error), error
                    except Exception as error:
                        raise AssertionError(f"{name}: input {number} of seed {seed}: {error!r}") from error
                counts[name] = (total, refused, total - refused)
            signal.alarm(0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    grown = (psutil.Process().memory_info().rss - start) / 1e6
    assert grown < MEGABYTES, f"the process grew by {grown:.0f} MB"
    return {"readers": counts, "seconds": time.monotonic() - began, "grown_mb": grown}


if __name__ == "__main__":
    print(json.dumps(run(*(int(word) for word in sys.argv[1:3] or ["120000"])), indent=2))
