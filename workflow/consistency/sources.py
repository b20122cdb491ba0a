"""The typed configuration of where data and weights come from. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
    """One file at an address."""

    url: str = Field(pattern=r"^https?://", description="its address")
    name: str = Field(pattern=r"^[\w.+-]+$", description="its name in the cache, and for a copy placed there by hand")
    sha256: SHA256 | None = Field(
        None, description="of its bytes; by default recorded on first use, checked ever after"
    )
    gigabytes: float | None = Field(None, gt=0, description="size, for the estimate that a dry run prints")


class Digits(Strict):
    """scikit-learn's 1,797 handwritten digits of 8×8."""

    kind: Literal["digits"]
    test_share: float = Field(0.2, gt=0, lt=1, description="share of the images held out from teacher and classifier")
    seed: NonNegativeInt = Field(0, description="of the shuffle before the split")


class Component(Strict):
    """One Gaussian of a mixture; it has a deviation or a covariance."""

    weight: float = Field(gt=0, le=1, description="share of the mixture; all weights sum to 1")
    mean: list[float] = Field(min_length=1, description="coordinates; those left out are 0")
    deviation: float | None = Field(None, gt=0, description="of every coordinate, for a round component")
    covariance: list[list[float]] | None = Field(None, description="symmetric positive definite, dimension × dimension")


class Mixture(Strict):
    """Draws from a mixture of Gaussians, whose teacher is known in closed form (source analytic)."""

    kind: Literal["mixture"]
    dimension: PositiveInt = Field(2, description="d")
    components: list[Component] = Field(min_length=1, description="the Gaussians")
    train_count: PositiveInt = Field(4096, description="draws to learn from")
    test_count: PositiveInt = Field(2048, description="draws to measure against")
    seed: NonNegativeInt = Field(0, description="of the draws")


class Labelled(Strict):
    """What the labelled data sets share."""

    conditional: bool = Field(True, description="use the labels; false makes one class of all, without guidance")


class Fashion(Labelled):
    """Fashion-MNIST: 60,000 + 10,000 images of 28×28, padded to 32×32."""

    kind: Literal["fashion"]
    folder: str | None = Field(
        None, description="folder with the four IDX files; by default Debian's package, else the official address"
    )


class Cifar10(Labelled):
    """CIFAR-10: 50,000 + 10,000 colour images of 32×32."""

    kind: Literal["cifar10"]
    folder: str | None = Field(
        None, description="folder with cifar-10-binary.tar.gz; by default the cache, filled from the official address"
    )


class ImageNet32(Labelled):
    """ImageNet downsampled to 32×32: 1,281,167 + 50,000 images; registration needed, so placed by hand."""

    kind: Literal["imagenet32"]
    folder: str = Field(description="folder with train_data_batch_1.npz to _10.npz and val_data.npz")


class Images(Strict):
    """Any folder of images, zip, or webdataset tar."""

    kind: Literal["images"]
    name: str = Field(pattern=r"^[\w-]+$", description="of the data set, in tables")
    source: str = Field(description="folder, archive or pattern of archives, relative to where snakemake is called")
    side: PositiveInt = Field(64, description="pixels a side after resizing")
    crop: PositiveInt | None = Field(None, description="centre crop before resizing; by default the largest square")
    labels: Literal["folder"] | None = Field(None, description="folder: each sub-folder is a class; null: one class")
    test_share: float = Field(0.1, gt=0, lt=1, description="share of the images held out")
    seed: NonNegativeInt = Field(0, description="of the shuffle before the split")


class Captions(Strict):
    """Images with captions, for a text-to-image teacher: learned in the latents of its VAE."""

    kind: Literal["captions"]
    name: str = Field(pattern=r"^[\w-]+$", description="of the data set, in tables")
    source: str | None = Field(None, description="folder or archive; by default the file at `download`, in the cache")
    download: Url | None = Field(None, description="the archive's address")
    side: PositiveInt = Field(1024, description="pixels a side")
    vae: Hub | str = Field(description="the VAE's repository, or a local folder")
    batch_size: PositiveInt = Field(4, description="images or prompts encoded, and latents decoded, together")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="of VAE and text encoders on a GPU")


Data = Annotated[Digits | Mixture | Fashion | Cifar10 | ImageNet32 | Images | Captions, Field(discriminator="kind")]


class TrainedClassifier(Strict):
    """The classifier of the section `classifier`, trained on the same data."""

    kind: Literal["classifier"]


class EfficientNetLite0(Strict):
    """EfficientNet-Lite0, trained on ImageNet; its weights come with the Python packages."""

    kind: Literal["efficientnet-lite0"]


class Inception(Strict):
    """Inception-v3 as clean-fid uses it: the one whose Fréchet distance is called FID."""

    kind: Literal["inception-v3"]
    weights: Url


class DinoV2(Strict):
    """DINOv2, for FD-DINOv2."""

    kind: Literal["dinov2"]
    weights: Hub


class Clip(Strict):
    """CLIP score of an image and its prompt; with `aesthetic` also the aesthetic score."""

    kind: Literal["clip"]
    weights: Hub
    aesthetic: Url | None = Field(None, description="weights of the LAION improved aesthetic predictor")


Extractor = Annotated[TrainedClassifier | EfficientNetLite0 | Inception | DinoV2 | Clip, Field(discriminator="kind")]
