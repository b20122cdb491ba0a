"""Hostile text through every format and every output that shows a user's text: a reader sees it as it was written, and
the format's own parser sees nothing else."""

import ast
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from consistency import escape
from consistency.config.limits import check_names
from consistency.config.resolve import _refuse, load_experiment
from consistency.config.settings import ClassifierConfig
from consistency.config.sources import Captions, Images
from consistency.errors import ConfigError
from consistency.files.storage import read_table, save_tensors, write_json, write_table
from consistency.report import tables, verdicts
from consistency.report.figures import samples as samples_figure
from consistency.report.figures import style, tradeoff
from consistency.report.pages import samples as samples_page
from consistency.report.pages import shell
from consistency.report.pages import tradeoff as tradeoff_page
from helpers import ROOT
from hostile import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from readers import (
    CHECKS,
    UNSEEN,
    Page,
    common_mark,
    in_tex,
    python_dialect,
    tex_rows,
    without_handlers,
    words,
)

each = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
PAGES = ROOT / "workflow/consistency/report/pages"


# The functions by themselves.


@each
@pytest.mark.parametrize("check", CHECKS)
def test_hostile_text(text, check):
    check(text)


SIGNS = st.sampled_from("<>&;\"'\\{}$#^~%_*`|[]()!:/=+-.12 ab\n\t\x00\u2028\u202e\ud800–±") | st.characters()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(SIGNS, max_size=40).map("".join))
def test_any_text(text):
    for check in CHECKS:
        check(text)


@each
def test_mathtext(text):
    """The same picture as of the text that matplotlib is told to take literally."""
    text = text[:60]

    def picture(label, **options):
        figure = style.plt.figure(figsize=(6, 0.5))
        figure.text(0, 0.5, label, **options)
        content = io.BytesIO()
        figure.savefig(content, format="rgba")
        style.plt.close(figure)
        return content.getvalue()

    seen = picture(UNSEEN.sub(" ", text), parse_math=False)
    assert picture(escape.mathtext(text)) == seen
    assert seen != picture("")
    picture(f"{escape.mathtext(text)}\n$x_2$")  # beside a formula of ours


def test_harmless_text_stays_as_it_is():
    names = [
        *tables.METHOD_LABELS.values(),
        "Handwritten digits, 8×8",
        "DDIM, N = 50, w = 4",
        "1.02 [0.9, 1.2]",
        "my_net",
    ]
    names += ["-0.012 ± 0.003", "–", "5.95 / .26 / 9.10", "Fréchet distance (dinov2) to data, cm/direct < 1", "A & B"]
    for name in names:
        assert escape.markdown(name) == name
        assert escape.mathtext(name) == name
        assert escape.line(name) == name
        assert json.loads(escape.script(name)) == name
        if not set(name) & set("<&"):
            assert escape.html(name) == name
    assert escape.tex("ours_2, 95 % ± 1 < 2 – x") == r"ours\_2, 95 \% $\pm$ 1 $<$ 2 -- x"


# The outputs.


def carried(text):
    """What of a text a CSV gives back as it was."""
    return re.sub("[\x00\r\ud800-\udfff]", " ", text)[:300].strip()


def comparison(folder, name):
    """metrics.csv and the table of runs of one experiment whose method and extractors have this name."""
    runs = [
        {"run": f"m-{method}-{seed}", "method": method, "seed": seed, "group": "ddim-n5-w1"}
        | {"solver": "ddim", "n_steps": 5, "guidance": 1.0, "targets": "paper", "parameters": "full"}
        for method in (name, "direct")
        for seed in (0, 1)
    ]
    rows = []
    for number, run in enumerate(runs):
        keys = {key: run[key] for key in ("run", "method", "seed", "solver", "n_steps", "guidance")}
        keys |= {"experiment": name, "sampling_steps": 1, "value": 1.5 + number}
        rows.append(keys | {"metric": "ode_error", "extractor": "pixels", "reference": "teacher"})
        for extractor in (name, f"{name} 2"):
            for reference in ("teacher", "data"):
                rows.append(keys | {"metric": "frechet_distance", "extractor": extractor, "reference": reference})
    halves = {"run": "data", "method": "data", "metric": "frechet_distance", "reference": "other half of the data"}
    rows.append(rows[0] | halves | {"extractor": name})
    write_table(folder / "metrics.csv", pd.DataFrame(rows))
    return folder / "metrics.csv", runs


def check_table(paths, title, name, note):
    """The three formats of a table show the title, the name of a method and that of an extractor."""
    page = Page(paths["html"].read_text(encoding="utf-8"))
    without_handlers(page)
    assert page.scripts == []
    assert page.of("h1") == page.of("title") == [words(title)]
    assert words(name) in page.of("td")
    assert f"Fréchet ({words(name)} 2) to data, 1 step" in page.of("th")
    assert page.of("p") == [note]
    for render in (common_mark, python_dialect):
        page = Page(render(paths["md"].read_text(encoding="utf-8")))
        assert set(page.names) == {"table", "thead", "tbody", "tr", "th", "td", "p"}
        assert words(name) in page.of("td")
        assert f"Fréchet ({words(name)} 2) to data, 1 step" in page.of("th")
        assert page.of("p") == [note]
    heading, *rows = tex_rows(paths["tex"])
    assert in_tex(f"Fréchet ({name} 2) to data, 1 step") in heading
    assert in_tex(name) in [cell for row in rows for cell in row]


@each
def test_tables_of_methods(tmp_path, text):
    name = carried(text)
    metrics, runs = comparison(tmp_path, name)
    for kind in ("main", "couplings"):
        paths = {suffix: tmp_path / f"{kind}.{suffix}" for suffix in ("csv", "md", "tex", "html")}
        if kind == "main":
            tables.main_comparison(paths, metrics, runs, text)
            title = text
        else:
            tables.couplings(paths, metrics, runs, text, "digits")
            title = f"{text}: couplings"
        [note] = Page(paths["html"].read_text(encoding="utf-8")).of("p")
        assert note.startswith(f"{words(text)}. "), f"the note: {note[:200]!r}"
        assert f"in features of {words(name)}, {words(name)} 2 (not FID)" in note
        check_table(paths, title, name, note)
        assert set(read_table(paths["csv"]).extractor) == {"pixels", name, f"{name} 2"}


@each
def test_table_of_claims(tmp_path, text):
    name = carried(text)
    row = {"claim": "mine", "paper": "", "experiment": name, "condition": f"pooled (1) ({name})", "effect": 0.5}
    row |= {"ci_low": 0.25, "ci_high": 1.0, "n_seeds": 3, "verdict": "inconclusive", "quantity": f"Fréchet ({name})"}
    row |= {"reason": f"{name}: 2 seeds"}
    table, definitions = pd.DataFrame([row, row | {"condition": name}])[verdicts.COLUMNS], tmp_path / "x/claims.json"
    write_table(tmp_path / "claims.csv", table)
    definitions.parent.mkdir()
    compared = {"ours": "a", "other": "b", "metric": "recall", "reference": "data", "direction": "above"}
    write_json(definitions, {"claims": [compared | {"name": "mine", "sentence": words(name)[:1000]}]})
    paths = {suffix: tmp_path / f"claims.{suffix}" for suffix in ("md", "tex", "html")}
    tables.claims(paths, tmp_path / "claims.csv", [definitions])
    page = Page(paths["html"].read_text(encoding="utf-8"))
    without_handlers(page)
    shown = [f"Fréchet ({words(name)})", "0.5 [0.25, 1]", f"pooled (1) ({words(name)})", words(name), "3"]
    shown.append(f"{words(name)}: 2 seeds")
    assert page.of("h2") == [f"mine: {words(name)[:1000]}"]
    assert page.of("td")[:7] == ["inconclusive", *shown]
    assert page.of("td")[-4:] == [words(name), words(name), "3", shown[-1]]
    first, row = tex_rows(paths["tex"])
    assert row == [in_tex(cell) for cell in ["mine", "inconclusive", f"Fréchet ({name})", shown[1], *row_end(name)]]
    assert len(first) == len(row) == 8
    text = Page(common_mark(paths["md"].read_text(encoding="utf-8")))
    assert text.of("td") == ["mine", "inconclusive", *shown]
    assert text.of("li") == [f"mine: {words(name)[:1000]}"]
    write_table(
        tmp_path / "claims.csv", table.assign(experiment="x")
    )  # that of an experiment is checked before any job
    summary = verdicts.summary(tmp_path / "claims.csv").split("\n")
    assert len(summary) == 3, f"lines for the terminal: {summary}"
    assert not UNSEEN.search("".join(summary))


def row_end(name):
    return [f"pooled (1) ({name})", name, "3", f"{name}: 2 seeds"]


def test_a_long_cell_is_whole_in_html(tmp_path):
    page = Page(tables.html_table(pd.DataFrame({"Condition": ["word " * 40 + "end"]})))
    assert page.of("td") == ["word " * 40 + "end"]


def test_a_method_that_reads_as_a_number_keeps_its_name(tmp_path):
    metrics, runs = comparison(tmp_path, "1e3")
    for run in runs:
        run["method"] = "1e3" if run["method"] == "1e3" else "007"
    paths = {suffix: tmp_path / f"t.{suffix}" for suffix in ("csv", "md", "tex", "html")}
    tables.couplings(paths, metrics, runs, "Title", "digits")
    assert {"1e3", "007"} <= set(Page(common_mark(paths["md"].read_text(encoding="utf-8"))).of("td"))


def same_elements(path, template):
    """The page, which has the elements of its template and of the frame around it, and no others."""
    plain = path.with_name("plain.html")
    shell.write(plain, "Plain", PAGES / template, {})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.names == Page(plain.read_text(encoding="utf-8")).names
    return page


@each
def test_page_of_samples(tmp_path, text):
    """Its data come back as they were."""
    rows, files, noise, captions = pictures(tmp_path, text, text)
    out = tmp_path / "s.html"
    samples_page.draw(
        out, PAGES / "samples.html", text, rows, samples=files, pictures=files, noise=noise, captions=captions
    )
    page = same_elements(out, "samples.html")
    assert page.of("h1") == page.of("title") == [f"{words(text)}: samples from the same noise"]
    data = json.loads(page.scripts[0])
    assert data["prompts"] == [text] * 4
    assert [row["name"] for row in data["sections"][0]["rows"]] == ["Teacher, 5 steps", text]


def test_page_of_the_tradeoff(tmp_path):
    """One page for all texts, each of which is the name and the title of an experiment, a method and an extractor."""
    texts, tables_of, runs_of = {carried(text): text for text in TEXTS.values()}, [], {}
    for name in texts:
        metrics, runs_of[name] = comparison(tmp_path, name)
        tables_of.append(read_table(metrics, converters={"experiment": str, "method": str, "extractor": str}))
    write_table(tmp_path / "metrics.csv", pd.concat(tables_of))
    out = tmp_path / "t.html"
    tradeoff_page.draw(out, PAGES / "tradeoff.html", tmp_path / "metrics.csv", runs_of, texts)
    experiments = json.loads(same_elements(out, "tradeoff.html").scripts[0])["experiments"]
    assert experiments.keys() == texts.keys()
    for name, text in texts.items():
        assert experiments[name]["title"] == text
        assert experiments[name]["methods"][name]["label"] == name
        assert f"Fréchet distance to the data, in features of {name}" in [
            measure["label"] for measure in experiments[name]["measures"]
        ]


def pictures(folder, method, caption):
    """Rows and files for a page of samples: a teacher's and a method's, with noise and captions."""
    rng = np.random.default_rng(0)
    rows = [{"method": "teacher", "condition": "ddim-n5-w1", "n_steps": 5}]
    rows += [{"method": method, "group": "ddim-n5-w1", "condition": "ddim-n5-w1", "seed": 0, "sampling_steps": [1]}]
    for name in ("samples", "steps_1"):
        save_tensors(folder / name, {name: rng.uniform(-1, 1, (4, 1, 8, 8)).astype(np.float32)})
    save_tensors(folder / "noise", {"labels": np.zeros(4, np.int64)})
    write_json(folder / "captions.json", {"captions": [caption]})
    return rows, [str(folder / "samples"), str(folder / "steps_1")], str(folder / "noise"), folder / "captions.json"


@pytest.mark.parametrize("name", ["formula", "dollars", "command", "NUL and others"])
def test_figures(tmp_path, name):
    text = TEXTS[name]
    seen = UNSEEN.sub(" ", text)
    metrics, runs = comparison(tmp_path, carried(text))
    figure = tradeoff.draw(tmp_path / "f.pdf", tmp_path / "f.png", runs, metrics)
    entries = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert escape.mathtext(carried(text)) in entries
    assert escape.mathtext(carried(text)) in figure.get_supxlabel()
    _, files, noise, _ = pictures(tmp_path, text, text)
    run = [{"run": "m", "method": text, "group": "ddim-n5-w1", "fewest_steps": 1}]
    figure = samples_figure.draw(tmp_path / "s.pdf", tmp_path / "s.png", run, files[1], files[0], noise)
    labels = [axes.get_ylabel() for part in figure.subfigs for axes in part.axes]
    assert seen.replace("$", r"\$") in labels


def test_figures_take_names_from_their_style():
    """There they are escaped; a figure that took them from the tables would show `$` as the beginning of a formula."""
    for path in (ROOT / "workflow/consistency/report/figures").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "tables":
                names = {alias.name for alias in node.names}
                assert not names & {"method_label", "condition_label"}, f"{path.name}: {names}"


# What is refused before it gets anywhere.

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "'x"]


def test_no_cell_of_a_csv_is_a_formula():
    """Of texts, CSVs hold names alone: of experiments and methods, of data and of extractors."""
    digits = load_experiment("digits")
    takers = {
        "experiment": lambda name: _refuse(name, check_names(name, digits)),
        "method": lambda name: _refuse(
            "x", check_names("x", digits.model_copy(update={"methods": {name: digits.methods["cm"]}}))
        ),
        "extractor": lambda name: ClassifierConfig(name=name),
        "images": lambda name: Images(kind="images", name=name, source="x"),
        "captions": lambda name: Captions(kind="captions", name=name, source="x", vae="x"),
    }
    for what, take in takers.items():
        take("mine_2-x")
        for name in FORMULAS:
            with pytest.raises((ConfigError, ValidationError)):
                take(name)
                pytest.fail(f"taken as the name of an {what}: {name!r}")
