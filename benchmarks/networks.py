"""What is measured on networks: solving, training, sampling."""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from consistency import config, networks
from consistency.config.jobs import SamplingJob
from consistency.config.registry import BUILT_INS
from consistency.config.settings import Training
from consistency.config.shapes import shape_of
from consistency.files.storage import load_tensors, save_tensors
from consistency.flow.schedules import VPSchedule
from consistency.runtime.devices import autocast, move, pick_device
from consistency.students import losses, maps, objectives
from consistency.students.sampling import sample_student
from consistency.teachers import manifest, targets
from consistency.teachers.protocol import Teacher
from consistency.training import loop
from consistency.training.graphs import Graphed
from consistency.training.optimizers import make_optimizer
from timing import Row, Spread, clock, paired, ratio, row, synchronise
from torch.utils.flop_counter import FlopCounterMode

DIRECT, CM = (partial(f, context=None) for f in (objectives.direct, objectives.consistency_distillation))


@dataclass(frozen=True)
class Case:
    """A network with the sizes that a preset uses it at."""

    name: str
    network: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    train_batch: int
    solve_batch: int
    steps: int  # of one student
    count: int  # targets of the preset
    precision: str = "no"

    @classmethod
    def of(cls, preset: str) -> Case:
        """The case of a preset."""
        _, experiments = config.load({"experiments": [preset]})
        e = experiments[preset]
        shape, _, classes = shape_of(e)
        training = e.student.training
        network = e.network.model_dump()
        network |= {"dropout": 0.0} if "dropout" in network else {}  # students of a teacher have none
        return cls(
            name=preset,
            network=network,
            shape=shape,
            classes=classes,
            train_batch=training.batch_size,
            solve_batch=e.targets.batch_size,
            steps=training.steps,
            count=e.targets.count,
            precision=training.precision,
        )

    def smaller(self) -> Case:
        """The same with little to do, for tests."""
        return replace(self, train_batch=8, solve_batch=16, steps=40, count=64, precision="no")

    def training(self, **changes: Any) -> Training:
        """How the loop trains for a benchmark: as a bare step does."""
        sizes = {"batch_size": self.train_batch, "precision": self.precision, "learning_rate": 1e-4}
        return Training(**sizes, warmup_steps=0, decay_share=0, weight_decay=0, **changes)

    def images(self, count: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (uint8) and labels of that shape."""
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *self.shape), generator=rng, dtype=torch.uint8)
        return pixels, torch.randint(0, self.classes, (count,), generator=rng)

    def build(self) -> torch.nn.Module:
        """The network with random weights, its last layer too."""
        network = networks.build(self.network, self.shape, self.classes, 1000, 0)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.01)
        return network

    def teacher(self) -> Teacher:
        """A teacher on the device, in the case's precision."""
        teacher = Teacher(self.build().eval(), VPSchedule(), precision=self.precision)
        return teacher.to(pick_device())


@dataclass
class Shard:
    """Targets on disk, solved for a benchmark."""

    manifest: Path
    path: Path
    seconds: float
    calls: int


def solve_shard(case: Case, teacher: Teacher, folder: Path, count: int, n_steps: int, guidance: float) -> Shard:
    """Solve, write and gather `count` draws."""
    images, labels = case.images()
    path, before = folder / "shard-0.safetensors", teacher.calls

    def work() -> None:
        targets.solve_shard(
            path,
            teacher,
            images,
            labels,
            range(count),
            mode="paper",
            solver="ddim",
            n_steps=n_steps,
            guidance=guidance,
            seed=1,
            batch_size=case.solve_batch,
        )

    seconds = clock(work)
    settings = {"mode": "paper", "n_steps": n_steps, "guidance": guidance, "count": count}
    manifest.gather(folder / "manifest.json", [path], settings, "0" * 64)
    return Shard(folder / "manifest.json", path, seconds, teacher.calls - before)


class Student:
    """A student with its optimiser.

    Args:
        graphs: whether its steps on a GPU are CUDA graphs, as those of the training loop.
    """

    def __init__(self, case: Case, objective: Callable[..., Any] = DIRECT, graphs: bool = True):
        self.device, self.precision, self.objective = pick_device(), case.precision, objective
        self.model = maps.FlowMap(case.build(), VPSchedule()).to(self.device).train()
        self.optimizer = make_optimizer("adamw", list(self.model.parameters()), 1e-4, 0.0)
        graphs = graphs and self.device.type == "cuda"
        self.replayed = Graphed(self.compute, "bench", self.optimizer.zero_grad) if graphs else None

    def compute(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Forward, loss, backward."""
        with autocast(self.device, self.precision):
            prediction, target = self.objective(self.model, batch)
        loss = losses.mse(prediction.float(), target).mean()
        loss.backward()
        return loss.detach()

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward, loss, backward, AdamW: a bare step."""
        (self.replayed or self.compute)(batch)
        self.optimizer.step()
        if self.replayed is None:
            self.optimizer.zero_grad()


def solving(case: Case, n_steps: int, guidance: float, count: int, rounds: int) -> Iterator[Row]:
    """Targets a second, and their share of what the network alone can do at the same batch."""
    teacher = case.teacher()
    branches = 1 if guidance == 1 else 2
    x = torch.randn(branches * case.solve_batch, *case.shape, device=pick_device())
    t = torch.randint(0, 1000, (len(x),), device=x.device)
    cond = torch.randint(0, case.classes, (len(x),), device=x.device)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(4):
            teacher.network(x, t, cond)

    shards: list[Shard] = []
    with tempfile.TemporaryDirectory() as folder:

        def solve() -> None:
            shards.append(solve_shard(case, teacher, Path(folder), count, n_steps, guidance))
            load_tensors(shards[-1].path)  # read and checked

        seconds = paired({"solve": solve, "forward": forward}, rounds)
    setting = f"DDIM, N = {n_steps}, w = {guidance:g}, {count:,} targets, batch {case.solve_batch}"
    pure = [one / (4 * len(x)) for one in seconds["forward"]]
    calls = shards[-1].calls
    section = "Target solving"
    yield row(section, case.name, setting, "targets", "1/s", Spread.of([count / s for s in seconds["solve"]]))
    share = Spread.of([calls * one / whole for one, whole in zip(pure, seconds["solve"], strict=True)])
    note = "1 is the limit; draws, noise, packing, writing, hashing and reading included"
    yield row(section, case.name, setting, "share of the network's own rate", "", share, note=note)


def training_step(case: Case, rounds: int, steps: int) -> Iterator[Row]:
    """Steps of the training loop, each measured beside a bare step of the same network: a round is `steps` pairs."""
    teacher = case.teacher()
    loops: dict[str, list[list[float]]] = {"loop": [], "loop with EMA": []}
    bares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        shard = solve_shard(case, teacher, Path(folder), max(8 * case.train_batch, 1024), 10, 1)
        reader = targets.TargetReader(shard.manifest, VPSchedule(), case.train_batch, 0)
        bare = Student(case)
        batch = {name: value.to(bare.device) for name, value in reader(0).items()}

        def ours(name: str, ema: float | None) -> None:
            ends: list[tuple[float, float]] = []  # of the bare steps, one amid each step of the loop

            def objective(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
                synchronise()
                began = time.perf_counter()
                bare.step(batch)
                synchronise()
                ends.append((began, time.perf_counter()))
                return DIRECT(*args)

            options = case.training(steps=steps + 3, ema_decay=ema)
            side = Path(folder) / name.replace(" ", "-")
            model = maps.FlowMap(case.build(), VPSchedule())
            task = loop.Task(objective, reader, losses.mse)
            loop.train(model, task, options, seed=0, side_folder=side, fingerprint={"": name})
            loop.finish(side)
            # The first ones make the optimiser's state. Means, as not every step makes a batch or writes a record.
            own = statistics.fmean([b[0] - a[1] for a, b in itertools.pairwise(ends)][2:])
            beside = statistics.fmean([done - began for began, done in ends][2:-1])
            loops[name].append([own, own / beside])
            bares.append(beside)

        paired({"loop": lambda: ours("loop", None), "loop with EMA": lambda: ours("loop with EMA", 0.999)}, rounds)
    section, setting = "Training step", f"Direct CM, batch {case.train_batch}"
    yield row(
        section, case.name, setting, "forward, backward, AdamW", "ms", Spread.of([1e3 * value for value in bares[2:]])
    )
    for name, values in loops.items():
        measured, ratios = zip(*values[1:], strict=True)  # the first round does not count
        yield row(section, case.name, setting, f"step of the {name}", "ms", Spread.of([1e3 * v for v in measured]))
        note = f"data, clipping, logging, progress, reseeding included; {steps} steps of each in turn a round"
        yield row(section, case.name, setting, f"{name} / bare step", "×", Spread.of(list(ratios)), note=note)


def training_on_gpu(case: Case, rounds: int, steps: int) -> Iterator[Row]:
    """Steps of the training loop on a GPU, against bare ones, started kernel by kernel and as a CUDA graph, with
    nothing read back between them. In turn, `steps` each a round."""
    teacher, device = case.teacher(), pick_device()
    with tempfile.TemporaryDirectory() as folder:
        shard = solve_shard(case, teacher, Path(folder), 8 * case.train_batch, 10, 1)
        reader = targets.TargetReader(shard.manifest, VPSchedule(), case.train_batch, 0)
        batch = {name: value.to(device) for name, value in reader(0).items()}
        bares = {"bare step": Student(case, graphs=False), "bare step as a CUDA graph": Student(case)}

        def ours(name: str, ema: float | None) -> float:
            options = case.training(steps=steps + 8, log_every=8, ema_decay=ema)
            model, side = maps.FlowMap(case.build(), VPSchedule()), Path(folder) / name
            task = loop.Task(DIRECT, reader, losses.mse)
            records = loop.train(model, task, options, seed=0, side_folder=side, fingerprint={"": name})
            loop.finish(side)
            # the first eight warm up and are captured
            return (records[-1]["seconds"] - records[0]["seconds"]) / steps

        def bare(student: Student) -> float:
            return clock(lambda: [student.step(batch) for _ in range(steps)]) / steps

        for student in bares.values():
            [student.step(batch) for _ in range(8)]
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, student in bares.items():
                times.setdefault(name, []).append(bare(student))
            times.setdefault("loop", []).append(ours("loop", None))
            times.setdefault("loop with EMA", []).append(ours("loop with EMA", 0.999))
    section, setting = "Training step", f"Direct CM, batch {case.train_batch}, {case.precision}"
    for name, values in times.items():
        yield row(section, case.name, setting, name, "ms", Spread.of([1e3 * value for value in values]))
    note = f"data, clipping, logging, progress, reseeding included; {steps} steps of each in turn a round"
    for name in ("loop", "loop with EMA"):
        for against in bares:
            yield row(
                section, case.name, setting, f"{name} / {against}", "×", ratio(times[name], times[against]), note=note
            )


def cost_model(case: Case, count: int, batches: tuple[int, int, int], rounds: int) -> Iterator[Row]:
    """The constants of `estimates` on this machine, fitted on two sizes each, and what they predict for a third.

    Seconds of solving are passes × operations / rate + targets × a constant; of a training step operations / rate + a
    constant, the backward pass counted as two forward passes and CM's target as one more. Fitted: on `count` targets at
    N = 10 and N = 50, w = 1; on the smallest and the largest batch of Direct CM. Checked: twice as many targets at
    N = 25 with guidance; the batch between, with Direct CM and CM.

    Args:
        batches: ascending.
    """
    teacher = case.teacher()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        one = torch.zeros(1, dtype=torch.int64, device=pick_device())
        teacher.network(torch.zeros(1, *case.shape, device=one.device), one, one)
    flops = counter.get_total_flops()

    def solve(count: int, n_steps: int, guidance: float) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as folder:
            shard = solve_shard(case, teacher, Path(folder), count, n_steps, guidance)
        return shard.seconds, shard.calls

    def step(batch: int, objective: Callable[..., Any]) -> float:
        student = Student(case, objective)
        x = torch.randn(batch, *case.shape, device=student.device)
        t = torch.randint(100, 1000, (batch,), device=student.device)
        cond = torch.randint(0, case.classes, (batch,), device=student.device)
        inputs = {"x_t": x, "x_r": x, "x_0": x, "t": t, "r": t - 100, "cond": cond}
        times = [clock(lambda: student.step(inputs)) for _ in range(8)]
        return Spread.of(times[2:]).median

    solve(count, 10, 1)
    constants: dict[str, list[float]] = {}
    for _ in range(rounds):
        (a, calls_a), (b, calls_b), (c, calls_c) = solve(count, 10, 1), solve(count, 50, 1), solve(2 * count, 25, 4)
        second = (b - a) / (calls_b - calls_a)  # of a pass
        target = max(0.0, a - calls_a * second) / count
        small, between, large = (step(batch, DIRECT) for batch in batches)
        work = [3 * flops * batch for batch in batches]
        speed = (work[2] - work[0]) / (large - small)
        constant = max(0.0, small - work[0] / speed)
        cm = step(batches[1], CM)
        for name, value in {
            "rate": flops / second / 1e9,
            "target": 1e6 * target,
            "solve": (calls_c * second + 2 * count * target) / c,
            "speed": speed / 1e9,
            "constant": 1e3 * constant,
            "step": (work[1] / speed + constant) / between,
            "cm": 4 / 3 * (work[1] / speed + constant) / cm,
        }.items():
            constants.setdefault(name, []).append(value)
    fitted, sizes = f"{count:,} targets, N = 10 and 50, w = 1", f"batches {batches[0]} and {batches[2]}"
    quantities = {
        "rate": (fitted, "solving: rate, fitted", "GFLOP/s"),
        "target": (fitted, "solving: a target beside its passes, fitted", "µs"),
        "solve": (f"{2 * count:,} targets, N = 25, w = 4", "predicted / measured: solving", "×"),
        "speed": (sizes, "training: rate, fitted", "GFLOP/s"),
        "constant": (sizes, "training: a step beside its operations, fitted", "ms"),
        "step": (f"batch {batches[1]}", "predicted / measured: step of Direct CM", "×"),
        "cm": (f"batch {batches[1]}", "predicted / measured: step of CM", "×"),
    }
    for name, (where, what, unit) in quantities.items():
        yield row("Cost model", case.name, where, what, unit, Spread.of(constants[name]))


def sampling(case: Case, rounds: int) -> Iterator[Row]:
    """Student samples, against the network's own rate."""
    count, device = 2 * case.solve_batch, pick_device()
    network = move(case.build().eval(), device, case.precision)
    noise, labels = torch.randn(count, *case.shape), torch.randint(0, case.classes, (count,))
    x, cond = noise[: case.solve_batch].to(device), labels[: case.solve_batch].to(device)
    t = torch.randint(0, 1000, (len(x),), device=device)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(4):
            network(x, t, cond)

    with tempfile.TemporaryDirectory() as folder:
        files = {"student": Path(folder) / "student", "noise": Path(folder) / "noise.safetensors"}
        networks.save(case.build(), files["student"])
        save_tensors(files["noise"], {"noise": noise, "labels": labels})
        student = {"flow": "vp", "flow_options": {}, "parameterisation": "boundary", "n_steps": 10}
        sampler = BUILT_INS.get("sampler", "renoise").call({})
        settings = {"sampler": sampler, "sampling_steps": [1, 2, 4], "seed": 0}
        sizes = {"count": count, "batch_size": case.solve_batch, "precision": case.precision}
        job = SamplingJob(**student, **settings, **sizes)

        def sample() -> None:
            sample_student(Path(folder) / "samples.safetensors", job, files)

        seconds = paired({"sample": sample, "forward": forward}, rounds)
    setting = f"1, 2 and 4 steps of {count:,} samples, batch {case.solve_batch}"
    pure = [one / (4 * len(x)) for one in seconds["forward"]]
    passes = sum(job.sampling_steps)
    share = Spread.of([passes * count * one / whole for one, whole in zip(pure, seconds["sample"], strict=True)])
    yield row("Sampling", case.name, setting, "samples", "1/s", Spread.of([3 * count / s for s in seconds["sample"]]))
    yield row("Sampling", case.name, setting, "share of the network's own rate", "", share, note="writing included")


logging.getLogger("consistency").setLevel(logging.WARNING)
