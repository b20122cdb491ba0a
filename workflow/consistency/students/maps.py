"""Students as flow maps: X(x_t, t, r, c) takes a point of a flow at time t to the point at r ≤ t, and
`f(x_t, t, c) = X(x_t, t, end, c)` is its consistency function."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import networks
from ..config.settings import OF_FLOW
from ..files.storage import atomic, check_folder, check_tensors, load_tensors, write_json
from ..flow.schedules import Flow
from ..networks import LORA_FILE, sizes
from ..networks.pretrained import loading
from ..runtime.compat import ensure_torchvision
from ..runtime.devices import HALF
from .derivatives import along
from .parameterisations import PARAMETERISATIONS

Tensor = torch.Tensor
Time = torch.Tensor | float


class FlowMap(nn.Module):
    """A network, the flow that it moves along, and how its output becomes a point (`parameterisations`).

    Args:
        parameterisation: a key of `PARAMETERISATIONS`; the flow's own by default.
        timestep_offset: of a network of the VP schedule (`teachers.protocol`).
    """

    def __init__(self, network: nn.Module, flow: Flow, parameterisation: str | None = None, timestep_offset: int = -1):
        super().__init__()
        self.network, self.flow = network, flow
        self.parameterisation = PARAMETERISATIONS[parameterisation or OF_FLOW[flow.name]](flow, timestep_offset)

    def forward(self, x: Tensor, t: Time, cond: Tensor, r: Time | None = None, velocity: bool = False) -> Tensor:
        """The point at r on the trajectory through x at t.

        Args:
            x: (B, …); t: scalar or (B,); cond: int64 (B,).
            r: scalar or (B,), at most t; the flow's end by default, where the student is a consistency function.
            velocity: the average velocity from t to r, (x − X)/(t − r), instead of the point.
        """
        return self.parameterisation(self.network, x, t, cond, r, velocity)


class Student:
    """What an objective is given: a `FlowMap`, also inside the wrapper that shares gradients between processes."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.map: FlowMap = getattr(module, "module", module)

    @property
    def flow(self) -> Flow:
        """The flow that it moves along."""
        return self.map.flow

    def __call__(self, x: Tensor, t: Time, cond: Tensor, r: Time | None = None) -> Tensor:
        """`FlowMap.forward`: the point at r (by default the flow's end) on the trajectory through x at t."""
        return self.module(x, t, cond, r)

    def average_velocity(self, x: Tensor, t: Time, cond: Tensor, r: Time) -> Tensor:
        """u(x, t, r) = (x − X(x, t, r))/(t − r); at r = t the instantaneous velocity."""
        return self.module(x, t, cond, r, True)

    def derivative(
        self, x: Tensor, t: Tensor, cond: Tensor, velocity: Tensor, r: Tensor | None = None, of_velocity: bool = False
    ) -> tuple[Tensor, Tensor]:
        """X(x, t, r) and its derivative in t along the trajectory, `v ∂_x X + ∂_t X`, without gradient.

        Dropout is drawn as the next call of the student will draw it.

        Args:
            velocity: dx/dt at x, like x.
            r: (B,); fixed, the flow's end by default.
            of_velocity: of the average velocity u(x, t, r) instead of X.
        """

        def function(x: Tensor, t: Tensor) -> Tensor:  # not by way of `forward`, which accelerate puts under autocast
            return self.map.parameterisation(self.map.network, x, t, cond, r, of_velocity)

        return along(function, (x, t), (velocity, torch.ones_like(t)))


def create(
    teacher_folder: str | Path,
    parameters: str = "full",
    lora_rank: int = 64,
    seed: int = 0,
    prompts: str | Path | None = None,
    precision: str = "no",
) -> nn.Module:
    """A network that starts at the teacher's weights, with the chosen parameters trainable.

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
        return network.float().requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(network, "add_lora"):
            network.to(HALF.get(precision, torch.float32)).add_lora(lora_rank)
        else:
            network = _with_lora(network, lora_rank)
    return network.train()


def _with_lora(network: nn.Module, rank: int) -> nn.Module:
    ensure_torchvision()
    from peft import LoraConfig, get_peft_model

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights="gaussian")
    return get_peft_model(network, config)


def save(student: FlowMap, folder: str | Path, card: dict[str, Any], snapshots: dict[str, Path] | None = None) -> None:
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


def load_network(folder: str | Path, base: str | Path | None = None, prompts: str | Path | None = None) -> nn.Module:
    """A saved student's network; adapters are merged into the weights that they were trained beside.

    Args:
        base: folder of the network under the adapters.
        prompts: embeddings, for a text-to-image network.

    Raises:
        StorageError: missing or damaged files.
    """
    check_folder(folder)
    merging = (Path(folder) / LORA_FILE).is_file()
    if not merging and not (Path(folder) / "adapter_config.json").is_file():
        return networks.load(folder, prompts=prompts)
    if not merging:
        sizes.check_ranks(folder)
    network = networks.load(base, prompts=prompts)
    with loading(f"{folder}: adapters"):
        if merging:
            network.float().merge_lora(folder)
            return network
        ensure_torchvision()
        from peft import PeftModel

        return PeftModel.from_pretrained(network, str(folder)).merge_and_unload()


def load(
    folder: str | Path,
    flow: Flow,
    parameterisation: str | None = None,
    *,
    timestep_offset: int = -1,
    base: str | Path | None = None,
    prompts: str | Path | None = None,
    snapshot: str | None = None,
) -> FlowMap:
    """A saved student in evaluation mode.

    Args:
        base, prompts: see `load_network`.
        snapshot: name of its weights earlier in training; the final ones by default.

    Raises:
        StorageError: missing or damaged files.
    """
    student = FlowMap(load_network(folder, base, prompts), flow, parameterisation, timestep_offset)
    if snapshot is not None:
        weights, _ = load_tensors(Path(folder) / "snapshots" / f"{snapshot}.safetensors")
        student.load_state_dict(weights)
    return student.eval().requires_grad_(False)


def budget_name(budget: float) -> str:
    """The name of the snapshot after a share of the training, such as budget_0.25."""
    return f"budget_{budget:g}"
