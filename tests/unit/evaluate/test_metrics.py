"""Distances against clean-fid and closed forms; features and rows."""

import numpy as np
import pytest
import torch
from consistency.errors import MismatchError
from consistency.evaluate.distances import FeatureSet, frechet, frechet_distance, kernel_distance, precision_recall
from consistency.runtime.compat import ensure_torchvision

ensure_torchvision()


def features(n, d, seed, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).standard_normal((d, d)) / d**0.5
    return (rng.standard_normal((n, d)) @ mix * scale + shift).astype(np.float32)


@pytest.mark.parametrize("d", [4, 64])
def test_frechet_equals_clean_fid(d):
    from cleanfid.fid import frechet_distance as theirs

    a, b = FeatureSet(features(500, d, 1)), FeatureSet(features(400, d, 2, 0.3, 1.4))
    expected = theirs(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_frechet_closed_form_and_singular_covariance():
    mean, cov = np.zeros(3), np.diag([1.0, 4.0, 0.0])
    assert frechet(mean, cov, mean + 2, np.diag([9.0, 4.0, 1.0])) == pytest.approx(3 * 4 + (1 - 3) ** 2 + 0 + 1)
    assert frechet(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)


def test_kernel_distance_equals_clean_fid():
    """clean-fid's estimator on one subset that holds all samples."""
    from cleanfid.fid import kernel_distance as theirs

    a, b = features(200, 16, 1), features(200, 16, 2, 0.3)
    expected = theirs(a.astype(np.float64), b.astype(np.float64), num_subsets=1, max_subset_size=200)
    assert kernel_distance(FeatureSet(a), FeatureSet(b)) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased():
    values = [
        kernel_distance(FeatureSet(features(50, 8, 2 * i)), FeatureSet(features(50, 8, 2 * i + 1))) for i in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0


def test_precision_and_recall_by_brute_force():
    samples, reference = FeatureSet(features(60, 5, 1, 0.5)), FeatureSet(features(40, 5, 2))

    def covered(points, others):
        count = 0
        for p in points.features:
            for q in others.features:
                radius = np.sort([np.linalg.norm(q - r) for r in others.features])[3]
                if np.linalg.norm(p - q) <= radius:
                    count += 1
                    break
        return count / len(points)

    expected = covered(samples, reference), covered(reference, samples)
    assert precision_recall(samples, reference) == pytest.approx(expected)
    assert 0 < expected[0] < 1


@pytest.mark.parametrize("k", [1, 3, 10, 11, 20])
def test_a_ball_reaches_to_the_kth_neighbour(k):
    """Of points on a line also where neighbours are equally far, and of a point that is there twice."""
    line = np.concatenate([np.arange(30.0), [4.0]])[:, None]
    found = FeatureSet(line, neighbours=k).radii
    assert found == pytest.approx(np.sort(np.square(line - line.T), axis=1)[:, k], abs=1e-9)


def test_precision_and_recall_at_the_extremes():
    near, far = FeatureSet(features(50, 4, 1)), FeatureSet(features(50, 4, 2, 100.0))
    assert precision_recall(near, near) == (1.0, 1.0)
    assert precision_recall(near, far) == (0.0, 0.0)
    collapsed = FeatureSet(near.features[:1] + 1e-6 * features(50, 4, 3))
    precision, recall = precision_recall(collapsed, near)
    assert precision == 1.0
    assert recall < 0.1


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory, digits):
    from consistency.config.settings import Training
    from consistency.training.recipes import fit_classifier

    folder = tmp_path_factory.mktemp("classifier")
    settings = Training(steps=150, batch_size=64, learning_rate=2e-3).model_dump()
    fit_classifier(folder / "model", folder / "stats", folder / "side", digits, "digits-classifier", 8, 16, settings, 0)
    return folder / "model"


def test_classifier_is_better_than_chance_and_its_card_is_true(classifier_folder, digits):
    from consistency.data import prepare
    from consistency.networks import classifier

    network, card = classifier.load(classifier_folder)
    tensors, _ = prepare.load(digits)
    with torch.no_grad():
        predicted = network(tensors["test_images"]).argmax(1)
    share = (predicted == tensors["test_labels"]).float().mean().item()
    assert card["held_out_accuracy"] == pytest.approx(share)
    assert card["held_out_count"] == 359
    assert share > 0.8


def test_extracted_statistics_belong_to_clipped_images(tmp_path, classifier_folder):
    from consistency.evaluate import features
    from consistency.files.storage import load_tensors, save_tensors
    from consistency.networks import classifier

    images = 3 * torch.randn(50, 1, 8, 8)
    save_tensors(tmp_path / "s.safetensors", {"steps_1": images, "steps_2": images / 2, "from_900": images + 1})
    network, _ = classifier.load(classifier_folder)
    used = [{"kind": "classifier", "folder": classifier_folder}]
    cards = features.extract(tmp_path / "f.safetensors", tmp_path / "s.safetensors", ["samples", "steps_"], 16, used)
    found, _ = load_tensors(tmp_path / "f.safetensors")
    name = cards[0]["name"]
    assert {key.split(".")[0] for key in found} == {f"{name}/steps_1", f"{name}/steps_2"}
    with torch.no_grad():
        expected = network.features(images.clamp(-1, 1))
    torch.testing.assert_close(found[f"{name}/steps_1.features"], expected, rtol=1e-4, atol=1e-5)
    covariance = np.cov(expected.double().numpy().T)
    np.testing.assert_allclose(found[f"{name}/steps_1.covariance"].numpy(), covariance, atol=1e-6)


def test_few_step_times_lie_on_the_grid():
    from consistency.flow.schedules import VPSchedule
    from consistency.students.sampling import start_indices

    assert VPSchedule().times(1, 10) == [1000]
    assert VPSchedule().times(4, 10) == [1000, 800, 500, 300]
    assert VPSchedule().times(2, 50) == [1000, 500]
    assert start_indices(50, 10) == list(range(0, 50, 5))
    assert start_indices(5, 10) == [0, 1, 2, 3, 4]


def test_few_step_sampling_of_an_exact_student_stays_exact():
    """For point-mass data f is constant: every number of steps gives the point, batch by batch."""
    from consistency.flow.schedules import VPSchedule
    from consistency.students.samplers import renoise
    from consistency.students.sampling import sample

    class Exact:
        flow = VPSchedule()

        def __call__(self, x, t, cond):
            self.seen, self.time = x, t
            return torch.full_like(x, 0.7)

    student, noise = Exact(), torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = sample(student, renoise, 5, noise, None, seed=0, n_steps=10)
    assert torch.equal(samples, torch.full_like(noise, 0.7))
    seen = student.seen
    sample(student, renoise, 5, noise[4:], None, seed=0, first=4, n_steps=10)
    assert torch.equal(student.seen, seen[4:])  # re-noising belongs to the sample, not to the batch
    assert student.time == 200
    sigma = VPSchedule().sigma[200].item()
    assert (seen - VPSchedule().alpha[200].item() * 0.7).std().item() == pytest.approx(sigma, rel=0.5)


def test_noise_file_of_another_length_or_shape(tmp_path):
    from consistency.errors import StorageError
    from consistency.files.storage import save_tensors
    from consistency.students.sampling import load_noise

    path = tmp_path / "noise.safetensors"
    with pytest.raises(StorageError, match="no such file"):
        load_noise(path, (1, 8, 8), 10)
    save_tensors(path, {"noise": torch.randn(9, 1, 8, 8), "labels": torch.zeros(9, dtype=torch.int64)})
    with pytest.raises(MismatchError, match=r"9 noises.*evaluation.count is 10"):
        load_noise(path, (1, 8, 8), 10)
    with pytest.raises(MismatchError, match=r"shape \(1, 8, 8\); samples have \(3, 8, 8\)"):
        load_noise(path, (3, 8, 8), 9)


def test_collected_rows_have_the_contracts_columns(tmp_path):
    from consistency.evaluate.measure import COLUMNS, collect
    from consistency.files.storage import write_json

    row = {"metric": "m", "extractor": "e", "reference": "r", "sampling_steps": 1, "n_samples": 5, "value": 0.1}
    run = {"run": "a-s0", "method": "a", "solver": "ddim", "n_steps": 10, "guidance": 1.0, "seed": 0}
    write_json(tmp_path / "a.json", {"run": run, "rows": [row]})
    write_json(tmp_path / "b.json", {"run": {"run": "data", "method": "data"}, "rows": [row]})
    collect(tmp_path / "metrics.csv", "x", [tmp_path / "a.json", tmp_path / "b.json"])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == COLUMNS
    assert lines[1] == "x,a-s0,a,ddim,10,1.0,0,1,m,e,r,5,0.1"
    assert lines[2] == "x,data,data,,,,,1,m,e,r,5,0.1"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["features", "mean", "covariance"])
def test_a_set_that_is_not_finite_is_an_error_that_names_it(part, value):
    """Precision and recall would be numbers: a comparison with NaN is false."""
    good = FeatureSet(features(20, 3, 1))
    parts = {name: getattr(good, name).copy() for name in ("features", "mean", "covariance")}
    parts[part].flat[7 if part == "features" else 1] = value
    with pytest.raises(MismatchError) as caught:
        FeatureSet(**parts, name="features of s0")
    expected = "not finite in 1 of 20 rows, first in row 2" if part == "features" else "their mean or covariance"
    assert str(caught.value).startswith("features of s0: ")
    assert expected in str(caught.value)


RUN = {"run": "cm-s0", "method": "cm", "solver": "ddim", "n_steps": 5, "guidance": 1.0, "seed": 0}


@pytest.fixture
def measured_files(tmp_path):
    """What `measure_student` reads, of 20 samples."""
    from consistency.files.storage import save_tensors

    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 1, 2, 2)).astype(np.float32)

    def statistics(*names):
        found = {}
        for name in names:
            x = rng.standard_normal((20, 3))
            found |= {f"c/{name}.features": x, f"c/{name}.mean": x.mean(0), f"c/{name}.covariance": np.cov(x.T)}
        return found

    contents = {
        "samples": {"steps_1": points, "from_900": points},
        "features": statistics("steps_1"),
        "teacher_samples": {"samples": points + 1, "times": np.array([900])},
        "teacher_features": statistics("samples"),
        "data_features": statistics("train_images"),
        "noise": {"labels": np.arange(20)},
    }
    for name, tensors in contents.items():
        save_tensors(tmp_path / name, tensors)
    return contents


def measure(folder, name):
    """Measure the student of `measured_files`."""
    from consistency.evaluate.measure import References, measure_student

    others = ("data_features", "noise", "teacher_samples", "teacher_features")
    references = References(**{other: folder / other for other in others})
    options = {"cards": [{"name": "c"}], "neighbours": 3, "settings": {}}
    measure_student(folder / name, RUN, folder / "samples", folder / "features", references, **options)


@pytest.mark.parametrize("name", ["samples", "features", "teacher_samples", "teacher_features", "data_features"])
def test_files_that_are_not_finite_are_not_measured(tmp_path, monkeypatch, measured_files, name):
    """None is written by this pipeline; one from elsewhere is named, and nothing is measured."""
    from consistency.files import storage

    measure(tmp_path, "good.json")
    good = storage.read_json(tmp_path / "good.json")
    assert {row["metric"] for row in good["rows"]} >= {"ode_error", "precision", "frechet_distance", "ode_error@s=900"}

    tensors = {key: value.copy() for key, value in measured_files[name].items()}
    key = next(iter(tensors))
    tensors[key].flat[5] = np.nan
    with monkeypatch.context() as patch:
        patch.setattr(storage, "check_rows", lambda *_: None)
        storage.save_tensors(tmp_path / name, tensors)
    with pytest.raises(MismatchError) as caught:
        measure(tmp_path, "bad.json")
    assert f"{tmp_path / name}: {key} holds numbers that are not finite" in str(caught.value)
    assert not (tmp_path / "bad.json").exists()


def test_a_metric_that_overflows_is_not_written(tmp_path, measured_files):
    """Samples and features are finite, their squares are not."""
    from consistency.files.storage import save_tensors

    huge = {key: value.astype(np.float64) * 1e200 for key, value in measured_files["samples"].items()}
    save_tensors(tmp_path / "samples", huge)
    with pytest.raises(MismatchError) as caught:
        measure(tmp_path, "m.json")
    expected = "not written: ode_error (extractor pixels, reference teacher, sampling steps 1) of run cm-s0 is inf"
    assert expected in str(caught.value)
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("where", ["run", "row"])
def test_rows_that_are_not_finite_do_not_get_into_the_table(tmp_path, where):
    """`where`: a row names its run itself where a file holds several."""
    from consistency.evaluate.measure import collect
    from helpers import write_any_json

    row = {"metric": "recall", "extractor": "e", "reference": "data", "sampling_steps": 1, "n_samples": 5}
    named = {"run": "order-ddim-n5"} if where == "row" else {}
    write_any_json(tmp_path / "a.json", {"run": RUN, "rows": [row | named | {"value": float("nan")}]})
    with pytest.raises(MismatchError) as caught:
        collect(tmp_path / "metrics.csv", "x", [tmp_path / "a.json"])
    assert str(tmp_path / "a.json") in str(caught.value)
    assert f"recall (extractor e, reference data, sampling steps 1) of run {named.get('run', 'cm-s0')} is nan" in str(
        caught.value
    )
    assert not (tmp_path / "metrics.csv").exists()
