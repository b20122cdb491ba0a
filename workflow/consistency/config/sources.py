"""The typed configuration of where data and weights come from. Imports nothing heavy."""

from __future__ import annotations

import math
import os
import unicodedata
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator

from .. import addresses

# FID's Inception-v3 is a program (TorchScript), so this one file is run and no other.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Whole numbers up to here are exact wherever they are kept: in tables (float64 beside gaps), in pages (JavaScript).
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
Count = Annotated[int, Field(gt=0, le=10**9)]
NAME = r"^[\w.][\w.-]*$"  # of what stands in tables: with - before it, a spreadsheet would take it for a formula


def _at_home(path: str) -> str:
    """The path with `~` or `~user` at its beginning replaced by that home."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("allowed: ~ for a home that is known here, or ./~ for a file of that name")
    return expanded


def _plain(path: str) -> str:
    """The path without ./ at its beginning, / at its end and double ones, which Snakemake complains of."""
    return str(Path(path))


def _one_line(text: str) -> str:
    """A text that can be shown anywhere: no line ends, no characters that command terminals or turn the reading
    direction around."""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDIRECTIONAL), None)
    if bad is not None:
        raise ValueError(f"allowed: one line without control characters such as U+{ord(bad):04X}")
    return text


_BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
OneLine = Annotated[str, Field(max_length=1000), AfterValidator(_one_line)]
OwnPath = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
Folder = Annotated[OwnPath, AfterValidator(_plain)]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hub(Strict):
    """Files of one repository on the Hugging Face hub, at one commit. A token, where one is needed, comes from the
    environment (HF_TOKEN)."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit, 40 hexadecimal digits")
    files: list[str] = Field(min_length=1, description="names or patterns such as unet/*.json; nothing else is fetched")
    sha256: dict[str, SHA256] = Field(
        {}, description="file → sha256; of other files it is recorded on first use and checked ever after"
    )
    gigabytes: float | None = Field(None, gt=0, description="size, for the estimate that a dry run prints")


class Url(Strict):
    """One file at an address. As plain data its query is hidden (`addresses.shown`)."""

    url: Annotated[str, AfterValidator(addresses.check), PlainSerializer(addresses.shown)] = Field(
        description="its address, http:// or https://, without a login, which ~/.netrc gives"
    )
    name: str = Field(pattern=r"^[\w.+-]+$", description="its name in the cache, and for a copy placed there by hand")
    sha256: SHA256 | None = Field(
        None, description="of its bytes; by default recorded on first use, checked ever after"
    )
    gigabytes: float | None = Field(
        None, gt=0, description="size, for the estimate that a dry run prints; a much larger body is refused"
    )


class Digits(Strict):
    """scikit-learn's 1,797 handwritten digits of 8×8."""

    kind: Literal["digits"] = Field(description="digits, scikit-learn's 8×8 digits")
    test_share: float = Field(0.2, gt=0, lt=1, description="share of the images held out from teacher and classifier")
    seed: Seed = Field(0, description="of the shuffle before the split")


class Component(Strict):
    """One Gaussian of a mixture; it has a deviation or a covariance."""

    weight: float = Field(gt=0, le=1, description="share of the mixture; all weights sum to 1")
    mean: list[float] = Field(min_length=1, description="coordinates; those left out are 0")
    deviation: float | None = Field(None, gt=0, description="of every coordinate, for a round component")
    covariance: list[list[float]] | None = Field(None, description="symmetric positive definite, dimension × dimension")


class Mixture(Strict):
    """Draws from a mixture of Gaussians, whose teacher is known in closed form (source analytic)."""

    kind: Literal["mixture"] = Field(description="mixture, of Gaussians")
    dimension: Count = Field(2, description="d")
    components: list[Component] = Field(min_length=1, description="the Gaussians")
    train_count: Count = Field(4096, description="draws to learn from")
    test_count: Count = Field(2048, description="draws to measure against")
    seed: Seed = Field(0, description="of the draws")

    @property
    def deviation(self) -> float:
        """Root mean square distance of a point to the mixture's mean."""
        square = 0.0
        for part in self.components:
            own = [row[i] for i, row in enumerate(part.covariance or [])] or [part.deviation**2] * self.dimension
            square += part.weight * sum([*own, *(x**2 for x in part.mean)])
        for column in zip_longest(*(part.mean for part in self.components), fillvalue=0.0):
            square -= sum(part.weight * x for part, x in zip(self.components, column, strict=True)) ** 2
        return math.sqrt(square)


class Labelled(Strict):
    """What the labelled data sets share."""

    conditional: bool = Field(True, description="use the labels; false makes one class of all, without guidance")


class Fashion(Labelled):
    """Fashion-MNIST: 60,000 + 10,000 images of 28×28, padded to 32×32."""

    kind: Literal["fashion"] = Field(description="fashion, Fashion-MNIST")
    folder: OwnPath | None = Field(
        None, description="folder with the four IDX files; by default Debian's package, else the official address"
    )


class Cifar10(Labelled):
    """CIFAR-10: 50,000 + 10,000 colour images of 32×32."""

    kind: Literal["cifar10"] = Field(description="cifar10, CIFAR-10")
    folder: OwnPath | None = Field(
        None, description="folder with cifar-10-binary.tar.gz; by default the cache, filled from the official address"
    )


class ImageNet32(Labelled):
    """ImageNet downsampled to 32×32: 1,281,167 + 50,000 images; registration needed, so placed by hand."""

    kind: Literal["imagenet32"] = Field(description="imagenet32, ImageNet at 32×32")
    folder: OwnPath = Field(description="folder with train_data_batch_1.npz to _10.npz and val_data.npz")


class Images(Strict):
    """Any folder of images, zip, or webdataset tar."""

    kind: Literal["images"] = Field(description="images, your own")
    name: str = Field(pattern=r"^\w[\w-]*$", description="of the data set, in tables")
    source: OwnPath = Field(description="folder, archive or pattern of archives, relative to where snakemake is called")
    side: Count = Field(64, ge=2, description="pixels a side after resizing")
    crop: Count | None = Field(None, description="centre crop before resizing; by default the largest square")
    labels: Literal["folder"] | None = Field(
        None,
        description="folder: the first folder below the source is the class, or the number beside an image in a tar "
        "(.cls); null: one class",
    )
    test_share: float = Field(0.1, gt=0, lt=1, description="share of the images held out")
    seed: Seed = Field(0, description="of the shuffle before the split")


class Captions(Strict):
    """Images with captions, for a text-to-image teacher: learned in the latents of its VAE."""

    kind: Literal["captions"] = Field(description="captions, images with texts")
    name: str = Field(pattern=r"^\w[\w-]*$", description="of the data set, in tables")
    source: OwnPath | None = Field(
        None, description="folder or archive; by default the file at `download`, in the cache"
    )
    download: Url | None = Field(None, description="the archive's address")
    side: Count = Field(1024, multiple_of=8, description="pixels a side; the latents have an eighth of them")
    vae: Hub | OwnPath = Field(description="the VAE's repository, or a local folder")
    batch_size: Count = Field(4, description="images or prompts encoded, and latents decoded, together")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="of VAE and text encoders on a GPU")


Data = Annotated[Digits | Mixture | Fashion | Cifar10 | ImageNet32 | Images | Captions, Field(discriminator="kind")]


class TrainedClassifier(Strict):
    """The classifier of the section `classifier`, trained on the same data."""

    kind: Literal["classifier"] = Field(description="classifier, trained here")


class EfficientNetLite0(Strict):
    """EfficientNet-Lite0, trained on ImageNet; its weights come with the Python packages."""

    kind: Literal["efficientnet-lite0"] = Field(description="efficientnet-lite0, trained on ImageNet")


class Inception(Strict):
    """Inception-v3 as clean-fid uses it: the one whose Fréchet distance is called FID."""

    kind: Literal["inception-v3"] = Field(description="inception-v3, of FID")
    weights: Url = Field(description="where NVIDIA's TorchScript file is; it is a program, so no other file is taken")

    @field_validator("weights")
    @classmethod
    def _published(cls, weights: Url) -> Url:
        if weights.sha256 not in (None, INCEPTION_SHA256):
            raise ValueError(f"allowed: sha256 {INCEPTION_SHA256}, of the file that NVIDIA publishes")
        return weights.model_copy(update={"sha256": INCEPTION_SHA256})


class DinoV2(Strict):
    """DINOv2, for FD-DINOv2."""

    kind: Literal["dinov2"] = Field(description="dinov2, of FD-DINOv2")
    weights: Hub = Field(description="its repository on the hub")


class Clip(Strict):
    """CLIP score of an image and its prompt; with `aesthetic` also the aesthetic score."""

    kind: Literal["clip"] = Field(description="clip, of CLIP scores")
    weights: Hub = Field(description="its repository on the hub, with the tokenizer")
    aesthetic: Url | None = Field(None, description="weights of the LAION improved aesthetic predictor")


Extractor = Annotated[TrainedClassifier | EfficientNetLite0 | Inception | DinoV2 | Clip, Field(discriminator="kind")]
