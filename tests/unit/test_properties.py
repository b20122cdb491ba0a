"""Properties, by hypothesis: whatever the input, a result or one of the documented errors."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from consistency import config
from consistency.config.resolve import _merge
from consistency.config.shards import shard_range
from consistency.errors import ConfigError, ConsistencyError, MismatchError, StorageError
from consistency.files import storage
from consistency.teachers import manifest
from helpers import write_any_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml") if "suite:" not in path.read_text())
WHOLE = {name: config.load_experiment(name).model_dump() for name in PRESETS}


def quick(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=CHECKS, derandomize=True)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 10**9, 10**40, 0.0, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan, 0.5, 1.0]),
    st.integers(-1000, 1000),
    st.floats(),
    st.sampled_from(["", "digits", "none", "1", "1e3", "/", "..", "~", "x" * 5000, "\x00", "é", "a\nb", "mlp", "hub", "heun"]),
    st.text(max_size=8),
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(["kind", "seed", "loss", "training", "share", "0", ""]), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def places(value, place=()):
    """Every place of a nested value."""
    found = [place]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return found + [p for key, inner in items for p in places(inner, (*place, key))]


PLACES = {name: [place for place in places(whole) if place] for name, whole in WHOLE.items()}


def changed(whole, place, value):
    """The override that puts `value` there; lists are given whole, as users must."""
    key, rest = place[0], place[1:]
    if not rest:
        return {key: value}
    if isinstance(whole[key], dict):
        return {key: changed(whole[key], rest, value)}
    copied = json.loads(json.dumps(whole[key]))
    inner = copied
    for step in rest[:-1]:
        inner = inner[step]
    inner[rest[-1]] = value
    return {key: copied}


def loads_or_refuses(name, overrides):
    try:
        experiment = config.load_experiment(name, overrides)
        assert len(config.expand(name, experiment)) > 0
    except ConfigError as error:
        assert "\n" not in str(error)
        assert 10 < len(str(error)) < 3000
        return False
    return True


@quick(150)
@given(data=st.data())
def test_any_change_of_a_preset_loads_or_is_a_config_error(data):
    name = data.draw(st.sampled_from(PRESETS))
    overrides = {}
    for _ in range(data.draw(st.sampled_from([1, 1, 2]))):
        place = data.draw(st.sampled_from(PLACES[name]))
        overrides = _merge(overrides, changed(WHOLE[name], place, data.draw(VALUES)))
    loads_or_refuses(name, overrides)


@quick(60)
@given(data=st.data())
def test_any_overrides(data):
    loads_or_refuses(data.draw(st.sampled_from(PRESETS)), data.draw(st.dictionaries(KEYS, VALUES, max_size=3)))


@quick(100)
@given(given_=st.dictionaries(st.sampled_from(["experiments", "results", "overrides", "x"]), VALUES, max_size=4))
def test_any_config_yaml(given_):
    try:
        config.load(given_)
    except ConfigError as error:
        assert "\n" not in str(error)


@quick(100)
@given(text=st.one_of(st.text(max_size=60), VALUES.map(lambda value: yaml.safe_dump(value))))
def test_any_preset_file(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8", newline="")
    try:
        config.load_experiment("mine", {}, tmp_path)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_the_presets_themselves_load():
    """The tests above could refuse everything."""
    assert all(loads_or_refuses(name, WHOLE[name] | {"seed": 0} if "seed" in WHOLE[name] else {}) for name in PRESETS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@quick(60)
@given(value=st.dictionaries(st.text().filter(lambda key: key != "sha256"), JSON, max_size=5))
def test_json_comes_back_as_it_was(tmp_path, value):
    for name in "ab":
        storage.write_json(tmp_path / name, value)
    assert storage.read_json(tmp_path / "a") == value
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@quick(60)
@given(records=st.lists(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), min_size=1, max_size=5))
def test_records_come_back_as_they_were(tmp_path, records):
    storage.write_records(tmp_path / "r", records)
    assert storage.read_records(tmp_path / "r") == records


@quick(50)
@given(data=st.data())
def test_tensors_come_back_as_they_were(tmp_path, data):
    dtypes = st.sampled_from(["float16", "float32", "float64", "int64", "int32", "uint8", "bool"])
    tensors = {}
    for name in data.draw(st.lists(st.text("abcxyz_/.@=0123456789é", min_size=1, max_size=8), unique=True, max_size=4)):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        tensors[name] = (
            np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 2, shape).astype(data.draw(dtypes))
        )
    metadata = data.draw(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "sha256"), JSON, max_size=3))
    for name in "ab":
        storage.save_tensors(tmp_path / name, tensors, metadata)
    found, told = storage.load_tensors(tmp_path / "a", framework="np")
    assert told == metadata
    assert found.keys() == tensors.keys()
    assert all(found[k].dtype == v.dtype and np.array_equal(found[k], v) for k, v in tensors.items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@quick(60)
@given(
    rows=st.lists(st.tuples(st.floats(allow_nan=False), st.integers(-9, 9), st.sampled_from(["x", "a,b", '"', "é"])), min_size=1),
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
)  # fmt: skip
def test_tables_come_back_and_flips_are_caught(tmp_path, rows, at, bit):
    path, table = tmp_path / "t.csv", pd.DataFrame(rows, columns=["value", "n", "name"])
    storage.write_table(path, table)
    pd.testing.assert_frame_equal(storage.read_table(path), pd.read_csv(path))
    for file in (path, tmp_path / "t.csv.sha256"):
        content = bytearray(file.read_bytes())
        original = bytes(content)
        content[at % len(content)] ^= 1 << bit
        file.write_bytes(content)
        with pytest.raises(StorageError):
            storage.read_table(path)
        file.write_bytes(original)


@quick(300)
@given(
    value=st.dictionaries(
        st.sampled_from(["mode", "n_steps", "teacher_sha256", "shards", "count", "solver"]),
        VALUES | st.sampled_from(["paper", "trajectory", 5]) | st.just([{"file": "a", "count": 2, "sha256": "0" * 64}]),
        max_size=6,
    )
)
def test_any_manifest_is_read_or_refused(tmp_path, value):
    write_any_json(tmp_path / "m", value)
    try:
        found = manifest.read(tmp_path / "m")
    except StorageError as error:
        assert "\n" not in str(error)
    else:
        assert found["mode"] in ("paper", "trajectory")
        assert all(entry["count"] >= 1 for entry in found["shards"])


@quick(40)
@given(count=st.integers(1, 60), shards=st.integers(1, 8), data=st.data())
def test_shards_are_gathered_or_refused(tmp_path, count, shards, data):
    """Any cover of the draws is gathered; any other set or order of shards is refused."""
    paths = []
    for number in range(shards):
        numbers = shard_range(count, shards, number)
        paths.append(tmp_path / f"shard-{number}.safetensors")
        told = {"first": numbers.start, "count": len(numbers), "teacher_calls": 1, "teacher_calls_minimum": 1}
        storage.save_tensors(paths[-1], {"x_0": np.zeros((len(numbers), 2), np.float32)}, told)
    settings_ = {"mode": "paper", "n_steps": 5, "count": count}
    chosen = data.draw(st.permutations(paths)) if data.draw(st.booleans()) else paths
    chosen = chosen[: data.draw(st.integers(1, shards))] if data.draw(st.booleans()) else chosen
    sizes = [len(shard_range(count, shards, int(p.stem.split("-")[1]))) for p in chosen]
    starts = [shard_range(count, shards, int(p.stem.split("-")[1])).start for p in chosen]
    whole = sum(sizes) == count and starts == [sum(sizes[:i]) for i in range(len(sizes))]
    try:
        manifest.gather(tmp_path / "manifest.json", chosen, settings_, "0" * 64)
    except MismatchError:
        assert not whole
    else:
        assert whole


@quick(200)
@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_readers_of_any_bytes(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    (tmp_path / "SHA256SUMS").write_bytes(content)
    readers = (storage.load_tensors, storage.read_json, storage.read_records, storage.read_sealed, manifest.read)
    for read in (*readers, storage.weights_sha256):
        with pytest.raises(ConsistencyError) as caught:
            read(tmp_path / "f")
        assert "\n" not in str(caught.value)
    if content:  # of nothing is nothing listed
        with pytest.raises(StorageError):
            storage.check_folder(tmp_path)


@quick(100)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), where=st.sampled_from(["a", "sub/b", "SHA256SUMS"]))
@pytest.mark.parametrize("part", ["", "sub"])
def test_a_flip_in_a_folder_is_caught(tmp_path, part, at, bit, where):
    """Also where only a part of it is read, as of a pipeline."""
    folder = tmp_path / "folder"
    with storage.atomic(folder) as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "a").write_bytes(b"first")
        (temporary / "sub" / "b").write_bytes(b"second")
    storage.check_folder(folder / part)
    content = bytearray((folder / where).read_bytes())
    content[at % len(content)] ^= 1 << bit
    (folder / where).write_bytes(content)
    of_sub = where == "sub/b" or (where == "SHA256SUMS" and at % len(content) >= content.index(b"\n") + 1)
    if part and not of_sub:
        return  # another part's
    with pytest.raises(StorageError):
        storage.check_folder(folder / part)
