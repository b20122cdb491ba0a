"""Networks behind one interface: `network(x, t, cond) -> tensor shaped like x`, in the precision of its weights.

x: (B, *sample_shape); t: (B,) index 0..T − 1, a float where time is σ; cond: int64 (B,) class label, where the number
`classes` itself is the null class of unconditional branches. For a text-to-image network cond is the number of
a prompt, whose embeddings lie in a file of `latents.encode_prompts`. Weights are saved in the ecosystem's
`save_pretrained` layout: a folder with config.json and one safetensors file. `network.prediction` is what the network
predicts (`predictions`), and `network.scheduler` what its pipeline's scheduler said (`scheduler`), None if nothing did.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import MismatchError, StorageError
from ..files.storage import atomic, check_folder, read_json, weights_file
from . import scheduler, sizes
from .pretrained import loading


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
        write(network, temporary)


def write(network: nn.Module, folder: Path) -> None:
    """Write a network, or its adapters, into a new folder; with a whole network what its scheduler said."""
    network.save_pretrained(folder)
    config = getattr(network, "scheduler", None)
    if config is not None and (folder / "config.json").is_file():
        scheduler.write(folder, config)


def load(
    folder: str | Path,
    sample_shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    prompts: str | Path | None = None,
) -> nn.Module:
    """Load a network saved by `save`, or a diffusers model folder, in evaluation mode.

    Weights of the latter are found as diffusers finds them: one file, shards by their index, or a variant (such as
    fp16) where there are none without one.

    Args:
        prompts: file of prompt embeddings, which a text-to-image network needs before it is called.

    Raises:
        StorageError: missing or damaged files.
        MismatchError: a network of a kind that cannot be used here, or for samples of another shape or another number
            of classes.
    """
    folder = Path(folder)
    kind = _kind_of(folder)
    if kind == "mlp":
        weights_file(folder)
    elif not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        raise StorageError(f"{folder}: no weights there, neither .safetensors nor .bin")
    check_folder(folder)
    if kind == "mlp":
        sizes.check_same(folder, _network_class(kind).sizes)
    with loading(f"{folder}: weights"), contextlib.redirect_stdout(io.StringIO()):  # the hub mixin prints
        config = scheduler.read(folder)
        timesteps = (config or {}).get("num_train_timesteps", 1000)
        options = {"strict": True} if kind == "mlp" else {"timesteps": timesteps}
        network = _network_class(kind).from_pretrained(folder, **options)
        check_complete(network, folder)
        network.scheduler, network.prediction = config, scheduler.prediction_of(config, folder)
        if prompts:
            network.read_prompts(prompts)
    if sample_shape is not None and tuple(network.sample_shape) != tuple(sample_shape):
        raise MismatchError(
            f"{folder}: the network is for samples of shape {tuple(network.sample_shape)}, "
            f"the data has {tuple(sample_shape)}; choose a teacher of the data's shape"
        )
    if classes is not None and network.classes != classes:
        raise MismatchError(f"{folder}: the network has {network.classes} classes, the data has {classes}")
    return network.eval().requires_grad_(False)


def _kind_of(folder: Path) -> str:
    """Which of our networks a folder holds."""
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise StorageError(f"{folder}: a pipeline's folder; name its network's in teacher.subfolder, such as unet")
    name = read_json(folder / "config.json", sealed=False).get("_class_name")
    if name is not None and (not isinstance(name, str) or name not in _KINDS):
        raise MismatchError(f"{folder}: a {str(name)[:60]}; a teacher is a {' or a '.join(_KINDS)}")
    return "mlp" if name is None else _KINDS[name]


def check_config(folder: str | Path, config: Any, **allowed: tuple[Any, ...]) -> None:
    """Look at what a diffusers UNet's config.json says of how it is called, and of its output.

    Args:
        allowed: key → its values; a key that the config lacks has the first one.

    Raises:
        MismatchError: another value, or an output that is neither like the input nor that and a learned variance.
    """
    for key, values in allowed.items():
        if (value := config.get(key, values[0])) not in values:
            choice = " or ".join(map(str, values))
            raise MismatchError(f"{folder}: the network's {key} is {str(value)[:60]}; a teacher's is {choice}")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise MismatchError(
            f"{folder}: the network has in_channels {config.in_channels} and out_channels {config.out_channels}; a "
            "teacher's output has as many channels as its input, or twice as many (with a learned variance)"
        )


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
