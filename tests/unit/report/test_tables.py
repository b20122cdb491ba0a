"""Tables: what stands in them, and the paper's values where the data set is the paper's."""

import pandas as pd
import pytest
from consistency.report import tables


@pytest.fixture
def metrics(tmp_path):
    rows = [
        (f"{method}-s{seed}", "frechet_distance", "data", 1, value + seed)
        for method, value in (("ct-ic", 8.0), ("ct-gc", 6.0))
        for seed in (0, 1, 2)
    ]
    rows += [("data", "frechet_distance", "other half of the data", None, 2.5)]
    frame = pd.DataFrame(rows, columns=["run", "metric", "reference", "sampling_steps", "value"])
    frame = frame.assign(method="", seed=0, solver="", n_steps=None, guidance=None, extractor="inception")
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    return tmp_path


RUNS = [
    {"run": f"{method}-s{seed}", "method": method, "seed": seed, "group": "scratch"}
    for method in ("ct-ic", "ct-gc")
    for seed in (0, 1, 2)
]


@pytest.mark.parametrize("data", ["cifar10", "digits"])
def test_couplings_with_the_papers_values_only_on_its_data(metrics, data):
    paths = {kind: metrics / f"table.{kind}" for kind in ("csv", "md", "tex", "html")}
    tables.couplings(paths, metrics / "metrics.csv", RUNS, "Title", data)
    text = paths["md"].read_text()
    assert "9.000 ± 2.484" in text  # mean and t interval of 8, 9, 10
    assert "2.500" in text
    assert ("Paper B: FID" in text) == (data == "cifar10")
    assert ("5.95 / .26 / 9.10" in text) == (data == "cifar10")
    assert ("reports no values on this data set" in text) == (data == "digits")


def test_every_data_set_of_paper_b_has_a_preset_whose_table_shows_its_values():
    from consistency.config.resolve import load_experiment

    assert {load_experiment(name).data_set for name in tables.PAPER_B} == set(tables.PAPER_B)


def test_a_metric_of_the_users_own_has_a_column(metrics):
    frame = pd.read_csv(metrics / "metrics.csv")
    own = frame[frame.metric == "frechet_distance"].assign(
        metric="brightness", extractor="own", reference="none", value=lambda rows: rows.value / 10
    )
    during = own[own.run != "data"].assign(metric="brightness@budget=0.5")
    yardstick = pd.DataFrame([frame.iloc[-1].to_dict() | {"method": "data"}])
    pd.concat([frame.iloc[:-1], yardstick, own.assign(method=own.run), during]).to_csv(
        metrics / "metrics.csv", index=False
    )
    paths = {kind: metrics / f"table.{kind}" for kind in ("csv", "md", "tex", "html")}
    tables.main_comparison(paths, metrics / "metrics.csv", RUNS, "Title")
    lines = [[cell.strip() for cell in line.split("|")] for line in paths["md"].read_text().splitlines() if "|" in line]
    column = next(n for n, cell in enumerate(lines[0]) if cell == "brightness, 1 step")
    assert [line[column] for line in lines[2:]] == ["0.900 ± 0.248", "0.700 ± 0.248", "0.250"]
    assert "Of your own: brightness." in paths["md"].read_text()


def test_the_teachers_own_distance_stands_below_its_students(tmp_path):
    runs = [
        {"run": f"cm-{group}", "method": "cm", "seed": 0, "group": group} for group in ("ddim-n5-w1", "ddim-n5-w1-lora")
    ]
    rows = [(run["run"], "data", 1, 8.125) for run in runs]
    rows += [("teacher-ddim-n5-w1-s0", "data", 5, 3.0), ("teacher-ddim-n5-w1-s1", "data", 5, 3.25)]  # of each replicate
    rows += [("teacher-ddim-n5-w1-s0", tables.OTHER_NOISES, 5, 0.125), ("data", tables.HALVES, None, 2.125)]
    frame = pd.DataFrame(rows, columns=["run", "reference", "sampling_steps", "value"])
    frame = frame.assign(metric="frechet_distance", method="", seed=0, solver="", n_steps=None, guidance=None)
    frame.assign(extractor="inception-v3").to_csv(tmp_path / "metrics.csv", index=False)
    paths = {kind: tmp_path / f"table.{kind}" for kind in ("csv", "md", "tex", "html")}
    tables.main_comparison(paths, tmp_path / "metrics.csv", runs, "Title")
    lines = [[cell.strip() for cell in line.split("|")] for line in paths["md"].read_text().splitlines() if "|" in line]
    assert lines[0][4:6] == ["FID to teacher, other noises, 1 step", "FID to data, 1 step"]
    assert [[line[2], *line[4:6]] for line in lines[2:]] == [
        ["CM", "–", "8.125"],
        ["Teacher, N steps", "0.125", "3.125 ± 1.588"],
        ["CM", "–", "8.125"],
        ["Teacher, N steps", "0.125", "3.125 ± 1.588"],
        ["Data", "–", "2.125"],
    ]
