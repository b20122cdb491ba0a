"""What is measured of couplings, against the closed forms of a single Gaussian."""

import json
import math

import pytest
import torch
from consistency.config.components import EDM, Curriculum, VelocityFit
from consistency.data import mixtures, prepare
from consistency.evaluate import velocity_gap
from consistency.flow import transport
from consistency.flow.schedules import VESchedule
from consistency.students import maps, pairs
from students import fit, job_of_pairs, row
from torch import nn

DOUBLE = torch.float64
MEAN, DEVIATION = [0.3, -0.2], 0.5
SCHEDULE = VESchedule(sigma_min=0.01, sigma_max=5)
GAUSSIAN = {
    "kind": "mixture",
    "dimension": 2,
    "components": [{"weight": 1.0, "mean": MEAN, "deviation": DEVIATION, "covariance": None}],
    "train_count": 512,
    "test_count": 128,
    "seed": 0,
}


class Exact(nn.Module):
    """The Gaussian's consistency function: m + (x − m) √((v + σ_min²) / (v + σ²))."""

    def forward(self, x, sigma, cond):
        mean = torch.tensor(MEAN, dtype=DOUBLE)
        ratio = (DEVIATION**2 + SCHEDULE.sigma_min**2) / (DEVIATION**2 + sigma**2)
        return mean + (x - mean) * ratio.sqrt()[:, None]


def test_closed_limits_of_the_exact_consistency_function():
    """CD's limit is 0, and CT's is E‖J (z − v)‖² = d (v + σ_min²) / (v + σ²) · v / (v + σ²), at each σ."""
    count, variance = 40_000, DEVIATION**2
    random = torch.Generator().manual_seed(0)
    x = torch.tensor(MEAN, dtype=DOUBLE) + DEVIATION * torch.randn(count, 2, dtype=DOUBLE, generator=random)
    z = torch.randn(count, 2, dtype=DOUBLE, generator=random)
    for level in (0.05, 0.5, 3.0):
        t = torch.full((count,), level, dtype=DOUBLE)
        x_t = x + level * z
        v = level * (x_t - torch.tensor(MEAN, dtype=DOUBLE)) / (variance + level**2)
        limits = velocity_gap._limits(Exact(), x_t, t, torch.zeros(count), z, v)
        limits = {name: values.mean().item() for name, values in limits.items()}
        total = variance + level**2
        expected = 2 * (variance + SCHEDULE.sigma_min**2) / total * variance / total
        assert limits["cd"] < 1e-20
        assert limits["gap"] == pytest.approx(expected, rel=0.03)
        assert limits["ct"] == pytest.approx(limits["gap"], rel=1e-9)


def test_exact_transport_cost_is_the_closed_form():
    """‖m‖² + d (√v − 1)² between N(0, I) and N(m, vI); in one dimension 2,000 draws come near it."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 1, dtype=DOUBLE, generator=random)
    x = 0.7 + DEVIATION * torch.randn(2000, 1, dtype=DOUBLE, generator=random)
    found = transport.wasserstein(z.numpy(), x.numpy()) ** 2
    assert found == pytest.approx(0.7**2 + (DEVIATION - 1) ** 2, rel=0.08)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small student of the Gaussian, trained along the true velocity, and everything measured of it."""
    folder = tmp_path_factory.mktemp("measured")
    prepare.prepare(folder / "data.safetensors", GAUSSIAN)
    mixtures.write_teacher(folder / "teacher", GAUSSIAN)
    training = {"steps": 500, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.95}
    edm = EDM(sigma_min=0.01, sigma_max=5).model_dump()
    job = job_of_pairs(run=row("cd-s0"), flow_options=edm, velocity="teacher", training=training, budgets=[0.125])
    student = fit(job, folder, data=folder / "data.safetensors", teacher=folder / "teacher")
    velocity_gap.measure_couplings(
        folder / "rows.json",
        folder / "curves.safetensors",
        {"run": "cd-s0", "seed": 0},
        student_folder=student,
        data_path=folder / "data.safetensors",
        teacher_folder=folder / "teacher",
        edm=edm,
        curriculum=Curriculum().model_dump(),
        analysis={
            "steps": [10, 1280],
            "count": 2048,
            "batch_size": 128,
            "gradient_budget": 0.125,
            "velocity": VelocityFit(steps=200, count=4096).model_dump(),
        },
        loss=job.loss.model_dump(),
    )
    rows = json.loads((folder / "rows.json").read_text())["rows"]
    values = {(row["metric"], row["reference"]): row["value"] for row in rows}
    return values | {"student": maps.load(student, SCHEDULE).double()}


def test_a_trained_student_is_the_closed_form_consistency_function(measured):
    """Root mean square over the flow's own points at each noise level, in units where the data's deviation is 0.5."""
    random = torch.Generator().manual_seed(1)
    z, x = (torch.randn(500, 2, dtype=DOUBLE, generator=random) for _ in range(2))
    # An untrained one is off by 0.5 at the largest σ; distillation adds up its errors from step to step.
    for level, tolerance in ((0.1, 0.03), (0.5, 0.06), (2.0, 0.15), (5.0, 0.25)):
        t = torch.full((500,), level, dtype=DOUBLE)
        x_t = torch.tensor(MEAN, dtype=DOUBLE) + DEVIATION * x + level * z
        cond = torch.zeros(500, dtype=torch.int64)
        with torch.no_grad():
            error = (measured["student"](x_t, t, cond) - Exact()(x_t, t, cond)).square().mean().sqrt().item()
        assert error < tolerance, (level, error)


def test_measured_losses_reach_their_closed_limits(measured):
    for reference in ("ct independent", "cd"):
        assert measured["loss@steps=1280", reference] == pytest.approx(measured["loss@limit", reference], rel=0.05)
    for name in velocity_gap.COUPLINGS:
        assert measured["velocity_gap@steps=1280", name] == pytest.approx(
            measured["velocity_gap@limit", name], rel=0.05
        )
    both = measured["loss@limit", "cd"] + measured["velocity_gap@limit", "independent"]
    assert measured["loss@limit", "ct independent"] == pytest.approx(both, rel=0.1)  # the cross term is noise


def test_the_tail_is_the_share_of_the_largest_hundredth():
    squared = torch.cat([torch.full((990,), 1.0), torch.full((10,), 99.0)])
    (_, mean, _), (metric, tail, name) = velocity_gap._gap("velocity_gap@steps=10", squared, "independent")
    assert (mean, metric, name) == (pytest.approx(1.98), "velocity_gap_tail@steps=10", "independent")
    assert tail == pytest.approx(0.5)


@pytest.mark.parametrize("point", ["steps=10", "steps=1280", "limit"])
def test_every_gap_has_its_tail(measured, point):
    for name in velocity_gap.COUPLINGS:
        assert 0.01 < measured[f"velocity_gap_tail@{point}", name] < 1


def test_gradients_agree_with_a_squared_distance(measured):
    ratio = (
        measured["gradient@steps=1280", "mse ct independent"] / measured["gradient@steps=1280", "mse cd independent"]
    )
    assert ratio == pytest.approx(1, abs=0.15)


def test_measured_transport_costs(measured):
    independent, optimal = measured["transport_cost", "independent"], measured["transport_cost", "optimal_transport"]
    closed = sum(m**2 for m in MEAN) + 2 * (1 + DEVIATION**2)
    assert independent == pytest.approx(closed, abs=4.5 * math.sqrt(8) / math.sqrt(512))
    assert measured["transport_cost", velocity_gap.OPTIMAL] <= optimal < independent
    at_low, at_high = (measured[f"transport_cost@sigma={s}", "generator_induced"] for s in ("0.01", "5"))
    assert at_low == pytest.approx(independent, rel=0.02)  # x̂ = x where there is no noise
    assert at_high < 0.7 * independent


def test_measured_variances_of_the_velocity(measured):
    """Generated pairs vary less than independent ones, by orders of magnitude at the largest σ."""
    names = (*velocity_gap.COUPLINGS, velocity_gap.EXACT)
    overall = {name: measured["velocity_variance", name] for name in names}
    assert max(overall, key=overall.get) == "independent"
    largest = {name: measured["velocity_variance@sigma=5", name] for name in names}
    assert largest["independent"] == pytest.approx(2 * 0.25 / 25.25, rel=0.2)
    assert largest[velocity_gap.EXACT] < 0.05 * largest["independent"]


class Stop(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("generator", ["ema", "online"])
def test_interrupted_training_from_pairs_ends_with_the_same_bits(tmp_path, monkeypatch, generator):
    """Resumed between checkpoints, with the generator's weights in the loop: final weights and snapshots."""
    prepare.prepare(tmp_path / "data.safetensors", GAUSSIAN)
    training = {"steps": 40, "batch_size": 16, "ema_decay": 0.9, "checkpoint_every": 10, "warmup_steps": 5}
    coupling = {"kind": "generator_induced", "share": 0.5, "generator": generator}

    def train(name):
        job = job_of_pairs(run=row(name), coupling=coupling, training=training, budgets=[0.25, 0.7])
        fit(job, tmp_path, data=tmp_path / "data.safetensors")

    train("whole")
    original = pairs.PairSource.__call__

    def stop_at_33(self, step):
        if step == 33:
            raise Stop
        return original(self, step)

    monkeypatch.setattr(pairs.PairSource, "__call__", stop_at_33)
    with pytest.raises(Stop):
        train("again")
    assert (tmp_path / "side/again/checkpoint.pt").exists()
    monkeypatch.undo()
    train("again")
    for file in ("model.safetensors", "snapshots/budget_0.25.safetensors", "snapshots/budget_0.7.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert (tmp_path / "whole/model.safetensors").read_bytes() != (
        tmp_path / "whole/snapshots/budget_0.7.safetensors"
    ).read_bytes()
