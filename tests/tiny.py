"""Tiny models with random weights in the formats of the real ones: CLIP, Inception-v3's file, an SDXL pipeline."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from consistency.runtime.compat import ensure_torchvision
from PIL import Image
from torch.nn import functional as F

ensure_torchvision()

CAPTIONS = ["the cat", "a dog and the cat", "the dog", "and the dog"]


def vocabulary(folder: Path) -> dict:
    """Write a byte-level vocabulary and merges of a CLIP tokenizer; the token settings of a text model."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(c) for c in printable] + [chr(256 + i) for i in range(len(others))]
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    words = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}


def clip_folder(folder: Path) -> Path:
    """A CLIPModel with its tokenizer; half precision, as published folders are."""
    from transformers import CLIPConfig, CLIPModel

    ends = vocabulary(folder)
    torch.manual_seed(1)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=layers | ends | {"max_position_embeddings": 77, "pad_token_id": ends["eos_token_id"]},
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    for weight in (model.text_projection.weight, model.visual_projection.weight):
        torch.nn.init.normal_(weight)
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight)
    torch.nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=0.1)
    model.half().save_pretrained(folder)
    return folder


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 32, 5, stride=4)

    def forward(self, x):
        return F.adaptive_avg_pool2d(torch.relu(self.first(x)), 8).flatten(1)


class Inception(torch.nn.Module):
    """clean-fid calls the whole with images in 0..255 when it shall resize, else `layers` with normalised ones."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, img, return_features: bool = False):
        return self.layers((img - 128) / 128)


def inception_folder(folder: Path) -> Path:
    """A TorchScript file with the name and the calls of clean-fid's Inception-v3."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.jit.script(Inception()).save(folder / "inception-2015-12-05.pt")
    return folder


def aesthetic_file(path: Path, size: int) -> Path:
    """A state dict of the aesthetic predictor's layers on embeddings of that size; its scores are positive."""
    torch.manual_seed(2)
    widths, state = [size, 1024, 128, 64, 16, 1], {}
    for number, (before, after) in zip((0, 2, 4, 6, 7), zip(widths, widths[1:])):
        state[f"layers.{number}.weight"] = torch.randn(after, before) / before**0.5
        state[f"layers.{number}.bias"] = torch.zeros(after)
    state["layers.7.bias"] += 5
    torch.save(state, path)
    return path


def sdxl(folder: Path) -> Path:
    """A StableDiffusionXLPipeline for 32×32 pixels (latents of 16×16), all models random."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    ends = vocabulary(folder.parent / "words")
    torch.manual_seed(3)
    tokenizers = [
        CLIPTokenizer.from_pretrained(folder.parent / "words", model_max_length=77, pad_token=pad)
        for pad in ("<|endoftext|>", "!")
    ]
    text = ends | {
        "pad_token_id": ends["eos_token_id"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
    }
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.13025,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=32, hidden_act="gelu", **text)),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def captioned(path: Path, count: int, side: int = 48) -> Path:
    """A tar.gz in the layout of BK-SDM's subset: preprocessed_11k/train/metadata.csv and images beside it."""
    rng, table = np.random.default_rng(4), io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["file_name", "text"])
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"preprocessed_11k/train/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for number in range(count):
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            content = io.BytesIO()
            small.resize((side, side), Image.Resampling.BICUBIC).save(content, "PNG")
            add(f"{number:04}.png", content.getvalue())
            rows.writerow([f"{number:04}.png", CAPTIONS[number % len(CAPTIONS)]])
        add("metadata.csv", table.getvalue().encode())
    return path
