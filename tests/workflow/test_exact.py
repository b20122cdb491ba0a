"""The exact tier and paper B's methods through the real workflow."""

import json
import re

import pandas as pd
import pytest


def test_everything_is_there(exact):
    results = exact.folder / "results"
    names = [
        "points",
        "convergence",
        "velocity-variance",
        "discrepancy",
        "transport",
        "trajectories",
        "orders",
        "share",
        "tradeoff",
        "forest",
    ]
    for name in names:
        for kind, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):  # what they show: tests/unit/report/test_figures.py
            assert (results / "figures" / f"gaussians-modes-{name}.{kind}").read_bytes().startswith(magic)
    table = (results / "tables" / "gaussians-modes-couplings.md").read_text()
    assert "CT, batch-OT" in table
    assert "Paper B reports no values on this data set" in table
    claims = pd.read_csv(results / "claims.csv")
    assert set(claims.claim) == {"A1", "A2", "B1", "B2", "B3", "B4"}
    # After 40 steps networks are as good as untrained; the gap of B1 stays all the same, whatever f is.
    assert set(claims.verdict) == {"unsound"}
    gap = claims[claims.claim == "B1"].iloc[0]
    assert gap.ci_low > 0.5
    assert re.fullmatch(r"cd-s0 0\.\d+ deviations off the data \(Fréchet distance\), needs at most 0\.5", gap.reason)
    assert (results / "report.html").stat().st_size > 100_000


def test_the_error_is_split(exact):
    metrics = pd.read_csv(exact.folder / "results/metrics.csv")
    errors = metrics[metrics.metric == "ode_error"]
    found = set(zip(errors.method, errors.reference, strict=True))
    assert {
        ("teacher", "truth"),
        ("direct", "teacher"),
        ("direct", "truth"),
        ("cd", "truth"),
        ("solver", "truth"),
    } <= found
    ddim = errors[(errors.method == "solver") & (errors.solver == "ddim") & (errors.reference == "truth")]
    assert ddim.value[ddim.n_steps == 10].item() < ddim.value[ddim.n_steps == 5].item()
    truth = json.loads((exact.folder / "results/gaussians-modes/metrics/teacher-ddim-n5-w1.json").read_text())
    assert "truth" in truth["protocol"]["files_sha256"]


def test_a_frozen_generator_is_the_other_methods_snapshot(exact):
    import hashlib

    students = exact.folder / "results/gaussians-modes/students"
    card = json.loads((students / "ct-gc-frozen-s1/student.json").read_text())
    snapshot = (students / "ct-ic-s1/snapshots/budget_0.25.safetensors").read_bytes()
    assert card["inputs"]["frozen_sha256"] == hashlib.sha256(snapshot).hexdigest()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # one method's share: its runs, and what is made of all runs
        ({"methods": {"ct-gc": {"coupling": {"share": 0.7}}}}, {"train_student": 2, "measure_student": 2}),
        # ct-ic is the frozen generator's source
        (
            {"methods": {"ct-ic": {"loss": {"kind": "mse"}}}},
            {"train_student": 4, "sample_student": 4},
        ),
        ({"student": {"training": {"learning_rate": 1e-4}}}, {"train_student": 4, "measure_student": 4}),
        ({"analysis": {"steps": [10, 20, 320, 1280]}}, {"measure_couplings": 2}),
        (
            {"consistency_training": {"edm": {"sigma_max": 4.0}}},
            {"solve_truth": 1, "train_student": 10, "measure_student": 14},
        ),
    ],
)
def test_what_runs_again(exact_copy, change, expected):
    exact_copy.configure_exact(change)
    jobs = exact_copy.jobs()
    for rule, count in expected.items():
        assert jobs.get(rule, 0) == count, jobs
    never = {"prepare_data", "draw_noise", "solve_targets", "train_initial", "write_analytic_teacher"}
    assert not never & set(jobs)
    if "train_student" not in expected:
        assert "train_student" not in jobs


def test_nothing_to_do(exact):
    assert exact.jobs() == {}
