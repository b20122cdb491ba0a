"""Two folders of results side by side: which verdicts differ and why, which numbers moved, where each was made.

A number is one metric of one condition: its values over seeds. Each folder has a mean of them with Student's t interval
at 95 %, of the logarithms where all values of both are above 0. A number has **moved** where the two intervals do not
overlap. A single value (of the data, say, or of a teacher that all seeds share) has no interval, so it never moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .. import escape
from ..errors import MismatchError
from ..files.storage import AGAIN, read_json, read_table, write_text
from .ratios import check_finite
from .statistics import t_interval
from .tables import html_table, page
from .verdicts import COLUMNS, is_overall, shown

ROW = ["experiment", "claim", "condition", "quantity", "copy"]  # names a row of claims.csv
NUMBER = ["experiment", "run", "sampling_steps", "metric", "extractor", "reference"]  # the run without its seed
ROUNDING = 1e-6  # relative: an interval has no width where all seeds have the same value
LISTED, PRINTED = 200, 20  # most rows of a table on the page, and in the terminal
ALWAYS = {
    "cpu": "CPU",
    "instruction_set": "instruction set",
    "git_commit": "commit",
}  # printed though they are the same


@dataclass(frozen=True)
class Comparison:
    """Two folders, A and B, compared.

    Attributes:
        words: which folders these are, what is the same and what is not, a sentence each.
        tables: heading → rows: verdicts that differ, overall rows first; numbers that moved, largest relative change
            first; what one folder has alone; what each folder was made with.
        verdict_changed: a verdict differs, or stands in one folder alone.
    """

    words: list[str]
    tables: dict[str, pd.DataFrame]
    verdict_changed: bool


class _Results(NamedTuple):
    verdicts: pd.DataFrame  # by ROW
    numbers: pd.Series  # by NUMBER: the values over seeds
    environment: dict[str, str]  # what metrics were made with → its values, in words


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two folders of results.

    Raises:
        ConsistencyError: a folder lacks metrics.csv or claims.csv, or one of its files is damaged.
    """
    one, other = _read(Path(a)), _read(Path(b))
    both = one.verdicts.add_suffix("_a").join(other.verdicts.add_suffix("_b"), how="inner")
    changed = both[both.verdict_a != both.verdict_b]
    overall = changed.index.get_level_values("condition").map(is_overall).astype(bool)
    moved, numbers = _moved(one.numbers, other.numbers)
    verdicts = f"{len(changed)} of {len(both)} verdicts differ, {sum(overall)} of them of overall rows."
    same = all(x.sort_index().equals(y.sort_index()) for x, y in zip(one[:2], other[:2], strict=True))
    keys = one.environment | other.environment
    used = [(key, *(folder.environment.get(key, "not recorded") for folder in (one, other))) for key in keys]
    tables = {
        "Verdicts that differ": _changes(pd.concat([changed[overall], changed[~overall]])),
        "Numbers that moved": moved,
        "In one alone": pd.DataFrame([*_alone("A", one, other), *_alone("B", other, one)], columns=["Only in", "What"]),
        "Made with": pd.DataFrame(used, columns=["", "A", "B"]),
    }
    words = ["No difference: all verdicts and all numbers are the same."] if same else [verdicts, numbers]
    return Comparison(
        [f"A is {a}, B is {b}.", *words],
        tables,
        bool(len(changed) or len(both) < max(len(one.verdicts), len(other.verdicts))),
    )


def _read(folder: Path) -> _Results:
    claims = _table(folder / "claims.csv", [*ROW[:-1], "verdict"], COLUMNS[5:9])
    # What a row leaves out, and how many conditions are pooled, may stand in brackets behind the condition.
    claims["condition"] = claims.condition.str.replace(r" \(.*", "", regex=True)
    claims["copy"] = claims.groupby(ROW[:-1]).cumcount()
    claims["reason"] = claims.get("reason", "")  # tables of before had none
    verdicts = claims.set_index(ROW)[[*COLUMNS[5:10], "reason"]]

    path = folder / "metrics.csv"
    metrics = _table(path, [name for name in NUMBER if name != "sampling_steps"], ["sampling_steps", "seed", "value"])
    check_finite(str(path), metrics)
    ends = metrics.seed.map("-s{:.0f}".format)
    metrics["run"] = [run.removesuffix(end) for run, end in zip(metrics.run, ends, strict=True)]
    numbers = metrics.fillna({"sampling_steps": 0}).groupby(NUMBER, sort=False).value.agg(list)
    return _Results(verdicts, numbers, _environment(folder))


def _table(path: Path, texts: list[str], numbers: list[str]) -> pd.DataFrame:
    table = read_table(path, dtype=str, keep_default_na=False)  # an experiment called 1e3 or NA keeps its name
    if absent := [column for column in [*texts, *numbers] if column not in table]:
        raise MismatchError(f"{path}: has no column {absent[0]}; {AGAIN}")
    try:
        return table.assign(**{column: pd.to_numeric(table[column]).astype(float) for column in numbers})
    except (ValueError, TypeError) as error:
        raise MismatchError(f"{path}: {' '.join(str(error).split())}; {AGAIN}") from error


def _environment(folder: Path) -> dict[str, str]:
    """What measured the metrics of all experiments, and trained the students that were measured."""
    values: dict[str, dict[str, None]] = {name: {} for name in ALWAYS.values()}
    for path in sorted(folder.glob("*/metrics/*.json")):
        record = read_json(path)
        for used in (_part(record, "environment"), _part(record, "settings", "student", "environment")):
            for key, value in (used | _part(used, "packages") | _part(used, "cpu_variables")).items():
                if not isinstance(value, dict):
                    values.setdefault(ALWAYS.get(key, key), {})[str(value)] = None
    return {key: ", ".join(texts) or "not recorded" for key, texts in values.items()}


def _part(value: Any, *keys: str) -> dict[str, Any]:
    """What stands in a JSON object under keys inside one another; {} where that is no object."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _changes(changed: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (experiment, claim, condition, quantity, _), row in changed.iterrows():
        effects = [shown(*row[[f"effect_{side}", f"ci_low_{side}", f"ci_high_{side}"]]) for side in "ab"]
        name = f"{claim} on {experiment}: {quantity}; {condition}"
        rows.append((name, row.verdict_a, row.verdict_b, *effects, _why(row)))
    return pd.DataFrame(rows, columns=["Claim", "Verdict in A", "Verdict in B", "Effect in A", "Effect in B", "Why"])


def _why(row: pd.Series) -> str:
    if math.isnan(row.effect_a) or math.isnan(row.effect_b):
        words = ["a side has no ratio"]
    elif row.ci_low_a > row.ci_high_b or row.ci_low_b > row.ci_high_a:
        words = ["the effect moved beyond the intervals"]
    else:
        words = ["the intervals overlap: the effects agree as far as these seeds tell"]
    words += [f"{row.n_seeds_a:.0f} seeds in A, {row.n_seeds_b:.0f} in B"] * (row.n_seeds_a != row.n_seeds_b)
    words += [f"{side}: {reason}" for side, reason in (("A", row.reason_a), ("B", row.reason_b)) if reason]
    return "; ".join(words)


def _moved(a: pd.Series, b: pd.Series) -> tuple[pd.DataFrame, str]:
    """The numbers of both that moved, and a sentence on the others."""
    pairs = pd.concat([a, b], axis=1, join="inner", keys=["a", "b"])
    rows, within, single = [], 0, [(0.0, "")]
    for key, one, other in pairs.itertuples(name=None):
        if sorted(one) == sorted(other):
            continue
        change, cells, apart = _change(one, other)
        if apart and change > ROUNDING:
            rows.append((change, *cells, _named(key)))
        elif min(len(one), len(other)) > 1:
            within += 1
        else:
            single.append((change, _named(key)))
    rows.sort(key=lambda row: -row[0])
    words = f"{len(rows)} of {len(pairs)} numbers moved beyond their intervals, {within} differ within them."
    if len(single) > 1:
        change, name = max(single)
        words += f" {len(single) - 1} more differ that have one value in a folder, and so no interval: by up to "
        words += f"{100 * change:.2g} % of the larger value ({name})."
    return pd.DataFrame([row[1:] for row in rows], columns=["Change", "A", "B", "Number"]), words


def _change(a: list[float], b: list[float]) -> tuple[float, list[str], bool]:
    """The change of the mean relative to the larger one; it and the two intervals in words; whether these are apart."""
    logarithms = min(*a, *b) > 0
    intervals = [t_interval([math.log(value) for value in values] if logarithms else values) for values in (a, b)]
    apart = intervals[0][1] > intervals[1][2] or intervals[1][1] > intervals[0][2]
    if logarithms:
        intervals = [tuple(math.exp(min(value, 700)) for value in interval) for interval in intervals]
    first, last = intervals[0][0], intervals[1][0]
    words = f"× {last / first:.3g}" if logarithms else f"{last - first:+.3g}"
    size = abs(last - first) / (max(abs(first), abs(last)) or 1.0)
    return size, [words, *(shown(*interval) for interval in intervals)], apart


def _named(key: tuple) -> str:
    experiment, run, steps, metric, extractor, reference = key
    return f"{experiment}, {run}{f', {steps:.0f}-step' * bool(steps)}: {metric} to {reference} ({extractor})"


def _alone(side: str, here: _Results, there: _Results) -> Iterator[tuple[str, str]]:
    """What one folder has and the other lacks, the largest whole of each."""
    elsewhere = {name for names in _names(there) for name in names}
    absent = (next((name for name in names if name not in elsewhere), None) for names in _names(here))
    yield from ((side, name) for name in dict.fromkeys(absent) if name)


def _names(results: _Results) -> Iterator[tuple[str, str, str]]:
    for experiment, claim, condition, quantity, copy in results.verdicts.index:
        row = f"{claim} on {experiment}: {quantity}; {condition}{', again' * copy}"
        yield f"experiment {experiment}", f"claim {claim} on {experiment}", row
    for key in results.numbers.index:
        yield f"experiment {key[0]}", f"run {key[1]} of {key[0]}", _named(key)


def text(comparison: Comparison) -> str:
    """A comparison for a terminal."""
    lines = list(comparison.words)
    for heading, table in comparison.tables.items():
        rows = table[:PRINTED]
        if heading == "Made with":
            rows = table[(table.A != table.B) | table[""].isin(ALWAYS.values())]
        lines += ["", f"{heading}:", ""] if len(rows) else []
        if "Why" in rows:
            for name, *verdicts, first, last, why in rows.itertuples(index=False):
                sides = zip("AB", verdicts, (first, last), strict=True)
                lines += [
                    name,
                    *(f"    {side}: {verdict:<13} {effect}" for side, verdict, effect in sides),
                    f"    {why}",
                ]
        elif len(rows):
            plain = rows.map(escape.line).to_markdown(index=False, tablefmt="plain", disable_numparse=True)
            lines += plain.split("\n")
        lines += [f"and {len(table) - PRINTED} more"] * (len(table) > len(rows) == PRINTED)
    return "\n".join(escape.line(line).rstrip() for line in lines)


def write(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison as an HTML page that needs no other file."""
    body = "".join(f"<p>{escape.html(words)}</p>" for words in comparison.words)
    for heading, table in comparison.tables.items():
        columns = sorted(table, key=lambda column: column != "Number")  # first, so that a phone's screen shows it
        if len(table):
            body += f"<h2>{heading}</h2>{html_table(table[columns][:LISTED])}"
            body += f"<p>and {len(table) - LISTED} more</p>" * (len(table) > LISTED)
    note = (
        "A number is a metric of a condition over seeds: its mean with the 95 % t interval, in logarithms where all "
        "values are above 0. It moved where the intervals of A and B do not overlap. The effect of a claim is the "
        "ratio of its row, with its 95 % interval."
    )
    write_text(path, page("Two folders of results", body, note))
