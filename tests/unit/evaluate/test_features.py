"""Several extractors in one pass, what is kept between workflows, prompts in their order, pictures of latents."""

import json

import pytest
import tiny
import torch
from consistency.config.settings import Training
from consistency.data import prepare
from consistency.evaluate import extractors, features
from consistency.evaluate.extractors import to_uint8
from consistency.files.storage import load_tensors, save_tensors, sha256, write_json
from consistency.networks import classifier, latents
from consistency.training import recipes
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
LITE0 = {"kind": "efficientnet-lite0", "folder": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CONSISTENCY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module", autouse=True)
def lite0():
    """The extractor, loaded once; its weights come with a package."""
    return extractors.load("efficientnet-lite0")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, lite0):
    """Extractors by kind; EfficientNet-Lite0 is not loaded again for each test."""
    load = extractors.load
    monkeypatch.setattr(
        extractors,
        "load",
        lambda kind, folder=None, **more: lite0 if kind == lite0.name else load(kind, folder, **more),
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory, digits):
    """A classifier of digits, a little trained."""
    folder = tmp_path_factory.mktemp("judge")
    settings = Training(steps=30, batch_size=32, learning_rate=3e-3, warmup_steps=5).model_dump()
    recipes.fit_classifier(folder / "model", folder / "stats", folder / "side", digits, "judge", 8, 16, settings, 0)
    return {"kind": "classifier", "folder": str(folder / "model")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory, digits):
    """Two sets of samples as a student writes them, beyond [−1, 1] in places, and something else."""
    images = prepare.load(digits)[0]["test_images"][:14]
    path = tmp_path_factory.mktemp("samples") / "samples.safetensors"
    sets = {"steps_1": images[:7] * 1.5, "steps_2": images[7:].clone(), "from_1000": images[:3].clone()}
    save_tensors(path, sets)
    return path, sets


# Two extractors


def test_two_extractors_in_one_pass(tmp_path, samples, judge, lite0):
    path, sets = samples
    cards = features.extract(tmp_path / "out", path, ["steps_"], 3, [judge, LITE0])
    found, _ = load_tensors(tmp_path / "out")
    expected = {
        f"{extractor}/{name}.{what}"
        for name in ("steps_1", "steps_2")
        for extractor, whats in (
            ("judge", ("features", "mean", "covariance", "predicted")),
            ("efficientnet-lite0", ("features", "mean", "covariance")),
        )
        for what in whats
    }
    assert set(found) == expected
    network, kept = classifier.load(judge["folder"])
    for name in ("steps_1", "steps_2"):
        clipped = sets[name].clamp(-1, 1)
        with torch.no_grad():
            hidden = network.features(clipped)
        torch.testing.assert_close(found[f"judge/{name}.features"], hidden, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[f"judge/{name}.predicted"], network.head(hidden).argmax(1))
        theirs = found[f"efficientnet-lite0/{name}.features"]
        torch.testing.assert_close(theirs, lite0(to_uint8(clipped)), rtol=1e-4, atol=1e-5)
        for extractor, values in (("judge", hidden), ("efficientnet-lite0", theirs)):
            mean, covariance = (found[f"{extractor}/{name}.{what}"] for what in ("mean", "covariance"))
            assert mean.dtype == covariance.dtype == torch.float64
            torch.testing.assert_close(mean, values.double().mean(0), rtol=1e-5, atol=1e-6)
            centred = values.double() - values.double().mean(0)
            torch.testing.assert_close(covariance, centred.T @ centred / (len(values) - 1), rtol=1e-4, atol=1e-6)
    first, second = cards  # in the order of the configuration
    assert first["name"] == "judge"
    assert {key: first[key] for key in kept} == kept
    assert "protocol" in first
    assert second == {"name": "efficientnet-lite0", "weights_sha256": lite0.sha256, "protocol": lite0.protocol}


def test_the_order_of_extractors_is_the_configurations(tmp_path, samples, judge):
    cards = features.extract(tmp_path / "out", samples[0], ["steps_1"], 100, [LITE0, judge])
    assert [card["name"] for card in cards] == ["efficientnet-lite0", "judge"]


def test_sets_by_name_and_by_prefix(tmp_path, samples, judge):
    features.extract(tmp_path / "out", samples[0], ["steps_2", "from_"], 100, [judge])
    assert {key.split("/")[1].split(".")[0] for key in load_tensors(tmp_path / "out")[0]} == {"steps_2", "from_1000"}


def test_bytes_are_the_numbers_that_they_stand_for(tmp_path, judge, samples):
    levels = to_uint8(samples[1]["steps_2"])[:, :1].contiguous()
    found = []
    for name, images in (("uint8", levels), ("float", prepare.as_float(levels))):
        save_tensors(tmp_path / name, {"train_images": images})
        features.extract(tmp_path / f"{name}.out", tmp_path / name, ["train_images"], 4, [judge, LITE0])
        found.append(load_tensors(tmp_path / f"{name}.out")[0])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


# The cache


@pytest.fixture
def asked(monkeypatch):
    """How many images each extractor was asked about."""
    counts = {"efficientnet-lite0": 0, "judge": 0}
    lite0_call, judge_call = extractors.EfficientNetLite0.__call__, classifier.Classifier.features

    def of_lite0(self, images):
        counts["efficientnet-lite0"] += len(images)
        return lite0_call(self, images)

    def of_judge(self, x):
        counts["judge"] += len(x)
        return judge_call(self, x)

    monkeypatch.setattr(extractors.EfficientNetLite0, "__call__", of_lite0)
    monkeypatch.setattr(classifier.Classifier, "features", of_judge)
    return counts


@pytest.fixture
def source(tmp_path, digits):
    path = tmp_path / "data.safetensors"
    tensors = prepare.load(digits)[0]
    save_tensors(path, {"train_images": tensors["train_images"][:6], "test_images": tensors["test_images"][:5]})
    return path


def run(out, source, extractors_, sets=("train_images",), **options):
    cards = features.extract(out, source, list(sets), 4, extractors_, **{"cache": True} | options)
    return load_tensors(out)[0], cards


def test_the_same_bytes_are_extracted_once(tmp_path, source, judge, asked, cache):
    first, cards = run(tmp_path / "a", source, [LITE0, judge])
    assert asked == {"efficientnet-lite0": 6, "judge": 6}
    assert len(list(cache.iterdir())) == 1  # of the pretrained one; a classifier belongs to its workflow
    other = tmp_path / "elsewhere.safetensors"
    other.write_bytes(source.read_bytes())
    again, same = run(tmp_path / "b", other, [LITE0, judge])
    assert asked == {"efficientnet-lite0": 6, "judge": 12}
    assert again.keys() == first.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert same == cards
    run(tmp_path / "c", source, [LITE0])
    assert asked["efficientnet-lite0"] == 6


def test_no_network_is_called_when_all_is_kept(tmp_path, source, monkeypatch):
    run(tmp_path / "a", source, [LITE0])

    def fail(*args):
        raise AssertionError("the network was called")

    monkeypatch.setattr(extractors.EfficientNetLite0, "__call__", fail)
    run(tmp_path / "b", source, [LITE0])
    with pytest.raises(AssertionError, match="the network was called"):
        run(tmp_path / "c", source, [LITE0], cache=False)


def test_another_content_or_set_is_extracted(tmp_path, source, asked):
    run(tmp_path / "a", source, [LITE0])
    run(tmp_path / "b", source, [LITE0], ["test_images"])
    assert asked["efficientnet-lite0"] == 6 + 5
    both, _ = run(tmp_path / "c", source, [LITE0], ["train_images", "test_images"])
    assert asked["efficientnet-lite0"] == 6 + 5
    name = "efficientnet-lite0"
    assert not torch.equal(both[f"{name}/train_images.mean"], both[f"{name}/test_images.mean"])
    tensors = load_tensors(source)[0]
    tensors = {key: value.clone() for key, value in tensors.items()}
    tensors["train_images"][0, 0, 4, 4] = 0.123
    save_tensors(tmp_path / "other", tensors)
    changed, _ = run(tmp_path / "d", tmp_path / "other", [LITE0])
    assert asked["efficientnet-lite0"] == 6 + 5 + 6
    assert not torch.equal(changed[f"{name}/train_images.features"], both[f"{name}/train_images.features"])


def test_another_extractor_of_that_name_is_asked(tmp_path, source, asked, monkeypatch, lite0):
    """Its fingerprint holds the weights and the protocol."""
    run(tmp_path / "a", source, [LITE0])
    monkeypatch.setattr(lite0, "fingerprint", "0" * 64)
    run(tmp_path / "b", source, [LITE0])
    assert asked["efficientnet-lite0"] == 12
    run(tmp_path / "c", source, [LITE0])
    assert asked["efficientnet-lite0"] == 12


def test_a_samples_file_is_not_kept(tmp_path, source, cache):
    run(tmp_path / "a", source, [LITE0], cache=False)
    assert not cache.exists()


def test_the_fingerprint_is_of_weights_and_protocol(lite0):
    def loaded(digest, protocol):
        made = extractors._Loaded.__new__(extractors.EfficientNetLite0)
        extractors._Loaded.__init__(made, torch.nn.Linear(1, 1), digest, protocol)
        return made.fingerprint

    assert loaded(lite0.sha256, lite0.protocol) == lite0.fingerprint
    assert len({lite0.fingerprint, loaded("0" * 64, lite0.protocol), loaded(lite0.sha256, "another")}) == 3


# Prompts


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from consistency.runtime.compat import ensure_torchvision

    ensure_torchvision()
    folder = tmp_path_factory.mktemp("clip")
    tiny.clip_folder(folder / "clip")
    (folder / "aesthetic").mkdir()
    tiny.aesthetic_file(folder / "aesthetic" / "aesthetic.pth", 16)
    return {"kind": "clip", "folder": str(folder / "clip"), "aesthetic": str(folder / "aesthetic")}


@pytest.fixture
def pictured(tmp_path):
    """Six images, four captions, and two files of labels: two rows of the second are swapped."""
    images = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    save_tensors(tmp_path / "images", {"train_images": F.interpolate(images, size=(32, 32), mode="nearest")})
    write_json(tmp_path / "captions.json", {"captions": tiny.CAPTIONS})
    labels = [0, 1, 2, 3, 0, 1]
    save_tensors(tmp_path / "noise", {"labels": torch.tensor(labels)})
    save_tensors(tmp_path / "swapped", {"labels": torch.tensor([0, 2, 1, 3, 0, 1])})
    return tmp_path, labels


def scored(folder, name, clip, labels, captions="captions.json", batch_size=4):
    features.extract(
        folder / name,
        folder / "images",
        ["train_images"],
        batch_size,
        [clip],
        captions=folder / captions,
        labels=None if labels is None else folder / labels,
    )
    return load_tensors(folder / name)[0]


def test_scores_follow_the_labels(pictured, clip):
    folder, labels = pictured
    found = scored(folder, "a", clip, "noise")
    assert set(found) == {"clip/train_images.clip_score", "clip/train_images.aesthetic_score"}
    model = extractors.load("clip", clip["folder"])
    images = to_uint8(load_tensors(folder / "images")[0]["train_images"])
    scores = [model.score(images[i : i + 1], [tiny.CAPTIONS[label]]).item() for i, label in enumerate(labels)]
    assert found["clip/train_images.clip_score"].tolist() == pytest.approx(scores, rel=1e-4, abs=1e-4)
    assert max(scores) > 1  # not all cut off at 0
    swapped = scored(folder, "b", clip, "swapped")
    same = found["clip/train_images.clip_score"].isclose(swapped["clip/train_images.clip_score"], rtol=1e-4)
    assert same.tolist() == [True, False, False, True, True, True]
    name = "clip/train_images.aesthetic_score"
    assert torch.equal(found[name], swapped[name])  # of the image alone


def test_without_labels_each_row_has_its_own_prompt(pictured, clip):
    """As the data do; in batches as in one."""
    folder, labels = pictured
    write_json(folder / "rows.json", {"captions": [tiny.CAPTIONS[label] for label in labels]})
    found = [
        scored(folder, "a", clip, None, "rows.json"),
        scored(folder, "b", clip, None, "rows.json", batch_size=100),
        scored(folder, "c", clip, "noise"),
    ]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aesthetic", [True, False])
def test_scores_of_prompts_are_never_kept(pictured, clip, cache, aesthetic):
    folder, _ = pictured
    clip = clip if aesthetic else {"kind": "clip", "folder": clip["folder"]}
    for name, captions in (("a", tiny.CAPTIONS + ["a", "b"]), ("b", ["b", "a"] + tiny.CAPTIONS)):
        write_json(folder / "rows.json", {"captions": captions})
        features.extract(
            folder / name, folder / "images", ["train_images"], 4, [clip], captions=folder / "rows.json", cache=True
        )
    a, b = (load_tensors(folder / name)[0]["clip/train_images.clip_score"] for name in "ab")
    assert not torch.allclose(a, b)
    assert not cache.exists()


def test_the_card_of_clip_names_both_weights(pictured, clip):
    folder, _ = pictured
    (card,) = features.extract(
        folder / "a",
        folder / "images",
        ["train_images"],
        4,
        [clip],
        captions=folder / "captions.json",
        labels=folder / "noise",
    )
    assert card["name"] == "clip"
    assert card["aesthetic_sha256"] == sha256(f"{clip['aesthetic']}/aesthetic.pth")
    assert card["weights_sha256"] == sha256(f"{clip['folder']}/model.safetensors")
    json.dumps(card)


# Pictures of latents


@pytest.fixture
def decoded(monkeypatch):
    """A VAE that enlarges eight times and leaves [−1, 1]; the sizes of its batches."""
    sizes = []

    def decoder(folder, batch_size, precision):
        assert (folder, batch_size, precision) == ("vae", 2, "no")

        def decode(x):
            sizes.append(len(x))
            return F.interpolate(x[:, :3] * 1.5, scale_factor=8, mode="bilinear")

        return decode

    monkeypatch.setattr(latents, "decoder", decoder)
    return sizes


VAE = {"folder": "vae", "batch_size": 2, "precision": "no"}


@pytest.mark.parametrize(("count", "side", "shown"), [(20, 4, 32), (9, 4, 32), (17, 32, 128)])
def test_pictures_of_latents(tmp_path, lite0, decoded, count, side, shown):
    """The first fifteen, at most 128 pixels a side, each decoded once for all extractors."""
    x = torch.rand(count, 4, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_tensors(tmp_path / "s", {"steps_1": x, "steps_2": x.flip(0).contiguous()})
    features.extract(tmp_path / "out", tmp_path / "s", ["steps_"], 4, [LITE0], vae=VAE)
    found, _ = load_tensors(tmp_path / "out")
    assert sum(decoded) == 2 * count
    for name, given in (("steps_1", x), ("steps_2", x.flip(0))):
        pictures = found[f"{name}.pictures"]
        assert pictures.dtype == torch.uint8
        assert pictures.shape == (min(count, 15), 3, shown, shown)
        images = F.interpolate(given[:15, :3] * 1.5, scale_factor=8, mode="bilinear")
        if 8 * side > 128:
            images = F.interpolate(images, size=128, mode="area")
        assert torch.equal(pictures, to_uint8(images))
        assert found[f"efficientnet-lite0/{name}.features"].shape == (count, 1280)
    clipped = F.interpolate(x[:1, :3] * 1.5, scale_factor=8, mode="bilinear").clamp(-1, 1)
    torch.testing.assert_close(
        found["efficientnet-lite0/steps_1.features"][:1], lite0(to_uint8(clipped)), rtol=1e-4, atol=1e-5
    )


def test_images_have_no_pictures(tmp_path, samples, judge):
    features.extract(tmp_path / "out", samples[0], ["steps_"], 4, [judge])
    assert not any("pictures" in name for name in load_tensors(tmp_path / "out")[0])
