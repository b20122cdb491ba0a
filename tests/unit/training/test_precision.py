"""Half precision, batches in parts, optimisers, bytes: each may cost a little rounding, and nothing else."""

import logging
import sys
from types import ModuleType

import pytest
import students
import torch
from consistency import networks
from consistency.config.settings import Training
from consistency.data import prepare
from consistency.errors import ConfigError
from consistency.files.storage import load_tensors, save_tensors
from consistency.flow.noise import normal
from consistency.flow.schedules import VPSchedule
from consistency.networks import classifier
from consistency.students import losses, sampling
from consistency.teachers import targets
from consistency.teachers.protocol import Teacher
from consistency.training import loop, optimizers, recipes
from consistency.training.steps import Task
from helpers import constant_rate
from safetensors.torch import load_file

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    """accelerate keeps the precision of a process, which here is many trainings."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def apart(a, b):
    """The distance of two tensors, relative to the second."""
    return ((a - b).norm() / b.norm()).item()


# The teacher

MLP = {"kind": "mlp", "width": 64, "depth": 2}
UNET = {"kind": "unet", "channels": [16, 32], "layers_per_block": 1, "attention": [4]}


def teacher_in(precision, settings=MLP):
    network = networks.build(settings, (1, 8, 8), 10, 1000, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # what starts at zero shall count too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Teacher(network.eval(), VPSchedule(), -1, precision).to(CPU)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("settings", [MLP, UNET], ids=["mlp", "unet"])
def test_bf16_is_near_float32(settings, guidance):
    """The time embedding is no rounding error: its frequencies are as exact as in float32."""
    x, t, cond = normal(0, "noise", range(64), (1, 8, 8)), torch.linspace(1, 1000, 64).long(), torch.arange(64) % 10
    half, whole = (teacher_in(precision, settings).eps(cond, guidance)(x, t) for precision in ("bf16", "no"))
    assert half.dtype == whole.dtype == torch.float32
    assert 1e-4 < apart(half, whole) < 0.02 * (1 + guidance) / 2


def test_the_state_that_is_solved_stays_float32(tmp_path):
    """Only the network is rounded: the noised samples are the same bits, and the ends are no bf16 numbers."""
    images, labels = normal(1, "noise", range(16), (1, 8, 8)), torch.arange(16) % 10
    solved = {}
    for precision in ("no", "bf16"):
        teacher, path = teacher_in(precision, UNET), tmp_path / precision
        seen = []
        teacher.network.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].dtype))
        targets.solve_shard(path, teacher, images, labels, range(24), "paper", "ddim", 10, 4.0, 0, 8)
        solved[precision], _ = load_tensors(path)
        assert set(seen) == {torch.float32}
        assert {p.dtype for p in teacher.network.parameters()} == {
            torch.float32 if precision == "no" else torch.bfloat16
        }
    assert torch.equal(solved["bf16"]["x_s"], solved["no"]["x_s"])
    for name in ("x_n", "x_0"):
        half, whole = solved["bf16"][name], solved["no"][name]
        assert half.dtype == torch.float32
        assert (half.bfloat16().float() != half).float().mean() > 0.9
        assert 1e-6 < apart(half, whole) < 0.05


def files_to_sample(folder, student):
    """A student's folder, noise and labels of 12 samples, and a teacher's trajectory that is the noise."""
    noise = normal(0, "noise", range(12), (1, 8, 8))
    save_tensors(folder / "noise", {"noise": noise, "labels": torch.arange(12) % 10})
    save_tensors(folder / "t", {"points": noise[None].clone(), "times": torch.tensor([1000])})
    return {"student": student, "noise": folder / "noise", "teacher_samples": folder / "t"}


def test_samples_of_a_student_in_bf16(tmp_path, teacher_folder):
    files, samples = files_to_sample(tmp_path, teacher_folder), {}
    for precision in ("no", "bf16"):
        path = tmp_path / precision
        sampling.sample_student(path, students.sampling(sampling_steps=[1, 2], precision=precision), files)
        samples[precision], _ = load_tensors(path)
    for name in ("steps_1", "steps_2", "from_1000"):
        half, whole = samples["bf16"][name], samples["no"][name]
        assert half.dtype == torch.float32
        assert (half.bfloat16().float() != half).float().mean() > 0.9
        assert 1e-6 < apart(half, whole) < 0.05


@pytest.mark.needs("no gpu")
def test_fp16_on_the_cpu_is_refused(tmp_path, teacher_folder):
    words = "precision: fp16 needs a GPU; allowed on the CPU: no, bf16"
    with pytest.raises(ConfigError) as caught:
        teacher_in("fp16")
    one_line(caught, words)
    with pytest.raises(ConfigError) as caught:
        fit(tmp_path / "side", precision="fp16")
    one_line(caught, words)
    files = files_to_sample(tmp_path, teacher_folder)
    with pytest.raises(ConfigError) as caught:
        sampling.sample_student(tmp_path / "s", students.sampling(precision="fp16"), files)
    one_line(caught, words)
    assert not (tmp_path / "s").exists()


# The training loop


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


def batch_at(step):
    x = normal(0, "noise", range(step * 8, step * 8 + 8), (4,))
    return {"x": x, "y": x.flip(1)}


def weighted(step):
    return batch_at(step) | {"weight": normal(1, "noise", range(step * 8, step * 8 + 8), ()).exp()}


def objective(model, batch):
    return model(batch["x"]), batch["y"]


def fit(side, batches=batch_at, objective=objective, **changes):
    settings = constant_rate(**{"steps": 30, "batch_size": 8, "log_every": 1} | changes)
    task, model = Task(objective, batches, losses.mse), Net()
    records = loop.train(model, task, settings, seed=7, side_folder=side, fingerprint={})
    return {name: value.clone() for name, value in model.state_dict().items()}, records


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_training_in_bf16_is_near_training_in_float32(tmp_path, ema_decay):
    whole, exact = fit(tmp_path / "a", ema_decay=ema_decay)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    seen = []

    def watch(model, batch):
        prediction, target = objective(model, batch)
        seen.append((prediction.dtype, model.layers[0](batch["x"]).dtype))
        return prediction, target

    half, rounded = fit(tmp_path / "b", objective=watch, precision="bf16", ema_decay=ema_decay)
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert seen[0][0] == torch.float32  # so that the loss is
    recorded = [[record["loss"] for record in records] for records in (rounded, exact)]
    assert recorded[0] != recorded[1]
    assert recorded[0] == pytest.approx(recorded[1], rel=0.05)
    for name, value in whole.items():
        assert 0 < apart(half[name], value) < 0.05, name


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["full", "part-frozen"])
def test_what_prepare_is_given_are_model_and_average(tmp_path, precision, frozen):
    """The average is that of the snapshots after each step, also after a resume; both work in the precision."""
    snapshots = {tmp_path / f"{step}.safetensors": step for step in range(1, 20)}
    differences, stop_at = [], 15

    def go():
        model = Net()
        model.layers[0].requires_grad_(not frozen)

        def output(weights, x):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return torch.func.functional_call(Net().eval(), weights, (x,)).float()

        def prepare(batch, current, averaged):
            now, step = model.state_dict(), int(batch["step"][0])
            if step == stop_at:
                raise KeyboardInterrupt
            average = now | (load_tensors(tmp_path / f"{step}.safetensors")[0] if step else {})
            assert torch.equal(current(batch["x"]), output(now, batch["x"]))
            assert torch.equal(averaged(batch["x"]), output(average, batch["x"]))
            differences.append((averaged(batch["x"]) - current(batch["x"])).abs().max().item())
            return batch

        def batches(step):
            return batch_at(step) | {"step": torch.full((8,), step)}

        settings = constant_rate(steps=20, batch_size=8, checkpoint_every=10, ema_decay=0.9, precision=precision)
        task = Task(objective, batches, losses.mse, prepare)
        loop.train(model, task, settings, seed=7, side_folder=tmp_path, fingerprint={}, snapshots=snapshots)

    with pytest.raises(KeyboardInterrupt):
        go()
    stop_at = None
    go()
    assert len(differences) == 15 + 10
    assert min(differences[1:15]) > 0


def test_bf16_resumes_exactly(tmp_path):
    options = {"precision": "bf16", "ema_decay": 0.9, "checkpoint_every": 10}
    whole, _ = fit(tmp_path / "whole", **options)

    def cut(step):
        if step == 17:
            raise KeyboardInterrupt
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "side", cut, **options)
    resumed, _ = fit(tmp_path / "side", **options)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_precisions_in_one_process(tmp_path):
    """As in a notebook: one training, then another with another precision; the first one's is not changed by it."""
    before, _ = fit(tmp_path / "a", steps=2)
    half, _ = fit(tmp_path / "b", steps=2, precision="bf16")
    after, _ = fit(tmp_path / "c", steps=2)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], half[name]) for name in before)


@pytest.mark.parametrize("batches", [batch_at, weighted], ids=["plain", "weighted"])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_is_the_batch(tmp_path, batches, parts):
    """Also where the parts are of different size, as 3, 3 and 2; the logged loss and norm are the batch's."""
    whole, expected = fit(tmp_path / "a", batches)
    sizes = []

    def watch(model, batch):
        sizes.append(len(batch["x"]))
        return objective(model, batch)

    split, records = fit(tmp_path / "b", batches, watch, accumulate=parts)
    assert sizes == ([4, 4] if parts == 2 else [3, 3, 2]) * 30
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-5)
    for ours, other in zip(records, expected):
        assert ours["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    if batches is weighted:  # and the weights count
        assert fit(tmp_path / "c")[1][0]["loss"] != pytest.approx(expected[0]["loss"], rel=0.01)


def test_8_bit_adamw_without_its_package(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with caplog.at_level(logging.WARNING, logger="consistency"):
        fallen, _ = fit(tmp_path / "a", optimizer="adamw8bit", weight_decay=0.1)
    lines = [record.getMessage() for record in caplog.records if "adamw8bit" in record.getMessage()]
    assert lines == ["optimizer adamw8bit: bitsandbytes is not installed; using torch's AdamW, in float32"]
    plain, _ = fit(tmp_path / "b", optimizer="adamw", weight_decay=0.1)
    assert all(torch.equal(fallen[name], plain[name]) for name in plain)
    assert caplog.text.count("bitsandbytes") == 1


def test_8_bit_adamw_where_it_is_installed(monkeypatch, caplog):
    class AdamW8bit(torch.optim.SGD):
        def __init__(self, weights, lr, weight_decay):
            self.options = lr, weight_decay
            super().__init__(weights, lr=lr)

    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    optimizer = optimizers.make_optimizer("adamw8bit", list(Net().parameters()), 0.1, 0.2)
    assert optimizer.options == (0.1, 0.2)
    assert "bitsandbytes" not in caplog.text


# Bytes


def test_bytes_as_numbers():
    numbers = prepare.as_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-7)
    images = torch.rand(2, 3)
    assert prepare.as_float(images) is images


@pytest.fixture(scope="module")
def both(tmp_path_factory, digits):
    """The same data as bytes and as float32."""
    tensors, classes = prepare.load(digits)
    folder, parts = tmp_path_factory.mktemp("bytes"), ("train_images", "test_images")
    levels = tensors | {name: ((tensors[name] + 1) * 127.5).round().to(torch.uint8) for name in parts}
    save_tensors(folder / "uint8", levels, {"name": "digits", "classes": classes})
    numbers = levels | {name: levels[name].float() / 127.5 - 1 for name in parts}
    save_tensors(folder / "float32", numbers, {"name": "digits", "classes": classes})
    return [folder / "uint8", folder / "float32"]


def places(folder, name):
    return folder / name / "model", folder / name / "stats", folder / name / "side"


def weights_of(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_teachers_and_classifiers_of_bytes(tmp_path, both):
    settings = Training(steps=60, batch_size=32, learning_rate=3e-3, warmup_steps=5).model_dump()
    results = []
    for path in both:
        teacher, judge = places(tmp_path, f"teacher-{path.name}"), places(tmp_path, f"judge-{path.name}")
        network = {"kind": "mlp", "width": 32, "depth": 1}
        recipes.fit_teacher(*teacher, path, network, {"steps": 1000}, 0.1, settings, 0)
        recipes.fit_classifier(*judge, path, "judge", 8, 16, settings, 0)
        results.append((weights_of(teacher[0]), weights_of(judge[0]), classifier.load(judge[0])))
    assert equal(results[0][0], results[1][0])
    assert equal(results[0][1], results[1][1])
    network, card = results[0][2]
    assert card == results[1][2][1]
    assert card["held_out_accuracy"] > 0.5  # learned, so that it says something
    accuracies = []
    for path in both:
        tensors, _ = prepare.load(path)
        accuracies.append(classifier.accuracy(network, tensors["test_images"], tensors["test_labels"]))
    assert accuracies == [card["held_out_accuracy"]] * 2


def test_pairs_students_of_bytes(tmp_path, both):
    """With a generator that sees the data, and an average of the weights."""
    weights = []
    for path in both:
        job = students.job_of_pairs(
            training={"steps": 4, "batch_size": 16, "ema_decay": 0.9},
            coupling={"kind": "generator_induced", "share": 0.5},
            budgets=[0.5],
        )
        weights.append(weights_of(students.fit(job, tmp_path / path.name, data=path)))
    assert equal(*weights)


def test_draws_of_bytes(both):
    drawn = []
    for path in both:
        tensors, _ = prepare.load(path)
        drawn.append(targets.draw(tensors["train_images"], tensors["train_labels"], range(20), 10, 0))
    assert equal(*drawn)
    assert drawn[0]["x"].dtype == torch.float32
    assert drawn[0]["x"].min() == -1
