"""Derivatives of students along a direction: against differences and closed forms, and what they leave as it was."""

import logging

import pytest
import torch
from consistency import networks
from consistency.flow.schedules import FLOWS, LinearFlow
from consistency.students import derivatives, maps
from consistency.students.derivatives import along

DOUBLE, SHAPE = torch.float64, (1, 8, 8)
MLP = {"kind": "mlp", "width": 16, "depth": 1}
UNET = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": [4]}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def shake(module):
    """Weights of which none is zero."""
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            weight.add_(0.1 * normal(*weight.shape, seed=number).to(weight))
    return module


def student_of(settings, flow=None, **more):
    network = networks.build(settings | {"second_time": True} | more, SHAPE, 3, 1000, 0)
    return maps.Student(maps.FlowMap(shake(network).double(), flow or LinearFlow()))


def arguments(flow=None):
    """x, t, cond, a direction, and r < t: near the flow's end, where the network's waves are slow."""
    flow = flow or LinearFlow()
    t = flow.end + (flow.start - flow.end) * torch.tensor([0.0204, 0.0503, 0.0807], dtype=DOUBLE)
    return normal(3, *SHAPE), t, torch.arange(3), normal(3, *SHAPE, seed=1), flow.end + 0.4 * (t - flow.end)


def differences(function, x, t, direction, h):
    """Central differences of a function of (x, t) along (direction, 1)."""
    return (function(x + h * direction, t + h) - function(x - h * direction, t - h)) / (2 * h)


def apart(ours, expected):
    """Their distance, relative to the second."""
    return ((ours - expected).norm() / expected.norm()).item()


# Against differences


@pytest.mark.parametrize("of_velocity", [False, True], ids=["point", "average velocity"])
@pytest.mark.parametrize("name", sorted(FLOWS))
def test_an_mlp_of_every_flow(name, of_velocity):
    flow = FLOWS[name]()
    student, (x, t, cond, direction, r) = student_of(MLP, flow), arguments(flow)

    def function(x, t):
        return student.map(x, t, cond, r, of_velocity)

    value, derivative = student.derivative(x, t, cond, direction, r, of_velocity)
    torch.testing.assert_close(value, function(x, t), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        expected = differences(function, x, t, direction, 1e-6)
    assert apart(derivative, expected) < 1e-5
    assert not value.requires_grad
    assert not derivative.requires_grad


def test_a_unet_with_attention(caplog):
    """Not by differences of its own: the log would say so. Its waves are float32, so ours are coarse."""
    student, (x, t, cond, direction, r) = student_of(UNET), arguments()
    with caplog.at_level(logging.WARNING, "consistency"):
        _, derivative = student.derivative(x, t, cond, direction, r, of_velocity=True)
    assert not caplog.records
    with torch.no_grad():
        expected = differences(lambda x, t: student.map(x, t, cond, r, True), x, t, direction, 1e-5)
    assert apart(derivative, expected) < 5e-3


def test_adapters(tmp_path):
    networks.save(shake(networks.build(MLP | {"second_time": True}, SHAPE, 3, 1000, 0)), tmp_path / "network")
    network = shake(maps.create(tmp_path / "network", "lora", 4)).double()
    assert sum("lora_" in name for name, _ in network.named_parameters()) > 4
    student, (x, t, cond, direction, r) = maps.Student(maps.FlowMap(network, LinearFlow())), arguments()
    _, derivative = student.derivative(x, t, cond, direction, r, of_velocity=True)
    with torch.no_grad():
        expected = differences(lambda x, t: student.map(x, t, cond, r, True), x, t, direction, 1e-6)
    assert apart(derivative, expected) < 1e-5


@pytest.mark.parametrize("settings", [MLP, UNET], ids=["mlp", "unet"])
def test_in_bf16(settings):
    """The derivative is float32's, also where accelerate has put the student's forward under autocast, and the gradient
    of a call afterwards is as without it."""
    student, (x, t, cond, direction, r) = student_of(settings), arguments()
    exact, expected = student.derivative(x, t, cond, direction, r, of_velocity=True)
    student.map.float().forward = torch.autocast("cpu", torch.bfloat16)(student.map.forward)
    x, t, direction, r = (value.float() for value in (x, t, direction, r))
    with torch.autocast("cpu", torch.bfloat16):
        _, derivative = student.derivative(x, t, cond, direction, r, of_velocity=True)
        prediction = student.average_velocity(x, t, cond, r)
    assert derivative.dtype == torch.float32
    assert apart(derivative.double(), expected) < 1e-3
    assert 1e-4 < apart(prediction.double(), exact) < 0.1  # which is in bf16
    prediction.square().mean().backward()
    assert all(weight.grad is not None for weight in student.map.parameters())
    after = [weight.grad.clone() for weight in student.map.parameters()]
    student.map.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        student.average_velocity(x, t, cond, r).square().mean().backward()
    assert all(torch.equal(a, weight.grad) for a, weight in zip(after, student.map.parameters(), strict=True))


# The closed form


class Exact(torch.nn.Module):
    """The average velocity of the linear flow of N(m, v I): mean (1 − t) m, variance s² = (1 − t)² v + t²."""

    timesteps, sample_shape, mean, variance = 1001, (2,), 0.3, 0.25

    def deviation(self, t):
        return ((1 - t) ** 2 * self.variance + t**2).sqrt()

    def velocity(self, x, t):
        """dx/dt = −m + s'/s (x − (1 − t) m)."""
        t = t[:, None]
        slope = (t - (1 - t) * self.variance) / self.deviation(t) ** 2
        return -self.mean + slope * (x - (1 - t) * self.mean)

    def forward(self, x, t, cond, gap):
        t, r = t[:, None] / 1000, (t - gap)[:, None] / 1000
        end = (1 - r) * self.mean + self.deviation(r) / self.deviation(t) * (x - (1 - t) * self.mean)
        return (x - end) / (t - r)


def test_a_gaussians_average_velocity():
    """Along the flow X stays, so that u = (x − X)/(t − r) has du/dt = (v − u)/(t − r): MeanFlow's identity."""
    exact = Exact()
    student = maps.Student(maps.FlowMap(exact, LinearFlow()))
    x, cond = normal(5, 2), torch.zeros(5)
    t, r = torch.tensor([0.2, 0.5, 0.7, 0.9, 1.0], dtype=DOUBLE), torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0], dtype=DOUBLE)
    v = exact.velocity(x, t)
    u, derivative = student.derivative(x, t, cond, v, r, of_velocity=True)
    torch.testing.assert_close(derivative, (v - u) / (t - r)[:, None], rtol=1e-8, atol=1e-8)
    _, moved = student.derivative(x, t, cond, v, r)
    torch.testing.assert_close(moved, torch.zeros_like(x), rtol=0, atol=1e-9)
    _, other = student.derivative(x, t, cond, v + 1, r)
    assert other.abs().min() > 1e-3  # along another direction it does not stay


# What is left as it was


@pytest.mark.parametrize("differentiate", [along, torch.no_grad()(derivatives._differences)])
def test_dropout_is_that_of_the_next_call(differentiate):
    dropout = torch.nn.Dropout(0.5).train()
    x = normal(40, 10)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    value, derivative = differentiate(lambda x: dropout(x) * x, (x,), (torch.ones_like(x),))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(value, dropout(x) * x)
    mask = value != 0
    assert 0.3 < mask.double().mean() < 0.7
    torch.testing.assert_close(derivative, torch.where(mask, 4 * x, 0), rtol=1e-9, atol=1e-9)


def test_a_unets_dropout_is_that_of_the_next_call():
    student, (x, t, cond, direction, r) = student_of(UNET, dropout=0.3), arguments()
    student.map.train()
    torch.manual_seed(5)
    value, _ = student.derivative(x, t, cond, direction, r, of_velocity=True)
    with torch.no_grad():
        torch.testing.assert_close(student.average_velocity(x, t, cond, r), value, rtol=1e-6, atol=1e-6)
        assert apart(student.average_velocity(x, t, cond, r), value) > 1e-3  # and the one after it drops others


# Functions without a derivative of this kind


class BackwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("nothing is differentiated backwards")


class BackwardOnlyInParts(BackwardOnly):
    """As functorch asks for, still without a `jvp`."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


@pytest.mark.parametrize("function", [BackwardOnly, BackwardOnlyInParts])
def test_a_function_without_a_forward_derivative_is_differentiated_by_differences(caplog, function):
    """With the dropout of the next call too, which a first attempt has drawn already; the log says it once."""
    derivatives._warn.cache_clear()
    dropout, x = torch.nn.Dropout(0.5).train(), normal(40, 10)
    with caplog.at_level(logging.WARNING, "consistency"):
        for _ in range(2):
            torch.manual_seed(5)
            before = torch.get_rng_state()
            value, derivative = along(lambda x: function.apply(dropout(x)), (x,), (torch.ones_like(x),))
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(value, dropout(x) ** 3)
    expected = torch.where(value != 0, 24 * x**2, 0)
    torch.testing.assert_close(derivative, expected, rtol=1e-4, atol=1e-5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no forward-mode derivative (")
    assert line.endswith("); central differences are used")


def test_a_fault_of_the_function_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        along(lambda x: x @ torch.ones(3, 3, dtype=DOUBLE), (normal(4, 2),), (normal(4, 2),))
