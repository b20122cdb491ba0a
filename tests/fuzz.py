"""A fuzz of the readers of files and configurations: mutations of valid ones, and files that declare more than they hold
(`bombs`); and of the formats that texts are written into. Nothing but the documented errors may come, no wrong value, and
no more memory than `PEAK`.

`python tests/fuzz.py [inputs] [seed] [--write]`; part of `make soak`, and a short version of the suite.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

import bombs  # noqa: E402
import hostile  # noqa: E402
from consistency import config, networks  # noqa: E402
from consistency.data import archives, datasets, images  # noqa: E402
from consistency.data.account import Account  # noqa: E402
from consistency.errors import ConsistencyError  # noqa: E402
from consistency.files import hashes, storage  # noqa: E402
from consistency.files.hashes import ZEROS  # noqa: E402
from consistency.teachers import manifest  # noqa: E402
from helpers import ROOT, write_any_json  # noqa: E402
from readers import CHECKS  # noqa: E402

SECONDS, MEGABYTES = 10, 300  # what one input may take; by how much the process may grow
PEAK = 1000  # MB that it may hold at any time more than at the start

CONTENT = bytes(range(256)) * 4
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
    storage.write_sealed(sealed, CONTENT)
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
        write(sealed, rng)
        assert storage.read_sealed(target, lambda file: file.read()) == CONTENT

    def read_idx(rng: random.Random) -> None:
        content = mutate(idx, rng)
        found = datasets.read_idx(content, "fuzz")
        assert found.size == len(content) - 4 - 4 * found.ndim

    return (
        {
            "safetensors": read_tensors,
            "safetensors, hash made right": read_resealed_tensors,
            "manifest": read_manifest,
            "manifest, hash made right": read_resealed_manifest,
            "manifest of other values": read_other_manifest,
            "training records": read_records,
            "checkpoint's seal": read_checkpoint,
            "IDX": read_idx,
        }
        | users_readers(folder / "users")
        | configurations(folder / "presets")
        | {"texts in outputs": write_text}
    )


def encoded(kind: str) -> bytes:
    """A small image."""
    file = io.BytesIO()
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def users_readers(folder: Path) -> dict[str, Callable[[random.Random], Any]]:
    """As `readers`, of what users have from others: archives, images, captions, networks' folders."""
    folder.mkdir()
    pictures = [encoded(kind) for kind in ("PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG")]
    files = {f"{k}.png": pictures[0] for k in range(3)} | {f"{k}.txt": b"a caption" for k in range(3)}
    packed = {name: archive(files, name) for name in ("zip", "tar", "tar.gz")}
    table = b"file_name,text\n0.png,a\n1.png,b\n"
    lines = b'{"file_name": "0.png", "text": "a"}\n{"file_name": "1.png", "caption": "b"}\n'
    place, network = folder / "captioned", folder / "network"
    place.mkdir()
    for name in ("0.png", "1.png"):
        (place / name).write_bytes(pictures[0])
    networks.save(networks.build({"kind": "mlp", "width": 4, "depth": 1}, (1, 2, 2), 2, 10, 0), network)
    sums = (network / hashes.SUMS).read_bytes()
    config = (network / "config.json").read_bytes()

    def read_archive(content: bytes, name: str) -> None:
        path = folder / f"a.{name}"
        path.write_bytes(content)
        read = datasets.captioned(str(path), 4) if name != "zip" else archives.members(path, lambda name: True)
        assert all(isinstance(entry, tuple) for entry in read)

    def mutated_archive(rng: random.Random) -> None:
        name = rng.choice(list(packed))
        read_archive(mutate(packed[name], rng), name)

    def forged_archive(rng: random.Random) -> None:
        content, name = forged(rng)
        read_archive(mutate(content, rng) if rng.random() < 0.5 else content, name)

    def decode(content: bytes) -> None:
        assert images.decode(content, Path("a.zip"), "a", 4, None, Account("a")).shape == (3, 4, 4)

    def mutated_image(rng: random.Random) -> None:
        decode(mutate(rng.choice(pictures), rng))

    def forged_image(rng: random.Random) -> None:
        content = picture(rng)
        decode(mutate(content, rng) if rng.random() < 0.3 else content)

    def read_captions(rng: random.Random) -> None:
        for path in place.glob("metadata.*"):
            path.unlink()
        name, content = rng.choice((("metadata.csv", table), ("metadata.jsonl", lines)))
        (place / name).write_bytes(mutate(content, rng))
        assert len(list(datasets.captioned(str(place), 4))) <= 2

    def read_sums(rng: random.Random) -> None:
        name = rng.choice(("../../etc/hostname", "/etc/hostname", "a/../../x", "config.json", "x\0", "\x1b[2J", "."))
        added = f"{rng.randbytes(32).hex()}  {name}\n".encode() if mutate is MUTATE and rng.random() < 0.5 else b""
        (network / hashes.SUMS).write_bytes(mutate(sums, rng) + added)
        try:
            hashes.check_folder(network)
        finally:
            (network / hashes.SUMS).write_bytes(sums)

    def read_network(rng: random.Random) -> None:
        (network / hashes.SUMS).unlink()
        stated = json.loads(config)
        for _ in range(rng.choice((1, 1, 2)) if mutate is MUTATE else 0):
            key, size = rng.choice(list(stated)), 10 ** rng.randrange(1, 3000)
            stated[key] = rng.choice((size, -size, [size, size], [size] * 1000, {"a": size}, None, "x", 1e300))
        (network / "config.json").write_bytes(mutate(json.dumps(stated).encode(), rng))
        try:
            networks.load(network)
        finally:
            (network / "config.json").write_bytes(config)
            (network / hashes.SUMS).write_bytes(sums)

    return {
        "archives": mutated_archive,
        "archives that declare more": forged_archive,
        "images": mutated_image,
        "images that declare more": forged_image,
        "captions": read_captions,
        "SHA256SUMS": read_sums,
        "a network's configuration": read_network,
    }


PRESET = b"""\
title: A small one
data: &d {kind: digits, test_share: 0.2}
network: {kind: mlp, width: 32}
schedule: {steps: 1000}
targets: {count: 4096, shards: 2}
methods: {cm: {objective: consistency_distillation}, direct: &m {objective: direct, loss: {kind: mse}}, ct: {objective: consistency_training}}
evaluation: {count: 100, sampling_steps: [1, 2]}
runs:
  - {solver: [ddim, heun], n_steps: [10, 50], guidance: [1, 4.5], seed: [0, 1]}
  - {method: ct, seed: 0}
claims: [A1]
"""
IN_YAML = [b"&a ", b"*a", b"*d", b"<<: *m", b"[*m, *m, *m]", b"!!python/object:os.system ", b"!!binary ", b"!!set ", b"? ", b"---\n",
           b"base: p\n", b"suite: [p]\n", b"\t", b"{", b"]", b"{a: " * 2000, b"&t [*t]", b"1:1:1:1", b"0x" + b"f" * 300, b".inf",
           b"2026-02-31", b"~", b"'", b'"\\0"', b"\xe2\x80\xae", b"#"]  # fmt: skip


def configurations(folder: Path) -> dict[str, Callable[[random.Random], Any]]:
    """As `readers`, of presets and of what overrides them."""
    folder.mkdir()
    preset, base = folder / "p.yaml", folder / "base.yaml"
    base.write_bytes(PRESET)
    whole = config.load_experiment("base", presets=folder).model_dump()

    def load(name: str, changes: Any = None) -> None:
        overrides = {} if changes is None else {"overrides": {name: changes}}
        settings, experiments = config.load({"experiments": [name]} | overrides, folder)
        for experiment in experiments.values():
            assert len(config.expand(name, experiment)) <= config.LARGEST_TABLE
        for line in config.warnings(settings, experiments):
            assert "\n" not in line

    def read_preset(rng: random.Random) -> None:
        content = mutate(PRESET, rng)
        for _ in range(rng.choice((0, 1, 1, 2)) if mutate is MUTATE else 0):
            at = rng.randrange(len(content) + 1)
            content = content[:at] + rng.choice(IN_YAML) + content[at:]
        preset.write_bytes(content)
        load("p")

    def override(rng: random.Random) -> None:
        key = rng.choice(list(whole))
        load("base", {key: mutated(whole[key], rng)} if mutate is MUTATE else {"title": "another"})

    return {"presets": read_preset, "overrides": override}


def write_text(rng: random.Random) -> None:
    """Check a text in every format, with the format's own reader."""
    text = "".join(rng.choice(SIGNS) for _ in range(rng.randrange(60)))
    if rng.random() < 0.3:
        text = rng.choice(list(hostile.TEXTS.values()))[:200] + text
    for check in CHECKS:
        check(text)


SIGNS = [
    *"<>&;\"'\\{}$#^~%_*`|[]()!:/=+-.12 ab\n\t\x00\u2028\u202e\ud800–±",
    "</script>",
    "<!--",
    "](",
    "www.",
    "&#",
    "\r\n",
    "漢",
]
MUTATE = mutate  # which a test replaces


def archive(files: dict[str, bytes], kind: str) -> bytes:
    """A zip, tar or tar.gz of these files."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as opened:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
    return file.getvalue()


def forged(rng: random.Random) -> tuple[bytes, str]:
    """An archive that declares more than it holds, or unpacks to more than it declares, and its type."""
    size, kind = 2 ** rng.randrange(1, 64), rng.randrange(7)
    if kind == 0:
        return bombs.lying_zip("a.png", bytes(rng.choice((0, 100, 10**6))), min(size, 2**32 - 2)), "zip"
    if kind == 1:
        return bombs.lying_zip("a.png", b"", 2**32 - 1, struct.pack("<HHQ", 1, 8, size)), "zip"
    if kind == 2:
        return bombs.overlapping_zip(rng.randrange(2, 40), rng.choice((100, 10**6))), "zip"
    if kind == 3:
        return bombs.sparse_tar(size), "tar"
    if kind == 4:
        key = rng.choice(("size", "GNU_sparse_size", "GNU_sparse_realsize", "GNU_sparse_map", "path", "mtime"))
        text = rng.choice((str(size), str(-size), "0," * 1000, "x" * rng.randrange(10**4)))
        return bombs.pax_tar(GNU_sparse_major="1", GNU_sparse_minor="0", **{key: text}), "tar"
    of = rng.choice((b"0", b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5", b"6"))
    field = (b"\x80" if rng.random() < 0.5 else b"\xff") + size.to_bytes(11, "big")
    content = bombs.tar_header("a.png", 0, of, field) + bytes(rng.choice((0, 512, 1024, 3 * 10**6)))
    return (gzip.compress(content, 1), "tar.gz") if kind == 5 else (content, "tar")


def picture(rng: random.Random) -> bytes:
    """An image whose header declares any size, or any number of frames or of bytes in a chunk."""
    width, height = (rng.choice((1, 7, 2**14, 2 ** rng.randrange(1, 31))) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        part = rng.choice((b"zTXt", b"iCCP", b"iTXt", b"eXIf", b"acTL", b"tEXt"))
        content = b"k\0\0" + zlib.compress(bytes(rng.choice((10, 10**5, 10**7))), 1)
        return bombs.png(width, height, bombs.chunk(part, content), pixels=bytes(100))
    if kind == 1:
        return bombs.bmp(width, rng.choice((height, -height)))
    if kind == 2:
        return bombs.gif(width % 2**16, height % 2**16, rng.choice((1, 2, 1000)))
    if kind == 3:
        return bombs.tiff(rng.choice((1, 2, 1000)), rng.choice((0, 0, 0, 100)))
    if kind == 4:
        return bombs.webp(1 + width % 2**14, 1 + height % 2**14)
    return bombs.png(width, height, pixels=bytes(100))


def run(inputs: int, seed: int = 0) -> dict[str, Any]:
    """Feed that many inputs to the readers, in turn.

    Returns:
        readers: name → inputs, refused, read; seconds; grown_mb, peak_mb: what the process holds at the end, and held
            at most, more than at the start.
    """

    def hung(*_: Any) -> None:
        raise TimeoutError(f"an input took more than {SECONDS} s")

    rng, counts, began = random.Random(seed), {}, time.monotonic()
    start = psutil.Process().memory_info().rss
    before = signal.signal(signal.SIGALRM, hung)
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of every tag
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - start / 1e6
    assert peak < PEAK, f"the process held up to {peak:.0f} MB more than at the start"
    return {"readers": counts, "seconds": time.monotonic() - began, "grown_mb": grown, "peak_mb": peak}


def report(found: dict[str, Any], inputs: int, seed: int) -> str:
    """What a run found, as benchmarks/fuzz.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = "".join(f"| {name} | {n} | {bad} | {good} |\n" for name, (n, bad, good) in found["readers"].items())
    return f"""# Fuzz

`python tests/fuzz.py {inputs} {seed} --write` at commit {commit.stdout.strip()}, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores
shared with other work: {found["seconds"]:.0f} s; the process held {found["grown_mb"]:.0f} MB more at the end than at the start, and at most
{found["peak_mb"]:.0f} MB more.

Inputs are mutations of valid files, presets and overrides; those that "declare more" are forged to declare any size, or to unpack to
more than they declare, and some of them are mutated besides. "Hash made right" gives the mutation a hash that fits, so that what lies
behind the hash is met too; IDX files carry no hash of their own. "Texts in outputs" are hostile texts, each written as HTML, a script's
JSON, Markdown and TeX and read again by a parser of that format, which must find the text and nothing else.

Nothing came but the documented errors, in one line each, and no wrong value.

| reader | inputs | refused | read |
|---|---|---|---|
{rows}"""


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("inputs", nargs="?", type=int, default=180_000)
    options.add_argument("seed", nargs="?", type=int, default=0)
    options.add_argument("--write", action="store_true", help="record it in benchmarks/fuzz.md")
    chosen = options.parse_args()
    text = report(run(chosen.inputs, chosen.seed), chosen.inputs, chosen.seed)
    if chosen.write:
        (ROOT / "benchmarks" / "fuzz.md").write_text(text, encoding="utf-8")
    print(text)
