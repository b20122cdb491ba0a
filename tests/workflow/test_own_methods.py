"""Methods of a user's own: the three of docs/examples in a plug-in file, with a claim of one's own, through the real snakemake."""

import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from consistency.config.resolve import _merge
from consistency.files.storage import load_tensors
from helpers import ROOT, SMALL, Project, surroundings

MEAN_FLOW = {"objective": "mean_flow", "flow": "linear", "label": "MeanFlow"}
METHODS = {
    "two_segments": {"objective": "two_segments", "sampler": "flow_map", "least_steps": 2},
    "mixed": {"objective": "mixed", "params": {"share": 0.25}},
    "mean_flow": MEAN_FLOW,
}
CLAIM = {"ours": "mixed", "other": "cm", "metric": "frechet_distance", "reference": "data", "direction": "below"}
DIGITS = {
    "methods": METHODS,
    "runs": [
        {"method": ["cm", "two_segments", "mixed"], "solver": "ddim", "n_steps": 4, "guidance": 1, "seed": 0},
        {"method": ["ct-gc", "mean_flow"], "seed": 0},
    ],
    "consistency_training": {"budgets": [0.25], "training": SMALL["student"]["training"]},
    "analysis": {"coupling_methods": []},
    "claims": [{"name": "C1", **CLAIM}],
}
# Where the ODE's true end is known, MeanFlow is trained for long enough to come near it.
MODES = {
    "data": {"train_count": 1024, "test_count": 256},
    "network": {"width": 64, "depth": 1},
    "methods": {"mean_flow": MEAN_FLOW},
    "consistency_training": {
        "budgets": [0.25],
        "training": {"steps": 500, "batch_size": 64, "learning_rate": 3e-3, "ema_decay": 0.95, "clip_norm": 1.0},
    },
    "evaluation": {"count": 128, "sampling_steps": [1, 2]},
    "analysis": {"coupling_methods": []},
    "runs": [{"method": "mean_flow", "seed": 0}],
    "claims": [],
}
RUNS = {
    "cm": "cm-ddim-n4-w1-s0",
    "two_segments": "two_segments-ddim-n4-w1-s0",
    "mixed": "mixed-ddim-n4-w1-s0",
    "ct-gc": "ct-gc-s0",
    "mean_flow": "mean_flow-s0",
}
STEPS = {method: [2] if method == "two_segments" else [1, 2] for method in RUNS}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Both experiments, run once; tests only read it."""
    project = Project(tmp_path_factory.mktemp("own"))
    shutil.copy(ROOT / "docs/examples/my_methods.py", project.folder)
    overrides = {"digits": _merge(SMALL, DIGITS), "gaussians-modes": MODES}
    settings = {"experiments": list(overrides), "plugins": ["my_methods.py"], "overrides": overrides}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    project.snakemake()
    return project


@pytest.fixture
def own_copy(own, tmp_path):
    """A copy of it, to edit."""
    return own.copy(tmp_path / "project")


@pytest.mark.parametrize("method", RUNS)
def test_each_method_is_trained_sampled_and_measured(own, method):
    results, run = own.folder / "results", RUNS[method]
    assert (results / "digits/students" / run / "student.json").is_file()
    tensors, _ = load_tensors(results / f"digits/samples/{run}.safetensors")
    sampled = sorted(int(name.removeprefix("steps_")) for name in tensors if name.startswith("steps_"))
    assert sampled == STEPS[method]
    assert all(tensors[f"steps_{steps}"].isfinite().all() for steps in sampled)
    metrics = pd.read_csv(results / "metrics.csv")
    rows = metrics[(metrics.experiment == "digits") & (metrics.run == run)]
    distances = rows[(rows.metric == "frechet_distance") & (rows.reference == "data")]
    assert distances.sampling_steps.tolist() == STEPS[method]
    assert (distances.value > 0).all()
    assert ("teacher" in set(rows.reference)) == (method in ("cm", "two_segments", "mixed"))


def test_tables_call_them_by_label_and_params(own):
    table = (own.folder / "results/tables/digits-main.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    heading = lines[0].index("Fréchet to data, 1 step")
    one_step = {line[1]: line[heading] for line in lines[2:]}
    expected = {"CM", "two_segments", "mixed (share=0.25)", "CT, generated (μ = 0.5)", "MeanFlow"}
    assert expected <= one_step.keys(), one_step
    assert {name for name in expected if one_step[name] == "–"} == {"two_segments"}  # it begins with two steps


def test_the_claim_is_decided(own):
    claims = pd.read_csv(own.folder / "results/claims.csv")
    row = claims[(claims.claim == "C1") & (claims.condition == "ddim-n4-w1, 1-step")].squeeze()
    metrics = pd.read_csv(own.folder / "results/metrics.csv")
    chosen = metrics[
        (metrics.metric == "frechet_distance") & (metrics.reference == "data") & (metrics.sampling_steps == 1)
    ].set_index("run")
    expected = chosen.value[RUNS["mixed"]] / chosen.value[RUNS["cm"]]
    assert row.effect == pytest.approx(expected, rel=1e-3)
    assert (row.experiment, row.n_seeds, row.verdict) == (
        "digits",
        1,
        "unsound",
    )  # of a teacher that has hardly been trained


def test_mean_flow_comes_near_the_true_end(own):
    """The mean of the data alone would be 0.125 off, as the modes lie at ±0.5 of one of two coordinates. Two steps are
    nearer than that after so short a training; one step, which must jump at once, is not."""
    metrics = pd.read_csv(own.folder / "results/metrics.csv")
    errors = metrics[(metrics.experiment == "gaussians-modes") & (metrics.metric == "ode_error")]
    assert set(errors.reference) == {"truth"}
    final = errors.set_index("sampling_steps").value
    assert final[2] < 0.1, final
    assert final[2] < final[1] < 1, final


def test_nothing_to_do(own):
    assert own.jobs() == {}


def edit(file, old, new):
    """Replace text in a file that holds it once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file}: {old!r} is there {text.count(old)} times"
    file.write_text(text.replace(old, new), encoding="utf-8")


def methods_again(project):
    """Rule → the methods whose jobs a run would start, of jobs for one student; and the other rules."""
    done = project.snakemake("--dry-run")
    of_runs, others = {}, set()
    for block in re.split(r"^(?=(?:local)?rule \w+:$)", done.stdout + done.stderr, flags=re.MULTILINE)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)[1]
        if run := re.search(r"^ +wildcards: .*\brun=([\w-]+)", block, re.MULTILINE):
            of_runs.setdefault(rule, []).append(run[1])
        else:
            others.add(rule)
    names = {run: method for method, run in RUNS.items()}
    return {rule: sorted(names[run] for run in runs) for rule, runs in of_runs.items()}, others


def students(*methods):
    """The jobs of students when these methods are trained again."""
    return dict.fromkeys(("train_student", "sample_student", "measure_student"), sorted(methods))


def test_editing_a_method_trains_it_again_and_nothing_else(own_copy):
    edit(own_copy.folder / "my_methods.py", "return share * pseudo_huber(", "return 2 * share * pseudo_huber(")
    again, others = methods_again(own_copy)
    assert again == students("mixed")
    assert {"collect_metrics", "join_tables", "check_claims", "table_main", "figure_tradeoff", "report"} <= others
    before = {"prepare_data", "train_classifier", "train_teacher", "solve_targets", "teacher_samples", "measure_data"}
    assert not before & others


def test_editing_a_comment_runs_nothing_again(own_copy):
    file = own_copy.folder / "my_methods.py"
    edit(file, '"""Three methods in a file of one\'s own', '"""Methods')
    edit(
        file,
        '    prediction = student(batch["x_t"], batch["t"], batch["cond"])\n    with',
        '    # of the student itself\n    prediction = student(batch["x_t"], batch["t"], batch["cond"])\n\n    with',
    )
    assert own_copy.jobs() == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "objectives",
            'return student(batch["x_t"], batch["t"], batch["cond"]), batch["x_0"]',
            'return student(batch["x_t"], batch["t"], batch["cond"]), 1 * batch["x_0"]',
            {},  # no run learns by `direct`
        ),
        (
            "objectives",
            '        target = student(batch["x_r"], batch["r"], batch["cond"])\n    return prediction, target\n\n\ndef',
            '        target = 1 * student(batch["x_r"], batch["r"], batch["cond"])\n    return prediction, target\n\n\ndef',
            students("cm"),
        ),
        ("couplings", "return generate(x + spread", "return generate(1 * x + spread", students("ct-gc")),
        (
            "samplers",
            "        x = student(x, time, cond, following)",
            "        x = 1 * student(x, time, cond, following)",
            {"sample_student": ["mean_flow", "two_segments"], "measure_student": ["mean_flow", "two_segments"]},
        ),
    ],
    ids=["an objective without runs", "an objective", "a coupling", "a sampler"],
)
def test_editing_a_function_of_the_library_runs_again_what_uses_it(own_copy, file, old, new, expected):
    edit(own_copy.folder / f"workflow/consistency/students/{file}.py", old, new)
    again, others = methods_again(own_copy)
    assert {rule: sorted(set(methods)) for rule, methods in again.items()} == expected
    assert bool(others) == bool(expected)


def attempt(project, *arguments):
    """Call `make try`'s script."""
    command = [sys.executable, "workflow/scripts/try.py", *arguments]
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, env=surroundings())


@pytest.mark.parametrize("method", RUNS)
def test_a_method_is_tried_before_anything_is_trained(own, method):
    done = attempt(own, method)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    first, loss, norm, reach, samples, last = done.stdout.splitlines()
    by = {"cm": "consistency_distillation", "ct-gc": "consistency_training"}.get(method, f"{method} of my_methods.py")
    assert first.startswith(f"objective {by}")
    assert loss.startswith("loss ")
    assert loss.endswith("in 20 steps of 16, finite")
    assert norm.startswith("gradient norm ")
    assert re.match(r"the gradient reaches (\d+) of \d+ weights", reach)
    sampler = "flow_map" if method in ("two_segments", "mean_flow") else "renoise"
    assert samples == f"samples in {', '.join(map(str, STEPS[method]))} steps by {sampler}, finite"
    assert last.startswith(f"{method} fits digits (")


def test_an_unknown_method_is_one_line_with_the_nearest_name(own):
    done = attempt(own, "mxed")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("try: unknown method 'mxed'; allowed: ")
    assert "mixed" in line.rpartition("; ")[2], line
