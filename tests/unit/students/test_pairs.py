"""Pairs made while training: grid, curriculum and step, couplings, CT against CD where both are known, dropout."""

import itertools
import math

import numpy as np
import pytest
import torch
from consistency import networks
from consistency.errors import ConfigError
from consistency.flow import transport
from consistency.flow.curricula import curriculum
from consistency.flow.schedules import VESchedule, step_probabilities
from consistency.networks.mixture import Mixture
from consistency.students import couplings, losses, objectives, pairs
from consistency.students.maps import FlowMap
from consistency.students.pairs import CurriculumTimes, PairSource
from consistency.teachers.protocol import AnalyticTeacher
from consistency.training import loop, optimizers
from helpers import constant_rate

DOUBLE = torch.float64
MEAN, VARIANCE = 0.3, 0.25  # of every coordinate, where the data are one Gaussian


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def exact(x, sigma, cond=None):
    """The consistency function of N(MEAN, VARIANCE I): along the ODE, (x − m) / sqrt(v + σ²) stays."""
    sigma = torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1))
    return (MEAN + (x - MEAN) * math.sqrt(VARIANCE + 0.002**2) / (VARIANCE + sigma**2).sqrt()).to(x.dtype)


def velocity(x, sigma, cond=None):
    """dx/dσ of that ODE."""
    sigma = torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1))
    return (sigma * (x - MEAN) / (VARIANCE + sigma**2)).to(x.dtype)


def never(x, sigma, cond):
    raise AssertionError("this generator must not be asked")


def source(images=None, steps=10, s1=None, total=100, batch_size=32, seed=5, **options):
    """Pairs over data, by default Gaussian, whose condition is the data's row."""
    images = MEAN + math.sqrt(VARIANCE) * normal(64, 2) if images is None else images
    flow = VESchedule()
    times = CurriculumTimes(flow, total, steps, s1 or steps)
    return PairSource(images, torch.arange(len(images)), flow, times, batch_size=batch_size, seed=seed, **options)


# --- the schedule


@pytest.mark.parametrize(
    ("schedule", "levels", "expected"),
    [
        (
            VESchedule(),
            11,  # (0.002^(1/7) + i/10 (80^(1/7) − 0.002^(1/7)))^7
            [0.002, 0.016720753235, 0.085087202689, 0.318283288839, 0.965416926332, 2.515218976147]
            + [5.838947631012, 12.381576138541, 24.40834178658, 45.313734075227, 80.0],
        ),
        (VESchedule(0.001, 1.0, rho=3), 4, [0.001, 0.064, 0.343, 1.0]),
        (VESchedule(0.5, 4.5, rho=1), 5, [0.5, 1.5, 2.5, 3.5, 4.5]),
        (VESchedule(), 2, [0.002, 80.0]),
    ],
)
def test_grid(schedule, levels, expected):
    grid = schedule.grid(levels)
    assert grid.tolist() == pytest.approx(expected, rel=1e-9)
    assert (grid[0].item(), grid[-1].item()) == (expected[0], expected[-1])  # not one rounding away
    assert grid.dtype == DOUBLE


@pytest.mark.parametrize("levels", [11, 321, 1281])
def test_grid_ascends_between_exact_ends(levels):
    grid = VESchedule().grid(levels)
    assert len(grid) == levels
    assert grid.diff().min() > 0
    assert (grid[0].item(), grid[-1].item()) == (0.002, 80.0)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_ends_that_are_no_range(ends):
    with pytest.raises(ConfigError, match="0 < sigma_min < sigma_max is needed"):
        VESchedule(*ends)


def test_scalings():
    sigma, like = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=DOUBLE), torch.zeros(4, 1, 2, dtype=DOUBLE)
    skip, out, inward, noise = VESchedule().scalings(sigma, like)
    assert skip.shape == out.shape == inward.shape == (4, 1, 1)
    assert skip.flatten().tolist() == pytest.approx([1, 0.50200399997, 0.02706212294, 3.906292723e-5], rel=1e-9)
    assert out.flatten().tolist() == pytest.approx([0, 0.35213917703, 0.49286816394, 0.49997773491], rel=1e-9)
    assert inward.flatten().tolist() == pytest.approx(
        [1.99998400019, math.sqrt(2), 0.32879797461, 0.01249975587], rel=1e-9
    )
    assert noise.tolist() == pytest.approx([-1.55365202460, -0.17328679514, 0.27465307217, 1.09550665867], rel=1e-9)


@pytest.mark.parametrize(
    "sigma", [0.002, torch.full((6,), 0.002), VESchedule().grid(11)[0], VESchedule().grid(1281)[:1]]
)
def test_f_at_sigma_min_is_the_identity(sigma):
    network = networks.build({"kind": "mlp", "width": 16, "depth": 1}, (1, 2, 3), 3, 1000, 0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(normal(*p.shape))  # a fresh network's output is 0
    student, x, cond = FlowMap(network, VESchedule()), 100 * normal(6, 1, 2, 3), torch.arange(6) % 3
    assert torch.equal(student(x, sigma, cond), x)
    assert (student(x, 0.0021, cond) - x).abs().max() > 1e-5


class Shifted(torch.nn.Module):
    """F(x, t, c) = tanh(x) + t + c, so that f shows what its network was given."""

    timesteps = 101

    def forward(self, x, t, cond):
        return x.tanh() + t[:, None] + cond[:, None]


def test_f_is_the_parameterisation_of_edm():
    """The network's time runs linearly in ln σ, from 0 at σ_min to its last timestep at σ_max."""
    student = FlowMap(Shifted(), VESchedule(0.01, 100.0, sigma_data=2.0))
    x, cond = normal(3, 2, dtype=DOUBLE), torch.tensor([0, 1, 2])
    for row, (sigma, time) in enumerate([(0.1, 25.0), (1.0, 50.0), (100.0, 100.0)]):
        total = math.sqrt(sigma**2 + 4)
        expected = 4 / ((sigma - 0.01) ** 2 + 4) * x[row]
        expected += 2 * (sigma - 0.01) / total * ((x[row] / total).tanh() + time + row)
        torch.testing.assert_close(student(x, sigma, cond)[row], expected, rtol=1e-12, atol=1e-12)
    each = student(x, torch.tensor([0.1, 1.0, 100.0]), cond)
    torch.testing.assert_close(each[1], student(x, 1.0, cond)[1], rtol=1e-12, atol=1e-12)


# --- the curriculum and the step


@pytest.mark.parametrize(
    ("total", "s0", "s1", "table"),
    [
        (
            100_000,  # K' = 100000 / 8
            10,
            1280,
            {0: 11, 12_499: 11, 12_500: 21, 25_000: 41, 37_499: 41, 37_500: 81, 50_000: 161, 62_500: 321, 75_000: 641}
            | {87_499: 641, 87_500: 1281, 99_999: 1281},
        ),
        (2000, 10, 1280, {0: 11, 249: 11, 250: 21, 500: 41, 999: 81, 1000: 161, 1749: 641, 1750: 1281, 1999: 1281}),
        (1000, 10, 1280, {124: 11, 125: 21, 999: 1281}),
        (1000, 2, 15, {261: 3, 262: 5, 523: 5, 524: 9, 785: 9, 786: 16, 999: 16}),  # K' = ⌊1000/(log2 7 + 1)⌋ = 262
        (500, 40, 40, {0: 41, 250: 41, 499: 41}),
        (3, 10, 1280, {0: 11, 1: 21, 2: 41}),  # fewer steps than stages
    ],
)
def test_curriculum(total, s0, s1, table):
    assert {step: curriculum(step, total, s0, s1) for step in table} == table


@pytest.mark.parametrize(("s0", "s1"), [(11, 10), (0, 10)])
def test_curriculum_of_no_range(s0, s1):
    with pytest.raises(ConfigError, match=f"s0 {s0} and s1 {s1}: 1 <= s0 <= s1"):
        curriculum(0, 100, s0, s1)


def lognormal(sigmas):
    """The step's distribution, with P_mean = −1.1 and P_std = 2 written out."""
    edges = [math.erf((math.log(sigma) + 1.1) / (2 * math.sqrt(2))) for sigma in sigmas]
    mass = [b - a for a, b in zip(edges, edges[1:])]
    return [m / sum(mass) for m in mass]


@pytest.mark.parametrize("levels", [2, 11, 1281])
def test_step_probabilities(levels):
    grid = VESchedule().grid(levels)
    probabilities = step_probabilities(grid)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert probabilities.tolist() == pytest.approx(lognormal(grid.tolist()), rel=1e-9)


def test_steps_gather_around_the_right_noise_level():
    """Half of them lie below e^-1.1 = 0.333 (with the mean's sign lost it would be e^1.1 = 3)."""
    grid = VESchedule().grid(1281)
    probabilities = step_probabilities(grid)
    assert probabilities[grid[1:] < math.exp(-1.1)].sum().item() == pytest.approx(0.5, abs=0.01)
    deviation = (probabilities * (grid[1:].log() + 1.1) ** 2).sum().sqrt()
    assert deviation.item() == pytest.approx(2, rel=0.05)  # a little less: both tails are cut


def test_drawn_steps_follow_their_distribution():
    batch = source(batch_size=20_000)(0)
    grid = VESchedule().grid(11)
    i = torch.searchsorted(grid, batch["r"])
    assert torch.equal(grid[i], batch["r"])
    assert torch.equal(grid[i + 1], batch["t"])
    expected = 20_000 * np.array(lognormal(grid.tolist()))
    assert expected.min() > 5
    chi_square = ((np.bincount(i, minlength=10) - expected) ** 2 / expected).sum()
    assert chi_square < 33.7  # exceeded by one in 10,000 draws, at 9 degrees of freedom
    torch.testing.assert_close(batch["weight"].double(), 1 / (grid[i + 1] - grid[i]), rtol=1e-6, atol=0)


def test_levels_follow_the_curriculum():
    drawn = source(s1=1280, total=2000, batch_size=500)
    for step, levels in [(0, 11), (249, 11), (250, 21), (1999, 1281), (600, 41)]:
        grid, batch = VESchedule().grid(levels), drawn(step)
        assert torch.equal(torch.searchsorted(grid, batch["t"]), torch.searchsorted(grid, batch["r"]) + 1)
        assert torch.isin(batch["t"], grid).all()


def test_draws_depend_on_seed_and_step_alone():
    forwards, backwards = source(s1=40), source(s1=40)
    first = [forwards(step) for step in (0, 40, 99)]
    for batch, step in zip(reversed(first), (99, 40, 0)):
        again = backwards(step)
        assert batch.keys() == again.keys()
        assert all(torch.equal(batch[key], again[key]) for key in batch)
    for other in (forwards(1), source(s1=40, seed=6)(0)):
        assert all(not torch.equal(first[0][key], other[key]) for key in ("x", "z", "t", "cond", "mixed"))


def test_draws_are_data_and_standard_noise():
    drawn = source(batch_size=20_000)
    batch = drawn(3)
    assert torch.equal(batch["x"], drawn.images[batch["cond"]])
    counts = torch.bincount(batch["cond"], minlength=64)
    assert ((counts - 312.5) ** 2 / 312.5).sum() < 115  # one in 10,000, at 63 degrees of freedom
    z = batch["z"]
    assert z.shape == (20_000, 2)
    torch.testing.assert_close(z.T.cov(), torch.eye(2), rtol=0, atol=4.5 * math.sqrt(2 / 20_000))
    assert z.mean(0).abs().max() < 4.5 / math.sqrt(20_000)


# --- the distance


def test_pseudo_huber_norm():
    prediction = torch.zeros(4, 3, 2, 2, dtype=DOUBLE)
    target = prediction.clone()
    target[1, 0, 0, 0], target[2], target[3, 2, 1, 1] = 3.0, 0.5, 1e-5
    constant = 0.00054 * math.sqrt(12)
    expected = [0, math.sqrt(9 + constant**2) - constant, math.sqrt(3 + constant**2) - constant]
    values = losses.pseudo_huber_norm(prediction, target).tolist()
    assert values[:3] == pytest.approx(expected, rel=1e-12)
    assert values[3] == pytest.approx(1e-10 / (2 * constant), rel=1e-4)  # a parabola near 0
    values = losses.pseudo_huber_norm(prediction, target, c=2.0)
    assert values[2].item() == pytest.approx(math.sqrt(3 + 48) - math.sqrt(48), rel=1e-12)


# --- the couplings


@pytest.mark.parametrize("shape", [(7, 2), (7, 1, 3, 3)])
def test_optimal_transport_is_the_best_of_all_permutations(shape):
    x, z, one = normal(*shape, seed=1), normal(*shape, seed=2), torch.zeros(7, dtype=torch.int64)
    cost = [[(a - b).square().sum().item() for b in x] for a in z]
    best = min(sum(cost[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(7)))
    paired, _ = couplings.optimal_transport(x, z, torch.ones(7), one, never)
    assert (paired - z).square().sum().item() == pytest.approx(best, rel=1e-6)
    assert sorted(paired.flatten(1).tolist()) == sorted(x.flatten(1).tolist())  # a bijection
    assert best < 0.9 * (x - z).square().sum().item()


def test_optimal_transport_exchanges_data_within_a_condition_only():
    x, z = normal(60, 2, seed=1), normal(60, 2, seed=2)
    cond = torch.arange(60) % 3
    paired, labels = couplings.optimal_transport(x, z, torch.ones(60), cond, never)
    assert torch.equal(labels, cond)
    for label in range(3):
        mine = cond == label
        alone, _ = couplings.optimal_transport(x[mine], z[mine], torch.ones(20), cond[mine], never)
        assert torch.equal(paired[mine], alone)
        assert sorted(alone.tolist()) == sorted(x[mine].tolist())


def test_optimal_transport_on_a_line_keeps_the_order():
    x, z, one = normal(200, 1, seed=1), normal(200, 1, seed=2), torch.zeros(200, dtype=torch.int64)
    paired, _ = couplings.optimal_transport(x, z, torch.ones(200), one, never)
    assert torch.equal(paired[z.argsort(0)[:, 0]], x.sort(0).values)


def test_optimal_transport_costs_less_than_independent_pairs():
    for step in range(5):
        batch = source()(step)
        one = torch.zeros_like(batch["cond"])
        paired, _ = couplings.optimal_transport(batch["x"], batch["z"], batch["r"], one, never)
        assert (paired - batch["z"]).square().sum() < 0.6 * (batch["x"] - batch["z"]).square().sum()


def test_prepared_pairs_of_optimal_transport():
    drawn = source(coupling=couplings.optimal_transport)
    drawn.labels = torch.zeros_like(drawn.labels)
    batch = drawn(2)
    pair = drawn.prepare(batch, never, never)
    x, _ = couplings.optimal_transport(batch["x"], batch["z"], batch["r"], batch["cond"], never)
    assert not torch.equal(x, batch["x"])
    for point, level in (("x_t", "t"), ("x_r", "r")):
        expected = x.double() + pair[level][:, None] * batch["z"]
        torch.testing.assert_close(pair[point].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("coupling", [couplings.generator_induced, couplings.optimal_transport])
def test_a_share_of_zero_is_the_independent_coupling(coupling):
    none, independent = source(coupling=coupling, share=0.0), source()
    for step in (0, 7):
        a, b = (s.prepare(s(step), never, never) for s in (none, independent))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_generator_induced_pairs():
    drawn = source(coupling=couplings.generator_induced)
    batch = drawn(0)
    pair = drawn.prepare(batch, never, exact)
    x, z, t, r = (batch[key].double() for key in ("x", "z", "t", "r"))
    scale = [math.sqrt((0.25 + 4e-6) / (0.25 + sigma**2)) for sigma in r.tolist()]
    induced = 0.3 + (x + r[:, None] * z - 0.3) * torch.tensor(scale, dtype=DOUBLE)[:, None]
    torch.testing.assert_close(pair["x_t"].double(), induced + t[:, None] * z, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(pair["x_r"].double(), induced + r[:, None] * z, rtol=1e-6, atol=2e-6)
    assert torch.equal(pair["cond"], batch["cond"])


def test_an_exact_generator_keeps_the_data_and_lowers_the_transport_cost():
    """x̂ has the law of the ODE's end, N(m, v + σ_min²), and the covariance with z that the coupling is made for."""
    count, sigma = 40_000, 0.8
    x = MEAN + math.sqrt(VARIANCE) * normal(count, 2, seed=1, dtype=DOUBLE)
    z = normal(count, 2, seed=2, dtype=DOUBLE)
    induced, _ = couplings.generator_induced(x, z, torch.full((count,), sigma), torch.zeros(count), exact)
    torch.testing.assert_close(induced.mean(0), torch.full((2,), 0.3, dtype=DOUBLE), rtol=0, atol=4.5 * 0.5 / 200)
    spread = torch.eye(2, dtype=DOUBLE) * (0.25 + 4e-6)
    torch.testing.assert_close(induced.T.cov(), spread, rtol=0, atol=4.5 * 0.25 * math.sqrt(2) / 200)
    cost = (induced - z).square().sum(1)
    covariance = sigma * math.sqrt((0.25 + 4e-6) / (0.25 + sigma**2))
    expected = 2 * (0.3**2 + 0.25 + 4e-6 + 1 - 2 * covariance)
    assert cost.mean().item() == pytest.approx(expected, abs=4.5 * cost.std().item() / 200)
    assert expected < 0.5 * 2 * (0.3**2 + 0.25 + 1)  # the cost of independent pairs


@pytest.mark.parametrize(("share", "count"), [(0.5, 2000), (0.3, 1200), (0.9, 3600)])
def test_a_share_of_the_samples_is_coupled(share, count):
    options = {"batch_size": 4000, "coupling": couplings.generator_induced}
    mixed, alone, coupled = source(share=share, **options), source(batch_size=4000), source(**options)
    pair, independent, induced = (s.prepare(s(1), never, exact) for s in (mixed, alone, coupled))
    taken = (pair["x_t"] == induced["x_t"]).all(1)
    assert torch.equal(pair["x_r"][taken], induced["x_r"][taken])
    assert torch.equal(pair["x_r"][~taken], independent["x_r"][~taken])
    assert torch.equal(pair["x_t"][~taken], independent["x_t"][~taken])
    assert taken.sum().item() == pytest.approx(count, abs=4.5 * math.sqrt(4000 * share * (1 - share)))


# --- training against distillation


def analytic(variance):
    """The teacher of N(MEAN, variance I) in two dimensions."""
    covariance = variance * torch.eye(2, dtype=DOUBLE)[None]
    return AnalyticTeacher(Mixture(torch.ones(1), torch.full((1, 2), MEAN, dtype=DOUBLE), covariance), None)


def test_partners_along_the_noise_and_along_the_true_velocity():
    training_source, distilling = source(), source(velocity=analytic(VARIANCE).velocity)
    batch = training_source(0)
    ct, cd = (s.prepare(s(0), never, never) for s in (training_source, distilling))
    assert torch.equal(ct["x_t"], cd["x_t"])
    t, r, z = batch["t"][:, None], batch["r"][:, None], batch["z"].double()
    torch.testing.assert_close(ct["x_r"].double(), batch["x"] + r * z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ct["x_r"].double(), ct["x_t"].double() + (r - t) * z, rtol=1e-6, atol=2e-5)
    x_t = cd["x_t"].double()
    euler = x_t + (r - t) * t * (x_t - 0.3) / (0.25 + t**2)
    torch.testing.assert_close(cd["x_r"].double(), euler, rtol=1e-6, atol=2e-5)
    assert (ct["x_r"] - cd["x_r"]).abs().max() > 0.1


def test_for_a_point_mass_training_is_distillation():
    """The noise is then a function of x_σ: the one-sample velocity is the true one."""
    point = torch.full((64, 2), MEAN)
    a, b = (source(point, batch_size=500, velocity=v) for v in (None, analytic(1e-14).velocity))
    ct, cd = (s.prepare(s(0), never, never) for s in (a, b))
    assert (ct["x_t"] - ct["x_r"]).abs().max() > 1
    torch.testing.assert_close(ct["x_r"], cd["x_r"], rtol=1e-5, atol=2e-5)


def test_gap_between_training_and_distillation_in_the_limit():
    """With the exact consistency function, at one σ and ever finer grids: the loss over Δσ² falls to 0 for CD, as
    Δσ²; for CT it tends to d · J² Var(z | x_σ) = d · (v + σ_min²)/(v + σ²) · v/(v + σ²)."""
    count, dimension = 20_000, 2
    x = MEAN + math.sqrt(VARIANCE) * normal(count, dimension, seed=1, dtype=DOUBLE)
    z, schedule = normal(count, dimension, seed=2, dtype=DOUBLE), VESchedule()
    cd = []
    for steps in (16, 64, 256, 4096):
        grid = schedule.grid(steps + 1)
        t, r = grid[steps // 4].expand(count), grid[steps // 4 - 1].expand(count)  # σ = 0.17 in every grid
        x_t = schedule.add_noise(x, z, t)
        gaps = []
        for u in (z, velocity(x_t, t)):
            batch = {"x_t": x_t, "x_r": pairs.partner(x_t, t, r, u), "t": t, "r": r, "cond": torch.zeros(count)}
            prediction, target = objectives.consistency_training(exact, batch, None)
            gaps.append((prediction - target).square().sum(1) / (t - r) ** 2)
        cd.append(gaps[1].mean().item())
    ct, sigma = gaps[0], t[0].item()
    assert sigma == pytest.approx((0.75 * 0.002 ** (1 / 7) + 0.25 * 80 ** (1 / 7)) ** 7)
    limit = dimension * (VARIANCE + 0.002**2) * VARIANCE / (VARIANCE + sigma**2) ** 2
    assert limit > 1
    assert ct.mean().item() == pytest.approx(limit, abs=4.5 * ct.std().item() / math.sqrt(count))
    ratios = [a / b for a, b in zip(cd[:3], cd[1:3])]
    assert ratios == pytest.approx([16, 16], rel=0.4)
    assert cd[-1] < 1e-4 * limit


# --- dropout


class Dropped(torch.nn.Module):
    """A student that is its dropout: the mask is to be seen in the output."""

    def __init__(self):
        super().__init__()
        self.scale, self.dropout = torch.nn.Parameter(torch.ones(())), torch.nn.Dropout(0.5)

    def forward(self, x, s, cond):
        return self.dropout(self.scale * x)


ONES = torch.ones(8, 16)
SAME = {"x_t": ONES, "x_r": ONES, "t": torch.ones(8), "r": torch.ones(8), "cond": torch.zeros(8)}


def test_both_sides_drop_the_same():
    student = Dropped().train()
    torch.manual_seed(0)
    assert not torch.equal(student(ONES, 1, 0), student(ONES, 1, 0))  # two calls differ by themselves
    prediction, target = objectives.consistency_training(student, SAME, None)
    assert torch.equal(prediction, target)
    assert set(prediction.unique().tolist()) == {0.0, 2.0}
    assert prediction.requires_grad
    assert not target.requires_grad
    again, _ = objectives.consistency_training(student, SAME, None)  # and the next step drops others
    assert not torch.equal(prediction, again)


def test_every_step_drops_anew_and_reproducibly(tmp_path):
    def masks(name, seed):
        dropped = []

        def objective(model, batch):
            prediction, target = objectives.consistency_training(model, batch, None)
            assert torch.equal(prediction, target)
            dropped.append(target != 0)
            return prediction, target

        settings = constant_rate(steps=2, batch_size=8, learning_rate=1e-30, device="cpu")
        task = loop.Task(objective, lambda step: SAME, losses.pseudo_huber_norm)
        loop.train(Dropped(), task, settings, seed=seed, side_folder=tmp_path / name, fingerprint={"a": name})
        return dropped

    first, second = masks("a", 1)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip((first, second), masks("b", 1)))
    assert not torch.equal(first, masks("c", 2)[0])


# --- transport and optimisers


def test_squared_distances():
    a, b = np.array([[[0.0, 0.0]], [[3.0, 4.0]]]), np.array([[[0.0, 0.0]], [[3.0, 0.0]], [[-3.0, -4.0]]])
    assert transport.squared_distances(a, b).tolist() == [[0, 9, 25], [25, 16, 100]]


@pytest.mark.parametrize("shape", [(40, 2), (30, 1, 3, 3)])
def test_wasserstein_of_a_shifted_set_is_the_shift(shape):
    generator = np.random.default_rng(0)
    a, shift = generator.standard_normal(shape), generator.standard_normal(shape[1:])
    moved = generator.permutation(a + shift)
    assert transport.wasserstein(a, moved) == pytest.approx(np.sqrt((shift**2).sum()), rel=1e-9)
    assert transport.wasserstein(a, generator.permutation(a)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "radam", "lion"])
def test_optimisers_take_their_step(name):
    """Two steps with gradients g and −0.2 g, at rate 0.1 and decay 0.5, from the optimisers' papers."""
    start, gradient = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.5, -4.0])
    weight = torch.nn.Parameter(start.clone())
    optimizer = optimizers.make_optimizer(name, [weight], 0.1, 0.5)
    weight.grad = gradient.clone()
    optimizer.step()
    decayed = start * (1 - 0.1 * 0.5)
    # Lion and Adam's first step have the gradient's sign; RAdam's variance is not yet tractable, its step is the mean.
    first = decayed - 0.1 * (gradient if name == "radam" else gradient.sign())
    torch.testing.assert_close(weight.detach(), first, rtol=1e-6, atol=1e-6)
    weight.grad = -0.2 * gradient
    optimizer.step()
    # Mean of the gradient, bias-corrected: (0.09 − 0.02)/0.19; its square: (0.000999 + 0.00004)/0.001999.
    mean = (0.9 * 0.1 - 0.1 * 0.2) / (1 - 0.9**2)
    square = (0.999 * 0.001 + 0.001 * 0.2**2) / (1 - 0.999**2)
    # Lion interpolates a mean of 0.01 g with −0.2 g: 0.9 · 0.01 − 0.1 · 0.2 < 0, it turns back at once.
    update = {"adamw": gradient.sign() * mean / math.sqrt(square), "radam": mean * gradient, "lion": -gradient.sign()}
    torch.testing.assert_close(weight.detach(), first * 0.95 - 0.1 * update[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_skip_is_exactly_one_at_sigma_min(dtype):
    for number in range(1, 200):
        schedule = VESchedule(sigma_data=number / 100)
        skip, out, *_ = schedule.scalings(
            torch.tensor([schedule.sigma_min], dtype=DOUBLE), torch.zeros(1, 1, dtype=dtype)
        )
        assert (skip.item(), out.item()) == (1, 0)
