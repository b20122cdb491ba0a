"""Signals during training: a checkpoint at a whole step, one line, the same bits after going on. And no memory."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from consistency import errors
from consistency.config.settings import Training
from consistency.errors import MemoryShortage, Preempted
from consistency.files.storage import read_sealed
from consistency.runtime import status
from consistency.runtime.preemption import SIGNALS
from consistency.students import losses
from consistency.training import loop, recipes
from helpers import ROOT, constant_rate, ended, solved_targets, wait_for
from students import job_of_pairs, job_of_targets, row

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
MLP = {"kind": "mlp", "width": 32, "depth": 1}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits, teacher_folder):
    """Targets of 256 draws."""
    return solved_targets(tmp_path_factory.mktemp("targets"), digits, teacher_folder, 256)


def call(kind, digits, teacher, manifest, steps=800):
    """The function of `recipes` for a kind of training, and its arguments but the paths of its outputs."""
    settings = Training(steps=steps, batch_size=16, checkpoint_every=10_000, log_every=10).model_dump()
    if kind == "classifier":
        network = {"name": "digits-classifier", "channels": 4, "feature_size": 16}
        return "fit_classifier", {"data_path": str(digits), **network, "settings": settings, "seed": 0}
    if kind == "teacher":
        teacher = {"network": MLP, "schedule": {"steps": 1000}, "label_dropout": 0.1, "seed": 0}
        return "fit_teacher", {"data_path": str(digits), **teacher, "settings": settings | {"ema_decay": 0.99}}
    if kind == "student":
        job = job_of_targets(run=row(kind, 3), objective="consistency_distillation", training=settings)
        return "fit_student", {"job": job, "files": {"teacher": str(teacher), "manifest": str(manifest)}}
    job = job_of_pairs(
        run=row(kind, 3),
        training=settings | {"ema_decay": 0.99},
        coupling={"kind": "generator_induced", "share": 0.5},
        budgets=[0.05, 0.5],
    )
    return "fit_student", {"job": job, "files": {"data": str(digits)}}


CALL = """
import json, sys
import torch
from consistency import errors
from consistency.config.jobs import StudentJob
from consistency.training import recipes
torch.set_num_threads(1)
name, arguments = json.loads(sys.argv[1])
if "job" in arguments:
    arguments["job"] = StudentJob(**arguments["job"])
try:
    getattr(recipes, name)(**arguments)
except errors.ConsistencyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def outputs(folder, kind):
    """Output, stats and side folder, as the workflow has them, by the names of their arguments."""
    base = folder / "digits"
    paths = {"folder": f"out/{kind}", "stats": f"stats/{kind}.jsonl", "side_folder": f"checkpoints/{kind}"}
    return {name: str(base / path) for name, path in paths.items()}


def as_json(name, arguments):
    """A call as a command's argument."""
    return json.dumps([name, arguments], default=lambda job: job.model_dump())


def records(path):
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("samples_per_s", "seconds", "sha256")}
        for line in Path(path).read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("classifier", "SIGUSR1"), ("teacher", "SIGTERM"), ("student", "SIGUSR1"), ("pairs", "SIGTERM")],
)
def test_a_signal_at_a_random_moment(tmp_path, digits, teacher_folder, manifest, moments, kind, name):
    function, arguments = call(kind, digits, teacher_folder, manifest)
    cut, whole = (outputs(tmp_path / name, kind) for name in ("cut", "whole"))
    output, stats, side = cut.values()
    command = [sys.executable, "-c", CALL, as_json(function, cut | arguments)]
    moment, output_of = moments.randint(1, 30), tmp_path / "said.txt"
    with open(output_of, "w") as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=said)
    (seen,) = wait_for(
        lambda: [one for one in status.trainings(tmp_path / "cut") if one.step >= 10 * moment],
        f"step {10 * moment} of 800",
        process=process,
        seen=output_of.read_text,
        every=0.005,
    )
    assert (seen.experiment, seen.run, seen.steps, seen.stale) == ("digits", kind, 800, False)
    process.send_signal(getattr(signal, name))
    assert ended(process, "the training", seen=output_of.read_text) == 1, output_of.read_text()
    said = output_of.read_text().strip().splitlines()[-1]
    (stopped,) = status.trainings(tmp_path / "cut")
    step = read_sealed(f"{side}/checkpoint.pt", torch.load)["step"]
    assert 10 * moment <= step < 800
    assert said.startswith(f"Preempted: train {kind}: stopped by {name} at step {step} of 800; the checkpoint is in ")
    assert stopped.step == step // 10 * 10
    assert not os.path.exists(output)

    for paths in (cut, whole):
        getattr(recipes, function)(**paths, **arguments)
    names = sorted(str(p.relative_to(output)) for p in (tmp_path / "cut").glob(f"digits/out/{kind}/**/*.safetensors"))
    assert len(names) == (3 if kind == "pairs" else 1)
    for file in names:
        assert Path(output, file).read_bytes() == Path(whole["folder"], file).read_bytes(), file
    assert records(stats) == records(whole["stats"])
    assert not os.path.exists(side)


def fit(side, at=None, number=None, steps=20, thread=False):
    """Train a small network, sending this process a signal in a step; the weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 4))

    def batch_at(step):
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 4), dtype="float32"))
        return {"x": x, "y": x.flip(1), "step": torch.full((8,), step)}

    def objective(network, batch):
        if batch["step"][0] == at:
            os.kill(os.getpid(), number)
        return network(batch["x"]), batch["y"]

    settings = constant_rate(steps=steps, batch_size=8, checkpoint_every=1000, log_every=5)
    task = loop.Task(objective, batch_at, losses.mse)
    loop.train(model, task, settings, seed=0, side_folder=side, fingerprint={}, what="train it")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("at", [0, 7, 19])
def test_the_step_is_finished_and_the_handlers_come_back(tmp_path, at):
    seen = []

    def mine(number, frame):
        seen.append(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGUSR1, mine)
    try:
        with pytest.raises(Preempted) as caught:
            fit(tmp_path / "side", at, signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is mine
        os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    checkpoint = tmp_path / "side" / "checkpoint.pt"
    assert str(caught.value) == (
        f"train it: stopped by SIGUSR1 at step {at + 1} of 20; the checkpoint is in {checkpoint}; run again to continue"
    )
    assert torch.equal(fit(tmp_path / "side"), fit(tmp_path / "whole"))


def test_a_notebook_is_interrupted_as_ever(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's shell ignores it
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "side", 7, signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "side" / "checkpoint.pt").exists()


def test_training_outside_the_main_thread(tmp_path):
    """Python lets the main thread alone set handlers."""
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(tmp_path / "side")))
    thread.start()
    thread.join()
    assert torch.equal(results[0], fit(tmp_path / "whole"))


# What the machine has not enough memory for, in a process that may have a little more than it has already.
SHORT = """
import json, resource, sys
from functools import partial
import torch
from consistency import errors
from consistency.training import recipes
from consistency.teachers import targets
from consistency.data.prepare import load
from consistency.flow.schedules import VPSchedule
from consistency.teachers.protocol import Teacher

torch.set_num_threads(1)
name, arguments = json.loads(sys.argv[1])
if name == "solve_shard":
    path, teacher, digits, *rest, guidance, seed, batch_size = arguments
    tensors, _ = load(digits)
    images = tensors["train_images"], tensors["train_labels"]
    arguments = [path, Teacher.load(teacher, VPSchedule()), *images, range(4000), *rest, guidance, seed, batch_size]
    function = partial(targets.solve_shard, *arguments)
else:
    from accelerate import Accelerator  # what training imports shall not be what there is no memory for
    function = partial(getattr(recipes, name), **arguments)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    function()
except errors.ConsistencyError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.needs("linux")  # /proc and a limit of the address space
@pytest.mark.parametrize("what", ["training", "solving"])
def test_no_memory_is_one_line_that_names_the_keys(tmp_path, digits, teacher_folder, manifest, what):
    if what == "training":
        name, arguments = call("teacher", digits, teacher_folder, manifest)
        arguments["settings"]["batch_size"] = 300_000  # 77 MB a batch of images alone
        arguments |= outputs(tmp_path, "teacher")
    else:
        wide = tmp_path / "wide"
        settings = Training(steps=1, batch_size=16).model_dump()
        network = {"kind": "mlp", "width": 2048, "depth": 1}
        recipes.fit_teacher(wide, tmp_path / "s", tmp_path / "side", digits, network, {"steps": 1000}, 0.1, settings, 0)
        name = "solve_shard"
        arguments = [str(tmp_path / "shard"), str(wide), str(digits), "paper", "ddim", 5, 4.0, 0, 4000]
    command = [sys.executable, "-c", SHORT, as_json(name, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert said.startswith("MemoryShortage: ")
    if what == "training":
        assert "train teacher: step 0: out of memory (" in said
        for key in ("training.batch_size", "training.accumulate", "gradient_checkpointing", "precision"):
            assert key in said
    else:
        assert "; lower targets.batch_size, or raise targets.shards" in said
        assert not (tmp_path / "shard").exists()


def test_what_is_taken_for_a_shortage_of_memory(tmp_path):
    assert errors.is_memory_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert errors.is_memory_shortage(RuntimeError("CUDA error: out of memory"))
    with pytest.raises(Exception) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert errors.is_memory_shortage(caught.value)
    with pytest.raises(Exception) as caught:
        np.empty(2**60, dtype="uint8")
    assert errors.is_memory_shortage(caught.value)
    assert not errors.is_memory_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not errors.is_memory_shortage(ValueError("out of memory"))

    @errors.memory_advice("lower it")
    def failing(error):
        raise error

    with pytest.raises(MemoryShortage, match=r"^out of memory \(CUDA out of memory\); lower it$"):
        failing(torch.OutOfMemoryError("CUDA out of memory\nmore"))
    with pytest.raises(ValueError, match="another"):
        failing(ValueError("another"))
