"""The student: a consistency function over a network that starts as the teacher's."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import networks
from ..errors import ConsistencyError, StorageError
from ..files.storage import atomic, check_folder, check_tensors, load_tensors, write_json
from ..flow.predictions import data_of
from ..flow.schedules import VESchedule, VPSchedule, boundary
from ..networks import LORA_FILE, first_line, sizes
from ..runtime.devices import HALF
from ..teachers.protocol import network_time


class ConsistencyFunction(nn.Module):
    """`f(x_s, s) = c_skip(s) x_s + c_out(s) (x_s − σ_s ε_θ(x_s, s, c)) / α_s` (section A.4).

    f(x, 0) = x exactly. There is no guidance inside: one student is distilled at one fixed w. A network that predicts v
    or x_0 is asked for what it predicts, and the estimate of x_0 is made of that (`predictions`).
    """

    def __init__(self, network: nn.Module, schedule: VPSchedule, timestep_offset: int = -1):
        super().__init__()
        self.network, self.schedule, self.timestep_offset = network, schedule, timestep_offset

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of a sample."""
        return self.network.sample_shape

    def forward(self, x: torch.Tensor, s: torch.Tensor | int, cond: torch.Tensor) -> torch.Tensor:
        """x (B, …), s timestep(s) 0..T, cond (B,) → the estimate of the ODE's endpoint, like x."""
        s = torch.as_tensor(s).expand(len(x))
        output = self.network(x, network_time(s, len(x), self.timestep_offset, x.device), cond).to(x.dtype)
        clean = data_of(self.network, output, x, s, self.schedule)
        c_skip, c_out = boundary(s, x)
        return c_skip * x + c_out * clean


class EDMConsistencyFunction(nn.Module):
    """`f(x, σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ), c)`, VE and EDM preconditioning (section B.2).

    f(x, σ_min) = x exactly. The network's time input runs over its timesteps 0..T − 1: c_noise = ¼ ln σ is
    mapped there linearly, which the embedding's first layer could undo.
    """

    def __init__(self, network: nn.Module, schedule: VESchedule):
        super().__init__()
        self.network, self.schedule = network, schedule
        self._low, self._high = 0.25 * math.log(schedule.sigma_min), 0.25 * math.log(schedule.sigma_max)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return self.network.sample_shape

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, cond: torch.Tensor) -> torch.Tensor:
        """x (B, …), σ scalar or (B,) in [σ_min, σ_max], cond (B,) → the estimate of the ODE's end, like x."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
        c_skip, c_out, c_in, c_noise = self.schedule.scalings(sigma, x)
        time = (c_noise - self._low) / (self._high - self._low) * (self.network.timesteps - 1)
        return c_skip * x + c_out * self.network(c_in * x, time.to(x.dtype), cond).to(x.dtype)


def create(
    teacher_folder: str | Path,
    schedule: VPSchedule,
    timestep_offset: int,
    parameters: str = "full",
    lora_rank: int = 64,
    seed: int = 0,
    prompts: str | Path | None = None,
    precision: str = "no",
) -> ConsistencyFunction:
    """A student that starts at the teacher's weights, with the chosen parameters trainable.

    Args:
        parameters: "full" (all of them) or "lora" (low-rank adapters on every linear and
            convolutional layer, alpha = rank; section A.4).
        lora_rank: of the adapters.
        seed: of the adapters' initialisation.
        prompts: embeddings, for a text-to-image network.
        precision: the frozen weights under a text-to-image network's adapters are kept in it.
    """
    network = networks.load(teacher_folder, prompts=prompts)
    if parameters == "full":
        network.float().requires_grad_(True)
    elif hasattr(network, "add_lora"):
        network.to(HALF.get(precision, torch.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.add_lora(lora_rank)
    else:
        network = _add_lora(network, lora_rank, seed)
    return ConsistencyFunction(network.train(), schedule, timestep_offset)


def _add_lora(network: nn.Module, rank: int, seed: int) -> nn.Module:
    from ..runtime.compat import ensure_torchvision

    ensure_torchvision()
    from peft import LoraConfig, get_peft_model

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(network, config)


def save(
    student: ConsistencyFunction | EDMConsistencyFunction,
    folder: str | Path,
    card: dict[str, Any],
    snapshots: dict[str, Path] | None = None,
) -> None:
    """Write the student: a whole network, or peft's adapter folder; plus `student.json` (the card).

    Args:
        snapshots: name → file of weights earlier in training, copied to `snapshots/{name}.safetensors`.
    """
    with atomic(folder) as temporary:
        networks.write(student.network, temporary)
        for name, file in (snapshots or {}).items():
            check_tensors(file)
            (temporary / "snapshots").mkdir(exist_ok=True)
            shutil.copyfile(file, temporary / "snapshots" / f"{name}.safetensors")
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card
        write_json(temporary / "student.json", card)


def load(
    folder: str | Path,
    teacher_folder: str | Path,
    schedule: VPSchedule,
    timestep_offset: int,
    prompts: str | Path | None = None,
) -> ConsistencyFunction:
    """Load a saved student in evaluation mode; adapters are merged into the teacher's weights.

    Raises:
        StorageError: missing or damaged files.
    """
    check_folder(folder)
    if (Path(folder) / LORA_FILE).is_file():
        network = networks.load(teacher_folder, prompts=prompts).float()
        try:
            network.merge_lora(folder)
        except ConsistencyError:
            raise
        except Exception as error:
            raise StorageError(f"{folder}: adapters cannot be loaded ({first_line(error)})") from error
    elif (Path(folder) / "adapter_config.json").is_file():
        from ..runtime.compat import ensure_torchvision

        ensure_torchvision()
        from peft import PeftModel

        sizes.check_ranks(folder)
        base = networks.load(teacher_folder)
        try:
            network = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
        except Exception as error:
            raise StorageError(f"{folder}: adapters cannot be loaded ({first_line(error)})") from error
    else:
        network = networks.load(folder, prompts=prompts)
    return ConsistencyFunction(network.eval().requires_grad_(False), schedule, timestep_offset)


def load_edm(folder: str | Path, schedule: VESchedule, snapshot: str | None = None) -> EDMConsistencyFunction:
    """Load a student that was trained from pairs, in evaluation mode.

    Args:
        snapshot: name of its weights earlier in training; the final ones by default.

    Raises:
        StorageError: missing or damaged files.
    """
    student = EDMConsistencyFunction(networks.load(folder), schedule)
    if snapshot is not None:
        weights, _ = load_tensors(Path(folder) / "snapshots" / f"{snapshot}.safetensors")
        student.load_state_dict(weights)
    return student.eval().requires_grad_(False)


def budget_name(budget: float) -> str:
    """The name of the snapshot after a share of the training, such as budget_0.25."""
    return f"budget_{budget:g}"
