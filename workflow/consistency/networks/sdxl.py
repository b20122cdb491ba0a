"""SDXL's UNet2DConditionModel behind the pipeline's network interface: cond is the number of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import MismatchError
from ..files.storage import load_tensors
from ..runtime.compat import ensure_torchvision
from . import LORA_FILE, check_config, sizes
from .pretrained import variant

# Section A.4.
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
_RESIDUAL = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
LORA_MODULES = _ATTENTION + _RESIDUAL


class SDXLUNet(nn.Module):
    """A text-to-image UNet with its prompts' embeddings; sizes and crops are SDXL's for whole square images.

    Attributes:
        sample_shape: (C, H, W) of a latent.
        classes: number of prompts; cond = classes is the null prompt, whose embeddings are zero (section A.2).
        timesteps: T.
    """

    capturable = False  # embeddings are looked up on the CPU; and its kernels are long

    def __init__(self, net: nn.Module, timesteps: int = 1000):
        super().__init__()
        self.net, self.timesteps, self.classes = net, timesteps, 0
        self.sample_shape = (net.config.in_channels, net.config.sample_size, net.config.sample_size)
        self._prompts: dict[str, torch.Tensor] = {}
        self._side = 0

    def read_prompts(self, path: str | Path) -> None:
        """Map a file of `latents.encode_prompts` into memory.

        Raises:
            StorageError: missing or damaged.
            MismatchError: embeddings of another width than the network's.
        """
        self._prompts, metadata = load_tensors(path, ["embeddings", "pooled"])
        config = self.net.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        expected = {"embeddings": config.cross_attention_dim, "pooled": pooled}
        for name, what in (("embeddings", "embeddings"), ("pooled", "pooled embeddings")):
            if (width := self._prompts[name].shape[-1]) != expected[name]:
                raise MismatchError(
                    f"{path}: {what} of width {width}, the network takes {expected[name]}; text encoders and UNet must "
                    "be of one pipeline"
                )
        self.classes, self._side = len(self._prompts["pooled"]), metadata["side"]

    def _embed(self, cond: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = cond.cpu()
        null = rows == self.classes
        parts = []
        for name in ("embeddings", "pooled"):
            value = self._prompts[name][rows.masked_fill(null, 0)].to(x)
            value[null.to(x.device)] = 0
            parts.append(value)
        return parts[0], parts[1]

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W), t (B,) in 0..T − 1, cond (B,) prompt numbers or `classes` → like x."""
        x = x.to(self.net.conv_in.weight.dtype)
        embeddings, pooled = self._embed(cond, x)
        size = torch.tensor([self._side, self._side, 0, 0, self._side, self._side], dtype=x.dtype, device=x.device)
        added = {"text_embeds": pooled, "time_ids": size.expand(len(x), 6)}
        output = self.net(x, t, encoder_hidden_states=embeddings, added_cond_kwargs=added).sample
        return output[:, : len(x[0])]  # the rest is a learned variance

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        self.net.enable_gradient_checkpointing()

    def compile_blocks(self) -> None:
        """Compile the blocks that it is made of (torch.compile), each kind once for each of its shapes; what cannot be
        compiled, where there is no C compiler say, runs as it is.

        Convolutions then take and give channels_last, which uncompiled group normalisations would undo.
        """
        import torch._dynamo

        torch._dynamo.config.recompile_limit = 64  # shapes of one class of blocks
        torch._dynamo.config.suppress_errors = True
        self.net.to(memory_format=torch.channels_last)
        for module in self.net.modules():
            if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
                module.compile()

    def add_lora(self, rank: int) -> None:
        """Freeze the weights and add trainable float32 adapters, alpha = rank, on `LORA_MODULES` (section A.4)."""
        ensure_torchvision()
        from peft import LoraConfig

        self.requires_grad_(False)
        self.net.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_MODULES)
        )
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def save_pretrained(self, folder: str | Path) -> None:
        """A LoRA file for `load_lora_weights` where there are adapters, else a UNet2DConditionModel folder."""
        if not getattr(self.net, "peft_config", None):
            self.net.save_pretrained(folder, max_shard_size="1TB")
            return
        from diffusers import StableDiffusionXLPipeline
        from diffusers.training_utils import _collate_lora_metadata
        from peft.utils import get_peft_model_state_dict

        # As peft names them: after convert_state_dict_to_diffusers the attention's half is dropped on loading.
        state = {name: value.contiguous() for name, value in get_peft_model_state_dict(self.net).items()}
        metadata: dict[str, Any] = _collate_lora_metadata({"unet": self.net})
        StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=state, **metadata)

    def merge_lora(self, folder: str | Path) -> None:
        """Load a LoRA file as a pipeline does and add it to the weights.

        Raises:
            MismatchError: adapters of other layers than this network's.
        """
        from diffusers import StableDiffusionXLPipeline

        state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
            str(folder), weight_name=LORA_FILE, return_lora_metadata=True, local_files_only=True
        )
        StableDiffusionXLPipeline.load_lora_into_unet(state, alphas, self.net, metadata=metadata)
        loaded = {key for key in self.net.state_dict() if "lora_" in key}
        if len(loaded) != len(state):
            raise MismatchError(f"{folder}: {len(state)} adapter tensors, {len(loaded)} fit this network")
        self.net.fuse_lora()
        self.net.unload_lora()

    @classmethod
    def from_pretrained(cls, folder: str | Path, timesteps: int = 1000) -> SDXLUNet:
        """Load a UNet2DConditionModel folder.

        Args:
            timesteps: T, which the folder's config.json does not state.

        Raises:
            StorageError: a network larger than its weights.
            MismatchError: a network that is called otherwise than SDXL's, such as Stable Diffusion 1.5's.
        """
        ensure_torchvision()
        from diffusers import UNet2DConditionModel

        sizes.check(folder, UNet2DConditionModel)
        options = {"variant": variant(folder), "torch_dtype": "auto", "local_files_only": True}
        net = UNet2DConditionModel.from_pretrained(folder, **options)
        check_config(folder, net.config, addition_embed_type=("text_time",), time_cond_proj_dim=(None,))
        return cls(net, timesteps)
