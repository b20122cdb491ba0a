"""Flow maps: every parameterisation at its ends and between, and the second time of networks."""

import copy

import pytest
import torch
from consistency import networks
from consistency.config.settings import OF_FLOW
from consistency.flow.schedules import FLOWS, LinearFlow, VPSchedule
from consistency.students import maps
from consistency.students.parameterisations import PARAMETERISATIONS

DOUBLE, SHAPE = torch.float64, (1, 4, 4)
MLP = {"kind": "mlp", "width": 16, "depth": 1}
UNET = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "attention": [4]}
KINDS = pytest.mark.parametrize("settings", [MLP, UNET], ids=["mlp", "unet"])


def shaken(network, but=""):
    """The network with weights of which none is zero, the same in networks of the same weights."""
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not but or not name.startswith(but):
                weight.add_(0.1 * torch.randn(weight.shape, generator=numbers))
    return network.eval()


def build(settings, **more):
    shape = (1, 8, 8) if settings["kind"] == "unet" else SHAPE
    return networks.build(settings | more, shape, 3, 1000, 0)


def inputs(shape=SHAPE, dtype=torch.float32):
    x = torch.randn(4, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0, 1, 2, 0])


@pytest.fixture(params=sorted(FLOWS))
def student(request):
    """A flow map of each flow, float64."""
    return maps.FlowMap(shaken(build(MLP, second_time=True)).double(), FLOWS[request.param]())


def between(flow):
    """Four times t, and a time below each."""
    t = flow.end + (flow.start - flow.end) * torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=DOUBLE)
    return t, flow.end + 0.4 * (t - flow.end)


def test_every_flow_has_a_parameterisation_of_its_own():
    assert OF_FLOW == {"vp": "boundary", "ve": "edm", "linear": "average_velocity", "trigflow": "trigflow"}
    assert set(FLOWS) == set(OF_FLOW) and set(PARAMETERISATIONS) == set(OF_FLOW.values())


def test_no_step_is_the_identity(student):
    x, cond = inputs(dtype=DOUBLE)
    t, r = between(student.flow)
    torch.testing.assert_close(student(x, t, cond, t), x, rtol=1e-12, atol=1e-12)
    assert (student(x, t, cond, r) - x).abs().flatten(1).amax(1).min() > 1e-3  # any other step moves


def test_f_at_the_flows_end_is_the_identity(student):
    x, cond = inputs(dtype=DOUBLE)
    assert torch.equal(student(x, student.flow.end, cond), x)
    assert torch.equal(student.float()(x.float(), student.flow.end, cond), x.float())


def test_without_a_second_time_the_flows_end_is_meant(student):
    x, cond = inputs(dtype=DOUBLE)
    t, _ = between(student.flow)
    f, step = student(x, t, cond), student(x, t, cond, student.flow.end)
    if student.flow.name == "ve":  # where a straight path from t keeps σ_min of the noise at σ_min
        kept = (student.flow.end / t)[:, None, None, None] * (x - f)
        torch.testing.assert_close(step, f + kept, rtol=1e-9, atol=1e-9)
    else:
        torch.testing.assert_close(step, f, rtol=1e-12, atol=1e-12)


def test_average_velocity_is_the_step_over_the_time(student):
    x, cond = inputs(dtype=DOUBLE)
    t, r = between(student.flow)
    expected = (x - student(x, t, cond, r)) / (t - r)[:, None, None, None]
    ours = maps.Student(student).average_velocity(x, t, cond, r)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    one = maps.Student(student).average_velocity(x[1:2], t[1].item(), cond[1:2], r[1].item())  # scalar times
    torch.testing.assert_close(one, expected[1:2], rtol=1e-9, atol=1e-9)


def test_a_real_time_of_vp_is_the_integers():
    student = maps.FlowMap(shaken(build(MLP)).double(), VPSchedule())
    x, cond = inputs(dtype=DOUBLE)
    for t in (1, 500, 1000):
        torch.testing.assert_close(student(x, float(t), cond), student(x, t, cond), rtol=1e-6, atol=1e-6)


def test_a_student_is_asked_through_its_wrapper():
    """As several processes wrap it; what it is asked about itself is of the map inside."""

    class Wrapper(torch.nn.Module):
        calls = 0

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *arguments):
            self.calls += 1
            return self.module(*arguments)

    wrapper = Wrapper(maps.FlowMap(build(MLP, second_time=True), LinearFlow()))
    student, (x, cond) = maps.Student(wrapper), inputs()
    assert student.flow == LinearFlow()
    assert torch.equal(student(x, 0.5, cond, 0.2), wrapper.module(x, 0.5, cond, 0.2))
    student.average_velocity(x, 0.5, cond, 0.2)
    assert wrapper.calls == 2
    t = torch.full((4,), 0.5)
    student.derivative(x, t, cond, x, 0.4 * t)
    assert wrapper.calls == 2  # a derivative has no gradient to share


# The second time of a network


@KINDS
def test_a_second_time_changes_nothing_until_it_is_trained(settings):
    """Bit for bit, whatever the gap: a student starts as its teacher."""
    one, two = (shaken(build(settings, **more), but="gap") for more in ({}, {"second_time": True}))
    x, cond = inputs(one.sample_shape)
    t = torch.tensor([999.0, 500.0, 20.5, 0.0])
    expected = one(x, t, cond)
    assert torch.equal(two(x, t, cond), expected)
    for gap in (torch.zeros(4), t, t / 3):
        assert torch.equal(two(x, t, cond, gap), expected)


@KINDS
def test_a_second_time_is_saved_and_loaded(tmp_path, settings):
    network = shaken(build(settings, second_time=True))
    x, cond = inputs(network.sample_shape)
    t = torch.tensor([999.0, 500.0, 20.5, 0.0])
    networks.save(network, tmp_path / "network")
    loaded = networks.load(tmp_path / "network")
    expected = network(x, t, cond, t / 2)
    torch.testing.assert_close(loaded(x, t, cond, t / 2), expected, rtol=1e-5, atol=1e-5)
    assert (expected - network(x, t, cond, t / 4)).abs().max() > 1e-3  # the gap counts
    student = maps.FlowMap(network, LinearFlow())
    maps.save(student, tmp_path / "student", {})
    again = maps.load(tmp_path / "student", LinearFlow())
    torch.testing.assert_close(again(x, 0.7, cond, 0.2), student(x, 0.7, cond, 0.2), rtol=1e-5, atol=1e-5)


@KINDS
def test_a_copy_has_its_own_second_time(settings):
    """As the average of the weights is a copy of the student."""
    network = shaken(build(settings, second_time=True))
    x, cond = inputs(network.sample_shape)
    t = torch.tensor([999.0, 500.0, 20.5, 0.0])
    expected, twin = network(x, t, cond, t / 2), copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    torch.testing.assert_close(twin(x, t, cond, t / 2), expected, rtol=1e-6, atol=1e-6)


def test_a_unet_forgets_the_gap_of_the_call_before():
    network = shaken(build(UNET, second_time=True))
    x, cond = inputs(network.sample_shape)
    t = torch.full((4,), 300.0)
    before = network(x, t, cond)
    network(x, t, cond, t / 2)
    assert torch.equal(network(x, t, cond), before)


def test_adapters_on_a_network_of_two_times_are_merged(tmp_path):
    networks.save(shaken(build(MLP, second_time=True)), tmp_path / "network")
    student = maps.FlowMap(maps.create(tmp_path / "network", "lora", 4), LinearFlow())
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    maps.save(student, tmp_path / "student", {})
    merged = maps.load(tmp_path / "student", LinearFlow(), base=tmp_path / "network")
    start = maps.load(tmp_path / "network", LinearFlow())
    x, cond = inputs()
    ours = merged(x, 0.7, cond, 0.2)
    torch.testing.assert_close(ours, student(x, 0.7, cond, 0.2), rtol=1e-4, atol=1e-5)
    assert (ours - start(x, 0.7, cond, 0.2)).abs().max() > 1e-2
