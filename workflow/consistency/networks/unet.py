"""diffusers' UNet2DModel behind the pipeline's network interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..files.storage import load_tensors, save_tensors
from ..runtime.compat import ensure_torchvision
from . import check_config, sizes
from .mlp import embedding_from_zero
from .pretrained import variant

SECOND_TIME = "second_time.safetensors"  # beside diffusers' own file


class UNet(nn.Module):
    """Class-conditional UNet2DModel; saved as a plain diffusers model folder.

    Args:
        sample_shape: (C, H, W) with H = W.
        classes: number of classes; label `classes` is the null class.
        timesteps: T; the timestep index runs 0..T − 1.
        channels: width of each resolution; each after the first halves the side.
        layers_per_block: residual blocks per resolution.
        dropout: share of activations dropped in training.
        attention: sides in pixels at which the blocks attend.
        norm_groups: of the group normalisations.
        second_time: whether the network may be asked with a gap between two times too; its embedding starts at zero.
    """

    def __init__(
        self,
        sample_shape: list[int],
        classes: int,
        timesteps: int,
        channels: list[int],
        layers_per_block: int,
        dropout: float = 0.0,
        attention: list[int] | None = None,
        norm_groups: int = 8,
        net: nn.Module | None = None,
        second_time: bool = False,
    ):
        super().__init__()
        ensure_torchvision()
        from diffusers import UNet2DModel

        self.sample_shape, self.classes, self.timesteps = tuple(sample_shape), classes, timesteps
        attends = [sample_shape[-1] >> level in (attention or []) for level in range(len(channels))]
        self.net = net or UNet2DModel(
            sample_size=sample_shape[-1],
            in_channels=sample_shape[0],
            out_channels=sample_shape[0],
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
            up_block_types=tuple("AttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
            norm_num_groups=norm_groups,
            dropout=dropout,
            num_class_embeds=classes + 1,
            num_train_timesteps=timesteps,
        )
        first = self.net.time_embedding
        sizes_of_time = first.linear_1.in_features, first.linear_2.out_features
        self.gap = embedding_from_zero(*sizes_of_time) if second_time else None

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor, gap: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, *sample_shape), t (B,) in 0..T − 1, cond (B,) in 0..classes, gap t − r (B,) ≥ 0 → like x."""
        labels = None if self.net.config.num_class_embeds is None else cond
        with self._with_gap(gap):
            output = self.net(x.to(self.net.conv_in.weight.dtype), t, class_labels=labels).sample
        return output[:, : len(x[0])]  # the rest is a learned variance

    @contextmanager
    def _with_gap(self, gap: torch.Tensor | None) -> Iterator[None]:
        """The second time's embedding is added to the first one's; UNet2DModel has no argument for it."""
        if gap is None:
            yield
            return
        more = self.gap(self.net.time_proj(gap).to(self.gap[0].weight.dtype))
        hook = self.net.time_embedding.register_forward_hook(lambda module, inputs, output: output + more)
        try:
            yield
        finally:
            hook.remove()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        self.net.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json and diffusion_pytorch_model.safetensors, as diffusers reads them."""
        self.net.save_pretrained(folder, max_shard_size="1TB")
        if self.gap is not None:
            save_tensors(Path(folder) / SECOND_TIME, self.gap.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, timesteps: int = 1000) -> UNet:
        """Load a UNet2DModel folder; one without class embedding has one class, and no guidance.

        Args:
            timesteps: T, where the folder's config.json does not state it.

        Raises:
            StorageError: a network larger than its weights.
            MismatchError: a network that is called otherwise, such as one of a VE schedule.
        """
        ensure_torchvision()
        from diffusers import UNet2DModel

        sizes.check(folder, UNet2DModel)
        net = UNet2DModel.from_pretrained(folder, variant=variant(folder), local_files_only=True)
        config = net.config
        check_config(folder, config, class_embed_type=(None,), time_embedding_type=("positional", "learned"))
        network = cls(
            sample_shape=[config.in_channels, config.sample_size, config.sample_size],
            classes=1 if config.num_class_embeds is None else config.num_class_embeds - 1,
            timesteps=config.num_train_timesteps or timesteps,
            channels=list(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            net=net,
            second_time=(Path(folder) / SECOND_TIME).is_file(),
        )
        if network.gap is not None:
            network.gap.load_state_dict(load_tensors(Path(folder) / SECOND_TIME)[0])
        return network
