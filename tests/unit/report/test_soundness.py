"""Gates: what is too bad to decide a claim on, on rows whose numbers are those of real runs on digits and mixtures."""

import logging

import pandas as pd
import pytest
from consistency.config.claims import Comparison
from consistency.config.gates import Gates, asked
from consistency.config.resolve import load_experiment
from consistency.files.storage import write_json
from consistency.report import soundness, verdicts

COLUMNS = ("run", "method", "seed", "guidance", "metric", "extractor", "reference", "sampling_steps", "value")
HALVES = soundness.HALVES
TAUGHT = {"solver": "ddim", "n_steps": 10, "guidance": 1.0}


def gates(**changes):
    return Gates.model_validate(changes).model_dump() | {"deviation": None}


def rows(run, method, seed, *measured, guidance=1.0):
    """Rows of one source: metric, extractor, reference, sampling steps, value."""
    return [(run, method, seed, guidance, *values) for values in measured]


def frame(*sources):
    table = pd.DataFrame([row for source in sources for row in source], columns=COLUMNS)
    taught = table.method != "ct-ic"
    return table.assign(
        solver=pd.Series("ddim", table.index).where(taught), n_steps=pd.Series(10, table.index, "Int64").where(taught)
    )


def data(accuracy=0.99, halves=2.6):
    return rows(
        "data",
        "data",
        None,
        ("frechet_distance", "net", HALVES, None, halves),
        ("frechet_distance", "other", HALVES, None, 0.001),
        ("held_out_accuracy", "net", "labels", None, accuracy),
    )


def teacher(seed=0, recognised=0.97, distance=8.0, guidance=1.0):
    measured = ("recognised", "net", "labels", 10, recognised), ("frechet_distance", "net", "data", 10, distance)
    return rows(f"teacher-s{seed}", "teacher", seed, *measured, guidance=guidance)


def student(run="cm-s0", seed=0, recognised=0.95, distance=2.0, reference="teacher"):
    measured = ("recognised", "net", "labels", 1, recognised), ("frechet_distance", "net", reference, 1, distance)
    few_steps = ("recognised", "net", "labels", 4, 0.1), ("frechet_distance", "net", reference, 4, 900.0)
    return rows(run, run[:-3], seed, *few_steps, *measured)


def runs(*names, **changes):
    return [{"run": name, "seed": int(name[-1]), **TAUGHT, **changes} for name in names]


def test_sound_runs():
    table = frame(data(), teacher(), student())
    assert soundness.unsound(table, runs("cm-s0"), gates()) == {}


def test_a_bad_teacher_makes_the_runs_of_its_condition_and_seed_unsound():
    table = frame(data(), teacher(0, recognised=0.25), teacher(1), student(), student("cm-s1", 1))
    assert soundness.unsound(table, runs("cm-s0", "cm-s1"), gates()) == {
        "cm-s0": "teacher recognised at 0.25, needs 0.891"
    }
    others = runs("cm-s0", n_steps=50)
    assert soundness.unsound(table, others, gates()) == {}, "of another condition"


def test_one_teacher_of_all_seeds():
    """With `replicates: students` its rows have no seed."""
    table = frame(data(), teacher(None, recognised=0.25), student(), student("cm-s1", 1))
    assert set(soundness.unsound(table, runs("cm-s0", "cm-s1"), gates())) == {"cm-s0", "cm-s1"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (data(accuracy=0.6), "classifier right on 0.6 of held-out images, needs 0.8"),
        (teacher(distance=27), "teacher at a distance of 27 to data, needs at most 26"),
        (student(recognised=0.5), "cm-s0 recognised at 0.5, needs 0.776"),
        (student(distance=280.0), "cm-s0 at a distance of 280 to teacher, needs at most 78"),
    ],
)
def test_each_gate(source, reason):
    whole = {part[0][0]: part for part in (data(), teacher(), student())} | {source[0][0]: source}
    table = frame(*whole.values())
    assert soundness.unsound(table, runs("cm-s0"), gates()) == {"cm-s0": reason}
    off = {
        "features": {"accuracy": None},
        "teacher": {"distance_in_halves": None},
        "student": {"recognised": None, "distance_in_halves": None},
    }
    assert soundness.unsound(table, runs("cm-s0"), gates(**off)) == {}, "a gate that is off"


def test_distance_with_guidance_is_no_gate():
    """Digits at w = 4: ten times as far from the data as its halves, and all samples recognised."""
    table = frame(data(), teacher(recognised=1.0, distance=27.3, guidance=4.0), student())
    assert soundness.unsound(table, runs("cm-s0", guidance=4.0), gates()) == {}


def test_students_without_a_teacher_are_held_to_the_data():
    from_scratch = {"solver": None, "n_steps": None, "guidance": None}
    for student_rows, reason in (
        (student("ct-ic-s0", recognised=0.7, reference="data"), "ct-ic-s0 recognised at 0.7, needs 0.792"),
        (
            student("ct-ic-s0", distance=280.0, reference="data"),
            "ct-ic-s0 at a distance of 280 to data, needs at most 78",
        ),
        (student("ct-ic-s0", distance=34.0, reference="data"), None),
    ):
        table = frame(data(), teacher(recognised=0.1), student_rows)
        found = soundness.unsound(table, runs("ct-ic-s0", **from_scratch), gates())
        assert found == ({"ct-ic-s0": reason} if reason else {})


def test_a_method_that_begins_with_more_steps():
    two = student(recognised=0.1)
    two = [(*row[:7], 2 if row[7] == 1 else row[7], row[8]) for row in two]
    two += rows("cm-s0", "cm", 0, ("ode_error@s=100", "pixels", "teacher", 1, 0.1))
    reasons = soundness.unsound(frame(data(), teacher(), two), runs("cm-s0"), gates())
    assert reasons == {"cm-s0": "cm-s0 recognised at 0.1, needs 0.776"}


def points(run, method, frechet, stratified):
    measured = ("frechet_distance", frechet), ("stratified_wasserstein", stratified)
    reference = "data" if run != "data" else HALVES
    found = rows(run, method, 0, *((m, "coordinates", reference, 1, value) for m, value in measured))
    return [row[:6] + ("data",) + row[7:] if row[4] == "stratified_wasserstein" else row for row in found]


def of_points(preset="gaussians-modes"):
    return asked(load_experiment(preset))


@pytest.mark.parametrize(
    ("frechet", "stratified", "reason"),
    [
        (0.0044, 0.138, None),  # CD after its training
        (0.0006, 0.003, None),  # exact draws
        (0.25, 0.5, "cd-s0 1 deviations off the data (Fréchet distance), needs at most 0.5"),  # untrained
        (
            0.0006,
            0.315,
            "cd-s0 0.63 deviations off the data (stratified Wasserstein distance), needs at most 0.5",
        ),
    ],
)  # the last one: a blob with the data's moments
def test_points_in_units_of_the_datas_deviation(frechet, stratified, reason):
    table = frame(points("data", "data", 0.0006, 0.003), points("cd-s0", "cd", frechet, stratified))
    alone = runs("cd-s0", solver=None, n_steps=None, guidance=None)
    assert soundness.unsound(table, alone, of_points()) == ({"cd-s0": reason} if reason else {})


def test_what_exact_draws_score_is_taken_off():
    """In 64 dimensions draws are far from draws; only the Fréchet distance tells an untrained network."""
    preset, exact = "gaussians-64d", points("data", "data", 0.414, 2.85)
    alone = runs("cd-s0", solver=None, n_steps=None, guidance=None)
    assert soundness.unsound(frame(exact, points("cd-s0", "cd", 0.96, 2.53)), alone, of_points(preset)) == {}
    assert soundness.unsound(frame(exact, points("cd-s0", "cd", 8.76, 2.94)), alone, of_points(preset))


def test_an_analytic_teacher_with_too_few_steps():
    table = frame(points("data", "data", 0.003, 0.05), points("teacher-s0", "teacher", 0.5, 0.7))
    found = soundness.unsound(table, runs("cm-s0"), of_points("gaussians-ring"))
    assert "teacher 0.7 deviations off the data" in found["cm-s0"]


def test_deviation_of_a_mixture():
    import numpy as np
    from consistency.data.mixtures import draw, parameters

    for preset in ("gaussians-ring", "gaussians-64d"):
        data = load_experiment(preset).data
        drawn = draw(**parameters(data.dimension, [c.model_dump() for c in data.components]), count=20_000, seed=0)
        assert data.deviation == pytest.approx(np.sqrt(drawn.var(0).sum()), rel=0.02)


def test_a_bad_teacher_is_said_at_once(tmp_path, caplog):
    def write(name, source):
        keys = COLUMNS[4:]
        run = dict(zip(COLUMNS[:4], source[0], strict=False))
        write_json(tmp_path / name, {"run": run, "rows": [dict(zip(keys, row[4:], strict=True)) for row in source]})
        return tmp_path / name

    yardstick = write("data.json", data(accuracy=0.7))
    with caplog.at_level(logging.WARNING):
        soundness.warn(write("good.json", teacher()), yardstick, gates())
        assert caplog.messages == []
        bad = write("teacher.json", teacher(recognised=0.25))
        soundness.warn(bad, yardstick, gates())
        soundness.warn(yardstick, yardstick, gates())
    end = "every verdict that rests on it will be unsound"
    assert caplog.messages == [
        f"{bad}: teacher recognised at 0.25, needs 0.63: {end}",
        f"{yardstick}: classifier right on 0.7 of held-out images, needs 0.8: {end}",
    ]


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_an_untrained_network_is_unsound(spread):
    """Also one whose last layer does not start at zero; measured as the pipeline measures a run of the two modes."""
    import torch
    from consistency.data.mixtures import draw, parameters
    from consistency.evaluate.distances import FeatureSet
    from consistency.evaluate.measure import compare
    from consistency.flow.schedules import VESchedule
    from consistency.networks.mlp import ResidualMLP
    from consistency.students.maps import FlowMap

    torch.manual_seed(0)
    mixture, schedule = load_experiment("gaussians-modes").data, VESchedule(sigma_min=0.001, sigma_max=5)
    network, cond = ResidualMLP([2], 1, 1000, 64, 2), torch.zeros(512, dtype=torch.long)
    torch.nn.init.normal_(network.outward.weight, std=spread / 8)
    with torch.no_grad():
        samples = FlowMap(network, schedule)(5 * torch.randn(512, 2), torch.full((512,), 5.0), cond).double().numpy()
    described = parameters(mixture.dimension, [c.model_dump() for c in mixture.components])
    reference, others = (FeatureSet(draw(**described, count=512, seed=seed), neighbours=3) for seed in (0, 1))

    def of_run(run, method, compared_with, features):
        measured = compare(features, reference, brief=True)
        return rows(
            run, method, 0, *([name, "coordinates", compared_with, 1, value] for name, value in measured.items())
        )

    exact = of_run("data", "data", HALVES, others)
    table = frame(exact, of_run("cd-s0", "cd", "data", FeatureSet(samples, neighbours=3)))
    reasons = soundness.unsound(table, runs("cd-s0", solver=None, n_steps=None, guidance=None), of_points())
    assert "deviations off the data" in reasons["cd-s0"]


@pytest.mark.parametrize(
    ("half", "end", "verdict", "reason"),
    [
        (0.8, 0.5, "reproduced", "interval"),
        (1.2, 0.5, "unsound", "not settled: 1.2 at 0.5 of the training, 0.5 at its end"),
        (0.8, 2.0, "unsound", "not settled: 0.8 at 0.5 of the training, 2 at its end"),
        (None, 0.5, "reproduced", "interval"),  # not measured then
        (1.2, 1.0, "no difference", "interval"),
    ],
)
def test_a_ratio_that_has_not_settled(half, end, verdict, reason):
    claim = Comparison(ours="ct-gc", other="ct-ic", metric="frechet_distance", reference="data", direction="below")
    table, names = [], []
    for seed, noise in enumerate((0.99, 1.0, 1.01)):
        for method, share in (("ct-gc", 1.0), ("ct-ic", 0.0)):
            run = f"{method}-s{seed}"
            names.append({"run": run, "method": method, "seed": seed, "group": "scratch"})
            for name, ratio in (("", end), ("@budget=0.5", half)):
                value = 3.0 * (ratio * noise if share else 1.0) if ratio else None
                table.append((run, f"frechet_distance{name}", "net", "data", 1, value))
    columns = ["run", "metric", "extractor", "reference", "sampling_steps", "value"]
    metrics, runs = pd.DataFrame(table, columns=columns).dropna(), pd.DataFrame(names)
    condition, overall = verdicts.decide([claim], "x", metrics, runs, settled=0.5)
    assert condition["verdict"] == overall["verdict"] == verdict
    assert reason in condition["reason"]
    assert verdicts.decide([claim], "x", metrics, runs)[0]["verdict"] != "unsound", "a gate that is off"
