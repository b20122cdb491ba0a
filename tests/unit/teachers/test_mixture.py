"""Mixtures of Gaussians: densities, scores and velocities against torch.distributions, quadrature and closed
forms; the true ODE endpoint; and what is built on them, the analytic teacher and the solvers' error."""

import math

import pytest
import torch
from consistency import networks
from consistency.data import mixtures
from consistency.errors import ConfigError, MismatchError, StorageError
from consistency.files.storage import load_tensors
from consistency.flow import solvers
from consistency.flow.schedules import VESchedule, VPSchedule
from consistency.networks.mixture import Mixture
from consistency.teachers import truth
from consistency.teachers.protocol import AnalyticTeacher, Teacher
from consistency.teachers.targets import trajectory
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

DOUBLE = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=rng(seed))


def round_mixture(means, deviation, weights=None):
    """Components of one deviation; equal weights by default."""
    means = torch.as_tensor(means, dtype=DOUBLE)
    count, size = means.shape
    weights = torch.full((count,), 1 / count, dtype=DOUBLE) if weights is None else torch.tensor(weights, dtype=DOUBLE)
    return Mixture(weights, means, deviation**2 * torch.eye(size, dtype=DOUBLE).expand(count, size, size))


def two_modes(deviation=0.05):
    return round_mixture([[0.0, 0.5], [0.0, -0.5]], deviation)


def ring():
    angle = torch.arange(8, dtype=DOUBLE) * math.pi / 4
    return round_mixture(torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def uneven():
    """Three components in three dimensions, of unequal weights and full covariances."""
    root = normal(3, 3, 3, seed=1)
    covariances = 0.3 * root @ root.mT + 0.05 * torch.eye(3, dtype=DOUBLE)
    return Mixture(torch.tensor([0.6, 0.3, 0.1], dtype=DOUBLE), 2 * normal(3, 3, seed=2), covariances)


def wide():
    return round_mixture(normal(4, 64, seed=3), 0.4, [0.1, 0.2, 0.3, 0.4])


def gaussian(mean, covariance):
    return Mixture(torch.ones(1), torch.tensor([mean], dtype=DOUBLE), torch.tensor([covariance], dtype=DOUBLE))


MIXTURES = [two_modes, ring, uneven, wide]
PER_SAMPLE = torch.tensor([1.0, 0.9, 0.5, 0.1, 0.02], dtype=DOUBLE)
LEVELS = [
    (1.0, 0.0),
    (0.6, 0.8),
    (1.0, 0.3),
    (1.0, 80.0),
    (PER_SAMPLE, (1 - PER_SAMPLE**2).sqrt()),
    (1.0, 3 * PER_SAMPLE),
]


def points(mixture, count, seed):
    """Draws of the mixture."""
    arrays = (mixture.weights, mixture.means, mixture.covariances)
    return torch.from_numpy(mixtures.draw(*(a.numpy() for a in arrays), count, seed))


def noised(mixture, alpha, sigma, count=5):
    """Points x of `α x₀ + σ z`."""
    alpha, sigma = (torch.as_tensor(v, dtype=DOUBLE).reshape(-1, 1) for v in (alpha, sigma))
    return alpha * points(mixture, count, 4) + sigma * normal(count, mixture.means.shape[1], seed=5)


@pytest.mark.parametrize("level", LEVELS, ids=["clean", "vp", "ve 0.3", "ve 80", "vp each", "ve each"])
@pytest.mark.parametrize("make", MIXTURES)
def test_score_is_the_gradient_of_torchs_density(make, level):
    mixture, (alpha, sigma) = make(), level
    x = noised(mixture, alpha, sigma).requires_grad_(True)
    score = mixture.score(x.detach(), alpha, sigma)
    identity = torch.eye(mixture.means.shape[1], dtype=DOUBLE)
    alphas, sigmas = (torch.as_tensor(v, dtype=DOUBLE).expand(5) for v in level)
    for i, (a, s) in enumerate(zip(alphas, sigmas)):
        noisy = MultivariateNormal(a * mixture.means, a**2 * mixture.covariances + s**2 * identity)
        density = MixtureSameFamily(Categorical(mixture.weights), noisy).log_prob(x[i])
        (gradient,) = torch.autograd.grad(density, x)
        torch.testing.assert_close(score[i], gradient[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (0.2, math.sqrt(0.96)), (1.0, 0.4), (1.0, 3.0)])
def test_eps_is_the_mean_noise_given_the_noisy_point(alpha, sigma):
    """E[z | α x₀ + σ z = x] by quadrature over z, from the density of the clean data alone."""
    mixture = round_mixture([[-1.0], [0.5]], 0.3, [0.3, 0.7])
    clean = MixtureSameFamily(Categorical(mixture.weights), Normal(mixture.means[:, 0], 0.3))
    z, x = torch.linspace(-12, 12, 20001, dtype=DOUBLE), torch.linspace(-2, 2, 7, dtype=DOUBLE)
    weight = (clean.log_prob((x[:, None] - sigma * z) / alpha) - z**2 / 2).exp()
    expected = (weight * z).sum(1) / weight.sum(1)
    eps = mixture.eps(x[:, None], alpha, sigma)
    torch.testing.assert_close(eps[:, 0], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(eps, -sigma * mixture.score(x[:, None], alpha, sigma))


EYE = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.5], [[0, 0], [1, 1]], [EYE, [[1, 2], [2, 1]]], "component 1: .*not symmetric positive definite"),
        ([0.5, 0.5], [[0, 0], [1, 1]], [EYE, [[1, 0], [0, 0]]], "component 1: .*not symmetric positive definite"),
        ([1.0], [[0, 0]], [[[1, 0.5], [0, 1]]], "not symmetric"),
        ([0.5, 0.4], [[0, 0], [1, 1]], [EYE, EYE], "sum to 1"),
        ([1.5, -0.5], [[0, 0], [1, 1]], [EYE, EYE], "must be positive"),
        ([0.2, 0.3, 0.5], [[0, 0], [1, 1]], [EYE, EYE], r"shapes \[\(3,\)"),
        ([0.5, 0.5], [[0, 0], [1, 1]], [EYE], "shapes"),
        ([0.5, 0.5], [[0, 0, 0], [1, 1, 1]], [EYE, EYE], "shapes"),
        ([1.0], [[0, 0]], EYE, "shapes"),
    ],
)
def test_bad_input(weights, means, covariances, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(*(torch.tensor(v, dtype=DOUBLE) for v in (weights, means, covariances)))


def test_parameters_of_settings():
    components = [
        {"weight": 0.25, "mean": [1.0], "deviation": 0.5, "covariance": None},
        {"weight": 0.75, "mean": [2.0, -1.0], "deviation": None, "covariance": [[2.0, 0.3], [0.3, 1.0]]},
    ]
    arrays = mixtures.parameters(2, components)
    assert arrays["weights"].tolist() == [0.25, 0.75]
    assert arrays["means"].tolist() == [[1, 0], [2, -1]]
    assert arrays["covariances"].tolist() == [[[0.25, 0], [0, 0.25]], [[2, 0.3], [0.3, 1]]]


def test_draws_have_the_components_weights_means_and_covariances():
    """The components are 9 deviations apart, so that the nearest one is the point's own."""
    means = torch.tensor([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]], dtype=DOUBLE)
    near = Mixture(uneven().weights, means, uneven().covariances / uneven().covariances.amax() / 1.0)
    count = 40_000
    x = points(near, count, 0)
    component = torch.cdist(x, near.means).argmin(1)
    for j, weight in enumerate(near.weights.tolist()):
        own = x[component == j]
        assert len(own) == pytest.approx(weight * count, abs=4.5 * math.sqrt(count * weight * (1 - weight)))
        root = torch.linalg.cholesky(near.covariances[j])
        white = torch.linalg.solve_triangular(root, (own - near.means[j]).T, upper=False).T
        error = 4.5 / math.sqrt(len(own))
        torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=DOUBLE), rtol=0, atol=error)
        torch.testing.assert_close(white.T.cov(), torch.eye(3, dtype=DOUBLE), rtol=0, atol=math.sqrt(2) * error)


def test_draws_depend_on_the_seed_alone():
    x = points(ring(), 50, 3)
    assert torch.equal(x, points(ring(), 50, 3))
    assert not torch.equal(x, points(ring(), 50, 4))


def test_save_and_load(tmp_path):
    components = [
        {"weight": 0.25, "mean": [1.0], "deviation": 0.5, "covariance": None},
        {"weight": 0.75, "mean": [2.0, -1.0], "deviation": None, "covariance": [[2.0, 0.3, 0], [0.3, 1, 0], [0, 0, 1]]},
    ]
    mixture = Mixture(*map(torch.from_numpy, mixtures.parameters(3, components).values()))
    mixtures.write_teacher(tmp_path / "teacher", {"dimension": 3, "components": components})
    loaded = Mixture.load(tmp_path / "teacher")
    for name in ("weights", "means", "covariances"):
        assert torch.equal(getattr(loaded, name), getattr(mixture, name))
    assert networks.is_mixture(tmp_path / "teacher")
    teacher = Teacher.load(tmp_path / "teacher", VPSchedule())
    x = normal(4, 3)
    assert torch.equal(teacher.velocity(x, torch.full((4,), 0.7, dtype=DOUBLE), None), mixture.eps(x, 1.0, 0.7))
    (tmp_path / "teacher" / "mixture.safetensors").unlink()
    with pytest.raises(StorageError, match="no such file"):
        Mixture.load(tmp_path / "teacher")


def test_analytic_teacher_predicts_eps_in_vp():
    schedule, mixture = VPSchedule(), uneven()
    teacher = AnalyticTeacher(mixture, schedule)
    x, cond = normal(3, 3), torch.zeros(3, dtype=torch.int64)
    t = torch.tensor([1000, 400, 1])
    product = [
        math.prod(1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(last)) for last in t
    ]
    alpha, sigma = (torch.tensor(v, dtype=DOUBLE).sqrt() for v in (product, [1 - p for p in product]))
    together = teacher.eps(cond, 1.0)(x, t)
    torch.testing.assert_close(together, mixture.eps(x, alpha, sigma), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(teacher.eps(cond, 1)(x, 400)[1], together[1], rtol=1e-12, atol=1e-12)
    assert teacher.eps(cond, 1)(x.float(), t).dtype == torch.float32
    assert teacher.calls == 9
    with pytest.raises(ConfigError, match="guidance 4 with an analytic teacher"):
        teacher.eps(cond, 4.0)


def test_analytic_teachers_ve_velocity():
    """For N(m, C): σ (C + σ² I)⁻¹ (x − m)."""
    covariance = [[0.5, 0.2], [0.2, 0.3]]
    teacher = AnalyticTeacher(gaussian([0.3, -1.0], covariance), VPSchedule())
    x, sigma = normal(4, 2), torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=DOUBLE)
    velocity = teacher.velocity(x, sigma, torch.zeros(4))
    for row, point, s in zip(velocity, x, sigma):
        total = torch.tensor(covariance, dtype=DOUBLE) + s**2 * torch.eye(2, dtype=DOUBLE)
        expected = s * torch.linalg.inv(total) @ (point - torch.tensor([0.3, -1.0], dtype=DOUBLE))
        torch.testing.assert_close(row, expected, rtol=1e-10, atol=1e-12)
    assert teacher.velocity(x.float(), sigma, torch.zeros(4)).dtype == torch.float32


class GaussianNetwork(torch.nn.Module):
    """The exact VP ε-prediction for data N(class, variance); keeps the index it was asked for."""

    def __init__(self, schedule, variance):
        super().__init__()
        self.schedule, self.variance = schedule, variance

    def forward(self, x, index, cond):
        self.index = index
        alpha, sigma = (v[index + 1][:, None] for v in (self.schedule.alpha, self.schedule.sigma))
        return sigma * (x - alpha * cond[:, None]) / (alpha**2 * self.variance + sigma**2)


def ve_velocity_error(schedule, sigma):
    """Largest error of a trained VP teacher's velocity, for data N(class, ¼)."""
    teacher = Teacher(GaussianNetwork(schedule, 0.25), schedule)
    cond = torch.arange(len(sigma)) % 3
    x = cond[:, None] + normal(len(sigma), 2) * (0.25 + sigma[:, None] ** 2).sqrt()
    exact = sigma[:, None] * (x - cond[:, None]) / (0.25 + sigma[:, None] ** 2)
    return (teacher.velocity(x, sigma, cond) - exact).abs().max().item()


def test_a_trained_vp_teachers_ve_velocity():
    """Exact at the schedule's own noise levels; between them the error is that of the nearest timestep."""
    errors = []
    for steps in (1000, 10_000):
        schedule = VPSchedule(steps, 0.85 / steps, 12 / steps)
        ratio = (schedule.sigma / schedule.alpha)[steps // 10 :: steps // 100]
        assert ve_velocity_error(schedule, ratio) < 1e-12
        nearest = torch.arange(steps // 10, steps)
        level = (schedule.sigma / schedule.alpha).log()
        between = ((level[nearest] + level[nearest + 1]) / 2).exp()
        errors.append(ve_velocity_error(schedule, between))
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.4)


def test_a_trained_vp_teacher_is_asked_at_the_nearest_noise_level():
    schedule = VPSchedule()
    network = GaussianNetwork(schedule, 0.25)
    sigma = torch.exp(torch.linspace(math.log(0.002), math.log(80), 300, dtype=DOUBLE))
    Teacher(network, schedule).velocity(normal(300, 2), sigma, torch.zeros(300))
    ratio = schedule.sigma[1:] / schedule.alpha[1:]
    assert torch.equal(network.index, (ratio.log() - sigma.log()[:, None]).abs().argmin(1))
    assert (network.index[0], network.index[-1]) == (0, 999)  # beyond the schedule: its ends


@pytest.mark.parametrize(("start", "end"), [(80.0, 0.002), (14.6, 0.0), (0.5, 3.0)])
def test_endpoint_of_a_gaussian(start, end):
    """x − m is scaled by sqrt((λ + end²)/(λ + start²)) along each eigenvector of the covariance."""
    mean, covariance = torch.tensor([0.3, -0.2], dtype=DOUBLE), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=DOUBLE)
    y = mean + start * normal(6, 2)
    values, vectors = torch.linalg.eigh(covariance)
    scale = ((values + end**2) / (values + start**2)).sqrt()
    expected = mean + (y - mean) @ vectors @ torch.diag(scale) @ vectors.T
    reached = truth.endpoint(gaussian(mean.tolist(), covariance.tolist()), y, start, end)
    torch.testing.assert_close(reached, expected, rtol=0, atol=1e-8)


def test_endpoint_keeps_quantiles():
    """In one dimension the ODE moves quantiles to quantiles, whatever the density."""
    mixture = round_mixture([[-1.0], [0.5]], 0.3, [0.3, 0.7])

    def cdf(x, sigma):
        return (mixture.weights * Normal(mixture.means[:, 0], math.sqrt(0.09 + sigma**2)).cdf(x)).sum(1)

    y = torch.linspace(-12, 12, 9, dtype=DOUBLE)[:, None]
    end = truth.endpoint(mixture, y, 8.0, 0.002)
    torch.testing.assert_close(cdf(end, 0.002), cdf(y, 8.0), rtol=0, atol=1e-9)
    assert end.diff(dim=0).min() > 0.01


def test_endpoint_is_the_same_by_three_integrators():
    y = 14.6 * normal(3, 2)
    first, *others = (
        torch.cat([truth.endpoint(two_modes(), one[None], 14.6, 0.0, method) for one in y])
        for method in ("DOP853", "Radau", "LSODA")
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-7)


def test_truth_is_solved_for_vp_and_ve(tmp_path):
    mean, variance, noise = torch.tensor([0.3, -0.2], dtype=DOUBLE), 0.25, normal(20, 2).float()
    mixture = gaussian(mean.tolist(), [[variance, 0.0], [0.0, variance]])
    schedules = {"vp": VPSchedule(), "ve": VESchedule()}
    truth.solve(tmp_path / "truth.safetensors", mixture, noise, schedules, checked=3, batch_size=8)
    tensors, metadata = load_tensors(tmp_path / "truth.safetensors")
    assert {name: (v.dtype, v.shape) for name, v in tensors.items()} == dict.fromkeys(("vp", "ve"), (DOUBLE, (20, 2)))

    alpha, sigma = VPSchedule().alpha[-1], VPSchedule().sigma[-1]
    vp = mean + math.sqrt(variance) * (noise.double() - alpha * mean) / (alpha**2 * variance + sigma**2).sqrt()
    ve = mean + (80 * noise.double() - mean) * math.sqrt((variance + 0.002**2) / (variance + 80**2))
    torch.testing.assert_close(tensors["vp"], vp, rtol=0, atol=1e-8)
    torch.testing.assert_close(tensors["ve"], ve, rtol=0, atol=1e-8)
    assert 0 < metadata["ve"]["largest_difference_to_lsoda"] < 1e-6


def test_truth_that_two_integrators_cannot_confirm(tmp_path):
    with pytest.raises(MismatchError, match=r"DOP853 and LSODA differ by .*; allowed: 1e-300"):
        truth.solve(tmp_path / "t.safetensors", two_modes(), normal(4, 2), {"vp": VPSchedule()}, 2, tolerance=1e-300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2)])
def test_order_of_a_solver_against_the_truth(name, order):
    steps = 1_000_000  # so fine that the discrete ᾱ is the integral of the continuous-time β
    schedule = VPSchedule(steps, 0.85 / steps, 12 / steps)
    mixture = round_mixture([[0.0, 0.5], [0.0, -0.5]], 0.4, [0.4, 0.6])
    teacher, noise = AnalyticTeacher(mixture, schedule), normal(16, 2)
    exact = truth.endpoint(mixture, *truth.starts(noise, {"vp": schedule})["vp"])
    errors = []
    for n_steps in (50, 100, 200):
        eps = teacher.eps(torch.zeros(16), 1.0)
        end = trajectory(noise, schedule.grid(n_steps), getattr(solvers, name), eps, schedule)[:, -1]
        errors.append((end - exact).square().mean().sqrt().item())
    observed = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert observed == pytest.approx([order, order], abs=0.25), (errors, observed)
