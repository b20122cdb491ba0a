"""Tables: csv with numbers, md, tex and html with mean ± interval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from .. import escape
from ..config.claims import OTHER_NOISES
from ..evaluate.yardstick import HALVES
from ..files.storage import atomic, read_table, write_table, write_text
from .decisions import VERDICTS
from .statistics import t_interval
from .verdicts import AS_TEXT, DISTANCES, defined, is_overall, shown

METHOD_LABELS = {
    "cm": "CM",
    "direct": "Direct CM",
    "teacher": "Teacher",
    "cd": "CD (teacher's velocity)",
    "ct-ic": "CT, independent",
    "ct-ot": "CT, batch-OT",
    "ct-gc": "CT, generated (μ = 0.5)",
    "ct-gc03": "CT, generated (μ = 0.3)",
    "ct-gc07": "CT, generated (μ = 0.7)",
    "ct-gc1": "CT, generated (μ = 1)",
    "ct-gc-frozen": "CT, frozen generator",
}

# (metric, reference, sampling steps) → heading; distances are in the features of the leading extractor
_MAIN = {
    ("ode_error", "teacher", 1): "ODE error, 1 step",
    ("ode_error", "truth", 1): "ODE error to truth, 1 step",
    ("stratified_wasserstein", "data", 1): "Stratified Wasserstein to data, 1 step",
    ("wasserstein", "data", 1): "Wasserstein to data, 1 step",
    ("mode_distance", "data", 1): "Nearest mode (deviations), 1 step",
    ("mode_share_error", "data", 1): "Error of modes' shares, 1 step",
    ("frechet_distance", "teacher", 1): "Fréchet to teacher, 1 step",
    ("frechet_distance", OTHER_NOISES, 1): "Fréchet to teacher, other noises, 1 step",
    ("frechet_distance", "data", 1): "Fréchet to data, 1 step",
    ("frechet_distance", "data", 4): "Fréchet to data, 4 steps",
    ("kernel_distance", "teacher", 1): "Kernel dist. to teacher, 1 step",
    ("precision", "data", 1): "Precision, 1 step",
    ("recall", "data", 1): "Recall, 1 step",
    ("recognised", "labels", 1): "Recognised, 1 step",
    ("clip_score", "prompts", 1): "CLIP score, 1 step",
    ("aesthetic_score", "none", 1): "Aesthetic score, 1 step",
}

# Headings of columns without numbers.
_WORDS = ("Claim", "Verdict", "Quantity", "Condition", "Experiment", "Method", "Reason")

_STYLE = """<style>
body{font:14px/1.45 system-ui,sans-serif;margin:1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse}th,td{padding:.35rem .7rem;border-bottom:1px solid #d0d7de;text-align:left}
h1{font-size:1.35rem}h2{font-size:1.05rem;margin:1.4rem 0 .3rem}h1,h2,p{overflow-wrap:anywhere}p,ul{max-width:52rem}
th{background:#f3f5f7;vertical-align:bottom}td{min-width:7rem;text-wrap:balance}td.number{min-width:0;white-space:nowrap}summary{font-size:1.05rem;font-weight:600}
.reproduced{color:#00664a;font-weight:600}.contradicted{color:#b3261e;font-weight:600}
.inconclusive,.no-difference,.unsound{color:#5b6470;font-weight:600}.mixed{color:#8a5a00;font-weight:600}
.scroll{overflow-x:auto}
</style>"""


def method_label(method: str, runs: Iterable[dict[str, Any]] = ()) -> str:
    """The name of a method in tables and figures: its runs' label, or the papers' own name for it."""
    label = next((run.get("label") for run in runs if run["method"] == method), None)
    return label or METHOD_LABELS.get(method, method)


def condition_label(group: str) -> str:
    """`ddim-n50-w4-lora` as `DDIM, N = 50, w = 4, LoRA`."""
    if group == "scratch":
        return "From scratch"
    solver, steps, guidance, *extra = group.split("-")
    name = solver.upper() if solver == "ddim" else solver.capitalize()
    extra = ["LoRA" if part == "lora" else part for part in extra]
    return ", ".join([name, f"N = {steps[1:]}", f"w = {guidance[1:]}", *extra])


def join(path: str | Path, files: list[str]) -> None:
    """Concatenate CSV files with the same columns."""
    write_table(path, pd.concat([read_table(file, dtype=str, keep_default_na=False) for file in files]))


def summarise(metrics: pd.DataFrame, runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean and 95 % t interval over seeds of every metric of the runs.

    Returns:
        group, method, sampling_steps, metric, extractor, reference, mean, ci_low, ci_high, n_seeds.
    """
    table = metrics.drop(columns=["method", "seed", "solver", "n_steps", "guidance"]).merge(
        pd.DataFrame(runs), on="run"
    )
    keys = ["group", "method", "sampling_steps", "metric", "extractor", "reference"]
    rows = []
    for key, values in table.groupby(keys, sort=False).value:
        mean, low, high = t_interval(values.tolist())
        rows.append((*key, mean, low, high, len(values)))
    return pd.DataFrame(rows, columns=[*keys, "mean", "ci_low", "ci_high", "n_seeds"])


def extractors_of(summary: pd.DataFrame) -> list[str]:
    """The extractors of Fréchet distances; the first one leads in tables and figures."""
    return list(dict.fromkeys(summary.extractor[summary.metric == "frechet_distance"]))


def leading(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of the other extractors of features, for comparison in one space."""
    return summary[~summary.extractor.isin(extractors_of(summary)[1:])]


def unit_of(summary: pd.DataFrame) -> str:
    """What an ODE error is a mean over."""
    spaces = summary.extractor[summary.metric.str.startswith("ode_error")]
    units = {"pixels": "pixel", "coordinates": "coordinate", "latents": "latent value"}
    return units[spaces.iloc[0]] if len(spaces) else "pixel"


def distance_label(extractor: str) -> str:
    """What a Fréchet distance in an extractor's features is called: FID for Inception-v3 alone."""
    return DISTANCES.get(extractor, "Fréchet")


def _headings(columns: dict, extractor: str) -> dict:
    """The columns, with the Fréchet distance called as its extractor demands."""
    return {key: heading.replace("Fréchet", distance_label(extractor)) for key, heading in columns.items()}


def yardstick(metrics: pd.DataFrame, run: str) -> pd.DataFrame:
    """What the data, or the teachers of a condition, have themselves, as rows of `summarise` at one sampling step: what
    the students' values are to be compared with. A distance between halves of the data stands as one to the data."""
    own = metrics[metrics.run.str.fullmatch(f"{re.escape(run)}(-s\\d+)?")]
    own = own.assign(reference=own.reference.replace(HALVES, "data"))
    keys, rows = ["metric", "extractor", "reference"], []
    for key, values in own.groupby(keys, sort=False).value:
        mean, low, _ = t_interval(values.tolist()) if len(values) > 1 else (values.iloc[0],) * 3
        rows.append((*key, 1, mean, low, len(values)))
    return pd.DataFrame(rows, columns=[*keys, "sampling_steps", "mean", "ci_low", "n_seeds"])


def teacher_of(group: str) -> str:
    """The teacher's run whose samples a condition's students learn to draw, without a replicate's end."""
    return f"teacher-{'-'.join(group.split('-')[:3])}"


def _values(values: pd.DataFrame, headings: dict[tuple[str, str, int], str], extractors: list[str]) -> dict[str, str]:
    """Cells of the leading extractor's values, and of one-step Fréchet distances in the features of the others."""
    indexed = values[~values.extractor.isin(extractors[1:])].set_index(["metric", "reference", "sampling_steps"])
    row = {}
    for key, heading in headings.items():
        if key in indexed.index:
            cell = indexed.loc[key]
            row[heading] = _cell(cell["mean"], cell["ci_low"], cell["n_seeds"])
    for extractor in extractors[1:]:
        name = distance_label(extractor)
        name = f"{name} ({extractor})" if name == "Fréchet" else name
        chosen = values[
            (values.extractor == extractor) & (values.metric == "frechet_distance") & (values.sampling_steps == 1)
        ]
        for distance in chosen.itertuples():
            row[f"{name} to {distance.reference}, 1 step"] = _cell(distance.mean, distance.ci_low, distance.n_seeds)
    return row


def _in_order(frame: pd.DataFrame, headings: dict[tuple[str, str, int], str]) -> pd.DataFrame:
    """With the columns in the order of their headings, between those that name a row and the others."""
    order = {heading: position for position, heading in enumerate(headings.values())}
    first = [column for column in frame if column in ("Condition", "Method", "Seeds")]
    last = [column for column in frame if column not in order and column not in first]
    return frame[[*first, *sorted(set(frame) & set(order), key=order.__getitem__), *last]]


def _in_features(extractors: list[str]) -> str:
    """Which features distances are measured in, and which of them is an FID."""
    listed = ", ".join(extractors)
    if "inception-v3" in extractors:
        return f"in features of {listed} (FID: Inception-v3 alone)"
    return f"in features of {listed} (not FID)"


def _cell(mean: float, low: float, seeds: int) -> str:
    size = max(abs(mean), abs(mean - low)) if seeds > 1 else abs(mean)
    digits = 1 if size >= 10 else 3 if size >= 0.1 or size == 0 else min(6, 2 - math.floor(math.log10(size)))
    return f"{mean:.{digits}f} ± {mean - low:.{digits}f}" if seeds > 1 else f"{mean:.{digits}f}"


def main_comparison(paths: dict[str, str], metrics_path: str | Path, runs: list[dict[str, Any]], title: str) -> None:
    """The main comparison: a row per condition and method, mean ± half-width of the 95 % interval.

    Args:
        paths: csv, md, tex, html → where to write.
    """
    metrics = read_table(metrics_path)
    summary = summarise(metrics, runs)
    extractors = extractors_of(summary)
    own = [name for name in dict.fromkeys(summary.metric[summary.extractor == "own"]) if "@" not in name]
    headings = _headings(_MAIN, extractors[0]) | {(name, "none", 1): f"{name}, 1 step" for name in own}
    with atomic(paths["csv"]) as temporary:
        summary.to_csv(temporary, index=False)

    rows = []
    for group, of_group in summary.groupby("group", sort=False):
        methods = [(method_label(name, runs), rest) for name, rest in of_group.groupby("method", sort=False)]
        for label, values in [*methods, ("Teacher, N steps", yardstick(metrics, teacher_of(group)))]:
            if len(values):
                row = {"Condition": condition_label(group), "Method": label, "Seeds": values.n_seeds.max()}
                rows.append(row | _values(values, headings, extractors))
    row = {"Condition": "one half against the other", "Method": "Data", "Seeds": 1}
    rows.append(row | _values(yardstick(metrics, "data"), headings, extractors))
    frame = _in_order(pd.DataFrame(rows), headings).fillna("–")
    unit = unit_of(summary)
    held = "held-out" if unit == "coordinate" else "training"
    note = (
        f"{title}. Mean ± half-width of the 95 % t interval over seeds. ODE error: mean squared error per {unit} to "
        f"the teacher's N-step sample from the same noise. Fréchet and kernel distance, precision and recall: "
        f"{_in_features(extractors)}, against the teacher's samples or the {held} data; the "
        "rows of teacher and data show what those have themselves. Recognised: share whose "
        "predicted class is the label. Lower is better for ODE error and distances, higher for the others."
    )
    note += f" Of your own: {', '.join(own)}." if own else ""
    _write(paths, frame, title, note)


# Paper B, Table 1, by data set: method → FID, KID × 100, IS (means over its runs).
PAPER_B = {
    "cifar10": {"ct-ic": "7.42 / .44 / 8.76", "ct-ot": "6.75 / .36 / 8.86", "ct-gc": "5.95 / .26 / 9.10"},
    "imagenet32": {"ct-ic": "14.89 / 1.23 / 9.46", "ct-ot": "14.13 / 1.18 / 9.62", "ct-gc": "13.99 / 1.13 / 9.77"},
    "celeba64": {"ct-ic": "15.82 / 1.31 / 2.33", "ct-ot": "13.63 / 1.09 / 2.40", "ct-gc": "11.74 / .91 / 2.45"},
    "lsun-church64": {"ct-ic": "10.58 / .73 / 1.99", "ct-ot": "9.71 / .64 / 2.00", "ct-gc": "9.88 / .66 / 2.14"},
}

_COUPLINGS = {
    ("frechet_distance", "data", 1): "Fréchet to data, 1 step",
    ("frechet_distance", "data", 2): "Fréchet to data, 2 steps",
    ("kernel_distance", "data", 1): "Kernel dist. to data, 1 step",
    ("stratified_wasserstein", "data", 1): "Stratified Wasserstein to data, 1 step",
    ("wasserstein", "data", 1): "Wasserstein to data, 1 step",
    ("mode_distance", "data", 1): "Nearest mode (deviations), 1 step",
    ("mode_share_error", "data", 1): "Error of modes' shares, 1 step",
    ("ode_error", "truth", 1): "ODE error to truth, 1 step",
    ("precision", "data", 1): "Precision, 1 step",
    ("recall", "data", 1): "Recall, 1 step",
    ("recognised", "labels", 1): "Recognised, 1 step",
}


def couplings(
    paths: dict[str, str], metrics_path: str | Path, runs: list[dict[str, Any]], title: str, data: str
) -> None:
    """Consistency training by coupling, as paper B's Table 1: a row a method, mean ± half-width over seeds.

    Args:
        paths: csv, md, tex, html → where to write.
        data: the data set; where paper B reports the same one, its values stand in a column of their own.
    """
    metrics = read_table(metrics_path)
    summary = summarise(metrics, runs)
    summary = summary[~summary.metric.str.contains("@")]
    extractors = extractors_of(summary)
    headings = _headings(_COUPLINGS, extractors[0])
    with atomic(paths["csv"]) as temporary:
        summary.to_csv(temporary, index=False)
    rows = []
    for method, values in summary.groupby("method", sort=False):
        row = {"Method": method_label(method, runs), "Seeds": values.n_seeds.max()}
        row |= _values(values, headings, extractors)
        if data in PAPER_B:
            row["Paper B: FID / KID × 100 / IS"] = PAPER_B[data].get(method, "–")
        rows.append(row)
    row = {"Method": "Data, two halves", "Seeds": 1} | _values(yardstick(metrics, "data"), headings, extractors)
    frame = _in_order(pd.DataFrame([*rows, row]), headings).fillna("–")
    note = (
        f"{title}. Trained from scratch; mean ± half-width of the 95 % t interval over seeds. Distances "
        f"{_in_features(extractors)}. Lower is better, but for precision, recall and recognised. "
    ) + (
        "The paper's values are of its own networks and FID protocol, printed for orientation."
        if data in PAPER_B
        else "Paper B reports no values on this data set."
    )
    _write(paths, frame, f"{title}: couplings", note)


def claims(paths: dict[str, str], claims_path: str | Path, definitions: list[str | Path]) -> None:
    """The claims table, overall rows first, then every condition.

    Args:
        paths: md, tex, html → where to write.
        definitions: files that define the claims of the table (`verdicts.check`).
    """
    table = read_table(claims_path, converters=AS_TEXT)
    claimed = defined(definitions, list(table.claim.unique()))
    chosen = table.condition.map(is_overall).astype(bool)
    overall, details = table[chosen], table[~chosen]
    note = (
        "Effect: geometric mean over seeds of the ratio that the quantity names, with its 95 % t interval, paired by "
        "seed; of several conditions, taken as a sample of all such (random effects). "
        "reproduced / contradicted: the interval lies on the claimed / on the other side of the bound, by more than "
        "the margin that makes no practical difference; no difference: it lies within the margin; mixed: conditions "
        "disagree; inconclusive: none of these; unsound: a run is no fair example of its method. Pooled rows are "
        "decided together, by Holm's correction: their reason names the interval that decided. A claim about every "
        "condition shows the least favourable one. "
        "Distances are in the features that the quantity or the main table names; FID is Inception-v3 alone."
    )
    sentences = "\n".join(
        f"- **{escape.markdown(name)}**{f' (paper {c.paper})' * bool(c.paper)}: {escape.markdown(c.sentence)}"
        for name, c in claimed.items()
    )
    first = _claims_frame(overall)
    write_text(paths["md"], f"{_markdown(first)}\n\n{sentences}\n\n{note}\n")
    write_text(paths["tex"], _latex(first, note))
    body = f"<p>{_VERDICTS}</p>"
    for name, claim in claimed.items():
        rows = _claims_frame(overall[overall.claim == name]).drop(columns="Claim")
        heading = escape.html(f"{name}{f', paper {claim.paper}' * bool(claim.paper)}: {claim.sentence}")
        body += f"<h2>{heading}</h2>{html_table(rows)}"
    if not len(overall):
        body += html_table(first)
    body += f"<details><summary>Every condition by itself</summary>{html_table(_claims_frame(details))}</details>"
    write_text(paths["html"], page("Do the claims hold in these runs?", body, note))


_VERDICTS = (
    "Each row compares two methods by a ratio, such as the ODE error of Direct CM over that of CM; the claim says on "
    'which side of a bound it lies (&lt; 1, say). <span class="reproduced">reproduced</span>: it lies there, with its '
    'whole interval. <span class="contradicted">contradicted</span>: the whole interval lies on the other side. '
    '<span class="mixed">mixed</span>: some conditions say the one, some the other. '
    '<span class="no-difference">no difference</span>: the interval lies too close to the bound to matter. '
    '<span class="inconclusive">inconclusive</span>: these seeds do not decide. '
    '<span class="unsound">unsound</span>: a run failed its checks, so nothing is concluded from it. '
    "<i>pooled (n)</i>: over all n conditions of the experiment. All of this is about the experiments named here, not "
    "about the papers' own."
)


def _claims_frame(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Claim": table.claim,
            "Verdict": table.verdict,
            "Quantity": table.quantity,
            "Effect [95 % interval]": [shown(r.effect, r.ci_low, r.ci_high) for r in table.itertuples()],
            "Condition": table.condition,
            "Experiment": table.experiment,
            "Seeds": table.n_seeds,
            "Reason": table.reason,
        }
    )


def _write(paths: dict[str, str], frame: pd.DataFrame, title: str, note: str) -> None:
    """A table as Markdown, TeX and HTML, with its note below."""
    write_text(paths["md"], f"{_markdown(frame)}\n\n{escape.markdown(note)}\n")
    write_text(paths["tex"], _latex(frame, note))
    write_text(paths["html"], page(title, html_table(frame), note))


def _escaped(frame: pd.DataFrame, function: Callable[[str], str]) -> pd.DataFrame:
    """Cells and headings as text of a format, by its function."""
    return frame.map(lambda value: function(str(value))).rename(columns=function)


def _markdown(frame: pd.DataFrame) -> str:
    # tabulate writes text that reads as a number in its own way: a method "1e3" as 1000
    words = [number for number, heading in enumerate(frame.columns) if heading in _WORDS]
    return _escaped(frame, escape.markdown).to_markdown(index=False, disable_numparse=words if len(frame) else True)


def _latex(frame: pd.DataFrame, note: str) -> str:
    styler = _escaped(frame, escape.tex).style.hide(axis="index")
    body = styler.to_latex(column_format="l" * len(frame.columns), hrules=True)
    return f"% needs booktabs\n{body}% {escape.tex_comment(note)}\n"


def html_table(frame: pd.DataFrame) -> str:
    """A table as HTML; its cells and headings are text, and verdicts have their colours."""
    with pd.option_context("display.max_colwidth", None):  # by default pandas cuts cells off at 50 characters
        page = _escaped(frame, escape.html).to_html(index=False, border=0, escape=False)
    page = re.sub(r"<td>(?=[-–]?\d)", '<td class="number">', page)
    for verdict in VERDICTS:
        page = page.replace(f"<td>{verdict}</td>", f'<td class="{verdict.replace(" ", "-")}">{verdict}</td>')
    return f'<div class="scroll" role="region" aria-label="Table" tabindex="0">{page}</div>'


def page(title: str, body: str, note: str) -> str:
    """A page; its body is HTML, title and note are text."""
    title, note = escape.html(title), escape.html(note)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title>{_STYLE}"
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{title}</h1>{body}<p>{note}</p></body></html>\n'
    )
