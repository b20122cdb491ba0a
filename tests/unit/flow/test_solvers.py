"""Solvers on ODEs with closed-form solutions, and against diffusers."""

import math

import pytest
import torch
from consistency.errors import ConfigError
from consistency.flow import solvers
from consistency.flow.schedules import VPSchedule
from consistency.teachers.targets import trajectory

DOUBLE = torch.float64


def fine_schedule(steps: int = 1_000_000) -> VPSchedule:
    """The same continuous-time β on a grid so fine that the discrete ᾱ is its integral."""
    scale = 1000 / steps
    return VPSchedule(steps, 0.00085 * scale, 0.012 * scale)


def gaussian_eps(schedule: VPSchedule, mean: float, variance: float):
    """The exact ε-prediction for data N(mean, variance): σ (x − α m) / (α² v + σ²)."""

    def eps(x, t):
        alpha, sigma = schedule.at(schedule.alpha, t, x), schedule.at(schedule.sigma, t, x)
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return eps


def gaussian_endpoint(schedule: VPSchedule, x: torch.Tensor, mean: float, variance: float) -> torch.Tensor:
    """The PF-ODE moves quantiles to quantiles: (x_T − α m) / sd_T = (x_0 − m) / sd_0."""
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    return mean + math.sqrt(variance) * (x - alpha * mean) / (alpha**2 * variance + sigma**2).sqrt()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
def test_observed_order(name, order):
    schedule = fine_schedule()
    x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
    truth = gaussian_endpoint(schedule, x, 0.3, 0.25)
    eps, solver = gaussian_eps(schedule, 0.3, 0.25), getattr(solvers, name)
    errors = []
    for n_steps in (50, 100, 200):
        end = trajectory(x, schedule.grid(n_steps), solver, eps, schedule)[:, -1]
        errors.append((end - truth).abs().max().item())
    observed = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert observed == pytest.approx([order, order], abs=0.25), (errors, observed)


def test_ddim_is_exact_in_one_step_for_a_point_mass():
    schedule = VPSchedule()
    x = torch.randn(5, 3, dtype=DOUBLE)
    end = trajectory(x, schedule.grid(1), solvers.ddim, gaussian_eps(schedule, 0.7, 0.0), schedule)[:, -1]
    torch.testing.assert_close(end, torch.full_like(x, 0.7), rtol=0, atol=1e-12)


def test_ddim_equals_diffusers():
    from consistency.runtime.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(20)
    schedule = VPSchedule()
    grid = schedule.grid(20)
    assert [t + 1 for t in theirs.timesteps.tolist()] == grid[:-1]
    x = ours = torch.randn(4, 1, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))

    def eps(x, t):
        return torch.tanh(x * (1 + int(t) / 1000))

    for s, n in zip(grid, grid[1:]):
        x = theirs.step(eps(x, s), s - 1, x).prev_sample
        ours = solvers.ddim(ours, s, n, eps, schedule)
        torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-6)  # diffusers keeps ᾱ in float32


def test_solvers_accept_a_time_per_sample():
    schedule = VPSchedule()
    eps = gaussian_eps(schedule, 0.1, 0.5)
    x = torch.randn(3, 1, 2, 2, dtype=DOUBLE)
    s, n = torch.tensor([1000, 500, 100]), torch.tensor([900, 400, 0])
    for solver in (solvers.ddim, solvers.euler, solvers.heun):
        together = solver(x, s, n, eps, schedule)
        apart = torch.cat([solver(x[i : i + 1], int(s[i]), int(n[i]), eps, schedule) for i in range(3)])
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-14)


def test_schedule_is_variance_preserving_and_sdxls():
    schedule = VPSchedule()
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1001, dtype=DOUBLE))
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    product = math.prod(1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000))
    assert schedule.alpha[1000].item() == pytest.approx(math.sqrt(product), rel=1e-9)
    assert (schedule.rate[1].item(), schedule.rate[1000].item()) == pytest.approx((0.85, 12.0))


def test_grid():
    assert VPSchedule().grid(4) == [1000, 750, 500, 250, 0]
    with pytest.raises(ConfigError, match="7 does not divide"):
        VPSchedule().grid(7)


def test_guidance(teacher):
    x, cond = torch.randn(6, 1, 8, 8), torch.arange(6)
    plain = teacher.network(x, torch.full((6,), 499), cond)
    null = teacher.network(x, torch.full((6,), 499), torch.full((6,), 10))
    assert torch.equal(teacher.eps(cond, 1.0)(x, 500), plain)
    torch.testing.assert_close(teacher.eps(cond, 0.0)(x, 500), null)
    torch.testing.assert_close(teacher.eps(cond, 4.0)(x, 500), null + 4 * (plain - null), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, null)


def test_timestep_offset_reaches_the_network(teacher_folder):
    from consistency.teachers.protocol import Teacher

    x, cond = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    trained, reference = (Teacher.load(teacher_folder, VPSchedule(), offset) for offset in (-1, 0))
    assert torch.equal(reference.eps(cond, 1.0)(x, 499), trained.eps(cond, 1.0)(x, 500))
    assert torch.equal(trained.eps(cond, 1.0)(x, 0), trained.eps(cond, 1.0)(x, 1))  # never below index 0
