"""Flows at real-valued times: coefficients and their derivatives, closed forms, steps along a path."""

import math

import pytest
import torch
from consistency.flow.schedules import FLOWS, LinearFlow, TrigFlow, VESchedule, VPSchedule

DOUBLE = torch.float64
SHARES = [0.0134, 0.2503, 0.5004, 0.8307, 0.9992]  # not at the integers of VP, where its derivatives jump


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def times_of(flow):
    """Times between a flow's end and its start."""
    return flow.end + (flow.start - flow.end) * torch.tensor(SHARES, dtype=DOUBLE)


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    return FLOWS[request.param]()


def test_noise_is_added_by_the_coefficients(flow):
    x, z, t = normal(5, 2, 3), normal(5, 2, 3, seed=1), times_of(flow)
    alpha, sigma = flow.coefficients(t, x)
    assert alpha.shape == sigma.shape == (5, 1, 1)
    assert torch.equal(flow.add_noise(x, z, t), alpha * x + sigma * z)
    one = flow.add_noise(x[2:3], z[2:3], t[2].item())  # a scalar time
    torch.testing.assert_close(one, flow.add_noise(x, z, t)[2:3], rtol=1e-12, atol=1e-12)


def test_derivatives_are_those_of_finite_differences(flow):
    x, z, t = normal(5, 2), normal(5, 2, seed=1), times_of(flow)
    h = 1e-5 * (flow.start - flow.end)
    for ours, above, below in zip(
        flow.derivatives(t, x), flow.coefficients(t + h, x), flow.coefficients(t - h, x), strict=True
    ):
        torch.testing.assert_close(ours, (above - below) / (2 * h), rtol=1e-5, atol=1e-9)
    moved = (flow.add_noise(x, z, t + h) - flow.add_noise(x, z, t - h)) / (2 * h)
    torch.testing.assert_close(flow.velocity(x, z, t), moved, rtol=1e-5, atol=1e-7)


def test_noise_grows_along_the_flow(flow):
    t = torch.linspace(flow.end, flow.start, 501, dtype=DOUBLE)
    alpha, sigma = flow.coefficients(t, torch.zeros(501, 1, dtype=DOUBLE))
    assert (sigma.diff(dim=0) > 0).all()
    assert (alpha.diff(dim=0) <= 0).all()


def test_a_step_to_the_same_time_is_the_identity(flow):
    x, clean, t = normal(5, 2, 3), normal(5, 2, 3, seed=1), times_of(flow)
    torch.testing.assert_close(flow.ddim(x, clean, t, t), x, rtol=1e-12, atol=1e-12)


def test_a_step_to_the_end_is_the_data(flow):
    """Where noise is gone at the end; of VE σ_min of it is left."""
    x, clean, t = normal(5, 2, 3), normal(5, 2, 3, seed=1), times_of(flow)
    reached = flow.ddim(x, clean, t, flow.end)
    if flow.name == "ve":
        assert (reached - clean).abs().max() > 1e-6
        clean = clean + flow.sigma_min / t[:, None, None] * (x - clean)
    torch.testing.assert_close(reached, clean, rtol=1e-9, atol=1e-9)


def test_a_step_follows_the_path_of_data_and_noise(flow):
    """With the pair's own data as x̂, a step from t to r stays on the pair's path."""
    x, z, t = normal(5, 2), normal(5, 2, seed=1), times_of(flow)
    r = flow.end + 0.6 * (t - flow.end)
    expected = flow.add_noise(x, z, r)
    torch.testing.assert_close(flow.ddim(flow.add_noise(x, z, t), x, t, r), expected, rtol=1e-9, atol=1e-9)


def test_times_begin_at_the_start_and_go_down(flow):
    for steps in (1, 2, 4, 5):
        times = flow.times(steps, 10 if flow.name == "vp" else None)
        assert len(times) == steps
        assert times[0] == flow.start
        assert all(a > b > flow.end for a, b in zip(times, times[1:]))


def test_noise_scale_is_the_noise_at_the_start(flow):
    """To the share of data that is left there."""
    _, sigma = flow.coefficients(float(flow.start), torch.zeros(1, dtype=DOUBLE))
    assert sigma.item() == pytest.approx(flow.noise_scale, rel=5e-3)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_vp_at_real_times_is_its_arrays_at_integers(kind):
    flow, t = VPSchedule(1000, 1e-4, 0.02, kind), torch.tensor([0, 1, 2, 499, 500, 999, 1000])
    like = torch.zeros(7, 1, dtype=DOUBLE)
    alpha, sigma = flow.coefficients(t.double(), like)
    torch.testing.assert_close(alpha[:, 0], flow.alpha[t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma[:, 0], flow.sigma[t], rtol=1e-9, atol=1e-9)
    stored = flow.coefficients(t, like)
    assert torch.equal(stored[0][:, 0], flow.alpha[t])
    assert torch.equal(stored[1][:, 0], flow.sigma[t])


def test_vp_between_integers():
    """The logarithm of α is linear there, and α² + σ² = 1."""
    flow = VPSchedule()
    alpha, sigma = flow.coefficients(torch.tensor([500.25], dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE))
    assert alpha.item() == pytest.approx((flow.alpha[500] ** 0.75 * flow.alpha[501] ** 0.25).item(), rel=1e-12)
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-12)


def test_vp_has_finite_derivatives_at_its_ends():
    for value in VPSchedule().derivatives(torch.tensor([0.0, 1000.0]), torch.zeros(2, 1)):
        assert value.isfinite().all()


def test_closed_forms():
    x, z = torch.tensor([[2.0]], dtype=DOUBLE), torch.tensor([[-1.0]], dtype=DOUBLE)
    assert LinearFlow().add_noise(x, z, 0.25).item() == pytest.approx(0.75 * 2 - 0.25)
    assert LinearFlow().velocity(x, z, 0.25).item() == pytest.approx(-3)
    trig, t = TrigFlow(sigma_data=0.7), math.pi / 6
    assert trig.add_noise(x, z, t).item() == pytest.approx(2 * math.sqrt(0.75) - 0.7 * 0.5)
    assert trig.velocity(x, z, t).item() == pytest.approx(-2 * 0.5 - 0.7 * math.sqrt(0.75))
    assert (trig.noise_scale, trig.start) == (0.7, math.pi / 2)
    assert VESchedule().add_noise(x, z, 3.0).item() == pytest.approx(-1)
    assert torch.equal(VESchedule().velocity(x, z, 3.0), z)
    assert LinearFlow().times(4) == [1.0, 0.75, 0.5, 0.25]
    assert VESchedule().times(2) == [80.0, VESchedule().grid(1281)[640].item()]


def test_trigflows_data_and_noise_of_one_deviation_keep_it():
    flow, t = TrigFlow(), torch.linspace(0.1, 1.5, 20_000, dtype=DOUBLE)
    points = flow.add_noise(0.5 * normal(20_000, 1), normal(20_000, 1, seed=1), t)
    assert points.std().item() == pytest.approx(0.5, rel=0.03)
