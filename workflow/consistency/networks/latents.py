"""Text-to-image data: captioned images, their prompts' embeddings, and their latents.

Images and captions are read once; the text encoders and the VAE run once, as stages of their own. What follows sees
samples (latents) and labels (the prompts' numbers), like those of any other data set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.account import Account
from ..data.prepare import as_float, check_images
from ..errors import StorageError, memory_advice
from ..files import bounds
from ..files.storage import check_folder, load_tensors, read_json, save_tensors, write_json
from ..runtime.compat import ensure_torchvision
from ..runtime.devices import HALF, move, pick_device
from ..runtime.progress import Progress
from . import check_complete, sizes
from .pretrained import loading, variant


def prepare(
    images_path: str | Path, captions_path: str | Path, settings: dict[str, Any], megabytes: int | None = None
) -> None:
    """Write the images, `train_images` uint8 (n, 3, side, side), and in the same order `captions`, in a JSON object.

    Both files say as `read` what was read and what was passed over (see `account`).

    Args:
        settings: of `sources.Captions`.
        megabytes: size of the archive that is downloaded, where it is known.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: too few images.
        DownloadError: the archive cannot be had.
    """
    from ..data import datasets
    from ..data.fetch import downloads

    source = settings["source"]
    account = Account(source or settings["download"]["name"])
    if source is None:
        source = downloads.fetch(**settings["download"], megabytes=megabytes)
    try:
        pairs = list(datasets.captioned(str(source), settings["side"], account))
        images = np.stack([image for _, image, _ in pairs])
        account.samples = {"train": len(images)}
        check_images(images, account.source)
    finally:
        account.tell()
    read = account.record()
    save_tensors(images_path, {"train_images": images}, {"name": settings["name"], "read": read})
    write_json(captions_path, {"captions": [caption for _, _, caption in pairs], "read": read})


@memory_advice("lower data.batch_size")
def encode_prompts(
    path: str | Path, captions_path: str | Path, pipeline: str | Path, side: int, batch_size: int, precision: str
) -> None:
    """Write the prompts' embeddings by both text encoders, `embeddings` (n, tokens, width) and `pooled` (n, width).

    Args:
        pipeline: folder of a StableDiffusionXLPipeline.
        side: of the images in pixels, which the UNet is told.
        precision: that the encoders run in and the embeddings are kept in.

    Raises:
        StorageError: missing or damaged files.
    """
    ensure_torchvision()
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    captions, device = read_json(captions_path, most=bounds.CAPTIONS)["captions"], pick_device()
    check_folder(pipeline, without=("unet", "vae"))
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    options: dict[str, Any] = {"local_files_only": True, "dtype": HALF.get(precision, torch.float32)}
    encoders, absent = {}, []
    with loading(f"{pipeline}: text encoders", longest=None):
        for config in Path(pipeline).glob("scheduler/scheduler_config.json"):
            sizes.check_config(config)
        for part, cls in classes.items():
            folder = Path(pipeline) / part
            sizes.check(folder, cls)
            encoders[part], report = cls.from_pretrained(
                folder, variant=variant(folder), use_safetensors=True, output_loading_info=True, **options
            )
            absent += sorted(report["missing_keys"])
        pipe = StableDiffusionXLPipeline.from_pretrained(
            pipeline, unet=None, vae=None, local_files_only=True, use_safetensors=True, **encoders
        )
    if absent:  # transformers leaves them random
        raise StorageError(f"{pipeline}: the text encoders' weights lack {absent[0]} ({len(absent)} missing)")
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        move(encoder, device, precision)
    progress, parts = Progress(len(captions), "encode prompts"), []
    with torch.no_grad():
        for first in range(0, len(captions), batch_size):
            batch = captions[first : first + batch_size]
            embeddings, _, pooled, _ = pipe.encode_prompt(batch, device=device, do_classifier_free_guidance=False)
            parts.append((embeddings.cpu(), pooled.cpu()))
            progress.update(len(batch))
    tensors = {"embeddings": torch.cat([e for e, _ in parts]), "pooled": torch.cat([p for _, p in parts])}
    save_tensors(path, tensors, {"side": side})


@memory_advice("lower data.batch_size")
def encode_images(path: str | Path, images_path: str | Path, vae: str | Path, batch_size: int, precision: str) -> None:
    """Write the latents as a data set: `train_images` float32 (n, C, h, w), the mode of the VAE's posterior times its
    scaling factor; `train_labels` (n,), the images' own numbers.

    Raises:
        StorageError: missing or damaged files.
    """
    device, images = pick_device(), load_tensors(images_path, ["train_images"])[0]["train_images"]
    network = _vae(vae, device, precision)
    progress, parts = Progress(len(images), "encode images"), []
    with torch.no_grad():
        for batch in images.split(batch_size):
            latents = network.encode(as_float(batch).to(device, network.dtype)).latent_dist.mode()
            parts.append((latents.float() * network.config.scaling_factor).cpu())
            progress.update(len(batch))
    tensors = {"train_images": torch.cat(parts), "train_labels": torch.arange(len(images))}
    save_tensors(path, tensors, {"name": "latents", "classes": len(images)})


def decoder(vae: str | Path, batch_size: int, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from latents (B, C, h, w) to images (B, 3, H, W) in [−1, 1], unclipped, on the CPU."""
    device = pick_device()
    network = _vae(vae, device, precision)

    @torch.no_grad()
    def decode(latents: torch.Tensor) -> torch.Tensor:
        parts = latents.to(device, network.dtype).split(batch_size)
        return torch.cat([network.decode(x / network.config.scaling_factor).sample.float().cpu() for x in parts])

    return decode


def _vae(folder: str | Path, device: torch.device, precision: str) -> Any:
    ensure_torchvision()
    from diffusers import AutoencoderKL

    check_folder(folder)
    with loading(f"{folder}: VAE", longest=None):
        sizes.check(folder, AutoencoderKL)
        options = {"variant": variant(folder), "local_files_only": True}
        network = AutoencoderKL.from_pretrained(folder, use_safetensors=True, **options)
    check_complete(network, folder)
    return move(network.eval().requires_grad_(False), device, precision)
