"""The rule that decides a claim, on made-up numbers whose verdict is known."""

import math

import pandas as pd
import pytest
from consistency import config
from consistency.config.claims import CLAIMS, OTHER_NOISES
from consistency.errors import ConfigError, MismatchError
from consistency.files.storage import read_table, write_json
from consistency.report import tables, verdicts
from consistency.report.statistics import t_interval
from helpers import registry_of_metrics


def table(ratios, metric="ode_error", reference="teacher", steps=(1,)):
    """Metrics and runs in which direct / cm is ratios[condition][seed]."""
    metrics, runs = [], []
    for condition, values in ratios.items():
        for seed, ratio in enumerate(values):
            for method, value in (("cm", 2.0 + seed), ("direct", (2.0 + seed) * ratio)):
                run = f"{method}-{condition}-s{seed}"
                runs.append({"run": run, "method": method, "seed": seed, "group": condition})
                for n in steps:
                    metrics.append((run, metric, reference, n, value))
    frame = pd.DataFrame(metrics, columns=["run", "metric", "reference", "sampling_steps", "value"])
    frame["extractor"] = "pixels"
    return frame, pd.DataFrame(runs)


def overall(name, frame, runs):
    rows = [row for row in verdicts.decide([CLAIMS[name]], "x", frame, runs) if verdicts.is_overall(row["condition"])]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize(
    ("ratios", "expected", "reason"),
    [
        ([0.5, 0.52, 0.48], "reproduced", "interval [0.452, 0.552] lies below 1 by more than 5 %"),
        ([1.5, 1.52, 1.48], "contradicted", "interval [1.45, 1.55] lies above 1 by more than 5 %"),
        ([0.99, 1.0, 1.01], "no difference", "interval [0.975, 1.03] lies within 5 % of 1"),
        ([0.93, 0.94, 0.95], "inconclusive", "interval [0.915, 0.965] comes within 5 % of 1"),
        ([0.5, 1.1, 1.6], "inconclusive", "interval [0.219, 4.19] covers 1"),
        ([0.5, 0.5], "inconclusive", "2 seeds, needs 3"),  # however clear
    ],
)
def test_verdicts(ratios, expected, reason):
    frame, runs = table({"ddim-n10-w1": ratios})
    first, row = verdicts.decide([CLAIMS["A1"]], "x", frame, runs)
    assert (row["verdict"], row["reason"]) == (first["verdict"], first["reason"]) == (expected, reason)
    assert row["effect"] == pytest.approx(math.prod(ratios) ** (1 / len(ratios)))
    if len(set(ratios)) > 1:
        assert row["ci_low"] < row["effect"] < row["ci_high"]
    else:
        assert row["ci_low"] == pytest.approx(row["effect"]) == pytest.approx(row["ci_high"])
    assert row["n_seeds"] == len(ratios)
    assert list(row) == verdicts.COLUMNS


def test_the_claimed_direction_of_quality_is_the_other_one():
    frame, runs = table({"a": [0.5, 0.52, 0.48]}, "frechet_distance", "teacher")
    assert overall("A2", frame, runs)["verdict"] == "contradicted"
    frame, runs = table({"a": [2.0, 2.1, 1.9]}, "frechet_distance", "teacher")
    assert overall("A2", frame, runs)["verdict"] == "reproduced"


def test_pairing_by_seed_is_used():
    """Seeds differ far more than methods do; the paired ratio is clear all the same."""
    frame, runs = table({"a": [0.9, 0.91, 0.89]})
    frame["value"] *= frame.run.str[-1].astype(int).map({0: 1.0, 1: 100.0, 2: 0.01})
    assert overall("A1", frame, runs)["verdict"] == "reproduced"


def test_a_universal_claim_stands_on_its_least_favourable_condition():
    good, weak, bad = [0.5, 0.52, 0.48], [0.9, 1.1, 1.0], [1.5, 1.51, 1.49]
    row = overall("A3", *table({"a": good, "b": good}))
    assert row["verdict"] == "reproduced"
    row = overall("A3", *table({"a": good, "b": weak}))
    assert (row["verdict"], row["effect"]) == ("inconclusive", pytest.approx(math.prod(weak) ** (1 / 3)))
    assert row["reason"] == "b: interval [0.777, 1.28] covers 1"
    row = overall("A3", *table({"a": good, "b": weak, "c": bad}))
    assert (row["verdict"], row["reason"]) == (
        "contradicted",
        "c: 98.33 % interval [1.46, 1.54] lies above 1 by more than 5 % (Holm)",
    )
    assert row["effect"] == pytest.approx(1.5, rel=0.01)
    assert row["condition"] == "every condition (3)"
    row = overall("A3", *table({"a": good, "b": [1.0, 1.01, 0.99]}))
    assert (row["verdict"], row["reason"]) == ("mixed", "reproduced in a; no difference in b")


def test_pooling_takes_seeds_that_every_condition_has():
    row = overall("A1", *table({"a": [0.5, 0.5, 0.5, 9.0], "b": [0.5, 0.52, 0.48]}))
    assert row["n_seeds"] == 3
    assert row["effect"] < 0.55


def test_a_table_without_claims_is_still_a_table(tmp_path):
    path = tmp_path / "claims.csv"
    pd.DataFrame([], columns=verdicts.COLUMNS).to_csv(path, index=False)
    tables.claims({kind: tmp_path / f"claims.{kind}" for kind in ("md", "tex", "html")}, path, [])
    assert "Verdict" in (tmp_path / "claims.html").read_text()


def test_a_universal_claim_is_not_contradicted_by_chance_among_many_conditions():
    """One of twenty conditions is just past 95 % on the wrong side: not enough after correction."""
    edge = [1.15, 1.17, 1.19]
    assert overall("A1", *table({"a": edge}))["verdict"] == "contradicted"
    ratios = {f"c{i}": [0.9, 1.1, 1.0] for i in range(19)} | {"edge": edge}
    row = overall("A3", *table(ratios))
    assert (row["verdict"], row["reason"].partition(" [")[0]) == ("inconclusive", "edge: 99.75 % interval")


def test_few_step_sampling_counts_for_universal_claims_only():
    frame, runs = table({"a": [0.5, 0.52, 0.48]}, steps=(1, 4))
    assert [row["condition"] for row in verdicts.decide([CLAIMS["A1"]], "x", frame, runs)] == [
        "a, 1-step",
        "pooled (1)",
    ]
    names = [row["condition"] for row in verdicts.decide([CLAIMS["A3"]], "x", frame, runs)]
    assert names == ["a, 1-step", "a, 4-step", "every condition (2)"]


def test_pooling_is_over_conditions_within_a_seed():
    row = overall("A1", *table({"a": [0.5, 0.5, 0.5], "b": [2.0, 2.2, 1.9]}))
    means = [(math.log(0.5) + math.log(r)) / 2 for r in (2.0, 2.2, 1.9)]
    assert row["effect"] == pytest.approx(math.exp(sum(means) / 3))
    assert (row["verdict"], row["reason"]) == ("mixed", "reproduced in a; contradicted in b")


def test_the_mean_of_two_conditions_decides_nothing():
    """It speaks of these two: its interval is over replicates, and where one of them is not decided it isn't either."""
    row = overall("A1", *table({"a": [0.5, 0.5, 0.5], "b": [0.6, 1.1, 0.8]}))
    means = [(math.log(0.5) + math.log(r)) / 2 for r in (0.6, 1.1, 0.8)]
    assert [row["effect"], row["ci_high"]] == pytest.approx([math.exp(v) for v in t_interval(means)[::2]])
    assert row["ci_high"] < 1 / 1.05, "or the mean would not decide in any case"
    assert row["verdict"] == "inconclusive"
    assert row["reason"] == "two conditions are too few for their mean to decide; reproduced in a"


def rows_of(name, frame, runs):
    return {row["condition"]: row for row in verdicts.decide([CLAIMS[name]], "x", frame, runs)}


FIVE = [0.5, 0.52, 0.48, 0.51, 0.49]


def test_a_run_without_its_partner_is_named():
    frame, runs = table({"a": FIVE, "b": FIVE})
    frame = frame[~frame.run.isin(["cm-a-s2", "cm-a-s4", "direct-a-s0"])]
    found = rows_of("A1", frame, runs)
    assert {name: row["reason"].partition("; ")[2] for name, row in found.items()} == {
        "a, 1-step": "direct lacks seed 0; cm lacks seeds 2, 4",
        "b, 1-step": "",
        "pooled (2)": "reproduced in b; seeds that not every condition has are left out: 0, 2, 4",
    }
    assert found["a, 1-step"]["reason"].startswith("2 seeds, needs 3; ")
    assert found["pooled (2)"]["reason"].startswith("two conditions are too few for their mean to decide; ")
    assert [row["n_seeds"] for row in found.values()] == [2, 5, 2]
    assert all(verdicts.is_overall(name) == name.startswith("pooled") for name in found)


@pytest.mark.parametrize("claim", ["A1", "A3"])
@pytest.mark.parametrize("value", [0.0, -0.3])
def test_pairs_without_a_ratio_leave_their_row_inconclusive(claim, value):
    """Five seeds with two bad ones are not three good seeds."""
    frame, runs = table({"a": FIVE})
    assert {row["verdict"] for row in rows_of(claim, frame, runs).values()} == {"reproduced"}
    frame.loc[frame.run.isin(["direct-a-s1", "cm-a-s3"]), "value"] = value
    found = rows_of(claim, frame, runs)
    for row in found.values():
        assert (row["verdict"], row["n_seeds"]) == ("inconclusive", 3)
        assert row["reason"] == "no ratio for seeds 1, 3, where a value is not above 0"
        assert row["effect"] == pytest.approx(math.prod([0.5, 0.48, 0.49]) ** (1 / 3))


@pytest.mark.parametrize("claim", ["A1", "A3"])
def test_a_distance_of_zero_everywhere_has_a_row(tmp_path, claim):
    frame, runs = table({"a": FIVE})
    frame.loc[frame.run.str.startswith("direct"), "value"] = 0.0
    found = rows_of(claim, frame, runs)
    assert [(row["verdict"], row["n_seeds"]) for row in found.values()] == [("inconclusive", 0)] * 2
    assert all(math.isnan(row["effect"]) for row in found.values())
    assert all("0, 1, 2, 3, 4" in row["reason"] for row in found.values())
    pd.DataFrame(found.values()).to_csv(tmp_path / "claims.csv", index=False)
    (tmp_path / "x").mkdir()
    write_json(tmp_path / "x/claims.json", {"claims": [claim]})
    summary = verdicts.summary(tmp_path / "claims.csv")
    assert f"inconclusive  {next(iter(found.values()))['quantity']}" in summary
    assert "nan" not in summary


def test_one_condition_without_a_ratio_holds_back_every_condition():
    """But a clear contradiction elsewhere stays one."""
    bad = [1.5, 1.51, 1.49, 1.5, 1.52]
    for other, expected in ((FIVE, "inconclusive"), (bad, "contradicted")):
        frame, runs = table({"a": FIVE, "b": other})
        frame.loc[frame.run == "cm-a-s0", "value"] = 0.0
        row = overall("A3", frame, runs)
        assert (row["verdict"], row["condition"]) == (expected, "every condition (2)")
        assert ("no ratio for seed 0" in row["reason"]) == (expected == "inconclusive")


def test_a_condition_that_one_side_was_not_run_in_has_a_row():
    frame, runs = table({"a": FIVE, "b": FIVE})
    keep = ~((runs.method == "direct") & (runs.group == "b"))
    found = rows_of("A3", frame[frame.run.isin(runs.run[keep])], runs[keep])
    assert list(found) == ["a, 1-step", "b, 1-step", "every condition (1)"]
    assert found["b, 1-step"]["reason"] == "direct has no values"
    assert found["every condition (1)"]["reason"].endswith("; 1 more without direct or cm")
    assert [row["verdict"] for row in found.values()] == ["reproduced", "inconclusive", "reproduced"]
    # a method that the experiment does not have at all is no quantity of it
    only = runs.method == "cm"
    assert rows_of("A3", frame[frame.run.isin(runs.run[only])], runs[only]) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_an_error_that_names_the_run(value):
    frame, runs = table({"a": FIVE})
    frame.loc[frame.run == "direct-a-s3", "value"] = value
    with pytest.raises(MismatchError) as caught:
        verdicts.decide([CLAIMS["A1"]], "digits", frame, runs)
    assert "digits: ode_error (extractor pixels, reference teacher) of run direct-a-s3 is" in str(caught.value)


def test_each_extractor_gets_its_verdict_and_only_inception_is_called_fid():
    frame, runs = table({"c": [1.5, 1.52, 1.48]}, metric="frechet_distance")
    other, _ = table({"c": [0.5, 0.52, 0.48]}, metric="frechet_distance")
    frame = pd.concat([frame.assign(extractor="inception-v3"), other.assign(extractor="efficientnet-lite0")])
    rows = [row for row in verdicts.decide([CLAIMS["A2"]], "x", frame, runs) if verdicts.is_overall(row["condition"])]
    assert {row["quantity"]: row["verdict"] for row in rows} == {
        "FID to teacher, direct/cm > 1": "reproduced",
        "Fréchet distance (efficientnet-lite0) to teacher, direct/cm > 1": "contradicted",
    }


def test_scores_are_claimed_the_other_way_and_need_positive_values():
    frame, runs = table({"c": [0.5, 0.52, 0.48]}, metric="aesthetic_score", reference="none")
    row = overall("A2", frame, runs)
    assert (row["quantity"], row["verdict"]) == ("Aesthetic score, direct/cm < 1", "reproduced")
    frame.loc[frame.run.str.endswith("s0"), "value"] *= -1  # no ratio of negative scores
    row = overall("A2", frame, runs)
    assert (row["n_seeds"], row["verdict"]) == (2, "inconclusive")
    assert row["reason"] == "no ratio for seed 0, where a value is not above 0"


OWN = {"ours": "direct", "other": "cm", "metric": "brightness", "reference": "none", "direction": "below"}


def checked(*claims, preset="digits", **more):
    """The claims of a preset that has these, as a job gets them."""
    registry = registry_of_metrics("brightness")
    loaded = config.load_experiment(preset, {"claims": list(claims)}, registry=registry, **more).claims
    return [claim.model_dump() for claim in loaded]


def decided(tmp_path, frame, runs, claims, experiment="x"):
    """The claims table of a job, through its files."""
    folder = tmp_path / experiment
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "metrics.csv", index=False)
    paths = {"table": folder / "claims.csv", "definitions": folder / "claims.json"}
    verdicts.check(paths, experiment, folder / "metrics.csv", runs.to_dict("records"), claims)
    return read_table(folder / "claims.csv", converters=verdicts.AS_TEXT)


def test_a_claim_of_the_users_own_goes_through_to_table_page_and_summary(tmp_path):
    own = OWN | {"name": "dimmer", "sentence": "Direct CMs draw dimmer digits than CMs."}
    frame, runs = table({"ddim-n10-w1": FIVE}, "brightness", "none")
    rows = decided(tmp_path, frame, runs, checked("A1", own))
    assert [",".join(line.split(",")[:4]) for line in (tmp_path / "x/claims.csv").read_text().splitlines()[1:]] == [
        'dimmer,,x,"ddim-n10-w1',
        "dimmer,,x,pooled (1)",
    ]
    assert set(rows.quantity) == {"brightness, direct/cm < 1"}
    assert rows.verdict.tolist() == ["reproduced", "reproduced"]
    assert rows.effect.tolist() == pytest.approx([math.prod(FIVE) ** (1 / 5)] * 2)

    rows.to_csv(tmp_path / "claims.csv", index=False)
    paths = {kind: tmp_path / f"claims.{kind}" for kind in ("md", "tex", "html")}
    tables.claims(paths, tmp_path / "claims.csv", [tmp_path / "x/claims.json"])
    assert "- **dimmer**: Direct CMs draw dimmer digits than CMs." in paths["md"].read_text()
    assert "<h2>dimmer: Direct CMs draw dimmer digits than CMs.</h2>" in paths["html"].read_text()
    assert "dimmer & reproduced" in paths["tex"].read_text()
    first, second = verdicts.summary(tmp_path / "claims.csv").split("\n")  # what is reproduced needs no reason there
    assert first == "dimmer on x: Direct CMs draw dimmer digits than CMs."
    # exp of log(0.5) ± t₀.₉₇₅(4) s / √5, where s = 0.0316: 0.5 e^±0.0392
    expected = "reproduced brightness, direct/cm < 1 0.5 [0.481, 0.52] pooled (1), 5 seeds"
    assert " ".join(second.split()) == expected


def test_a_claim_without_name_and_sentence_gets_both_of_what_it_compares():
    [claim] = checked(OWN | {"metric": "frechet_distance", "reference": "data"})
    assert (claim["name"], claim["sentence"]) == (
        "direct-cm-frechet_distance-data",
        "Fréchet distance to data, direct/cm < 1",
    )
    [claim] = checked(OWN | {"metric": "frechet_distance", "reference": OTHER_NOISES})
    assert claim["name"] == "direct-cm-frechet_distance-teacher_other_noises"
    sides = {"ours": "generator_induced", "other": "independent"}
    [claim] = checked({**OWN, "ours": "ct-gc", "other": "ct-gc", "metric": "transport_cost", "reference": sides})
    assert (claim["name"], claim["sentence"]) == (
        "ct-gc-transport_cost-generator_induced-independent",
        "Transport cost, generator induced/independent < 1",
    )


def test_a_claim_chooses_sampling_steps_and_extractor():
    frame, runs = table({"a": FIVE}, "frechet_distance", "data", steps=(1, 2, 4))
    frame = pd.concat([frame.assign(extractor=name) for name in ("inception-v3", "efficientnet-lite0")])
    own = OWN | {"metric": "frechet_distance", "reference": "data"}

    def conditions(**more):
        [claim] = config.load_experiment("fashion", {"claims": [own | more]}).claims
        rows = verdicts.decide([claim], "x", frame, runs)
        return [(row["quantity"].partition(" to ")[0], row["condition"]) for row in rows]

    names = ["FID", "Fréchet distance (efficientnet-lite0)"]
    assert conditions() == [(name, condition) for name in names for condition in ("a, 1-step", "pooled (1)")]
    assert conditions(without="efficientnet-lite0") == [(names[0], "a, 1-step"), (names[0], "pooled (1)")]
    assert conditions(sampling_steps=[2, 4], extractor="efficientnet-lite0") == [
        (names[1], "a, 2-step"),
        (names[1], "a, 4-step"),
        (names[1], "pooled (2)"),
    ]
    assert conditions(sampling_steps=4, universal=True, extractor="efficientnet-lite0") == [
        (names[1], "a, 4-step"),
        (names[1], "every condition (1)"),
    ]


def test_a_claim_whose_metric_has_no_values_is_named(tmp_path, caplog):
    frame, runs = table({"a": FIVE})
    rows = decided(tmp_path, frame, runs, checked(OWN, "A1", "B3"))
    assert set(rows.claim) == {"A1"}
    assert [record.getMessage() for record in caplog.records] == [  # B3's methods have no runs: the dry run says so
        "x: claims: direct-cm-brightness-none: not decided: metrics.csv does not have what it compares"
    ]


def test_a_table_that_its_definitions_do_not_match_is_an_error(tmp_path):
    frame, runs = table({"a": FIVE})
    decided(tmp_path, frame, runs, checked("A1")).to_csv(tmp_path / "claims.csv", index=False)
    write_json(tmp_path / "x/claims.json", {"claims": checked("A2")})
    with pytest.raises(MismatchError, match=r"x/claims\.json: no claim 'A1', which has verdicts"):
        verdicts.summary(tmp_path / "claims.csv")


def test_conditions_that_agree_decide_together_however_different():
    """Two conditions are too few for a mean of conditions in general, but both say the same."""
    row = overall("A1", *table({"a": FIVE, "b": [ratio / 2 for ratio in FIVE]}))
    assert (row["verdict"], row["reason"]) == ("reproduced", "each condition by itself")
    near = [1.02, 1.0, 0.99, 1.01, 0.98]
    row = overall("A1", *table({"a": near, "b": near[::-1], "c": near}))
    assert row["verdict"] == "no difference"
    assert row["reason"].startswith("each condition by itself; a further condition: [0.9")


def test_weak_conditions_decide_by_their_mean():
    """Each reaches into the margin; the mean of five does not. One that shows no difference is named beside it."""
    spread = [-0.2, 0.1, 0.05, -0.1, 0.15]
    weak = {f"c{i}": [0.8 * math.exp(spread[(i + j) % 5]) for j in range(5)] for i in range(5)}
    rows = rows_of("A1", *table(weak))
    assert [row["verdict"] for row in rows.values()] == ["inconclusive"] * 5 + ["reproduced"]
    assert rows["pooled (5)"]["effect"] == pytest.approx(0.8)
    assert rows["pooled (5)"]["reason"].startswith("mean over conditions: interval [")
    row = overall("A1", *table(weak | {"same": [1.0, 1.01, 0.99, 1.0, 1.0]}))
    assert (row["verdict"], "; no difference in same; " in row["reason"]) == ("reproduced", True)


def test_overall_rows_of_an_experiment_are_tested_together():
    """An interval that decides alone does not among ten, of which the others do not decide either."""
    edge = [0.75, 0.85, 0.8, 0.95, 0.75]
    frame, runs = table({"a": edge})
    [alone, pooled] = verdicts.decide([CLAIMS["A1"]], "x", frame, runs)
    assert (alone["verdict"], pooled["verdict"]) == ("reproduced", "reproduced")
    noise, _ = table({"a": [0.5, 1.5, 1.0, 0.7, 1.3]})
    others = [
        CLAIMS["A1"].model_copy(update={"name": f"n{i}", "quantities": [quantity]})
        for i, quantity in enumerate(q.model_copy(update={"metric": "noise"}) for q in CLAIMS["A1"].quantities[:1] * 9)
    ]
    both = pd.concat([frame, noise.assign(metric="noise")])
    [alone, pooled, *_] = verdicts.decide([CLAIMS["A1"], *others], "x", both, runs)
    assert (alone["verdict"], pooled["verdict"]) == ("reproduced", "inconclusive")
    assert pooled["reason"].startswith("99.5 % interval [") and pooled["reason"].endswith(" 1 (Holm)")
    assert (alone["ci_low"], alone["ci_high"]) == (pooled["ci_low"], pooled["ci_high"])  # both at 95 %


def test_an_unsound_run_leaves_its_condition_out():
    frame, runs = table({"a": FIVE, "b": [2.0, 2.1, 1.9, 2.0, 2.0]})

    def rows(**unsound):
        named = {run.replace("_", "-"): reason for run, reason in unsound.items()}
        return verdicts.decide([CLAIMS["A1"]], "x", frame, runs, unsound=named)

    assert [row["verdict"] for row in rows()] == ["reproduced", "contradicted", "mixed"]
    reason = "teacher recognised at 0.25, needs 0.89"
    a, b, pooled = rows(cm_b_s3=reason)
    assert (b["verdict"], b["reason"], b["effect"]) == ("unsound", reason, pytest.approx(2.0, rel=0.01))
    assert (pooled["verdict"], pooled["condition"], pooled["effect"]) == ("reproduced", "pooled (1)", a["effect"])
    assert pooled["reason"].endswith(" by more than 5 %; 1 more unsound")
    a, b, pooled = rows(cm_b_s3=reason, direct_a_s0="not finite")
    assert [row["verdict"] for row in (a, b, pooled)] == ["unsound"] * 3
    assert (pooled["condition"], pooled["reason"]) == ("pooled (2)", "not finite")
    assert pooled["effect"] == pytest.approx(1.0, rel=0.01)
    assert [row["verdict"] for row in rows(elsewhere=reason)] == ["reproduced", "contradicted", "mixed"]


def gaps(values):
    """Metrics and runs of one method: velocity gap at 1,280 and 320 steps and in the limit, by seed."""
    rows, runs = [], []
    for seed, gap in enumerate(values):
        runs.append({"run": f"cd-s{seed}", "method": "cd", "seed": seed, "group": "scratch"})
        points = ("velocity_gap@steps=1280", "velocity_gap@steps=320", "velocity_gap@limit")
        rows += [(f"cd-s{seed}", point, "independent", 1, value) for point, value in zip(points, gap)]
    frame = pd.DataFrame(rows, columns=["run", "metric", "reference", "sampling_steps", "value"])
    return frame.assign(extractor="coordinates"), pd.DataFrame(runs)


@pytest.mark.parametrize(
    ("of", "expected", "reason"),
    [
        ((1.0, 1.02, 1.1), ["reproduced", "reproduced"], "lies within 25 % of 1"),
        ((0.25, 1.0, 0.2), ["contradicted", "inconclusive"], "reaches beyond 25 % of 1"),
        ((0.5, 1.0, 1.0), ["no difference", "contradicted"], "lies below 1 by more than 25 %"),
    ],
)
def test_a_gap_that_stays_and_one_that_vanishes(of, expected, reason):
    frame, runs = gaps([[value * (1 + 0.01 * seed * (n == 0)) for n, value in enumerate(of)] for seed in range(4)])
    rows = [row for row in verdicts.decide([CLAIMS["B1"]], "x", frame, runs) if verdicts.is_overall(row["condition"])]
    assert [row["verdict"] for row in rows] == expected
    assert reason in rows[1]["reason"]
    assert rows[0]["effect"] == pytest.approx(of[0] / of[1], rel=0.02)


def test_the_margin_is_the_presets_or_the_quantitys_own():
    frame, runs = table({"a": [0.93, 0.94, 0.95]})
    said = [verdicts.decide([CLAIMS["A1"]], "x", frame, runs, margin=margin)[0]["verdict"] for margin in (0, 0.05, 0.2)]
    assert said == ["reproduced", "inconclusive", "no difference"]
    [own] = config.load_experiment(
        "digits", {"claims": [OWN | {"metric": "ode_error", "reference": "teacher", "margin": 0}]}
    ).claims
    assert verdicts.decide([own], "x", frame, runs, margin=0.2)[0]["verdict"] == "reproduced"
    with pytest.raises(ConfigError, match=r"digits: margin: -1 is not allowed"):
        config.load_experiment("digits", {"margin": -1})


def test_a_reason_names_three_conditions_and_counts_the_others():
    ratios = {f"c{i}": FIVE for i in range(5)} | {"other": [2.0, 2.1, 1.9, 2.0, 2.0]}
    row = overall("A1", *table(ratios))
    assert row["reason"].startswith(
        "reproduced in c0, c1, c2 and 2 more; contradicted in other; a further condition: ["
    )
    few = table(ratios, steps=(1, 4))
    assert overall("A3", *few)["reason"].startswith("other (1-step): ")
