"""Files: whole or not at all, hashed, and one clear line when something is wrong with them."""

import os
import subprocess
import sys

import pytest
import torch
from consistency import storage
from consistency.compat import ensure_torchvision
from consistency.errors import StorageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_round_trip_and_metadata(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    storage.save_tensors(tmp_path / "x" / "t.safetensors", tensors, {"n": 3, "name": "x"})
    loaded, metadata = storage.load_tensors(tmp_path / "x" / "t.safetensors")
    assert torch.equal(loaded["a"], tensors["a"])
    assert torch.equal(loaded["b"], tensors["b"])
    assert metadata == {"n": 3, "name": "x"}
    arrays, _ = storage.load_tensors(tmp_path / "x" / "t.safetensors", ["b"], framework="np")
    assert arrays["b"].tolist() == [0, 1, 2, 3, 4]
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["t.safetensors"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    storage.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), storage.atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert storage.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("one", "two"):
        with storage.atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["SHA256SUMS", "two"]
    with pytest.raises(ZeroDivisionError), storage.atomic(tmp_path / "folder") as temporary:
        temporary.mkdir()
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["SHA256SUMS", "two"]


def test_full_disk(small_disk):
    keep = small_disk / "keep.json"
    storage.write_json(keep, {"a": 1})
    for write in (
        lambda path: storage.save_tensors(path, {"x": torch.zeros(1_000_000)}),
        lambda path: storage.write_text(path, "x" * 4_000_000),
    ):
        with pytest.raises(StorageError, match="disk full while writing") as caught:
            write(small_disk / "big")
        assert "MB free" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [p.name for p in small_disk.iterdir()] == ["keep.json"]


def test_unwritable_folder():
    with pytest.raises(StorageError, match=r"/proc/results cannot be written .*; choose a writable folder"):
        storage.check_writable("/proc/results")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_text("/proc/results/x", "text")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_storage_error_or_is_caught_by_the_hash(tmp_path, data):
    """Flipped bits, cuts and junk: load either refuses in one line, or the hash tells."""
    path = tmp_path / "t.safetensors"
    storage.save_tensors(path, {"x": torch.arange(32.0), "k": torch.arange(4)}, {"first": 0})
    content = bytearray(path.read_bytes())
    recorded = storage.sha256(path)
    kind = data.draw(st.sampled_from(["flip", "cut", "junk"]))
    if kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        storage.load_tensors(path, expected_sha256=recorded)
    assert str(path) in str(caught.value)
    try:
        storage.load_tensors(path)
    except StorageError as error:
        assert "\n" not in str(error)


def test_missing_names_and_files(tmp_path):
    storage.save_tensors(tmp_path / "t", {"x": torch.zeros(1)})
    with pytest.raises(StorageError, match=r"holds no tensor 'y'; it has \['x'\]"):
        storage.load_tensors(tmp_path / "t", ["y"])
    with pytest.raises(StorageError, match="no such file"):
        storage.load_tensors(tmp_path / "u")
    (tmp_path / "j").write_text("{")
    with pytest.raises(StorageError, match="not valid JSON"):
        storage.read_json(tmp_path / "j")
    with pytest.raises(StorageError, match="cannot be read"):
        storage.sha256(tmp_path / "u")


def test_torchvision_imports_beside_a_cpu_torch():
    ensure_torchvision()
    import torchvision

    assert torchvision.__version__
    ensure_torchvision()  # again does nothing


def test_the_light_modules_import_no_torch():
    code = (
        "import sys, consistency.config, consistency.claims, consistency.metrics.measure, consistency.tables;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_missing_data_file(monkeypatch):
    import sklearn.datasets
    from consistency import data

    def missing():
        raise FileNotFoundError("digits.csv.gz")

    monkeypatch.setattr(sklearn.datasets, "load_digits", missing)
    with pytest.raises(StorageError, match="digits.csv.gz"):
        data.digits()
