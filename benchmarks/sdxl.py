"""SDXL's UNet with random weights: how near to the card's peak targets are solved, and what a student's step holds."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from consistency.files.storage import save_tensors
from consistency.flow.schedules import VPSchedule
from consistency.networks.sdxl import SDXLUNet
from consistency.plan import estimates
from consistency.runtime.compat import ensure_torchvision
from consistency.runtime.devices import autocast, move
from consistency.students import losses, maps, objectives
from consistency.teachers import targets
from consistency.teachers.protocol import Teacher
from consistency.training.optimizers import make_optimizer
from timing import Row, Spread, paired, row, synchronise

REPOSITORY = "stabilityai/stable-diffusion-xl-base-1.0"
# Dense bf16 operations a second, of the makers' data sheets; to what shares of a peak refer.
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
# The same layout with little in it, for a machine without a GPU.
TINY = {
    "sample_size": 16,
    "block_out_channels": [32, 32, 64],
    "transformer_layers_per_block": [1, 1, 1],
    "attention_head_dim": [2, 2, 4],
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 1280 + 6 * 32,
}


def network(device: torch.device, tiny: bool, folder: Path) -> tuple[SDXLUNet, int]:
    """The UNet on the device in bf16, with 8 random prompts, and the operations of one forward pass of a sample."""
    ensure_torchvision()
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    kind, shape, config = estimates.hub_networks()[REPOSITORY].values()
    assert kind == "UNet2DConditionModel"
    config = config | TINY if tiny else config
    channels = {"in_channels": shape[0], "out_channels": shape[0]}
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            net = UNet2DConditionModel(**config, **channels)
        finally:
            torch.set_default_dtype(torch.float32)
    unet = SDXLUNet(net)
    embeddings = {"embeddings": torch.randn(8, 77, config["cross_attention_dim"]), "pooled": torch.randn(8, 1280)}
    save_tensors(folder / "prompts.safetensors", embeddings, {"side": 8 * config["sample_size"]})
    unet.read_prompts(folder / "prompts.safetensors")
    x = torch.zeros(1, *unet.sample_shape, device=device, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(x, torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    return unet, counter.get_total_flops()


def peak_of(device: torch.device) -> float | None:
    """The card's dense bf16 peak, where it is known."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((peak for key, peak in PEAK.items() if key in name), None)


def rows(batches: list[int], rounds: int, tiny: bool = False) -> Iterator[Row]:
    """Solving with guidance, and a LoRA student's step with gradient checkpointing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = "SDXL's UNet, random weights" + (", tiny" if tiny else "")
    with tempfile.TemporaryDirectory() as folder:
        unet, flops = network(device, tiny, Path(folder))
        yield row("SDXL", case, "one sample", "operations of a forward pass", "TFLOP", flops / 1e12)
        for batch in batches:
            yield from solving(unet, flops, batch, rounds, case, "contiguous")
        unet.net.to(memory_format=torch.channels_last)
        yield from solving(unet, flops, batches[-1], 2, case, "channels_last")
        if not tiny:
            unet.compile_blocks()
            began = time.perf_counter()
            yield from solving(unet, flops, batches[-1], rounds, case, "channels_last, blocks compiled")
            note = "warm-up and measurements included"
            seconds = time.perf_counter() - began
            yield row("SDXL", case, "blocks compiled", "seconds of this row", "s", seconds, note=note)
        del unet
        gc.collect()
        unet, _ = network(device, tiny, Path(folder))
        yield from student(unet, batches[0] if tiny else 16, 2, case)
        del unet
    gc.collect()


def solving(unet: SDXLUNet, flops: int, batch: int, rounds: int, case: str, layout: str) -> Iterator[Row]:
    """Steps of a packed guided solve of `batch` samples (2 × batch rows a call), against bare forward passes."""
    device = next(unet.parameters()).device
    teacher = Teacher(unet.eval(), VPSchedule(), precision="bf16")
    move(unet, device, "bf16")
    shape, n_steps = unet.sample_shape, 4
    x, cond = torch.randn(batch, *shape), torch.randint(0, 8, (batch,), device=device)
    grid, start = teacher.schedule.grid(n_steps), torch.zeros(batch, dtype=torch.int64)
    double = torch.randn(2 * batch, *shape, device=device)
    index, rows_ = torch.randint(0, 1000, (2 * batch,), device=device), torch.cat([cond, cond])

    def solve() -> None:
        with torch.no_grad():
            targets.solve(
                x,
                start,
                grid,
                targets.solver_named("ddim"),
                lambda chosen: teacher.eps(cond[chosen.to(device)], 9.0),
                schedule=teacher.schedule,
                batch_size=batch,
                device=device,
            )

    @torch.no_grad()
    def forward() -> None:
        for _ in range(n_steps):
            unet(double, index, rows_)

    try:
        durations = paired({"solve": solve, "forward": forward}, rounds)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return
    done, setting = 2 * batch * n_steps, f"guided, batch {batch} ({2 * batch} rows a call), bf16, {layout}"
    rate = Spread.of([done * flops / seconds / 1e12 for seconds in durations["solve"]])
    yield row("SDXL", case, setting, "solving", "TFLOP/s", rate)
    share = Spread.of([a / b for a, b in zip(durations["forward"], durations["solve"], strict=True)])
    yield row("SDXL", case, setting, "share of the network's own rate", "", share)
    if peak := peak_of(device):
        values = [1e12 * value / peak for value in (rate.median, rate.low, rate.high)]
        yield row("SDXL", case, setting, "share of the card's dense bf16 peak", "", Spread(*values, rate.count))


def student(unet: SDXLUNet, batch: int, rounds: int, case: str) -> Iterator[Row]:
    """A Direct CM step of LoRA (rank 64) with gradient checkpointing, and the memory that it needs."""
    device = next(unet.parameters()).device
    unet.add_lora(64)
    unet.enable_gradient_checkpointing()
    model = maps.FlowMap(unet.train(), VPSchedule())
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer("adamw", weights, 1e-4, 0.01)
    times = torch.tensor(model.flow.grid(10), device=device)
    inputs = {
        "x_t": torch.randn(batch, *unet.sample_shape, device=device),
        "x_0": torch.randn(batch, *unet.sample_shape, device=device),
        "t": times[torch.randint(0, 10, (batch,), device=device)],
        "cond": torch.randint(0, 8, (batch,), device=device),
    }

    def step() -> None:
        with autocast(device, "bf16"):
            prediction, target = objectives.direct(model, inputs, None)
        losses.mse(prediction.float(), target).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    durations = paired({"step": step}, rounds)
    setting = f"Direct CM, LoRA of rank 64, batch {batch}, bf16, gradient checkpointing, AdamW"
    yield row("SDXL", case, setting, "student step", "s", Spread.of(durations["step"]))
    if device.type == "cuda":
        synchronise()
        yield row("SDXL", case, setting, "peak of the GPU's memory", "GB", torch.cuda.max_memory_allocated() / 1e9)
