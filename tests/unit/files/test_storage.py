"""Files: whole or not at all, hashed, and one clear line when something is wrong with them."""

import io
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from consistency.data import prepare
from consistency.errors import MismatchError, StorageError
from consistency.files import storage
from consistency.runtime.compat import ensure_torchvision
from consistency.teachers import targets
from consistency.training import checkpoints
from helpers import ROOT
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
def test_any_damage_is_a_storage_error(tmp_path, data):
    """Flipped bits, cuts and junk: refused in one line, with a recorded hash and with the file's own."""
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
    for expected in (recorded, None):
        with pytest.raises(StorageError) as caught:
            storage.load_tensors(path, expected_sha256=expected)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


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
        "import sys, consistency.config.resolve, consistency.evaluate.measure, consistency.report.tables;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_missing_data_file(tmp_path, monkeypatch):
    import sklearn.datasets

    def missing():
        raise FileNotFoundError("digits.csv.gz")

    monkeypatch.setattr(sklearn.datasets, "load_digits", missing)
    with pytest.raises(StorageError, match="digits.csv.gz"):
        prepare.prepare(tmp_path / "data", {"kind": "digits", "test_share": 0.2, "seed": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["torch", "numpy", "half", "scalar"])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, value, kind):
    tensor = torch.zeros(5, 3)
    tensor[2, 1] = tensor[4, 0] = value
    tensor = {"numpy": tensor.numpy(), "half": tensor.bfloat16(), "scalar": torch.tensor(value)}.get(kind, tensor)
    rows = "1 of 1 rows, first in row 0" if kind == "scalar" else "2 of 5 rows, first in row 2"
    with pytest.raises(MismatchError, match=f"t.safetensors: not written: x is not finite in {rows}"):
        storage.save_tensors(tmp_path / "t.safetensors", {"x": tensor})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_finite_numbers_only(tmp_path, bad):
    rows = [{"value": 1.0}, {"value": bad}]
    for write, content, key in (
        (storage.write_json, {"rows": rows, "n": 3}, r"rows\.1\.value"),
        (storage.write_json, {"a": {"b": (1, bad)}}, r"a\.b\.1"),
        (storage.write_records, rows, r"1\.value"),
        (lambda path, value: storage.save_tensors(path, {"x": np.ones(2)}, value), {"mean": bad}, "mean"),
    ):
        with pytest.raises(MismatchError, match=rf"not written: {key} is -?(nan|inf), not a finite number"):
            write(tmp_path / "x", content)
        assert not (tmp_path / "x").exists()


def test_nan_in_data(tmp_path, monkeypatch):
    import sklearn.datasets

    images = np.zeros((20, 8, 8), np.float32)
    images[7, 3, 3] = np.nan
    bunch = SimpleNamespace(images=images, target=np.arange(20) % 10)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    with pytest.raises(MismatchError, match=r"data: not written: (test|train)_images is not finite in 1 of \d+ rows"):
        prepare.prepare(tmp_path / "data", {"kind": "digits", "test_share": 0.2, "seed": 0})


def test_nan_in_targets(tmp_path, teacher):
    whole = teacher.eps

    def broken(cond, guidance):
        predict = whole(cond, guidance)
        return lambda x, t: predict(x, t).masked_fill(cond.view(-1, 1, 1, 1) == 3, float("nan"))

    teacher.eps = broken
    images, labels = torch.zeros(10, 1, 8, 8), torch.arange(10)
    with pytest.raises(MismatchError, match="shard: the teacher's ODE solution is not finite; check teacher"):
        targets.solve_shard(tmp_path / "shard", teacher, images, labels, range(40), "paper", "ddim", 5, 1.0, 0, 16)
    assert not (tmp_path / "shard").exists()


def test_a_flipped_bit_in_a_checkpoint(tmp_path, caplog):
    """torch alone reads most of these flips as other numbers."""
    weights, path, rng = {"w": torch.randn(50)}, tmp_path / "checkpoint.pt", random.Random(0)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weights["w"])]).state_dict()
    checkpoints.write_checkpoint(path, {"step": 5, "weights": weights, "optimizer": optimizer}, {"a": 1})
    whole = checkpoints.read_checkpoint(path, {"a": 1})
    assert whole["step"] == 5
    assert torch.equal(whole["weights"]["w"], weights["w"])
    original, by_torch = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(original)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert checkpoints.read_checkpoint(path, {"a": 1}) is None
        try:
            torch.load(io.BytesIO(content[content.index(b"\n") + 1 :]), weights_only=True)
        except Exception:
            by_torch += 1
    assert by_torch < 50
    assert caplog.text.count("damaged checkpoint (StorageError); training starts from the beginning") == 60


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in "ab":
        storage.save_tensors(tmp_path / f"{name}.t", {"x": torch.ones(3), "y": torch.zeros(2)}, {"p": 1, "a": 2})
        storage.write_json(tmp_path / f"{name}.j", {"p": 1, "a": {"sha256": "0" * 64}})
        with storage.atomic(tmp_path / f"{name}.d") as temporary:
            temporary.mkdir()
            (temporary / "z").write_text("z")
            (temporary / "b").write_text("b")
    for kind in ("t", "j", "d/SHA256SUMS"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert storage.read_json(tmp_path / "a.j") == {"p": 1, "a": {"sha256": "0" * 64}}


def test_what_is_not_ours_is_refused_or_read_as_it_is(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "t")
    (tmp_path / "j").write_text('{"a": 1}')
    for read in (storage.load_tensors, storage.read_json):
        with pytest.raises(StorageError, match="not written by this pipeline: it states no sha256"):
            read(tmp_path / ("t" if read is storage.load_tensors else "j"))
    assert storage.read_json(tmp_path / "j", sealed=False) == {"a": 1}
    storage.check_folder(tmp_path)  # without SHA256SUMS
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert storage.read_table(tmp_path / "t.csv").a.tolist() == [1]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    code = (
        "import os, sys; from consistency.files import storage\n"
        "with storage.atomic(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": "workflow"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a-b.json"], env=environment)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / f".tmp-{os.uname().nodename}-{os.getpid()}-other.json"  # of the living
    far = tmp_path / ".tmp-elsewhere-1-a-b.json"  # of another machine
    for path in (mine, far):
        path.touch()
    storage.write_json(tmp_path / "a-b.json", {})
    assert not left.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([far.name, mine.name, "a-b.json"])


def test_verify_does_not_call_nothing_whole(tmp_path):
    command = [sys.executable, str(ROOT / "workflow/scripts/verify.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"verify: {tmp_path} holds no file of this pipeline; name the folder of results\n"
