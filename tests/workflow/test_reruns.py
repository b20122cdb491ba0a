"""Which jobs run again after which change: the table of the docs, by dry runs on finished results."""

import json

import pytest

RUNS, CONDITIONS = 8, 2  # of the small experiment
PAPER = {
    "check_claims": 1,
    "collect_metrics": 1,
    "figure_forest": 1,
    "figure_samples": 1,
    "figure_sampling_steps": 1,
    "figure_start_times": 1,
    "figure_tradeoff": 1,
    "figure_training": 1,
    "join_tables": 2,
    "page_samples": 1,
    "page_tradeoff": 1,
    "report": 1,
    "table_claims": 1,
    "table_main": 1,
}
MEASURED = {"sample_student": RUNS, "measure_student": RUNS}


@pytest.fixture
def project(finished_copy):
    """A copy of the finished project."""
    return finished_copy


def without(jobs, *names):
    return {name: count for name, count in jobs.items() if name not in names}


def edit(project, name, old="", new=""):
    """Replace text in a file of the project's library, or, without any, add an empty line at its end."""
    code = project.folder / "workflow/consistency" / name
    original = code.read_text(encoding="utf-8")
    changed = original.replace(old, new) if old else original + "\n"
    assert changed != original, f"{name} holds no {old!r}"
    code.write_text(changed, encoding="utf-8")


def test_a_copy_has_nothing_to_do(project):
    assert project.jobs() == {}


def test_figure_style(project):
    edit(project, "report/figures/start_times.py", "linewidth=1.2", "linewidth=2.0")
    assert project.jobs() == {"figure_start_times": 1, "report": 1}


@pytest.mark.parametrize("name", ["samples.py", "samples.html", "tradeoff.py", "tradeoff.html"])
def test_code_of_a_page(project, name):
    edit(project, f"report/pages/{name}")
    assert project.jobs() == {f"page_{name.partition('.')[0]}": 1, "report": 1}


def test_style_of_all_figures(project):
    edit(project, "report/figures/style.py")
    figures = {rule: count for rule, count in project.jobs().items() if rule.startswith("figure_")}
    assert figures == {rule: count for rule, count in PAPER.items() if rule.startswith("figure_")}


def test_student_learning_rate(project):
    project.configure({"student": {"training": {"learning_rate": 1e-3}}})
    assert project.jobs() == {"train_student": RUNS, **MEASURED, **PAPER}


def test_another_seed(project):
    project.configure({"runs": [{"solver": "ddim", "n_steps": 5, "guidance": [1, 4], "seed": [0, 1, 2]}]})
    new = RUNS // 2
    expected = {"train_student": new, "sample_student": new, "measure_student": new}
    # the sample grid shows the first seed, so it stays
    assert project.jobs() == {**expected, **without(PAPER, "figure_samples")}


def test_one_methods_loss(project):
    project.configure({"methods": {"direct": {"objective": "direct", "loss": {"kind": "pseudo_huber"}}}})
    half = RUNS // 2
    expected = {"train_student": half, "sample_student": half, "measure_student": half}
    assert project.jobs() == {**expected, **PAPER}


def test_a_new_method_leaves_the_others_alone(project):
    project.configure({"methods": {"mine": {"objective": "direct"}}})
    new = RUNS // 2
    expected = {"train_student": new, "sample_student": new, "measure_student": new}
    assert project.jobs() == {**expected, **PAPER}


def test_another_guidance_scale_needs_its_own_targets_only(project):
    project.configure({"runs": [{"solver": "ddim", "n_steps": 5, "guidance": [1, 4, 9], "seed": [0, 1]}]})
    jobs = project.jobs()
    assert (jobs["solve_targets"], jobs["gather_targets"], jobs["teacher_samples"]) == (2, 1, 1)
    assert jobs["train_student"] == RUNS // 2
    assert "train_teacher" not in jobs


def test_number_of_evaluation_samples(project):
    project.configure({"evaluation": {"count": 120}})
    jobs = project.jobs()
    assert (jobs["draw_noise"], jobs["teacher_samples"], jobs["sample_student"]) == (1, CONDITIONS, RUNS)
    assert not {"train_teacher", "train_classifier", "solve_targets", "train_student"} & set(jobs)


def test_claims(project):
    project.configure({"claims": ["A1"]})
    assert project.jobs() == {"check_claims": 1, "figure_forest": 1, "join_tables": 1, "table_claims": 1, "report": 1}


def test_gates(project):
    """They are only warned of where data and teacher are measured, so nothing is measured again."""
    project.configure({"gates": {"teacher": {"recognised": 0.5}}})
    assert project.jobs() == {"check_claims": 1, "figure_forest": 1, "join_tables": 1, "table_claims": 1, "report": 1}


def test_teacher(project):
    project.configure({"teacher": {"training": {"steps": 130}}})
    jobs = project.jobs()
    assert (jobs["train_teacher"], jobs["solve_targets"], jobs["train_student"]) == (1, 2 * CONDITIONS, RUNS)
    assert not {"prepare_data", "train_classifier", "draw_noise"} & set(jobs)


def test_classifier(project):
    project.configure({"classifier": {"training": {"steps": 70}}})
    jobs = project.jobs()
    assert jobs["train_classifier"] == 1
    assert (jobs["measure_data"], jobs["measure_teacher"], jobs["measure_student"]) == (1, CONDITIONS, RUNS)
    assert not {"train_teacher", "solve_targets", "train_student", "sample_student"} & set(jobs)


def test_code_of_a_solver(project):
    edit(
        project, "flow/solvers.py", "s, n, x, schedule) * _derivative", "s, n, x, schedule) * 1.0 * _derivative"
    )  # Euler
    edit(project, "flow/solvers.py", '"""DDIM, ', '"""Another word for it: DDIM, ')
    assert project.jobs() == {}, "no run uses the solver that was edited"
    edit(project, "flow/solvers.py", "    noise = eps(x, s)\n", "    noise = 1.0 * eps(x, s)\n")
    jobs = project.jobs()
    assert (jobs["solve_targets"], jobs["teacher_samples"], jobs["train_student"]) == (2 * CONDITIONS, CONDITIONS, RUNS)
    assert not {"prepare_data", "train_classifier", "train_teacher", "draw_noise"} & set(jobs)


def test_code_of_a_metric(project):
    edit(project, "evaluate/distances.py", "    root = _root(cov_a)\n", "    root = 1.0 * _root(cov_a)\n")
    jobs = project.jobs()
    assert (jobs["measure_data"], jobs["measure_teacher"]) == (1, CONDITIONS)
    assert {rule for rule in jobs if rule not in PAPER} <= {"measure_data", "measure_teacher", "measure_student"}


OWN_METRICS = """
from consistency.plugins import metric

SCALE = 2


@metric
def brightness(samples, pixels, context, *, gain=1.0):
    return SCALE * gain * pixels.mean()


@metric
def unused(samples, pixels, context):
    return samples.std()
"""


def test_code_of_a_users_own_metric(project):
    plugin = project.folder / "my_metrics.py"
    plugin.write_text(OWN_METRICS, encoding="utf-8")
    metrics = ["data", "teacher-ddim-n5-w1"]
    files = [f"results/digits/metrics/{source}.json" for source in metrics]
    expected = {"measure_data": 1, "measure_teacher": 1}
    project.configure({"evaluation": {"metrics": ["brightness"]}}, plugins=["my_metrics.py"])
    assert project.jobs(*files) == expected
    project.snakemake(*files)
    rows = {
        source: [row for row in json.loads((project.folder / file).read_text())["rows"] if row["extractor"] == "own"]
        for source, file in zip(metrics, files)
    }
    assert [row["metric"] for row in rows["data"] + rows["teacher-ddim-n5-w1"]] == ["brightness"] * 2
    assert project.jobs(*files) == {}
    plugin.write_text(f"# A comment.\n{OWN_METRICS.replace('std', 'var')}", encoding="utf-8")
    assert project.jobs(*files) == {}, "another metric of the same file was edited"
    plugin.write_text(OWN_METRICS.replace("SCALE = 2", "SCALE = 3"), encoding="utf-8")
    assert project.jobs(*files) == expected
    plugin.write_text(OWN_METRICS, encoding="utf-8")
    params = {"metrics": [{"name": "brightness", "params": {"gain": 2}}]}
    project.configure({"evaluation": params}, plugins=["my_metrics.py"])
    assert project.jobs(*files) == expected
