"""Intervals, random effects and Holm's correction, against scipy, known answers and simulated truth."""

import math
import sys

import numpy as np
import pytest
from consistency.report.ratios import ratio
from consistency.report.statistics import Estimate, estimate, holm, pooled, t_interval
from helpers import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "benchmarks"))
import verdict_errors


def test_t_interval_equals_scipy():
    values = [0.3, -0.1, 0.7, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert t_interval(values) == pytest.approx((sum(values) / 4, low, high))
    assert t_interval([1.0])[1:] == (-math.inf, math.inf)
    assert all(math.isnan(value) for value in t_interval([]))
    assert (ratio(math.inf), ratio(1e4), ratio(-math.inf), ratio(0)) == (math.inf, math.inf, 0, 1)


def test_several_parts_add_as_squares():
    mean, low, high = Estimate(1.0, 5, ((0.04, 4), (0.09, 1))).interval(0.05)
    half = math.hypot(stats.t.ppf(0.975, 4) * 0.2, stats.t.ppf(0.975, 1) * 0.3)
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_holm():
    """Thresholds 0.05/3, 0.05/2, 0.05: what is decided leaves, and the rest is tested more mildly."""

    def decided(p, level):
        return p <= level

    assert holm([0.04, 0.001, 0.02], decided) == pytest.approx([0.05, 0.05 / 3, 0.05 / 2])
    assert holm([0.06, 0.001, 0.03], decided) == pytest.approx([0.05 / 2, 0.05 / 3, 0.05 / 2])
    assert holm([0.5, 0.5], decided, 0.1) == pytest.approx([0.05, 0.05])
    assert holm([], decided) == []


def test_pooling_tells_conditions_from_replicates():
    """A replicate's effect on every condition is error of the mean, and no heterogeneity."""
    rng = np.random.default_rng(0)
    conditions, replicates = np.array([-0.6, 0.0, 0.1, 0.5]), rng.normal(0, 3, 200)
    noise = rng.normal(0, 0.1, (4, 200))
    of_all = pooled(conditions[:, None] + replicates + noise)
    assert of_all.tau == pytest.approx(conditions.std(ddof=1), rel=0.05)
    assert of_all.i2 > 0.99
    assert of_all.estimate.mean == pytest.approx(replicates.mean() + noise.mean())
    (of_replicates, df), (between, fewer) = of_all.estimate.parts
    assert (df, fewer) == (199, 3)
    assert of_replicates == pytest.approx(replicates.var(ddof=1) / 200, rel=0.02)
    assert between == pytest.approx(conditions.var(ddof=1) / 4, rel=0.05)
    half = stats.t.ppf(0.975, 2) * math.sqrt(of_all.tau**2 + of_replicates + between)
    assert of_all.prediction == pytest.approx((of_all.estimate.mean - half, of_all.estimate.mean + half))
    same = pooled(replicates + rng.normal(0, 0.1, (4, 200)))
    assert same.tau < 0.02
    assert pooled(np.zeros((3, 4))).i2 == 0


def test_pooling_one_condition_or_one_replicate_is_the_mean_of_it():
    values = [0.1, 0.3, 0.2]
    assert pooled(np.array([values])).estimate == estimate(values)
    assert pooled(np.array([[0.1], [0.2]])).estimate.interval()[1:] == (-math.inf, math.inf)
    assert pooled(np.empty((2, 0))).estimate.count == 0
    two = pooled(np.array([values, [0.5, 0.1, 0.6]]))  # do not tell of a third
    assert two.estimate == estimate([0.3, 0.2, 0.4])
    assert math.isinf(two.prediction[1])


@pytest.mark.parametrize("design", verdict_errors.DESIGNS, ids=str)
def test_false_decisions_are_rare(design):
    """By the rule itself, on drawn ratios; at most 5 % and what 400 draws may be off by."""
    for case in verdict_errors.NULLS:
        if case.applies(design):
            rate, _ = verdict_errors.rates(design, case, draws=400)
            assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400), case


def test_the_wrong_rule_decides_falsely_most_of_the_time():
    """Replicates of students alone say nothing of the teacher that they share."""
    assert verdict_errors.wrong_rule(draws=400) > 0.5


def test_replicates_needed():
    rng = np.random.default_rng(0)
    drawn = rng.normal(math.log(1.5), 0.2, (20_000, 5))
    half = stats.t.ppf(0.975, 4) * drawn.std(1, ddof=1) / math.sqrt(5)
    rate = (drawn.mean(1) - half > math.log(1.05)).mean()
    assert verdict_errors.power(0.2, 1.5, 5) == pytest.approx(rate, abs=0.01)
    assert verdict_errors.power(0.2, 1 / 1.5, 5) == pytest.approx(verdict_errors.power(0.2, 1.5, 5))
    assert verdict_errors.replicates_needed(0.1, 1.05) is None  # at the margin's edge none suffice
    assert verdict_errors.replicates_needed(0.4, 1.5) > 10
    needed = verdict_errors.replicates_needed(0.2, 1.5)
    assert verdict_errors.power(0.2, 1.5, needed) >= 0.8 > verdict_errors.power(0.2, 1.5, needed - 1)
