"""The three ways to do one training step, each by itself; which one is picked; what a task may return."""

import copy
import gc
import math
import weakref
from functools import partial

import pytest
import torch
from consistency.errors import TrainingError
from consistency.flow.noise import normal
from consistency.students import losses
from consistency.training import feed, optimizers
from consistency.training.graphs import WARM
from consistency.training.steps import CapturedStep, JoinedStep, PlainStep, Task, make_step
from helpers import constant_rate

KINDS = [PlainStep, JoinedStep, CapturedStep]  # without a GPU the last one runs its function for WARM calls as it is
SETTINGS = {"steps": 10, "batch_size": 8, "clip_norm": 0.5, "ema_decay": 0.9, "weight_decay": 0.1, "device": "cpu"}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def batch_at(step):
    x = normal(0, "noise", range(step * 8, step * 8 + 8), (4,))
    weight = normal(1, "noise", range(step * 8, step * 8 + 8), ()).exp()
    return {"progress": torch.tensor(step / 10), "x": x, "y": x.flip(1), "weight": weight}


def objective(model, batch):
    return model(batch["x"]), batch["y"] * (1 + batch["progress"])


def build(kind, objective=objective, loss=losses.mse, model=None, **changes):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    settings = constant_rate(**SETTINGS | changes)
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    model = (model or network()).to(accelerator.device).train()
    return kind(model, Task(objective, batch_at, loss), settings, accelerator, "train it")


def on_gpu(batch):
    return {name: value.cuda() for name, value in batch.items()}


def copies(tensors):
    return {name: value.detach().clone() for name, value in tensors.items()}


def assert_same(seen, expected):
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(seen[name], value), f"{name}: expected {value}, seen {seen[name]}"


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_torchs_own(kind, clip_norm):
    """Bit for bit: weighted mean, clipping, warm-up, AdamW, average."""
    step = build(kind, clip_norm=clip_norm, warmup_steps=5)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, fused=True)
    average = copies(dict(model.named_parameters()))
    for number in range(WARM):
        batch = batch_at(number)
        prediction, target = objective(model, batch)
        loss = ((prediction - target).square().mean(1) * batch["weight"]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.param_groups[0]["lr"] = 1e-2 * (number + 1) / 5
        optimizer.step()
        for name, value in model.named_parameters():
            average[name].lerp_(value.detach(), 1 - 0.9)
        assert step(number, batch) == (loss.item(), norm.item())
    assert_same(copies(step.weights), copies(dict(model.named_parameters())))
    assert_same(step.average, average)
    step.finish()
    assert_same(step.model.state_dict(), average)
    assert not step.model.training
    assert len({p.untyped_storage().data_ptr() for p in step.model.parameters()}) == 4, "parameters share memory"


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "radam", "lion"])
def test_one_kind_goes_on_from_the_state_of_another(before, after, optimizer):
    first, second = build(before, optimizer=optimizer), build(after, optimizer=optimizer)
    first(0, batch_at(0))
    second(5, batch_at(5))  # of another past
    second.load_state(copy.deepcopy(first.state()))  # as from a file
    for number in (1, 2):
        assert second(number, batch_at(number)) == first(number, batch_at(number))
    assert_same(copies(second.weights), copies(first.weights))
    assert_same(second.average, first.average)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_not_finite_change_nothing(kind):
    def rooted(model, batch):
        prediction, target = objective(model, batch)
        return prediction + torch.sqrt(0 * prediction + batch["z"]), target

    step = build(kind, rooted)
    step(0, batch_at(0) | {"z": torch.ones(8, 1)})
    before = copies(step.weights), copies(step.average), step.state()["optimizer"]["state"][0]["step"].item()
    with pytest.raises(TrainingError) as caught:
        step(1, batch_at(1) | {"z": torch.zeros(8, 1)})
    assert str(caught.value).startswith("train it: the gradient of weight '0.weight' is not finite at step 1, ")
    assert_same(copies(step.weights), before[0])
    assert_same(copies(step.average), before[1])
    assert step.state()["optimizer"]["state"][0]["step"].item() == before[2] == 1


def direct_losses(model, batch):
    return losses.mse(*objective(model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_may_return_losses(kind):
    pairs, own = build(kind), build(kind, direct_losses, None)
    for number in range(WARM):
        assert own(number, batch_at(number)) == pairs(number, batch_at(number))
    assert_same(copies(own.weights), copies(pairs.weights))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("x", "input 'x' is not finite in batch rows [2]"),
        ("progress", "input 'progress' is not finite"),
        ("objective", "the objective's losses are not finite, though weights and inputs are"),
        ("weights", "weight '2.bias' is not finite"),
    ],
)
def test_a_loss_of_the_objectives_own_that_is_not_finite(kind, cause, words):
    batch, model = batch_at(4), network()
    if cause in batch:
        batch[cause] = batch[cause].clone()
        batch[cause][2 if batch[cause].ndim else ...] = float("nan")
    if cause == "weights":
        torch.nn.init.constant_(model[2].bias, float("inf"))
    function = (lambda m, b: direct_losses(m, b).log() * math.inf) if cause == "objective" else direct_losses
    with pytest.raises(TrainingError) as caught:
        build(kind, function, None, model)(4, batch)
    assert words in str(caught.value)
    assert str(caught.value).startswith("train it: loss is ")
    assert " at step 4: " in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_are_not_one_a_sample(kind):
    with pytest.raises(TrainingError, match=r"^train it: the losses have shape \(\); one a sample is \(8,\)$"):
        build(kind, lambda m, b: direct_losses(m, b).mean(), None)(0, batch_at(0))
    with pytest.raises(TrainingError, match=r"^train it: the losses have shape \(8, 4\); one a sample is \(8,\)$"):
        build(kind, loss=lambda a, b: (a - b).square())(0, batch_at(0))
    with pytest.raises(TrainingError, match=r"^train it: the task has no loss, .*; this one returns a tuple$"):
        build(kind, loss=None)(0, batch_at(0))


def test_parts_see_their_rows_and_all_of_the_progress():
    seen = []

    def watch(model, batch):
        seen.append({name: value.clone() for name, value in batch.items()})
        return objective(model, batch)

    batch = batch_at(3)
    whole, norm = build(PlainStep)(3, batch)
    loss, parts_norm = build(PlainStep, watch, accumulate=3)(3, batch)
    assert [len(part["x"]) for part in seen] == [3, 3, 2]
    assert torch.equal(torch.cat([part["x"] for part in seen]), batch["x"])
    assert [part["progress"].item() for part in seen] == [batch["progress"].item()] * 3
    assert (loss, parts_norm) == pytest.approx((whole, norm), rel=1e-5)
    shares = feed.parts_of(batch, 2)
    assert [feed.size_of(share) for share in shares] == [4, 4]
    assert all(torch.equal(share["progress"], batch["progress"]) for share in shares)


def test_the_kind_of_step(monkeypatch):
    pick = partial(build, make_step)
    assert type(pick()) is JoinedStep
    assert type(pick(accumulate=2)) is JoinedStep
    assert type(pick(optimizer="adamw8bit")) is PlainStep
    assert type(pick(precision="bf16")) is PlainStep
    monkeypatch.setattr(optimizers.Joined, "LARGEST", 100)
    assert type(pick()) is PlainStep


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_freed_with_its_last_name(kind):
    """In a circle of references, weights and graphs would keep a GPU's memory until Python looks for circles."""
    step, done = build(kind), []
    step.meanwhile = lambda: done.append(1)
    step(0, batch_at(0))
    assert len(done) == (kind is CapturedStep)
    gone, model = weakref.ref(step), weakref.ref(step.model)
    gc.collect()
    gc.disable()
    try:
        del step
        assert gone() is None, "the step is still there"
        assert model() is None, "the model is still there"
    finally:
        gc.enable()


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("own", [False, True], ids=["pairs", "losses"])
def test_a_captured_step_reads_each_batch_anew(own):
    """Also a tensor without a dimension."""
    task = (direct_losses, None) if own else (objective, losses.mse)
    captured, plain = (build(kind, *task, device="cuda", clip_norm=1e3) for kind in (CapturedStep, PlainStep))
    assert type(build(make_step, *task, device="cuda")) is CapturedStep
    assert type(build(make_step, *task, device="cuda", accumulate=2)) is PlainStep
    for number in range(WARM + 5):
        batch = on_gpu(batch_at(number))
        assert captured(number, batch) == pytest.approx(plain(number, batch), rel=1e-4)
    assert captured._graphed.graph is not None, "the step was not captured"
    for name, value in plain.weights.items():
        torch.testing.assert_close(captured.weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.needs("gpu")
def test_a_captured_step_goes_on_from_a_joined_one():
    joined = build(JoinedStep)
    joined(0, batch_at(0))
    captured = build(CapturedStep, device="cuda")
    captured.load_state(copy.deepcopy(joined.state()))
    for number in range(1, WARM + 4):
        assert captured(number, on_gpu(batch_at(number))) == pytest.approx(joined(number, batch_at(number)), rel=1e-3)


@pytest.mark.parametrize("share", [0.5, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0])
def test_clipping_is_torchs(share):
    """Bit for bit, whether the limit is below the norm, at it or above."""
    seen = []
    for clip in (torch.nn.utils.clip_grad_norm_, optimizers.clip_gradients):
        torch.manual_seed(0)
        net = network()
        net(torch.randn(3, 4)).square().sum().backward()
        weights = [*net.parameters(), torch.nn.Parameter(torch.zeros(2))]  # one without a gradient
        limit = share * torch.nn.utils.get_total_norm([p.grad for p in weights[:-1]]).item()
        norm = clip(weights, limit)
        seen.append([norm, *(p.grad for p in weights[:-1])])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
