"""What a preset will cost, for dry runs: network evaluations, floating-point operations, hours, disk.

Operations of one forward pass are counted by torch on networks without memory (`python -m consistency.plan.estimates`
writes flops.json), so that a dry run imports nothing heavy. Hours are operations over a rate, with constants for steps
and jobs, measured (docs/scaling.md).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.settings import Experiment, Run
from ..config.shapes import shape_of
from ..escape import line
from .preflight import weights

FLOPS = Path(__file__).with_name("flops.json")


@dataclass(frozen=True)
class Device:
    """What an hour of it does.

    Attributes:
        name: as the table says it.
        rates: operations a second, by precision or by kind of network.
        training: the same of training steps, by kind of network, where it differs.
        steps: seconds of a training step beside its operations, by kind of network.
        job: seconds of a job beside its work: the start of Python and torch.
        note: where the numbers are from.
        sizes: in half precision, by operations of a forward pass, ascending: those, the rate, that of training steps,
            and seconds of a step beside its operations; between them all are interpolated in the logarithms.
    """

    name: str
    rates: dict[str, float]
    training: dict[str, float]
    steps: dict[str, float]
    job: float
    note: str
    sizes: tuple[tuple[float, float, float, float], ...] = ()

    def seconds(
        self, flops: float, *, kind: str, precision: str, size: float, steps: float = 0, jobs: float = 0
    ) -> float:
        """Time of operations.

        Args:
            kind: of the network; empty for one that is not built here.
            size: operations of its forward pass.
            steps, jobs: in how many training steps and jobs.
        """
        if self.sizes and precision != "no" and size:
            solving, training, beside = _between(size, self.sizes)
            return flops / (training if steps else solving) + steps * beside + jobs * self.job
        rate = (steps and self.training.get(kind)) or self.rates.get(kind) or self.rates[precision]
        return flops / rate + steps * self.steps.get(kind, 0.0) + jobs * self.job


def _between(size: float, measured: tuple[tuple[float, float, float, float], ...]) -> list[float]:
    """The numbers of a size, of those before and after it; beyond the first and the last, theirs."""
    if size <= measured[0][0] or size >= measured[-1][0]:
        return list(measured[0 if size <= measured[0][0] else -1][1:])
    above = next(number for number, entry in enumerate(measured) if entry[0] > size)
    one, other = measured[above - 1], measured[above]
    share = math.log(size / one[0]) / math.log(other[0] / one[0])
    return [a ** (1 - share) * b**share for a, b in zip(one[1:], other[1:], strict=True)]


GPU = Device(
    name="GPU",
    rates={"no": 3e13, "bf16": 4.7e13, "fp16": 4.7e13},
    training={},
    steps={},
    job=0.0,
    note="at rates measured on an H100 in bf16 (docs/scaling.md), and an assumed 30 TFLOP/s in float32",
    # the networks of `fashion` and `cifar10`, and SDXL's, whose students are LoRA with gradient checkpointing
    sizes=((7.6e8, 4.7e13, 4.3e13, 3.6e-3), (1.49e10, 1.5e14, 1.49e14, 7.9e-3), (6.76e12, 3.79e14, 2.16e14, 7.9e-3)),
)
CPU = Device(
    name="core",
    rates={"mlp": 6.2e10, "unet": 5.2e10, "no": 5.2e10, "bf16": 5.2e10},
    training={"mlp": 6.8e10, "unet": 7.0e10},
    steps={"mlp": 1.8e-3, "unet": 42e-3},
    job=0.06,
    note="at rates measured on one core that had nothing else to do (docs/scaling.md)",
)
BACKWARD = 2  # a backward pass costs about two forward passes
CALLS = {"heun": 2}  # network evaluations a solver step; the others take one


def key_of(experiment: Experiment, hub: str | None = None) -> str:
    """The name in flops.json of the network that the pipeline builds, or of one from the hub."""
    if hub:
        return hub
    shape, _, classes = shape_of(experiment)
    network = experiment.network.model_dump(exclude={"dropout"})
    return json.dumps([network, list(shape), classes], sort_keys=True)


def operations() -> dict[str, dict[str, int]]:
    """Network (`key_of`) → parameters, and flops of one forward pass."""
    return json.loads(FLOPS.read_text(encoding="utf-8"))


def hub_networks() -> dict[str, dict[str, Any]]:
    """Repository → class, shape of a sample, and configuration of networks that are downloaded."""
    return json.loads(FLOPS.with_name("hub.json").read_text(encoding="utf-8"))


def device_of(experiment: Experiment) -> Device:
    """What the preset's jobs run on."""
    return GPU if experiment.gpu else CPU


Stages = dict[str, dict[str, float | None]]


class _Bill:
    """The stages of an experiment, as they are added up."""

    def __init__(self, experiment: Experiment, device: Device):
        self.experiment, self.device = experiment, device
        self.stages: Stages = {}
        counted, teacher = operations(), experiment.teacher
        hub = teacher.hub.repo if teacher.source == "hub" else None
        self.built = counted.get(key_of(experiment), {})
        self.teacher = {} if teacher.source in ("path", "analytic") else counted.get(key_of(experiment, hub), {})
        self.vae = counted.get(getattr(getattr(experiment.data, "vae", None), "repo", ""), {})
        self.sample = 4 * math.prod(shape_of(experiment)[0])  # bytes

    def add(
        self,
        stage: str,
        passes: float,
        network: dict[str, Any],
        precision: str,
        stored: float | None,
        *,
        share: float = 1.0,
        steps: int = 0,
        jobs: int = 1,
    ) -> None:
        """Add forward passes, each of which costs `share` times its operations, and what they store."""
        row = self.stages.setdefault(stage, {"passes": 0.0, "flops": 0.0, "hours": 0.0, "bytes": 0.0})
        flops = passes * share * network["flops"] if network else None
        cost = {"passes": passes, "flops": flops, "hours": None, "bytes": stored}
        if flops is not None:
            kind, size = self.experiment.network.kind if network is self.built else "", network["flops"]
            seconds = self.device.seconds(flops, kind=kind, precision=precision, size=size, steps=steps, jobs=jobs)
            cost["hours"] = seconds / 3600
        for name, value in cost.items():
            row[name] = None if value is None or row[name] is None else row[name] + value

    def store(self, stage: str, stored: float | None) -> None:
        """Add bytes that no network computes."""
        self.add(stage, 0, {"flops": 0}, "no", stored)

    def decode(self, count: int) -> None:
        """Add the images of latents."""
        if self.experiment.data.kind == "captions":
            self.add("decode", count, self.vae, self.experiment.data.precision, 0)


def estimate(experiment: Experiment, runs: list[Run], device: Device | None = None) -> Stages:
    """Stage → forward passes (in samples), flops, hours (of one device), bytes. None where it is not known.

    A training step counts as forward and backward of the batch, plus one forward for each target that the student
    computes. Feature extraction and the text encoders are not counted.

    Args:
        device: by default the one of `device_of`.
    """
    bill = _Bill(experiment, device or device_of(experiment))
    _data(bill)
    _teacher(bill, [run for run in runs if not run.from_pairs])
    for run in runs:
        _student(bill, run)
    return bill.stages


def _data(bill: _Bill) -> None:
    data, (shape, count, _) = bill.experiment.data, shape_of(bill.experiment)
    if data.kind == "captions":
        bill.add("encode", count, bill.vae, data.precision, count * 3 * data.side**2 + count * bill.sample)
    else:
        bill.store("data", None if count is None else count * math.prod(shape))
    sources = [*weights(bill.experiment).values(), getattr(data, "download", None)]
    if sizes := [source.gigabytes for source in sources if source is not None]:
        bill.store("download", None if None in sizes else 1e9 * sum(sizes))


def _teacher(bill: _Bill, runs: list[Run]) -> None:
    """The teacher, its samples and the targets of runs that learn from them."""
    experiment, built = bill.experiment, bill.built
    teacher, targets, evaluation = experiment.teacher, experiment.targets, experiment.evaluation
    if teacher.source in ("train", "analytic") and runs:
        training = teacher.training
        passes, stored = training.steps * training.batch_size, 4 * built["parameters"] if built else None
        bill.add("teacher", passes, built, training.precision, stored, share=1 + BACKWARD, steps=training.steps)
    for condition, run in {run.condition: run for run in runs}.items():
        calls = CALLS.get(run.solver, 1) * (1 if run.guidance == 1 else 2)
        stored = (1 + min(evaluation.start_times, run.n_steps)) * evaluation.count * bill.sample
        passes = evaluation.count * run.n_steps * calls
        bill.add("teacher samples", passes, bill.teacher, teacher.precision, stored)
        bill.decode(evaluation.count)
        for mode in {other.targets for other in runs if other.condition == condition}:
            steps, kept = ((run.n_steps + 1) / 2, 3) if mode == "paper" else (run.n_steps, run.n_steps + 1)
            passes, stored = targets.count * steps * calls, targets.count * kept * bill.sample
            bill.add("targets", passes, bill.teacher, teacher.precision, stored, jobs=targets.shards)


def _student(bill: _Bill, run: Run) -> None:
    """A run's training and its samples."""
    experiment, evaluation = bill.experiment, bill.experiment.evaluation
    pairs = experiment.consistency_training
    training = pairs.training if run.from_pairs else experiment.student.training
    network = bill.built if run.from_pairs or experiment.teacher.source == "analytic" else bill.teacher
    budgets = len(pairs.budgets) if run.from_pairs else 0
    stored = 4 * network["parameters"] * (1 + budgets) if network else None
    if stored is not None and run.parameters != "full":
        stored /= 10
    own_target = run.objective != "direct"
    generated = bool(run.coupling and run.coupling.kind == "generator_induced")
    share = 1 + BACKWARD + own_target + generated + training.gradient_checkpointing
    passes = training.steps * training.batch_size
    bill.add("students", passes, network, training.precision, stored, share=share, steps=training.steps)
    few = [steps for steps in evaluation.sampling_steps if run.from_pairs or steps <= run.n_steps]
    sets = few + [1] * (budgets if run.from_pairs else min(evaluation.start_times, run.n_steps))
    stored = evaluation.count * len(sets) * bill.sample
    bill.add("samples", evaluation.count * sum(sets), network, evaluation.precision, stored)
    bill.decode(evaluation.count * len(few))


def table(name: str, experiment: Experiment, runs: list[Run]) -> str:
    """The estimate as text."""
    device = device_of(experiment)
    stages = estimate(experiment, runs, device)
    lines = [
        f"{name}: {line(experiment.title)}; {len(runs)} runs. Estimate, not measured; hours {device.note}.",
        f"  {'stage':<16}{'forward passes':>16}{'PFLOP':>12}{device.name + ' hours':>11}{'GB on disk':>12}",
    ]
    totals = {"passes": 0.0, "flops": 0.0, "hours": 0.0, "bytes": 0.0}
    for stage, row in stages.items():
        lines.append(f"  {stage:<16}{_cells(row)}")
        totals = {k: None if v is None or row[k] is None else v + row[k] for k, v in totals.items()}
    lines.append(f"  {'total':<16}{_cells(totals)}")
    return "\n".join(lines)


def _cells(row: dict[str, float | None]) -> str:
    parts = []
    for key, scale, width, form in (
        ("passes", 1, 16, ",.0f"),
        ("flops", 1e15, 12, ",.1f"),
        ("hours", 1, 11, ",.2f"),
        ("bytes", 1e9, 12, ",.2f"),
    ):
        text = "unknown" if row[key] is None else format(row[key] / scale, form)
        parts.append(f"{text:>{width}}")
    return "".join(parts)


def count_flops(presets: list[Experiment]) -> dict[str, dict[str, int]]:
    """Parameters, and operations of one sample's forward pass, of every network of these presets and of `hub_networks`.

    Counted by torch's FlopCounterMode on meta tensors: matrix products and convolutions, a multiplication and an
    addition as two operations. Of a VAE: its decoder.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .. import networks
    from ..runtime.compat import ensure_torchvision

    ensure_torchvision()
    import diffusers

    counted: dict[str, dict[str, int]] = {}

    def count(key: str, network: torch.nn.Module, *inputs: torch.Tensor, **named: Any) -> None:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs, **named)
        size = sum(parameter.numel() for parameter in network.parameters())
        counted[key] = {"parameters": size, "flops": counter.get_total_flops()}

    with torch.device("meta"):
        label = torch.zeros(1, dtype=torch.int64)
        for experiment in presets:
            shape, _, classes = shape_of(experiment)
            if experiment.data.kind != "captions" and (key := key_of(experiment)) not in counted:
                network = networks.build(experiment.network.model_dump(), shape, classes, 1000, 0)
                count(key, network, torch.zeros(1, *shape), torch.zeros(1), label)
        for repo, entry in hub_networks().items():
            kind, shape, config = entry["class"], entry["shape"], entry["config"]
            channels = {} if kind == "AutoencoderKL" else {"in_channels": shape[0], "out_channels": shape[0]}
            network, x = getattr(diffusers, kind)(**config, **channels), torch.zeros(1, *shape)
            if kind == "AutoencoderKL":
                count(repo, network.decoder, x)
            elif kind == "UNet2DModel":
                count(repo, network, x, torch.zeros(1))
            else:
                added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
                text = torch.zeros(1, 77, config["cross_attention_dim"])
                count(repo, network, x, torch.zeros(1), text, added_cond_kwargs=added)
    return counted


if __name__ == "__main__":
    from ..config.resolve import load, single

    _, experiments = load({"experiments": single()})
    text = json.dumps(count_flops(list(experiments.values())), indent=1, sort_keys=True) + "\n"
    FLOPS.write_text(text, encoding="utf-8")
    print(FLOPS)
