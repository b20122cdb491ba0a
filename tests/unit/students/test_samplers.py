"""Samplers on the exact flow map of a Gaussian, for every flow."""

import pytest
import torch
from consistency.flow.schedules import FLOWS
from consistency.students import samplers
from consistency.students.sampling import sample

DOUBLE = torch.float64
MEAN = 0.3


def fresh(shape):
    """A sampler's source of noise."""
    return lambda step: torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(step))


class ExactMap:
    """The flow map of data N(MEAN, variance I): (x − α m) / s stays along the ODE, s² = α² v + σ²."""

    def __init__(self, flow, variance):
        self.flow, self.variance = flow, variance

    def moments(self, t, x):
        alpha, sigma = self.flow.coefficients(float(t), x)
        return alpha * MEAN, (alpha**2 * self.variance + sigma**2).sqrt()

    def __call__(self, x, t, cond=None, r=None):
        (mean_t, deviation_t), (mean_r, deviation_r) = (
            self.moments(time, x) for time in (t, self.flow.end if r is None else r)
        )
        return mean_r + (x - mean_t) * deviation_r / deviation_t


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    return FLOWS[request.param]()


def start(student, count=50):
    """Points of the flow's own law at its start."""
    x = torch.randn(count, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(7))
    mean, deviation = student.moments(student.flow.start, x)
    return mean + deviation * x


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_flow_maps_steps_lead_to_the_exact_end(flow, steps):
    student = ExactMap(flow, 0.25)
    x = start(student)
    times = flow.times(steps, 10)
    reached = samplers.flow_map(student, x, times, None, fresh(x.shape))
    torch.testing.assert_close(reached, student(x, flow.start), rtol=1e-9, atol=1e-9)


def test_every_sampler_is_f_in_one_step(flow):
    student = ExactMap(flow, 0.25)
    x = start(student)
    for sampler in (samplers.renoise, samplers.flow_map, samplers.ddim):
        assert torch.equal(sampler(student, x, flow.times(1), None, fresh(x.shape)), student(x, flow.start))


@pytest.mark.parametrize("steps", [2, 4])
def test_renoised_samples_have_the_datas_moments(flow, steps):
    student, count = ExactMap(flow, 0.25), 40_000
    x = start(student, count)
    samples = samplers.renoise(student, x, flow.times(steps, 10), None, fresh(x.shape))
    assert (samples.mean(0) - MEAN).abs().max() < 4.5 * 0.5 / count**0.5
    torch.testing.assert_close(samples.T.cov(), 0.25 * torch.eye(2, dtype=DOUBLE), rtol=0, atol=4.5 * 0.0018)
    assert (samples - student(x, flow.start)).abs().max() > 0.1  # other samples than one step gives


def test_ddim_is_exact_for_a_point_mass(flow):
    """f is then the point everywhere (of VE with σ_min of the noise), and each straight path leads there."""
    student = ExactMap(flow, 0.0)
    x = start(student)
    exact = student(x, flow.start)
    for steps in (2, 5):
        reached = samplers.ddim(student, x, flow.times(steps, 10), None, fresh(x.shape))
        torch.testing.assert_close(reached, exact, rtol=0, atol=0.01 if flow.name == "ve" else 1e-9)


def test_ddim_by_hand(flow):
    """Two steps for a Gaussian: f, α_r f + σ_r/σ_t (x − α_t f), f again."""
    student = ExactMap(flow, 0.25)
    x = start(student)
    t, r = flow.times(2, 10)
    (alpha_t, sigma_t), (alpha_r, sigma_r) = (flow.coefficients(float(time), x) for time in (t, r))
    clean = student(x, t)
    middle = alpha_r * clean + sigma_r / sigma_t * (x - alpha_t * clean)
    reached = samplers.ddim(student, x, [t, r], None, fresh(x.shape))
    torch.testing.assert_close(reached, student(middle, r), rtol=1e-9, atol=1e-9)
    assert (reached - student(x, t)).abs().max() > 1e-3  # a straight path is not the flow's own


def test_noise_is_scaled_to_the_flows_start_and_belongs_to_the_sample(flow):
    """Fresh noise is a function of seed, sample and step: a batch's second half by itself is the same."""
    student, noise = ExactMap(flow, 0.25), torch.randn(6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    whole = sample(student, samplers.renoise, 3, noise, None, seed=4, n_steps=10)
    half = sample(student, samplers.renoise, 3, noise[3:], None, seed=4, first=3, n_steps=10)
    assert torch.equal(whole[3:], half)
    assert not torch.equal(whole, sample(student, samplers.renoise, 3, noise, None, seed=5, n_steps=10))
    one = sample(student, samplers.flow_map, 1, noise, None, seed=4)
    assert torch.equal(one, student(noise * flow.noise_scale, flow.start))
