"""A user's own metrics: what they see, and their rows of samples and of the data."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from consistency import plugins
from consistency.config.registry import Registry
from consistency.errors import PluginError
from consistency.evaluate import own, yardstick
from consistency.files.storage import read_json, save_tensors, sha256
from helpers import ROOT, surroundings

PLUGIN = """
import torch
from consistency.plugins import metric


@metric(direction="higher")
def brightness(samples, pixels, context, *, gain=1.0):
    return gain * pixels.mean()


@metric
def spread(samples, pixels, context):
    return samples.std().item() + len(context.labels) + (context.sampling_steps or 0)


@metric
def offset(samples, pixels, context):
    assert context.space in ("pixels", "coordinates"), context.space
    return (samples if pixels is None else pixels).mean() - context.reference.mean()


@metric
def chance(samples, pixels, context):
    return torch.rand(())


@metric
def broken(samples, pixels, context, *, how="text"):
    if how == "place":
        samples.mul_(2)
    if how == "error":
        return samples[len(samples)].mean()
    return {"text": "much", "nan": float("nan"), "vector": samples, "none": None, "place": 1.0}[how]
"""


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """Calls of the plug-in's metrics: `metrics(brightness={"gain": 2.0}, …)`."""
    monkeypatch.chdir(tmp_path)
    plugins._module.cache_clear()
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    registry = Registry.read(["mine.py"])
    return lambda **params: [registry.get("metric", name).call(values) for name, values in params.items()]


@pytest.fixture
def data(tmp_path):
    """A data set of 40 images of 8 bits."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8))
    save_tensors(tmp_path / "data.safetensors", {"train_images": images, "train_labels": torch.arange(40) % 10})
    return {"data": tmp_path / "data.safetensors", "images": tmp_path / "data.safetensors"}, images / 127.5 - 1


SAMPLES = np.random.default_rng(1).normal(size=(30, 1, 4, 4)).astype(np.float32) * 2
LABELS = np.arange(30)


def test_rows_of_samples(metrics, data):
    files, images = data
    calls = metrics(brightness={"gain": 2.0}, spread={}, offset={}, chance={})
    rows = own.OwnMetrics(calls, "pixels", "train_images", **files).of_samples(SAMPLES, LABELS, 4, "@budget=0.5")
    values = {row["metric"]: row["value"] for row in rows}
    clipped = SAMPLES.clip(-1, 1).mean()
    assert values["brightness@budget=0.5"] == pytest.approx(2 * clipped, abs=1e-6)
    assert values["spread@budget=0.5"] == pytest.approx(SAMPLES.std(ddof=1) + 30 + 4, abs=1e-4)
    assert values["offset@budget=0.5"] == pytest.approx(clipped - images.mean().item(), abs=1e-6)
    fixed = {"extractor": "own", "reference": "none", "sampling_steps": 4, "n_samples": 30}
    assert [{key: row[key] for key in fixed} for row in rows] == [fixed] * 4


def test_a_metric_that_draws_gives_the_same_again(metrics, data):
    first, second = (
        own.OwnMetrics(metrics(chance={}), "pixels", "train_images", **data[0]).of_samples(SAMPLES, LABELS, 1)
        for _ in range(2)
    )
    assert first == second


def test_rows_of_the_data(metrics, data, monkeypatch):
    files, images = data
    calls = metrics(brightness={}, spread={}, offset={})
    rows = own.OwnMetrics(calls, "pixels", "train_images", **files).of_data()
    assert [row["value"] for row in rows] == pytest.approx(
        [images.mean().item(), images.std().item() + 40, 0], abs=1e-5
    )
    assert {(row["sampling_steps"], row["n_samples"]) for row in rows} == {(None, 40)}
    monkeypatch.setattr(own, "LARGEST", 25)
    first, second = (own.OwnMetrics(calls, "pixels", "train_images", **files).of_data() for _ in range(2))
    assert first == second
    assert first[0]["n_samples"] == 25


def test_points_have_no_pixels(metrics, tmp_path):
    points = torch.linspace(0, 1, 40).reshape(20, 2)
    save_tensors(tmp_path / "points.safetensors", {"test_images": points, "test_labels": torch.zeros(20)})
    files = dict.fromkeys(("data", "images"), tmp_path / "points.safetensors")
    measured = own.OwnMetrics(metrics(offset={}), "coordinates", "test_images", **files)
    rows = measured.of_samples(np.ones((8, 2)), np.zeros(8), 1)
    assert rows[0]["value"] == pytest.approx(0.5)
    with pytest.raises(PluginError, match=r"mine.py:8: brightness: AttributeError: 'NoneType'"):
        own.OwnMetrics(metrics(brightness={}), "coordinates", "test_images", **files).of_samples(
            np.ones((8, 2)), np.zeros(8), 1
        )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("text", r"mine.py: broken: gives much; allowed: one number"),
        ("vector", r"mine.py: broken: gives tensor\(.*; allowed: one number"),
        ("none", r"mine.py: broken: gives None; allowed: one number"),
        ("nan", r"mine.py: broken: gives nan; allowed: a finite number"),
        ("place", r"mine.py: broken: changes its samples, pixels or labels; allowed: to change a copy"),
        ("error", r"mine.py:\d+: broken: IndexError"),
    ],
)
def test_a_metric_that_fails(metrics, data, how, words):
    measured = own.OwnMetrics(metrics(broken={"how": how}), "pixels", "train_images", **data[0])
    with pytest.raises(PluginError, match=words):
        measured.of_samples(SAMPLES.copy(), LABELS, 1)


def test_the_file_of_metrics_has_the_rows_and_their_protocol(metrics, data, tmp_path):
    files, calls = data[0], metrics(brightness={})
    measured = own.OwnMetrics(calls, "pixels", "train_images", **files)
    cards, run = [{"name": "x"}], {"run": "data", "method": "data"}
    tensors = {"x/train_images.mean": torch.zeros(3), "x/train_images.covariance": torch.eye(3)}
    tensors["x/train_images.features"] = torch.randn(40, 3, generator=torch.manual_seed(0))
    save_tensors(tmp_path / "features.safetensors", tensors)
    options = {"data": files["data"], "labels": "train_labels", "own": measured}
    yardstick.measure_data(tmp_path / "out.json", run, tmp_path / "features.safetensors", cards, 3, {}, **options)
    value = read_json(tmp_path / "out.json")
    assert [row["metric"] for row in value["rows"]] == ["frechet_distance", "brightness"]
    assert value["protocol"]["own_metrics"] == calls
    assert value["protocol"]["data_sha256"] == sha256(files["data"])


def test_without_metrics_nothing_is_read_and_torch_is_not_imported():
    code = (
        "import sys, numpy; from consistency.evaluate.own import OwnMetrics\n"
        "own = OwnMetrics([], 'pixels', 'train_images')\n"
        "print(bool(own), own.of_samples(numpy.ones((2, 2)), numpy.ones(2), 1), 'torch' in sys.modules)"
    )
    environment = surroundings(PYTHONPATH=str(ROOT / "workflow"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False [] False", "")
