"""The one loop: exact resume, kill −9, EMA, rates, and losses that are not finite."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from consistency import networks
from consistency.errors import ConfigError, TrainingError
from consistency.files.storage import read_sealed
from consistency.flow.noise import normal
from consistency.networks.sdxl import SDXLUNet
from consistency.runtime import devices
from consistency.students import losses, objectives
from consistency.training import divergence, feed, loop, optimizers
from consistency.training.graphs import capturable
from consistency.training.steps import Task
from helpers import ROOT, constant_rate, ended, solved_targets, wait_for
from torch.optim.optimizer import register_optimizer_step_pre_hook

SETTINGS = {"steps": 40, "batch_size": 8, "learning_rate": 1e-2, "log_every": 5, "checkpoint_every": 10}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


def batch_at(step):
    x = normal(0, "noise", range(step * 8, step * 8 + 8), (4,))
    return {"x": x, "y": x.flip(1)}


def objective(model, batch):
    return model(batch["x"]), batch["y"]


def train(model, task, side, *, fingerprint=None, snapshots=None, **changes):
    settings, fingerprint = constant_rate(**SETTINGS | changes), fingerprint or {"a": 1}
    return loop.train(model, task, settings, seed=7, side_folder=side, fingerprint=fingerprint, snapshots=snapshots)


def fit(side, stop_after=None, fingerprint=None, **changes):
    torch.manual_seed(0)
    model = Net()

    def batches(step):
        if step == stop_after:
            raise KeyboardInterrupt
        return batch_at(step)

    records = train(model, Task(objective, batches, losses.mse), side, fingerprint=fingerprint, **changes)
    return {k: v.clone() for k, v in model.state_dict().items()}, records


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resume_equals_uninterrupted(tmp_path, ema_decay):
    whole, records = fit(tmp_path / "whole", ema_decay=ema_decay)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "side", stop_after=27, ema_decay=ema_decay)
    resumed, again = fit(tmp_path / "side", ema_decay=ema_decay)
    assert same(whole, resumed)
    assert [r["step"] for r in again] == [r["step"] for r in records] == list(range(5, 41, 5))
    assert [r["loss"] for r in again] == [r["loss"] for r in records]
    lines = [json.loads(line) for line in (tmp_path / "side" / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 41, 5))
    assert set(lines[0]) == {"step", "loss", "grad_norm", "lr", "samples_per_s", "seconds"}


@pytest.fixture
def apart(monkeypatch):
    """From the call on, parameters are no longer joined to one tensor."""
    return lambda: monkeypatch.setattr(optimizers.Joined, "LARGEST", 0)


@pytest.mark.parametrize("clip_norm", [1e-2, 1e3])
@pytest.mark.parametrize("optimizer", ["adamw", "radam", "lion"])
def test_joined_parameters_are_trained_as_each_by_itself(tmp_path, apart, optimizer, clip_norm):
    options = {"ema_decay": 0.9, "optimizer": optimizer, "clip_norm": clip_norm, "weight_decay": 0.1}
    joined, records = fit(tmp_path / "joined", **options)
    apart()
    separate, expected = fit(tmp_path / "separate", **options)
    assert same(joined, separate)
    assert [(r["loss"], r["grad_norm"]) for r in records] == [(r["loss"], r["grad_norm"]) for r in expected]


@pytest.mark.parametrize("first", ["joined", "separate"])
def test_a_checkpoint_is_continued_with_parameters_joined_or_not(tmp_path, apart, monkeypatch, first):
    """As where a training of one process goes on in several, or on a GPU."""
    whole, _ = fit(tmp_path / "whole", ema_decay=0.9)
    if first == "separate":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(optimizers.Joined, "LARGEST", 0)
            fit(tmp_path / "side", stop_after=27, ema_decay=0.9)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "side", stop_after=27, ema_decay=0.9)
        apart()
    resumed, _ = fit(tmp_path / "side", ema_decay=0.9)
    assert same(whole, resumed)


def test_a_joined_parameter_that_no_loss_reaches_stays(tmp_path):
    torch.manual_seed(0)
    model = Net()
    model.idle = torch.nn.Parameter(torch.ones(16))
    train(model, Task(objective, batch_at, losses.mse), tmp_path / "a")
    assert model.idle.tolist() == [1.0] * 16
    expected, _ = fit(tmp_path / "b")
    assert same(expected, model.state_dict())
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 5  # none is a part of another's tensor


def test_batches_made_ahead_are_those_of_their_steps(tmp_path, monkeypatch):
    expected, _ = fit(tmp_path / "ahead")
    asked = []

    def watch(step):
        asked.append(step)
        return batch_at(step)

    def seen(model, batch):
        asked.append("step")
        return objective(model, batch)

    for large in (False, True):
        if large:
            monkeypatch.setattr(feed, "AHEAD_BYTES", 2 * batch_at(0)["x"].nbytes * 3)
        torch.manual_seed(0)
        model = Net()
        train(model, Task(seen, watch, losses.mse), tmp_path / str(large))
        assert same(expected, model.state_dict())
        assert [number for number in asked if number != "step"] == list(range(40))
        at_once = max(len(run.split()) for run in " ".join(map(str, asked)).split("step"))
        assert at_once == (3 if large else feed.AHEAD)
        asked.clear()


def test_training_learns_and_is_deterministic(tmp_path):
    a, records = fit(tmp_path / "a", steps=200)
    b, _ = fit(tmp_path / "b", steps=200)
    assert same(a, b)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path, caplog):
    whole, _ = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "side", stop_after=27, fingerprint={"a": 2})
    fresh, _ = fit(tmp_path / "side")
    assert same(whole, fresh)
    assert "checkpoint of other settings" in caplog.text


def test_a_damaged_checkpoint_is_not_resumed(tmp_path, caplog):
    whole, _ = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "side", stop_after=27)
    checkpoint = tmp_path / "side" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    fresh, _ = fit(tmp_path / "side")
    assert same(whole, fresh)
    assert "damaged checkpoint" in caplog.text


KILLED = """
import sys
from pathlib import Path
from students import fit, job_of_targets, row
training = {"steps": 1500, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 20, "ema_decay": 0.95}
job = job_of_targets(run=row("model", 3), objective="consistency_distillation", training=training)
fit(job, Path(sys.argv[1]), teacher=sys.argv[2], manifest=sys.argv[3])
"""


def test_kill_9_in_the_middle_then_resume_is_bit_identical(tmp_path, digits, teacher_folder):
    manifest = solved_targets(tmp_path, digits, teacher_folder, 256)
    path = os.pathsep.join(str(ROOT / name) for name in ("workflow", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, str(folder), str(teacher_folder), str(manifest)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert ended(start(tmp_path / "whole"), "the training") == 0
    process = start(tmp_path / "cut")
    stats = tmp_path / "cut" / "side" / "model" / "stats.jsonl"
    wait_for(
        lambda: stats.is_file() and stats.read_text().count("\n") >= 5, "five records", process=process, every=0.005
    )
    process.send_signal(signal.SIGKILL)
    assert ended(process, "the training") == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "cut" / "model").exists()
    assert (tmp_path / "cut" / "side" / "model" / "checkpoint.pt").is_file()
    assert ended(start(tmp_path / "cut"), "the training") == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "cut" / "side" / "model").exists()


@pytest.mark.parametrize("where", ["x", "y", "weight", "rate"])
def test_a_loss_that_is_not_finite_stops_with_step_and_cause(tmp_path, where):
    model = Net()

    def poisoned(step):
        batch = batch_at(step)
        if step == 12 and where in "xy":
            batch[where][3, 1] = float("nan")
        if step == 12 and where == "weight":
            with torch.no_grad():
                model.layers[2].weight[0, 0] = float("inf")
        return batch

    rate = 1e30 if where == "rate" else 1e-2
    with pytest.raises(TrainingError) as caught:
        train(model, Task(objective, poisoned, losses.mse), tmp_path, learning_rate=rate)
    message = str(caught.value)
    expected = {"x": "input 'x'", "y": "input 'y'", "weight": "weight 'layers.2.weight'", "rate": "lower learning_rate"}
    assert expected[where] in message
    if where in "xy":
        assert "at step 12" in message
        assert "[3]" in message
    assert "\n" not in message


def rooted(model, batch):
    """The loss is finite, and so are its gradients but where z is 0: there the root's derivative is infinite."""
    prediction = model(batch["x"])
    return prediction + torch.sqrt(0 * prediction + batch["z"]), batch["y"] + 1


def fit_rooted(side, zero_at=None, **changes):
    def batches(step):
        x = normal(0, "noise", range(step * 8, step * 8 + 8), (4,))
        return {"x": x, "y": x.flip(1), "z": torch.full((8, 1), float(step != zero_at))}

    torch.manual_seed(0)
    model = Net()
    try:
        train(model, Task(rooted, batches, losses.mse), side, **changes)
    finally:
        fit_rooted.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return fit_rooted.weights


@pytest.mark.parametrize("zero_at", [9, 12, 39])
@pytest.mark.parametrize("way", ["joined", "separate", "prepared", "in parts"])
def test_gradients_that_are_not_finite_reach_neither_weights_nor_checkpoint(tmp_path, apart, way, zero_at):
    """The checkpoint of before stays, and the training that goes on from it ends as one that was never disturbed."""
    options = {"prepared": {"precision": "bf16", "ema_decay": 0.9}, "in parts": {"accumulate": 2}}.get(way, {})
    if way == "separate":
        apart()
    whole = fit_rooted(tmp_path / "whole", **options)
    with pytest.raises(TrainingError) as caught:
        fit_rooted(tmp_path / "side", zero_at, **options)
    message = str(caught.value)
    assert message.startswith(f"train: the gradient of weight 'layers.0.weight' is not finite at step {zero_at}, ")
    assert "\n" not in message
    assert all(value.isfinite().all() for value in fit_rooted.weights.values())
    checkpoint = tmp_path / "side" / "checkpoint.pt"
    assert checkpoint.is_file() == (zero_at > 10)
    if zero_at > 10:
        state = read_sealed(checkpoint, torch.load)
        assert state["step"] == zero_at // 10 * 10
        assert all(value.isfinite().all() for value in [*state["weights"].values(), *state["average"].values()])
    assert same(whole, fit_rooted(tmp_path / "side", **options))


def test_gradients_whose_norm_overflows(tmp_path):
    """Each is finite; clipping by an infinite norm would make all of them 0, and training would stand still."""

    def steep(prediction, target):
        return 1e25 * (prediction - target).mean(1)

    with pytest.raises(TrainingError, match="^train: the gradients' norm overflowed at step 0, "):
        train(Net(), Task(objective, batch_at, steep), tmp_path)


def test_weights_that_a_step_makes_infinite_are_not_written(tmp_path):
    """The gradients were finite, the step was too long: the next loss would tell, but the checkpoint comes before it."""
    model, file = Net(), tmp_path / "snapshot.safetensors"
    changes = {"learning_rate": 1e39, "checkpoint_every": 1}
    with pytest.raises(TrainingError, match=r"^train: weight 'layers\.0\.weight' is not finite after step 0; lower"):
        train(model, Task(objective, batch_at, losses.mse), tmp_path, snapshots={file: 1}, **changes)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not file.exists()


def test_steps_that_the_scaler_of_fp16_leaves_out():
    """They are normal while the scale falls to what fp16 can hold; from there on it is not the scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, skipped = torch.optim.SGD([weight], 1.0), 0
    while divergence.is_skipped(scaler):
        optimizer.zero_grad()
        scaler.scale(weight * float("inf")).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        skipped += 1
        assert skipped < 100, "a training whose gradients never become finite would go on for ever"
    assert skipped == 41
    assert weight.item() == 1
    assert not divergence.is_skipped(None)


def test_ema_is_the_average_of_the_weights(tmp_path):
    seen = []

    def watch(model, batch):
        seen.append(model.layers[0].weight.detach().clone())
        return objective(model, batch)

    torch.manual_seed(0)
    model = Net()
    train(model, Task(watch, batch_at, losses.mse), tmp_path / "a", steps=10, ema_decay=0.8)
    plain, _ = fit(tmp_path / "b", steps=10)
    average = seen[0]
    for weight in [*seen[1:], plain["layers.0.weight"]]:
        average = 0.8 * average + 0.2 * weight
    torch.testing.assert_close(model.layers[0].weight.detach(), average)


def test_learning_rate():
    settings = constant_rate(steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.5)
    rates = [optimizers.rate_at(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_gradients_are_clipped(tmp_path):
    norms = []

    def measure(optimizer, args, kwargs):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(measure)
    try:
        train(Net(), Task(objective, batch_at, losses.mse), tmp_path, steps=1, clip_norm=1e-3)
    finally:
        hook.remove()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.needs("no gpu")
def test_cuda_where_there_is_none():
    assert devices.pick_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="cuda was asked for"):
        devices.pick_device("cuda")


def test_objectives_are_what_the_paper_says():
    """CM's target is f at the next time, without gradient; Direct CM's is the ODE's end."""
    scale = torch.tensor(2.0, requires_grad=True)

    def student(x, t, cond):
        return scale * x + t[:, None]

    batch = {
        "x_t": torch.ones(3, 2),
        "t": torch.tensor([5, 6, 7]),
        "x_r": torch.full((3, 2), 3.0),
        "r": torch.tensor([4, 5, 6]),
        "x_0": torch.full((3, 2), -1.0),
        "cond": torch.zeros(3, dtype=torch.int64),
    }
    prediction, target = objectives.consistency_distillation(student, batch, None)
    assert prediction[0].tolist() == [7.0, 7.0]
    assert prediction.requires_grad
    assert target[0].tolist() == [10.0, 10.0]
    assert not target.requires_grad
    prediction, target = objectives.direct(student, batch, None)
    assert prediction[2].tolist() == [9.0, 9.0]
    assert torch.equal(target, batch["x_0"])


def test_distances():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert losses.mse(a, b).item() == pytest.approx(4.5)
    expected = ((9 + 0.01) ** 0.5 + 0.1) / 2 - 0.1
    assert losses.pseudo_huber(a, b, c=0.1).item() == pytest.approx(expected)


def test_training_does_not_import_the_compiler():
    """A second or two in every job; accelerate's look for distributed tensors is another."""
    code = """
import sys, tempfile
import torch
from consistency.config.settings import Training
from consistency.students import losses
from consistency.training import loop
model = torch.nn.Linear(3, 2)
batch = {"x": torch.ones(4, 3), "y": torch.zeros(4, 2)}
with tempfile.TemporaryDirectory() as side:
    records = loop.train(
        model,
        loop.Task(lambda m, b: (m(b["x"]), b["y"]), lambda step: batch, losses.mse),
        Training(steps=20, batch_size=4, learning_rate=1e-2, warmup_steps=5, ema_decay=0.5, log_every=1, device="cpu"),
        seed=0, side_folder=side, fingerprint={},
    )
assert records[-1]["loss"] < records[0]["loss"]
print([name for name in ("torch._dynamo", "torch.distributed.tensor", "sympy") if name in sys.modules])
"""
    folder = Path(loop.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_captured_on_a_gpu():
    """What a CUDA graph would get wrong is not captured: dropout that two passes share, and what says so itself."""
    unet = {"kind": "unet", "channels": [8], "layers_per_block": 1}
    build = lambda **more: networks.build(unet | more, (1, 8, 8), 10, 1000, 0)  # noqa: E731
    assert capturable(build(), objectives.direct)
    assert not capturable(build(dropout=0.1), objectives.direct)
    checkpointed, counting = build(), lambda *arguments: objectives.direct(*arguments)
    counting.capturable = False
    assert not capturable(build(), counting)
    checkpointed.enable_gradient_checkpointing()
    assert not capturable(checkpointed, objectives.direct)
    assert not SDXLUNet.capturable
