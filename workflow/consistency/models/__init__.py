"""Networks behind one interface: `network(x, t, cond) -> tensor shaped like x`, in the precision of its weights.

x: (B, *sample_shape); t: (B,) index 0..T − 1, a float where time is σ; cond: int64 (B,) class label, where the number
`classes` itself is the null class of unconditional branches. For a text-to-image network cond is the number of
a prompt, whose embeddings lie in a file of `latents.encode_prompts`. Weights are saved in the ecosystem's
`save_pretrained` layout: a folder with config.json and one safetensors file.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConsistencyError, MismatchError, StorageError
from ..storage import atomic, check_folder, read_json, weights_file


def build(
    settings: dict[str, Any], sample_shape: tuple[int, ...], classes: int, timesteps: int, seed: int
) -> nn.Module:
    """A freshly initialised network.

    Args:
        settings: `{"kind": "mlp", "width": …, "depth": …}` or `{"kind": "unet", …}` (see `settings.Network`).
        sample_shape: (C, H, W).
        classes: number of classes; the network gets one more, the null class.
        timesteps: T.
        seed: of the initialisation.
    """
    options = {key: value for key, value in settings.items() if key != "kind"}
    options |= {"sample_shape": list(sample_shape), "classes": classes, "timesteps": timesteps}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _network_class(settings["kind"])(**options)


def _network_class(kind: str) -> type[nn.Module]:
    if kind == "mlp":
        from .mlp import ResidualMLP

        return ResidualMLP
    if kind == "sdxl":
        from .sdxl import SDXLUNet

        return SDXLUNet
    from .unet import UNet

    return UNet


LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name for adapters of a pipeline
_KINDS = {"UNet2DModel": "unet", "UNet2DConditionModel": "sdxl"}  # diffusers' class → ours; no class: an MLP


def save(network: nn.Module, folder: str | Path) -> None:
    """Write the network as a `save_pretrained` folder, atomically (the folder is replaced whole)."""
    with atomic(folder) as temporary:
        network.save_pretrained(temporary)


def load(
    folder: str | Path,
    sample_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    prompts: str | Path | None = None,
) -> nn.Module:
    """Load a network saved by `save`, or a diffusers model folder, in evaluation mode.

    Args:
        prompts: file of prompt embeddings, which a text-to-image network needs before it is called.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: the network is for samples of another shape or another number of classes.
    """
    folder = Path(folder)
    kind = _KINDS.get(read_json(folder / "config.json", sealed=False).get("_class_name"), "mlp")
    if not list(folder.glob("*.bin")):  # of a teacher from elsewhere; what is written here is safetensors
        weights_file(folder)
    check_folder(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the hub mixin prints
            network = _network_class(kind).from_pretrained(folder, **({"strict": True} if kind == "mlp" else {}))
        check_complete(network, folder)
        if prompts:
            network.read_prompts(prompts)
    except ConsistencyError:
        raise
    except Exception as error:
        raise StorageError(f"{folder}: weights cannot be loaded ({first_line(error)})") from error
    if sample_shape is not None and tuple(network.sample_shape) != tuple(sample_shape):
        raise MismatchError(
            f"{folder}: the network is for samples of shape {tuple(network.sample_shape)}, "
            f"the data has {tuple(sample_shape)}; choose a teacher of the data's shape"
        )
    if classes is not None and network.classes != classes:
        raise MismatchError(f"{folder}: the network has {network.classes} classes, the data has {classes}")
    return network.eval().requires_grad_(False)


def check_complete(network: nn.Module, folder: str | Path) -> None:
    """diffusers leaves a weight that the file lacks without a value.

    Raises:
        StorageError: there is one.
    """
    if absent := [name for name, value in network.named_parameters() if value.is_meta]:
        raise StorageError(f"{folder}: its weights lack {absent[0]} ({len(absent)} missing)")


def is_mixture(folder: str | Path) -> bool:
    """Whether the folder holds a mixture of Gaussians rather than a network."""
    return read_json(Path(folder) / "config.json", sealed=False).get("kind") == "mixture"


def first_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
