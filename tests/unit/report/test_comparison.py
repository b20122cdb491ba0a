"""Two folders of results compared, on small tables whose differences are known."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from consistency.errors import ConsistencyError
from consistency.files.storage import write_json, write_table
from consistency.report import comparison
from helpers import ROOT, write_any_json
from hostile import TEXTS
from readers import UNSEEN, Page, without_handlers, words
from scipy import stats

CLAIM = {
    "claim": "A1",
    "paper": "A",
    "experiment": "digits",
    "condition": "pooled (2)",
    "quantity": "error, direct/cm < 1",
}
CLAIM |= {"effect": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n_seeds": 3, "verdict": "reproduced", "reason": ""}
UNCERTAIN = CLAIM | {"effect": 0.7, "ci_low": 0.45, "ci_high": 1.1, "verdict": "inconclusive"}
CPU = {
    "cpu": "EPYC",
    "instruction_set": "AVX512",
    "cpu_variables": {},
    "packages": {"torch": "2.13.0"},
    "git_commit": "c0",
}


def number(values, metric="ode_error", run="cm-n10", experiment="digits"):
    """A metric's rows of metrics.csv: of one value without a seed, or of seeds 0, 1, …"""
    seeds = range(len(values)) if isinstance(values, list) else [None]
    rows = zip(seeds, values if isinstance(values, list) else [values], strict=True)
    names = {"experiment": experiment, "metric": metric, "extractor": "pixels", "reference": "teacher"}
    names |= {"sampling_steps": 1.0 if seeds[0] is not None else None}
    return [names | {"run": run if s is None else f"{run}-s{s}", "seed": s, "value": value} for s, value in rows]


@pytest.fixture
def folder(tmp_path):
    def write(name, claims, numbers, *records):
        folder = tmp_path / name
        (folder / "digits/metrics").mkdir(parents=True)
        columns = list(claims[0]) if claims else comparison.COLUMNS
        write_table(folder / "claims.csv", pd.DataFrame(claims, columns=columns))
        write_table(folder / "metrics.csv", pd.DataFrame([row for rows in numbers for row in rows]))
        for count, record in enumerate(records):
            write_json(folder / f"digits/metrics/{count}.json", record)
        return folder

    return write


def test_a_folder_and_itself(folder, tmp_path):
    seeds = number([1.0, 2.0, 3.0]), number(0.25, run="data")
    none = {"effect": math.nan, "ci_low": math.nan, "ci_high": math.nan, "condition": "n10", "n_seeds": 0}
    a = folder("a", [CLAIM, CLAIM | none], seeds, {"environment": CPU})
    b = folder("b", [CLAIM | none, CLAIM], seeds[::-1], {"environment": CPU | {"instruction_set": "AVX2"}})
    for other in (a, b):
        same = comparison.compare(a, other)
        assert same.words == [f"A is {a}, B is {other}.", "No difference: all verdicts and all numbers are the same."]
        assert not same.verdict_changed
        assert [heading for heading, table in same.tables.items() if len(table)] == ["Made with"]
    comparison.write(tmp_path / "page.html", same)
    assert "No difference" in comparison.text(same)
    assert Page((tmp_path / "page.html").read_text(encoding="utf-8")).of("h2") == ["Made with"]


def test_a_changed_verdict_and_why(folder):
    condition = {"condition": "n10, 1-step"}
    a = folder("a", [CLAIM | condition, CLAIM], [number([1.0, 2.0])])
    reason = {"reason": "interval [0.45, 1.1] covers 1"}
    moved = {"effect": 2.0, "ci_low": 1.5, "ci_high": 2.5, "verdict": "contradicted", "n_seeds": 5}
    b = folder("b", [CLAIM | condition | moved, UNCERTAIN | reason | {"condition": "pooled (1)"}], [number([1.0, 2.0])])
    changed = comparison.compare(a, b)
    assert changed.verdict_changed
    assert changed.words[1] == "2 of 2 verdicts differ, 1 of them of overall rows."
    first, second = changed.tables["Verdicts that differ"].values.tolist()
    assert first[:5] == [
        *("A1 on digits: error, direct/cm < 1; pooled", "reproduced", "inconclusive"),
        *("0.5 [0.4, 0.6]", "0.7 [0.45, 1.1]"),
    ]
    assert (
        first[5]
        == "the intervals overlap: the effects agree as far as these seeds tell; B: interval [0.45, 1.1] covers 1"
    )
    assert second[0].endswith("; n10, 1-step")
    assert second[5] == "the effect moved beyond the intervals; 3 seeds in A, 5 in B"
    lines = comparison.text(changed).split("\n")
    start = lines.index(first[0])
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["A:", "reproduced", "0.5", "[0.4,", "0.6]"],
        ["B:", "inconclusive", "0.7", "[0.45,", "1.1]"],
    ]


def test_tables_of_before_there_were_reasons(folder):
    old = {key: value for key, value in CLAIM.items() if key != "reason"}
    a = folder("a", [old | {"condition": "pooled (2) (1 more without cm)"}], [number([1.0, 2.0])])
    b = folder("b", [UNCERTAIN | {"reason": "because", "effect": math.nan}], [number([1.0, 2.0])])
    (row,) = comparison.compare(a, b).tables["Verdicts that differ"].values.tolist()
    assert row[4:] == ["–", "a side has no ratio; B: because"]


def test_numbers_that_moved(folder):
    """Those whose intervals, worked out with scipy, do not overlap; the largest relative change first."""
    values = {
        "tripled": ([1.0, 1.1, 1.2], [3.0, 3.3, 3.6]),
        "negative": ([-1.0, -1.1, -0.9], [-1.4, -1.5, -1.6]),  # no logarithms
        "opposite": ([-0.1, -0.11, -0.09], [0.2, 0.21, 0.19]),
        "within": ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]),
        "rounded": ([0.5, 0.5], [0.5 + 1e-9, 0.5 + 1e-9]),
        "same": ([1.0, 2.0], [2.0, 1.0]),
        "around zero": ([-1.0, 1.0], [-2.0, 2.0]),
    }
    numbers = [[number(pair[side], metric) for metric, pair in values.items()] for side in (0, 1)]
    singles = [number(1.0, run="data"), number(1.25, run="data")], [[], number([9.0], "one seed")]
    a = folder("a", [CLAIM], [*numbers[0], singles[0][0], number([1.0, 1.0], "one seed")])
    b = folder("b", [CLAIM], [*numbers[1], singles[0][1], singles[1][1]])
    compared = comparison.compare(a, b)
    moved = compared.tables["Numbers that moved"]
    assert list(moved.Number.str.extract(r": ([\w ]+) to teacher \(pixels\)")[0]) == ["opposite", "tripled", "negative"]
    assert list(moved.Change) == ["+0.3", "× 3", "-0.5"]
    assert not compared.verdict_changed
    assert compared.words[1] == "0 of 1 verdicts differ, 0 of them of overall rows."
    # "one seed" has two equal values on one side and one on the other
    assert compared.words[2] == (
        "3 of 9 numbers moved beyond their intervals, 3 differ within them. 2 more differ that have one value in a folder, "
        "and so no interval: by up to 89 % of the larger value (digits, cm-n10, 1-step: one seed to teacher (pixels))."
    )
    logarithms = np.log(values["tripled"][0])
    low, high = np.exp(stats.t.interval(0.95, 2, logarithms.mean(), stats.sem(logarithms)))
    assert moved.A[1] == f"{np.exp(logarithms.mean()):.3g} [{low:.3g}, {high:.3g}]"
    assert moved.Number[1].startswith("digits, cm-n10, 1-step: tripled")


def test_the_rest_is_counted(folder, tmp_path):
    count = comparison.LISTED + 5
    a, b = (
        folder(n, [CLAIM], [number([x, x + 0.01], f"m{i:03d}") for i in range(count)])
        for n, x in (("a", 1.0), ("b", 9.0))
    )
    compared = comparison.compare(a, b)
    assert f"and {count - comparison.PRINTED} more" in comparison.text(compared).split("\n")
    comparison.write(tmp_path / "page.html", compared)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<p>and 5 more</p>" in page
    assert page.count("<tr>") == comparison.LISTED + 3  # and what they were made with


def test_few_numbers_move_by_chance(folder):
    """Of numbers with one distribution, 3 seeds each: 0.6 % is what the docs say."""
    draws = np.random.default_rng(0).lognormal(size=(2, 3000, 3))
    a, b = (
        folder(n, [CLAIM], [number(list(v), f"m{i}") for i, v in enumerate(d)])
        for n, d in zip("ab", draws, strict=True)
    )
    assert len(comparison.compare(a, b).tables["Numbers that moved"]) < 30


def test_what_one_folder_has_alone(folder):
    """Also of names that pandas would take for a missing value."""
    a = folder(
        "a", [CLAIM, CLAIM | {"claim": "NA"}, CLAIM | {"condition": "n10"}], [number([1.0]), number([1.0], run="x")]
    )
    more = number([1.0], experiment="ring")
    b = folder("b", [CLAIM, CLAIM | {"experiment": "ring"}], [number([1.0]), number([1.0], "other"), more])
    compared = comparison.compare(a, b)
    assert compared.verdict_changed  # one that is gone does not stand
    assert compared.tables["In one alone"].values.tolist() == [
        ["A", "claim NA on digits"],
        ["A", "A1 on digits: error, direct/cm < 1; n10"],
        ["A", "run x of digits"],
        ["B", "experiment ring"],
        ["B", "digits, cm-n10, 1-step: other to teacher (pixels)"],
    ]


def test_what_both_were_made_with(folder):
    """Of measuring and of training; records of before processors were recorded count as not recorded."""
    old = {key: CPU[key] for key in ("packages", "git_commit")}
    a = folder("a", [CLAIM], [number([1.0])], {"environment": old})
    trained = {"student": {"environment": CPU | {"instruction_set": "AVX2", "cpu_variables": {"MKL_CBWR": "AVX2"}}}}
    b = folder("b", [CLAIM], [number([1.0])], {"environment": CPU, "settings": trained}, {"environment": CPU})
    table = comparison.compare(a, b).tables["Made with"]
    assert table.set_index("")[["A", "B"]].T.to_dict("list") == {
        "CPU": ["not recorded", "EPYC"],
        "instruction set": ["not recorded", "AVX512, AVX2"],
        "commit": ["c0", "c0"],
        "torch": ["2.13.0", "2.13.0"],
        "MKL_CBWR": ["not recorded", "AVX2"],
    }
    printed = [line.split("  ")[0] for line in comparison.text(comparison.compare(a, b)).split("\n")]
    assert printed[-4:] == ["CPU", "instruction set", "commit", "MKL_CBWR"]  # torch is the same


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("claims.csv", None, "cannot be read"),
        ("metrics.csv", None, "cannot be read"),
        ("claims.csv", "claim,experiment\nA1,digits\n", "has no column condition"),
        ("metrics.csv", "experiment\ndigits\n", "has no column run"),
        (
            "metrics.csv",
            "experiment,run,metric,extractor,reference,sampling_steps,seed,value\n" + "a," * 7 + "much\n",
            "metrics.csv",
        ),
        (
            "metrics.csv",
            "experiment,run,metric,extractor,reference,sampling_steps,seed,value\na,b,c,d,e,1,0,nan\n",
            "nan",
        ),
        ("metrics.csv", "", "readable table"),
        ("digits/metrics/0.json", '{"environment": 1}', "damaged"),
    ],
)
def test_bad_input_is_one_line(folder, name, content, says):
    a = folder("a", [CLAIM], [number([1.0])], {"environment": CPU})
    b = folder("b", [CLAIM], [number([1.0])], {"environment": CPU})
    (b / name).unlink()
    (b / f"{name}.sha256").unlink(missing_ok=True)
    if content is not None:
        (b / name).write_text(content)
    for pair in ((a, b), (b, a)):
        with pytest.raises(ConsistencyError, match=says) as error:
            comparison.compare(*pair)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("environment", [None, 1, [1], {"packages": 3}, {"cpu": {"a": 1}, "packages": {"torch": [1]}}])
def test_records_of_another_form(folder, environment):
    """Whoever wrote them: what is no text or number is left out, or shown as it is."""
    a = folder("a", [CLAIM], [number([1.0])])
    write_any_json(a / "digits/metrics/0.json", {"environment": environment, "settings": [environment]})
    assert comparison.compare(a, a).words[1].startswith("No difference")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hostile_text(folder, tmp_path, text):
    name = UNSEEN.sub(" ", text)[:1000].strip()
    row = {"claim": name, "quantity": name, "reason": name}
    a = folder(
        "a",
        [CLAIM | row],
        [number([1.0, 1.1], name)],
        {"environment": CPU | {"cpu": text[:1000].replace("\ud800", "")}},
    )
    b = folder("b", [UNCERTAIN | row, CLAIM | {"claim": f"{name}!"}], [number([9.0, 9.1], name)])
    compared = comparison.compare(a, b)
    comparison.write(tmp_path / "page.html", compared)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    without_handlers(page)
    assert page.of("h1") == ["Two folders of results"]
    assert page.of("h2") == list(compared.tables)
    shown = page.of("td")
    assert words(f"{name} on digits: {name}; pooled") in shown
    assert words(f"digits, cm-n10, 1-step: {name} to teacher (pixels)") in shown
    assert words(f"claim {name}! on digits") in shown
    assert any(words(text.replace("\ud800", "")[:1000]) == cell for cell in shown)
    assert all(not UNSEEN.search(line) for line in comparison.text(compared).split("\n"))


def test_the_command(folder, tmp_path):
    """Its status: 0 where no verdict changed, 1 where one did, 2 and one line for bad input."""
    a = folder("a", [CLAIM], [number([1.0, 1.1])])
    b = folder("b", [UNCERTAIN], [number([9.0, 9.1])])
    (tmp_path / "file").write_text("")

    def run(*arguments):
        command = [sys.executable, str(ROOT / "workflow/scripts/compare.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = run(a, b)
    assert done.returncode == 1, done.stderr
    assert done.stdout.endswith("compare.html\n")
    assert "inconclusive" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    done = run(a, a, tmp_path / "other.html")
    assert (done.returncode, done.stdout[:4]) == (0, "A is")
    assert (tmp_path / "other.html").is_file()
    for arguments in ((a,), (a, b, tmp_path / "file/page.html")):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("compare: ") and done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""
