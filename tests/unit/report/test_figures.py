"""Figures show what metrics.csv holds: the data of their lines, bars, bands and pictures, computed here once more."""

import itertools

import numpy as np
import pandas as pd
import pytest
from consistency.evaluate.measure import COLUMNS
from consistency.evaluate.yardstick import HALVES
from consistency.files.storage import save_tensors, write_records
from consistency.report.figures import (
    convergence,
    discrepancy,
    forest,
    orders,
    own,
    points,
    sampling_steps,
    share,
    start_times,
    style,
    tradeoff,
    training,
    trajectories,
    transport,
    velocity_variance,
)
from consistency.report.figures import samples as samples_figure
from scipy import stats

SEEDS = (0, 1, 2)
TARGETS = [
    {
        "run": f"{method}-ddim-n{n}-w{w}-s{s}",
        "method": method,
        "seed": s,
        "group": f"ddim-n{n}-w{w}",
        "guidance": float(w),
        "fewest_steps": 1,
    }
    for (n, w), method, s in itertools.product([(5, 1), (10, 1), (5, 4)], ["cm", "direct"], SEEDS)
]
OF_TEACHER = {"ddim-n5-w1": "DDIM, N = 5", "ddim-n10-w1": "DDIM, N = 10", "ddim-n5-w4": "DDIM, N = 5"}
PAIRS = [
    {"run": f"{method}-s{s}", "method": method, "seed": s, "group": "scratch", "steps": 400, "share": mu}
    for (method, mu), s in itertools.product([("ct-ic", 0.0), ("ct-gc", 0.5), ("ct-ot", None)], SEEDS)
]


class Metrics:
    """A metrics.csv of random values: one for each run, and metric, reference and sampling steps."""

    def __init__(self, path, runs, cells, extra=()):
        rng, rows = np.random.default_rng(0), []
        for run, (metric, extractor, reference, steps) in itertools.product(runs, cells):
            value = float(np.exp(rng.normal()))
            row = {"run": run["run"], "method": run["method"], "seed": run["seed"], "metric": metric}
            rows.append(row | {"extractor": extractor, "reference": reference, "sampling_steps": steps, "value": value})
        self.frame = pd.DataFrame([*rows, *extra]).reindex(columns=COLUMNS)
        self.frame.to_csv(path, index=False)
        self.path, self.runs = path, {run["run"]: run for run in runs}

    def values(self, metric, reference, method, group=None, steps=1):
        """The values of all seeds, by the frame itself."""
        chosen = self.frame[
            (self.frame.metric == metric) & (self.frame.reference == reference) & (self.frame.method == method)
        ]
        chosen = chosen[chosen.sampling_steps == steps]
        if group is not None:
            chosen = chosen[chosen.run.map(lambda run: self.runs[run]["group"] == group)]
        assert len(chosen) == len(SEEDS)
        return chosen.value.to_numpy()

    def mean(self, *cell, **more):
        return self.values(*cell, **more).mean()

    def interval(self, *cell, **more):
        values = self.values(*cell, **more)
        return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


def itself(run, metric, reference, value, extractor="e"):
    """A row that the data or a condition of the teacher has itself."""
    row = {"run": run, "method": run.split("-")[0], "metric": metric, "reference": reference}
    return row | {"extractor": extractor, "value": value}


@pytest.fixture
def drawn(tmp_path):
    """Draw a figure; both files are there, and small tables give a picture of the size that the figure states."""

    def draw(module, **inputs):
        figure = module.draw(tmp_path / "f.pdf", tmp_path / "f.png", **inputs)
        assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
        return figure

    return draw


def curves(axes):
    """Label → x and y of the lines that have one."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


def band(axes, number):
    """The band's y at its first x: low, high."""
    vertices = axes.collections[number].get_paths()[0].vertices
    first = vertices[np.isclose(vertices[:, 0], vertices[:, 0].min())][:, 1]
    return first.min(), first.max()


def test_tradeoff(tmp_path, drawn):
    cells = [("ode_error", "pixels", "teacher", 1), ("ode_error", "pixels", "teacher", 2)]
    cells += [("frechet_distance", e, r, 1) for e in ("first", "second") for r in ("teacher", "data")]
    own = [itself("data", "frechet_distance", HALVES, 0.4, "first")]
    own += [itself(f"teacher-{group}", "frechet_distance", "data", 0.5, "first") for group in OF_TEACHER]
    metrics = Metrics(tmp_path / "m.csv", TARGETS, cells, own)
    figure = drawn(tradeoff, runs=TARGETS, metrics=metrics.path)
    first = metrics.frame[metrics.frame.extractor != "second"]
    metrics.frame = first
    panels = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in panels[0]] == ["guidance w = 1", "guidance w = 4"]
    for (row, reference), (column, groups) in itertools.product(
        enumerate(("teacher", "data")), enumerate((["ddim-n5-w1", "ddim-n10-w1"], ["ddim-n5-w4"]))
    ):
        bars = panels[row, column].containers
        expected = list(itertools.product(groups, ("cm", "direct")))
        assert len(bars) == len(expected)
        for bar, (group, method) in zip(bars, expected, strict=True):
            x, y = ("ode_error", "teacher", method, group), ("frechet_distance", reference, method, group)
            assert bar.lines[0].get_xydata() == pytest.approx(np.array([[metrics.mean(*x), metrics.mean(*y)]]))
            assert bar.get_label() == {"cm": "CM", "direct": "Direct CM"}[method]
            horizontal, vertical = (line.get_segments()[0] for line in bar.lines[2])
            assert horizontal[:, 0] == pytest.approx(metrics.interval(*x))
            assert vertical[:, 1] == pytest.approx(metrics.interval(*y))
        assert len([line for line in panels[row, column].lines if line.get_marker() == "*"]) == row * len(groups)
        assert {text.get_text() for text in panels[row, column].texts} == {OF_TEACHER[group] for group in groups}
    for axes in panels[1]:
        assert curves(axes)["the teacher itself"] == pytest.approx(np.array([[0, 0.5]]))
        assert curves(axes)["the data itself"][:, 1] == pytest.approx([0.4, 0.4])
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # with itself
    assert "in features of first" in figure.get_supxlabel()


def test_sampling_steps(tmp_path, drawn):
    rows = [("ode_error", "teacher"), ("frechet_distance", "teacher"), ("frechet_distance", "data")]
    cells = [(metric, "e" if "frechet" in metric else "pixels", r, n) for metric, r in rows for n in (1, 2, 4)]
    own = [itself("data", "frechet_distance", HALVES, 0.4)]
    own += [itself(f"teacher-{group}", "frechet_distance", "data", 0.5) for group in OF_TEACHER]
    metrics = Metrics(tmp_path / "m.csv", TARGETS, cells, own)
    figure = drawn(sampling_steps, runs=TARGETS, metrics=metrics.path)
    groups = ["ddim-n5-w1", "ddim-n10-w1", "ddim-n5-w4"]
    for axes, (cell, group) in zip(figure.axes, itertools.product(rows, groups), strict=True):
        found = curves(axes)
        levels = ["the teacher itself", "the data itself"] * (cell == ("frechet_distance", "data"))
        assert list(found) == ["CM", "Direct CM", *levels]
        assert [found[level][0, 1] for level in levels] == [0.5, 0.4][: len(levels)]
        for number, method in enumerate(("cm", "direct")):
            expected = [[n, metrics.mean(*cell, method, group, n)] for n in (1, 2, 4)]
            assert found[["CM", "Direct CM"][number]] == pytest.approx(np.array(expected))
            low, high = metrics.interval(*cell, method, group, 1)
            smallest = 0.2 * min(y for _, y in expected)  # a logarithmic axis has no room for less
            assert band(axes, number) == pytest.approx((max(low, smallest), high))


def test_start_times(tmp_path, drawn):
    cells = [(f"ode_error@s={s}", "pixels", "teacher", 1) for s in (1000, 600, 200)]
    cells += [("ode_error", "pixels", "teacher", 1), ("frechet_distance", "e", "data", 1)]
    metrics = Metrics(tmp_path / "m.csv", TARGETS, cells)
    figure = drawn(start_times, runs=TARGETS, metrics=metrics.path)
    for axes, group in zip(figure.axes, ["ddim-n5-w1", "ddim-n10-w1", "ddim-n5-w4"], strict=True):
        for name, method in (("CM", "cm"), ("Direct CM", "direct")):
            expected = [[s, metrics.mean(f"ode_error@s={s}", "teacher", method, group)] for s in (200, 600, 1000)]
            assert curves(axes)[name] == pytest.approx(np.array(expected))
        assert axes.get_title() == style.heading(group)


def test_training(tmp_path, drawn):
    losses, files = {}, []
    for number, run in enumerate(TARGETS):
        losses[run["run"]] = [[step, 1 / step + number] for step in (10, 20, 30)]
        files.append(tmp_path / f"{run['run']}.jsonl")
        write_records(
            files[-1], [{"step": step, "loss": loss, "seconds": step / 10} for step, loss in losses[run["run"]]]
        )
    figure = drawn(training, runs=TARGETS, stats=files)
    for axes, group in zip(figure.axes, ["ddim-n5-w1", "ddim-n10-w1", "ddim-n5-w4"], strict=True):
        expected = [losses[run["run"]] for run in TARGETS if run["group"] == group]
        assert [line.get_xydata().tolist() for line in axes.lines] == expected


def test_samples(tmp_path, drawn):
    rng = np.random.default_rng(0)
    runs = [run for run in TARGETS if run["seed"] == 0 and run["guidance"] == 1]
    files = {}
    for name in [run["run"] for run in runs] + ["teacher-5", "teacher-10"]:
        images = rng.normal(0, 0.8, (20, 1, 4, 4)).astype(np.float32)
        files[name] = images
        save_tensors(tmp_path / name, {"samples" if "teacher" in name else "steps_1": images})
    labels = np.arange(20) % 10
    save_tensors(tmp_path / "noise", {"labels": labels})
    teachers = [f"teacher-{run['group'].split('-')[1][1:]}" for run in runs]
    figure = drawn(
        samples_figure,
        runs=runs,
        samples=[str(tmp_path / run["run"]) for run in runs],
        teacher=[str(tmp_path / name) for name in teachers],
        noise=str(tmp_path / "noise"),
    )
    rows = ["teacher-5", "cm-ddim-n5-w1-s0", "direct-ddim-n5-w1-s0"]
    rows += ["teacher-10", "cm-ddim-n10-w1-s0", "direct-ddim-n10-w1-s0"]
    panels = np.array([axes for part in figure.subfigs for axes in part.axes]).reshape(6, samples_figure.COLUMNS)
    for line, name in zip(panels, rows, strict=True):
        for axes, image in zip(line, files[name][: samples_figure.COLUMNS, 0], strict=True):
            (picture,) = axes.images
            assert picture.get_array().data == pytest.approx(image.clip(-1, 1) / 2 + 0.5)
    assert [axes.get_title() for axes in panels[0]] == [str(label) for label in labels[: samples_figure.COLUMNS]]
    assert [line[0].get_ylabel() for line in panels[:3]] == ["Teacher", "CM", "Direct CM"]


BUDGETS = {"@budget=0.25": 0.25, "@budget=0.5": 0.5, "": 1.0}


def test_convergence(tmp_path, drawn):
    metrics_of = [("wasserstein", "coordinates", "data"), ("ode_error", "coordinates", "truth")]
    cells = [(m + place, e, r, 1) for (m, e, r), place in itertools.product(metrics_of, BUDGETS)]
    metrics = Metrics(tmp_path / "m.csv", PAIRS, cells, [itself("data", "wasserstein", HALVES, 0.3, "coordinates")])
    files = []
    for number, run in enumerate(PAIRS):  # of one speed each: seconds are steps times the run's number
        files.append(tmp_path / f"{run['run']}.jsonl")
        records = [{"step": step, "loss": 1.0, "seconds": step * (number + 1)} for step in (200, 400)]
        write_records(files[-1], records)
    figure = drawn(convergence, runs=PAIRS, metrics=metrics.path, stats=files)
    panels = np.array(figure.axes).reshape(2, 2)
    names = {"ct-ic": "CT, independent", "ct-gc": "CT, generated (μ = 0.5)", "ct-ot": "CT, batch-OT"}
    for line, (metric, _, reference) in zip(panels, metrics_of, strict=True):
        for number, (method, name) in enumerate(names.items()):
            y = [metrics.mean(metric + place, reference, method) for place in BUDGETS]
            steps = np.array(list(BUDGETS.values())) * 400
            speed = 3 * number + 2  # mean of its three runs'
            assert curves(line[0])[name] == pytest.approx(np.column_stack([steps, y]))
            assert curves(line[1])[name] == pytest.approx(np.column_stack([steps * speed, y]))
    assert curves(panels[0, 0])["the data itself"][:, 1] == pytest.approx([0.3, 0.3])
    assert "the data itself" not in curves(panels[1, 0])


def test_share(tmp_path, drawn):
    cells = [(f"frechet_distance{place}", "e", "data", n) for place in BUDGETS for n in (1, 2)]
    metrics = Metrics(tmp_path / "m.csv", PAIRS, cells)
    figure = drawn(share, runs=PAIRS, metrics=metrics.path)
    (axes,) = figure.axes
    assert len(axes.containers) == 2
    for bar, place, aside in zip(axes.containers, ("@budget=0.25", ""), (-0.01, 0.01), strict=True):
        y = [metrics.mean(f"frechet_distance{place}", "data", method) for method in ("ct-ic", "ct-gc")]
        assert bar.lines[0].get_xydata() == pytest.approx(np.column_stack([[0 + aside, 0.5 + aside], y]))
        for segment, method in zip(bar.lines[2][0].get_segments(), ("ct-ic", "ct-gc"), strict=True):
            low, high = metrics.interval(f"frechet_distance{place}", "data", method)
            mean = metrics.mean(f"frechet_distance{place}", "data", method)
            assert segment[:, 1] == pytest.approx([max(low, 0.2 * mean), high])

    # where modes are seen, distances that are blind to them are not drawn
    names = ("stratified_wasserstein", "wasserstein", "frechet_distance")
    cells = [(name + place, "coordinates", "data", 1) for name, place in itertools.product(names, BUDGETS)]
    cells += [(f"ode_error{place}", "coordinates", "truth", 1) for place in BUDGETS]
    of_data = itself("data", "stratified_wasserstein", "data", 0.2, "coordinates")
    metrics = Metrics(tmp_path / "m.csv", PAIRS, cells, [of_data])
    figure = drawn(share, runs=PAIRS, metrics=metrics.path)
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == [
        "Stratified Wasserstein",
        "ODE error to truth",
    ]
    assert curves(figure.axes[0])["the data itself"][:, 1] == pytest.approx([0.2, 0.2])


COUPLINGS = ("independent", "optimal_transport", "generator_induced")


def test_transport(tmp_path, drawn):
    runs = [run for run in PAIRS if run["method"] == "ct-gc"]
    sigmas = (0.002, 0.4, 80)
    cells = [(f"transport_cost@sigma={s:.4g}", "pixels", name, 1) for s in sigmas for name in COUPLINGS]
    cells += [("transport_cost", "pixels", name, 1) for name in (*COUPLINGS, "exact optimal transport")]
    metrics = Metrics(tmp_path / "m.csv", runs, cells)
    (axes,) = drawn(transport, runs=runs, metrics=metrics.path).axes
    found = curves(axes)
    for name in COUPLINGS:
        y = [metrics.mean(f"transport_cost@sigma={s:.4g}", name, "ct-gc") for s in sigmas]
        assert found[style.COUPLINGS[name]["label"]] == pytest.approx(np.column_stack([sigmas, y]))
    level = metrics.mean("transport_cost", "exact optimal transport", "ct-gc")
    assert found["exact optimal transport"] == pytest.approx(np.array([[0.002, level], [80, level]]))


def test_velocity_variance(tmp_path, drawn):
    runs = [run for run in PAIRS if run["method"] == "ct-gc"]
    sigmas, exact = (0.002, 0.4, 80), "generator_induced exact"
    cells = [(f"velocity_variance@sigma={s:.4g}", "c", name, 1) for s in sigmas for name in (*COUPLINGS, exact)]
    cells += [(f"velocity_variance{point}", "c", name, 1) for point in ("", "@sigma_max") for name in COUPLINGS]
    metrics = Metrics(tmp_path / "m.csv", runs, cells)
    (axes,) = drawn(velocity_variance, runs=runs, metrics=metrics.path).axes
    found = curves(axes)
    labels = {name: style.COUPLINGS[name]["label"] for name in COUPLINGS}
    for name, label in (labels | {exact: "generator-induced, exact generator"}).items():
        y = [metrics.mean(f"velocity_variance@sigma={s:.4g}", name, "ct-gc") for s in sigmas]
        assert found[label] == pytest.approx(np.column_stack([sigmas, y]))


def test_discrepancy(tmp_path, drawn):
    runs = [run for run in PAIRS if run["method"] == "ct-ic"]
    numbers, gradients = (10, 20, 1280), [f"{d} {u} independent" for d in ("mse", "pseudo-Huber") for u in ("ct", "cd")]
    cells = []
    for place in [f"steps={n}" for n in numbers] + ["limit"]:
        cells += [(f"loss@{place}", "c", reference, 1) for reference in ("ct independent", "cd")]
        cells += [(f"velocity_gap@{place}", "c", name, 1) for name in COUPLINGS]
        if place != "limit":
            cells += [(f"gradient@{place}", "c", label, 1) for label in gradients]
    metrics = Metrics(tmp_path / "m.csv", runs, cells)
    loss, gap, gradient = drawn(discrepancy, runs=runs, metrics=metrics.path).axes

    def expected(metric, reference):
        return np.array([[n, metrics.mean(f"{metric}@steps={n}", reference, "ct-ic")] for n in numbers])

    ct, cd, _ = loss.lines  # and an empty one, for the legend
    assert ct.get_xydata() == pytest.approx(expected("loss", "ct independent"))
    assert cd.get_xydata() == pytest.approx(expected("loss", "cd"))
    (line,) = gap.lines
    assert line.get_xydata() == pytest.approx(expected("velocity_gap", "independent"))
    limits = [bar.get_segments()[0][0, 1] for bar in gap.collections if hasattr(bar, "get_segments")]
    assert limits == pytest.approx([metrics.mean("velocity_gap@limit", "independent", "ct-ic")])
    lines = iter(gradient.lines)
    for distance in ("pseudo-Huber", "mse"):
        ratios = {
            n: metrics.values(f"gradient@steps={n}", f"{distance} ct independent", "ct-ic")
            / metrics.values(f"gradient@steps={n}", f"{distance} cd independent", "ct-ic")
            for n in numbers
        }
        medians = np.array([[n, np.median(values)] for n, values in ratios.items()])
        assert next(lines).get_xydata() == pytest.approx(medians)
        seeds = next(lines).get_ydata()  # those beyond the panel at its edge
        assert sorted(seeds) == pytest.approx(sorted(np.concatenate(list(ratios.values())).clip(-1, 3)))


def test_orders(tmp_path, drawn):
    """Errors that fall with N to the power of the solver's order; the order stands in the legend."""
    rows = []
    for (solver, order), n in itertools.product({"ddim": 1, "heun": 2}.items(), (5, 10, 20)):
        for reference, error in ((orders.REFINED, n**-order), ("truth", n**-order + 0.01)):
            row = {"run": f"order-{solver}-n{n}", "method": "solver", "solver": solver, "n_steps": n}
            rows.append(row | {"metric": "ode_error", "reference": reference, "value": error**2})
    pd.DataFrame(rows).reindex(columns=COLUMNS).to_csv(tmp_path / "m.csv", index=False)
    (axes,) = drawn(orders, runs=[], metrics=tmp_path / "m.csv").axes
    found = curves(axes)
    for name, order in (("DDIM", 1), ("Heun", 2)):
        numbers = np.array([5.0, 10, 20])
        refined = found[f"{name}, refined schedule: order {order}.00"]
        assert refined == pytest.approx(np.column_stack([numbers, numbers**-order]))
        plain = found[f"{name}, schedule as it is"]
        assert plain == pytest.approx(np.column_stack([numbers, numbers**-order + 0.01]))


def test_trajectories(tmp_path, drawn):
    sigmas = np.array([0.002, 1.0, 80.0])
    rng = np.random.default_rng(0)
    contents = {name: rng.standard_normal((2, 3, 2)) for name in ("independent", "ode")}
    save_tensors(tmp_path / "curves", contents | {"sigmas": sigmas})
    panels = drawn(trajectories, runs=[], curves=tmp_path / "curves").axes
    assert [axes.get_title() for axes in panels] == ["Independent (IC)", "True PF-ODE"]
    for axes, points_of in zip(panels, contents.values(), strict=True):
        for number, curve in enumerate(points_of):
            scaled = curve / np.sqrt(1 + sigmas**2)[:, None]
            path, noise_end, data_end = (line.get_xydata() for line in axes.lines[3 * number : 3 * number + 3])
            assert path == pytest.approx(scaled)
            assert noise_end == pytest.approx(scaled[-1:])
            assert data_end == pytest.approx(scaled[:1])


def test_points(tmp_path, drawn):
    rng = np.random.default_rng(0)
    runs = [run for run in TARGETS if run["seed"] == 0 and run["group"] == "ddim-n5-w1"]
    contents = {"data": "test_images", "truth": "vp", "teacher": "samples", runs[0]["run"]: "steps_1"}
    contents |= {runs[1]["run"]: "steps_1"}
    values = {name: rng.uniform(-1, 1, (50, 2)) for name in contents}
    values[runs[1]["run"]][:3] = 100.0
    for name, key in contents.items():
        save_tensors(tmp_path / name, {key: values[name]})
    figure = drawn(
        points,
        runs=runs,
        samples=[str(tmp_path / run["run"]) for run in runs],
        teacher=[str(tmp_path / "teacher")] * 2,
        truth=str(tmp_path / "truth"),
        data=str(tmp_path / "data"),
    )
    titles = ["Data, held out", "True ODE end", "Teacher, N steps", "CM, 1 step", "Direct CM, 1 step"]
    assert [axes.get_title() for axes in figure.axes] == titles
    for axes, name in zip(figure.axes, contents, strict=True):
        assert axes.lines[0].get_xydata() == pytest.approx(values[name])
        assert [text.get_text() for text in axes.texts] == (["3 outside"] if name == runs[1]["run"] else [])


def test_every_figure_has_a_test():
    from helpers import ROOT

    modules = {path.stem for path in (ROOT / "workflow/consistency/report/figures").glob("*.py")} - {
        "__init__",
        "style",
    }
    assert modules == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_figure_has_a_test"
    }


OWN = """
import matplotlib.pyplot as plt
from consistency.plugins import figure


@figure
def scatter(metrics, runs, style, *, colour="red"):
    drawn, axes = plt.subplots(figsize=(style.WIDTH, 2), layout="constrained")
    values = metrics[metrics.run.isin([run["run"] for run in runs])].value
    axes.plot(values, color=colour)
    return drawn


@figure
def nothing(metrics, runs, style):
    return 1 / len(metrics[metrics.run == "none"]) if len(runs) > 3 else None
"""


def test_own(tmp_path, monkeypatch):
    from consistency import plugins
    from consistency.config.registry import Registry
    from consistency.errors import PluginError

    monkeypatch.chdir(tmp_path)
    plugins._module.cache_clear()
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    registry = Registry.read(["mine.py"])
    metrics = Metrics(tmp_path / "metrics.csv", TARGETS, [("ode_error", "pixels", "teacher", 1)])
    paths = {kind: tmp_path / f"figure.{kind}" for kind in ("pdf", "png")}
    call = registry.get("figure", "scatter").call({"colour": "blue"})
    figure = own.draw(**paths, runs=TARGETS[:3], metrics=metrics.path, own=call)
    (line,) = figure.axes[0].lines
    assert line.get_color() == "blue"
    assert line.get_ydata() == pytest.approx(metrics.frame.value[:3].to_numpy())
    assert (paths["pdf"].read_bytes()[:4], paths["png"].read_bytes()[1:4]) == (b"%PDF", b"PNG")
    call = registry.get("figure", "nothing").call({})
    with pytest.raises(PluginError, match="mine.py: nothing: gives None; allowed: a matplotlib Figure"):
        own.draw(**paths, runs=TARGETS[:3], metrics=metrics.path, own=call)
    with pytest.raises(PluginError, match=r"mine.py:16: nothing: ZeroDivisionError"):
        own.draw(**paths, runs=TARGETS, metrics=metrics.path, own=call)


def test_forest(tmp_path, drawn):
    """A line per condition with its interval and replicates, and the verdict of the table beside it."""
    from consistency.config import load_experiment
    from consistency.config.gates import asked
    from consistency.report import verdicts

    cells = [("ode_error", "pixels", "teacher", 1), ("frechet_distance", "features", "data", 1)]
    labels = {"extractor": "features", "reference": "labels"}
    extra = [
        labels | {"run": "data", "method": "data", "metric": "held_out_accuracy", "value": 0.99},
        labels | {"run": "cm-ddim-n5-w4-s1", "method": "cm", "metric": "recognised", "sampling_steps": 1, "value": 0.1},
    ]
    metrics = Metrics(tmp_path / "m.csv", [*TARGETS, *PAIRS], cells, extra)
    paths = {"table": tmp_path / "claims.csv", "definitions": tmp_path / "claims.json"}
    claims = [claim.model_dump() for claim in load_experiment("digits", {"claims": ["A1", "B4"]}).claims]
    runs = [*TARGETS, *PAIRS]
    verdicts.check(paths, "x", metrics.path, runs, claims, gates=asked(load_experiment("digits")))
    figure = drawn(forest, runs=runs, **paths)
    assert [axes.get_title() for axes in figure.axes] == ["Claim A1", "Claim B4"]
    a1, b4 = figure.axes
    assert [label.get_text() for label in a1.get_yticklabels()] == [
        *("DDIM, N = 10, w = 1, 1-step", "DDIM, N = 5, w = 1, 1-step", "DDIM, N = 5, w = 4, 1-step"),
        "Mean of conditions (2)",
    ]
    rows = pd.read_csv(paths["table"])
    words = [text.get_text() for text in a1.texts]
    assert words[0] == "ODE error to teacher, direct/cm < 1"
    assert [text.partition(";")[0] for text in words[1:]] == rows.verdict[rows.claim == "A1"].tolist()
    assert "unsound" in words and "τ = " not in words[-1]  # two conditions are left
    for line in rows[rows.claim == "A1"].itertuples():
        ends = [shown.get_xdata() for shown in a1.lines if len(shown.get_xdata()) == 2 and shown.get_linewidth() == 1.3]
        low, high = a1.get_xlim()
        assert any(x == pytest.approx([max(low, line.ci_low), min(high, line.ci_high)]) for x in ends)
    dots = [shown.get_xdata() for shown in a1.lines if shown.get_markersize() == 1.6 and len(shown.get_xdata())]
    pairs = [metrics.values("ode_error", "teacher", method, "ddim-n10-w1") for method in ("direct", "cm")]
    assert sorted(dots[0]) == pytest.approx(sorted(pairs[0] / pairs[1]))
    only, *_ = [text.get_text() for text in b4.texts[1::2]]
    assert only == rows.verdict[(rows.claim == "B4") & rows.condition.map(verdicts.is_overall)].iloc[0]
    verdicts.check(paths, "x", metrics.path, runs, claims)  # three conditions
    assert "τ = " in drawn(forest, runs=runs, **paths).axes[0].texts[-1].get_text()
    verdicts.check(paths, "x", metrics.path, runs, [])  # no claim is decided
    assert not drawn(forest, runs=runs, **paths).axes[0].texts
