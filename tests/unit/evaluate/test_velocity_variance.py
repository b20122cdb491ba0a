"""The variance of velocities in each coupling, against closed forms and means over neighbours."""

import math

import pytest
import torch
from consistency.config.components import VelocityFit
from consistency.evaluate import coupled, velocity_variance
from consistency.flow.schedules import VESchedule
from consistency.networks.mixture import Mixture
from consistency.teachers import truth
from consistency.teachers.protocol import AnalyticTeacher
from scipy.spatial import cKDTree

DOUBLE = torch.float64
SCHEDULE = VESchedule(sigma_min=0.001, sigma_max=5)
VARIANCE = 0.25
LEVELS = (0.05, 0.2, 0.5, 1.5, 5.0)
GAUSSIAN = Mixture(torch.ones(1), torch.zeros(1, 2), VARIANCE * torch.eye(2)[None])
MODES = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([[0, -0.5], [0, 0.5]]), 0.01**2 * torch.eye(2).repeat(2, 1, 1))
ALL = ("independent", "optimal_transport", coupled.EXACT)


def coupler(mixture, count, number):
    random = torch.Generator().manual_seed(number)
    mode = torch.multinomial(mixture.weights, count, replacement=True, generator=random)
    deviation = mixture.covariances[0, 0, 0].sqrt()
    x = mixture.means[mode] + deviation * torch.randn(count, 2, dtype=DOUBLE, generator=random)
    drawn = coupled.draws(x, torch.zeros(count, dtype=torch.int64), count, 0, number)
    generators = {coupled.EXACT: coupled.exact_generator(mixture, SCHEDULE)}
    return coupled.Coupler(drawn, generators, 128, SCHEDULE, {"p_mean": -1.1, "p_std": 2.0})


@pytest.fixture(scope="module")
def learned():
    """(mixture's name, coupling) → its mean velocity, learned with the default settings."""
    settings = VelocityFit().model_dump()
    out = {}
    for label, mixture, names in (("gaussian", GAUSSIAN, [coupled.EXACT]), ("modes", MODES, ALL[1:])):
        draws = coupler(mixture, settings["count"], 1)
        for name in names:
            out[label, name] = velocity_variance.MeanVelocity(draws, name, AnalyticTeacher(mixture, None), settings, 0)
    return out


def variance(draws, name, sigma, velocity):
    """R̃ and its standard error."""
    sigma = torch.full((len(draws.drawn["z"]),), sigma, dtype=DOUBLE)
    x, cond = draws.point(name, sigma)
    squared = (draws.drawn["z"] - velocity(x, sigma, cond)).square().sum(1)
    return squared.mean().item(), squared.std().item() / math.sqrt(len(squared))


def test_the_exact_generator_is_the_closed_form():
    """f = x √((v + σ_min²) / (v + σ²)), from a level of its own for each sample; and it is `endpoint`'s."""
    x, sigma = torch.randn(500, 2, dtype=DOUBLE), torch.linspace(0.01, 5, 500).double()
    ratio = (VARIANCE + SCHEDULE.sigma_min**2) / (VARIANCE + sigma**2)
    close = coupled.exact_generator(GAUSSIAN, SCHEDULE)(x, sigma, torch.zeros(500))
    assert (close - x * ratio.sqrt()[:, None]).abs().max() < 3e-3
    tight = truth.flow_map(MODES, x[:9], torch.full((9,), 2.0), 0.001)
    assert tight == pytest.approx(truth.endpoint(MODES, x[:9], 2.0, 0.001), abs=1e-8)


@pytest.mark.parametrize("sigma", LEVELS)
def test_closed_form_of_a_gaussian(learned, sigma):
    """R̃_IC = d v / (v + σ²); R̃_GC = d a² v / (a² v + σ² (1 + a)²), a² = v / (v + σ²), with the exact generator:
    by the exact conditional mean, and by the denoiser, which may add a tenth."""
    draws, total = coupler(GAUSSIAN, 8192, 2), VARIANCE + sigma**2
    a = math.sqrt(VARIANCE / total)
    generated = a**2 * VARIANCE + (sigma * (1 + a)) ** 2  # the variance of x̃_σ

    def exact(x, level, cond):
        return sigma * (1 + a) / generated * x

    for name, velocity, expected, excess in (
        ("independent", AnalyticTeacher(GAUSSIAN, None).velocity, 2 * VARIANCE / total, 0),
        (coupled.EXACT, exact, 2 * a**2 * VARIANCE / generated, 0),
        (coupled.EXACT, learned["gaussian", coupled.EXACT], 2 * a**2 * VARIANCE / generated, 0.1),
    ):
        value, error = variance(draws, name, sigma, velocity)
        assert expected - 4 * error < value < expected * (1 + excess) + 4 * error, (name, value, expected, error)


@pytest.mark.parametrize("name", ["optimal_transport", coupled.EXACT])
@pytest.mark.parametrize("sigma", [0.02, 0.5, 2.0])
def test_learned_velocity_is_the_mean_over_neighbours(learned, name, sigma):
    """Within 5 %: ‖v̂ − v_kNN‖ / ‖v_kNN‖ over draws, the norm being the root mean square; z of the 16 nearest draws
    of 32,000 others in the same coupling. The noise of that mean, R̃ / 16, is taken off the square."""
    others, here = coupler(MODES, 32_000, 3), coupler(MODES, 1024, 4)
    x, _ = others.point(name, torch.full((32_000,), sigma, dtype=DOUBLE))
    level = torch.full((1024,), sigma, dtype=DOUBLE)
    points, cond = here.point(name, level)
    _, rows = cKDTree(x.numpy()).query(points.numpy(), k=16)
    z = others.drawn["z"][torch.from_numpy(rows)]
    mean, noise = z.mean(1), z.var(1).sum(1).mean().item() / 16
    velocity = learned["modes", name](points, level, cond)
    difference = (velocity - mean).square().sum(1).mean().item() - noise
    assert difference < 0.05**2 * mean.square().sum(1).mean().item()


def test_overfitting_does_not_lower_the_variance():
    """A denoiser that has seen few draws many times is worse than the exact velocity on held-out ones."""
    settings = VelocityFit(steps=400, batch_size=64, count=64).model_dump()
    learned = velocity_variance.MeanVelocity(coupler(GAUSSIAN, 64, 1), "independent", None, settings, 0)
    held_out = coupler(GAUSSIAN, 4096, 2)
    for sigma in (0.2, 1.0):
        exact, error = variance(held_out, "independent", sigma, AnalyticTeacher(GAUSSIAN, None).velocity)
        assert variance(held_out, "independent", sigma, learned)[0] > exact + 4 * error


def test_rows_by_level_and_over_the_trainings_levels():
    """Images with labels and no exact teacher: every coupling is learned."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(256, 1, 4, 4, generator=random), torch.arange(256) % 3
    generators = {coupled.TRAINED: lambda x, sigma, cond: 0.1 * x}
    curriculum = {"p_mean": -1.1, "p_std": 2.0}
    training, held_out = (
        coupled.Coupler(coupled.draws(images, labels, count, 0, count), generators, 32, SCHEDULE, curriculum)
        for count in (512, 256)
    )
    names = ["independent", "optimal_transport", coupled.TRAINED]
    settings = VelocityFit(steps=5, count=512).model_dump()
    rows = list(
        velocity_variance.velocity_variances(
            training, held_out, names, teacher=None, steps=20, settings=settings, seed=0
        )
    )
    assert [name for _, _, name in rows] == [name for name in names for _ in range(coupled.LEVELS + 2)]
    assert {metric for metric, _, _ in rows} >= {
        "velocity_variance",
        "velocity_variance@sigma=0.001",
        "velocity_variance@sigma=5",
        "velocity_variance@sigma_max",
    }
    assert all(math.isfinite(value) and value > 0 for _, value, _ in rows)
