"""Several processes that train together, over gloo on the CPU: as one process does, and bit for bit after a kill."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from consistency import config
from consistency.errors import ConfigError
from consistency.files.storage import read_sealed
from consistency.runtime import parallel
from helpers import ROOT, ended, solved_targets, wait_for
from safetensors.torch import load_file

# One training a line of what differs: a network, an objective, what the objective needs of the batch.
CASES = """
import json, os, sys
from pathlib import Path

import torch
from consistency import networks
from consistency.config.settings import Training
from consistency.data import prepare
from consistency.files.storage import write_records
from consistency.flow.schedules import LinearFlow
from consistency.runtime import parallel
from consistency.students import losses, maps, objectives
from consistency.students.pairs import LogitNormalTimes, PairSource
from consistency.training import loop, recipes
from students import MLP, fit, job_of_pairs, job_of_targets, row

torch.set_num_threads(1)
parallel.parent_follower()()
folder, digits, teacher, manifest, steps = Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
names = sys.argv[6:]
training = Training(steps=steps, batch_size=24, warmup_steps=5, checkpoint_every=10, log_every=7, device="cpu")


def places(name):
    return folder / name, folder / f"{name}.jsonl", folder / "side" / name


def student(name, accumulate=1):
    settings = training.model_copy(update={"accumulate": accumulate})
    job = job_of_targets(run=row(name, 3), objective="consistency_distillation", training=settings)
    fit(job, folder, teacher=teacher, manifest=manifest)


def pairs(name, kind):
    settings, coupling = training.model_copy(update={"ema_decay": 0.9}), {"kind": kind, "share": 0.5}
    fit(job_of_pairs(run=row(name, 3), training=settings, coupling=coupling, budgets=[0.25]), folder, data=digits)


def meanflow(name):
    # An average velocity along a derivative, which the processes' wrapper does not see.
    tensors, _ = prepare.load(digits)
    flow = LinearFlow()
    options = {"batch_size": 24, "seed": 3}
    source = PairSource(tensors["train_images"], tensors["train_labels"], flow, LogitNormalTimes(flow), **options)
    network = networks.build(MLP | {"second_time": True}, (1, 8, 8), 10, 1000, 3)
    model = maps.FlowMap(network, flow)

    def objective(model, batch):
        student, (x, t, r, cond) = maps.Student(model), (batch[key] for key in ("x_t", "t", "r", "cond"))
        v = batch["velocity"]
        _, slope = student.derivative(x, t, cond, v, r, of_velocity=True)
        return student.average_velocity(x, t, cond, r), v - (t - r)[:, None, None, None] * slope

    folder, stats, side = places(name)
    task = loop.Task(objective, source, losses.mse, source.prepare, source.together)
    records = loop.train(model, task, training, seed=3, side_folder=side, fingerprint={}, what=name)
    if records is not None:
        maps.save(model, folder, {})
        write_records(stats, records)


def classifier(name):  # has dropout
    settings = training.model_copy(update={"ema_decay": 0.9}).model_dump()
    recipes.fit_classifier(*places(name), digits, name, 8, 32, settings, 0)


class Student(torch.nn.Sequential):
    def forward(self, x, t, cond):
        return super().forward(x)


def replay(name):
    # The same dropout on both sides of consistency training, and another one in each process.
    folder, seen = places(name)[2], []

    def objective(student, batch):
        prediction, target = objectives.consistency_training(student, batch, None)
        assert torch.equal(prediction, target) and not target.requires_grad
        seen.append((prediction == 0).tolist())
        return prediction, torch.zeros_like(target)

    def batch_at(step):
        x = torch.ones(24, 16)
        return {"x_t": x, "x_r": x, "t": x[:, 0], "r": x[:, 0], "cond": x[:, 0]}

    model = Student(torch.nn.Linear(16, 16), torch.nn.Dropout(0.5))
    settings = Training(steps=3, batch_size=24, warmup_steps=0, device="cpu")
    task = loop.Task(objective, batch_at, losses.mse)
    loop.train(model, task, settings, seed=0, side_folder=folder, fingerprint={})
    (places(name)[0].parent / f"masks-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def root(name):
    # The gradients of one process's rows are not finite in step 4.
    def objective(student, batch):
        prediction = student(batch["x"], None, None)
        return prediction + torch.sqrt(0 * prediction + batch["z"]), torch.zeros_like(prediction)

    def batch_at(step):
        z = torch.ones(24, 1)
        z[-1] = step != 4
        return {"x": torch.ones(24, 16), "z": z}

    settings = Training(steps=8, batch_size=24, device="cpu", checkpoint_every=1)
    model, task = Student(torch.nn.Linear(16, 16)), loop.Task(objective, batch_at, losses.mse)
    loop.train(model, task, settings, seed=0, side_folder=places(name)[2], fingerprint={})


every = {
    "root": lambda: root("root"),
    "cm": lambda: student("cm"),
    "parts": lambda: student("parts", accumulate=3),
    "ot": lambda: pairs("ot", "optimal_transport"),
    "gc": lambda: pairs("gc", "generator_induced"),
    "meanflow": lambda: meanflow("meanflow"),
    "classifier": lambda: classifier("classifier"),
    "replay": lambda: replay("replay"),
}
for name in names:
    every[name]()
"""
EXACT = ["cm", "parts", "ot", "gc", "meanflow"]  # no dropout, whose masks depend on the number of processes


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, digits, teacher_folder):
    """Data, teacher, and targets of 240 draws."""
    manifest = solved_targets(tmp_path_factory.mktemp("targets"), digits, teacher_folder, 240)
    return [str(digits), str(teacher_folder), str(manifest)]


@pytest.fixture
def start(tmp_path, inputs):
    """Start trainings in a folder, in so many processes; what is left of them at the end is killed."""
    script = tmp_path / "cases.py"
    script.write_text(CASES)
    path = os.pathsep.join(str(ROOT / name) for name in ("workflow", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = []

    def go(folder, processes, *names, steps=30):
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "consistency.runtime.parallel", "--multi_gpu", "--num_machines", "1", "--gpu_ids", "all"]
            command += ["--num_processes", str(processes), "--main_process_port", "0"]
            command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        command += [str(script), str(tmp_path / folder), *inputs, str(steps), *names]
        said = tmp_path / f"{folder}-{len(started)}.txt"
        with open(said, "w") as output:
            started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        started[-1].said = said
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()  # and those that follow it
            process.wait()


def finish(process):
    """Its exit status, which is to be 0."""
    assert ended(process, "the training", seen=process.said.read_text) == 0, process.said.read_text()[-3000:]


def weights(folder, name):
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def records(folder, name):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("step", "loss", "grad_norm", "lr")} for line in lines]


def apart(a, b):
    """The largest difference of two sets of weights, relative to the largest weight."""
    return max((a[key] - b[key]).abs().max().item() for key in a) / max(v.abs().max().item() for v in a.values())


def reaches(process, stats, lines):
    """Wait until that many records are written; the launcher's processes."""
    wait_for(
        lambda: stats.is_file() and stats.read_text().count("\n") >= lines,
        f"{lines} records of the training",
        300,
        process=process,
        seen=process.said.read_text,
        every=0.01,
    )
    return psutil.Process(process.pid).children()


def test_two_processes_do_what_one_does(tmp_path, start):
    """The same draws in the same order; CM's and CT's two forwards, a transport plan of the whole batch, EMA, a
    derivative."""
    finish(start("one", 1, *EXACT))
    finish(start("two", 2, *EXACT, "replay"))
    for name in EXACT:
        one, two = weights(tmp_path / "one", name), weights(tmp_path / "two", name)
        assert set(one) == set(two)
        assert apart(one, two) < 1e-6  # float32's own rounding is 6e-8
        for a, b in zip(records(tmp_path / "one", name), records(tmp_path / "two", name), strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    masks = [json.loads((tmp_path / "two" / f"masks-{rank}.json").read_text()) for rank in (0, 1)]
    assert masks[0] != masks[1]


@pytest.mark.long
def test_killed_and_stopped_is_as_undisturbed(tmp_path, start, moments):
    """Three processes with dropout: all killed −9 with their parent, then one of them asked to stop, then to the end."""
    finish(start("whole", 3, "classifier", steps=240))
    stats = tmp_path / "cut" / "side" / "classifier" / "stats.jsonl"
    first = start("cut", 3, "classifier", steps=240)
    processes = reaches(first, stats, moments.randint(2, 9))
    first.kill()
    assert ended(first, "the launcher") == -signal.SIGKILL
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, "a process outlived its parent"
    checkpoint = stats.with_name("checkpoint.pt")
    assert checkpoint.is_file()

    second = start("cut", 3, "classifier", steps=240)
    reaches(second, stats, moments.randint(14, 22))[2].send_signal(signal.SIGUSR1)
    assert ended(second, "the training", seen=second.said.read_text) != 0
    assert not (tmp_path / "cut" / "classifier").exists()
    said = second.said.read_text()
    stopped = [line.rpartition("stopped by SIGUSR1 ")[2] for line in said.splitlines() if "stopped by SIGUSR1" in line]
    assert len(stopped) == 3
    assert len(set(stopped)) == 1, "they stopped at different steps"
    assert str(checkpoint) in stopped[0]

    finish(start("cut", 3, "classifier", steps=240))
    files = [tmp_path / name / "classifier" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert records(tmp_path / "cut", "classifier") == records(tmp_path / "whole", "classifier")


def test_gradients_of_one_process_that_are_not_finite_stop_all(tmp_path, start):
    """They are averaged, so no process may take the step; the checkpoint of before stays."""
    process = start("two", 2, "root")
    assert process.wait(timeout=300) != 0
    said = [line for line in process.said.read_text().splitlines() if "TrainingError: " in line]
    assert said, process.said.read_text()[-3000:]
    assert all("the gradient of weight '0.weight' is not finite at step 4, " in line for line in said)
    state = read_sealed(tmp_path / "two" / "side" / "root" / "checkpoint.pt", torch.load)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["weights"].values())


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ConfigError) as caught:
        config.load_experiment("digits", {"gpu": 3})
    assert str(caught.value).startswith("digits: gpu: 3 processes cannot share teacher.training.batch_size 128 evenly")
    assert config.load_experiment("digits", {"gpu": 4}).gpu == 4


@pytest.mark.needs("no gpu")
def test_a_process_for_each_gpu(monkeypatch):
    monkeypatch.delenv(parallel.CPU_FOR_GPU, raising=False)
    assert [parallel.processes_for(gpus) for gpus in (0, 1, 4)] == [1, 1, 1]
    monkeypatch.setenv(parallel.CPU_FOR_GPU, "1")
    assert [parallel.processes_for(gpus) for gpus in (0, 1, 4)] == [1, 1, 4]
