"""Hostile titles, names and captions in a browser: nothing of them runs, and each is read as it was written."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from consistency.files.storage import save_tensors, write_json, write_table
from consistency.report import comparison
from consistency.report.pages import samples, tradeoff
from helpers import ROOT
from hostile import TEXTS

PAGES = ROOT / "workflow/consistency/report/pages"
BREAKING = ("end of script", "image", "drawing", "comment", "attribute", "end of title", "entities", "template")
TITLE = " ".join(TEXTS[name] for name in BREAKING)
# What a text would leave behind that became an element. Our pages and Snakemake's report have no such elements.
TRACES = """() => [...document.querySelectorAll("img:not([src^='data:']), object, embed, base, [onload], [onerror], [onmouseover], [onfocus]")]
    .map(e => e.outerHTML.slice(0, 200))"""


def as_written(text):
    return " ".join(text.split())


def quiet(page, title):
    """No script of a text's ran, and none of its elements is there."""
    page.wait_for_timeout(300)
    assert page.title() == title
    assert page.evaluate(TRACES) == []


def text_of(place, selector):
    """The text as it stands in the document, with no more space than a browser shows."""
    return as_written(place.locator(selector).first.text_content())


@pytest.fixture(scope="module")
def renamed(finished, tmp_path_factory):
    """The small experiment under a hostile title; nothing but what shows the title is made again."""
    project = finished.copy(tmp_path_factory.mktemp("renamed") / "project")
    project.configure({"title": TITLE})
    assert project.jobs() == {"table_main": 1, "page_samples": 1, "page_tradeoff": 1, "report": 1}
    project.snakemake()
    project.snakemake("paper", "--report", "own.html")  # as a user makes it, without our script
    return project


@pytest.mark.parametrize("name", ["results/report.html", "own.html"])
def test_the_report(renamed, opened, name):
    with opened(renamed.folder / name) as page:
        page.get_by_text("Does solving a diffusion model").wait_for()
        quiet(page, "Snakemake Report")
        own = page.evaluate("document.scripts.length")
        params = page.evaluate("Object.values(results).map(r => r.job_properties.params)")
        holders = [text for text in params if "_json" in text]
        assert len(holders) == 3, params
        for text in holders:
            written = re.search(r'titles?_json=(.*?"}?)(?:$|, )', text.replace('\\"', '"'))[1]
            value = json.loads(written)
            assert TITLE in (value, *(value.values() if isinstance(value, dict) else ()))
        page.locator("nav").get_by_text("2. Results", exact=True).first.click()
        item = page.locator("nav tbody tr", has_text="main comparison (table)")
        item.locator("a").first.click()
        frame = page.frame_locator("iframe")
        frame.locator("h1").wait_for()
        assert text_of(frame, "h1") == as_written(TITLE)
        assert text_of(frame, "p").startswith(as_written(TITLE) + ". Mean")
        item = page.locator("nav tbody tr", has_text="main comparison (table)")
        item.locator("a").nth(1).click()  # what the item is, with the params of its job
        page.locator("nav .prose").wait_for()
        quiet(page, "Snakemake Report")
        assert page.evaluate("document.scripts.length") == own


def test_a_table_and_both_pages(renamed, opened):
    results = renamed.folder / "results"
    with opened(results / "tables/digits-main.html") as page:
        quiet(page, as_written(TITLE))
        assert text_of(page, "h1") == as_written(TITLE)
        assert page.evaluate("document.scripts.length") == 0
    with opened(results / "pages/digits-samples.html") as page:
        page.wait_for_selector("body[data-shown]")
        quiet(page, f"{as_written(TITLE)}: samples from the same noise")
        assert text_of(page, "h1") == f"{as_written(TITLE)}: samples from the same noise"
    with opened(results / "pages/tradeoff.html") as page:
        page.wait_for_selector("#plot .scatterlayer")
        quiet(page, "ODE error against sample quality")
        assert text_of(page, "#status").startswith(as_written(TITLE) + ": ")


def test_names_in_the_plot(tmp_path, opened):
    """Plotly reads elements and entities in its texts: a method and an extractor with them are read as written."""
    method, extractor = "<b>bold</b> &lt; <a href='http://x.invalid'>link</a>", "<i>net</i> & <br> &amp; more"
    runs, rows = [], []
    for name, seed in ((method, 0), (method, 1), ("cm", 0), ("cm", 1)):
        run = {"run": f"{name}-{seed}", "method": name, "seed": seed, "group": "ddim-n5-w1", "solver": "ddim"}
        run |= {"n_steps": 5, "guidance": 1.0}
        runs.append(run | {"targets": "paper", "parameters": "full"})
        for metric, measured, reference in (
            ("ode_error", "pixels", "teacher"),
            ("frechet_distance", extractor, "data"),
        ):
            cell = {"metric": metric, "extractor": measured, "reference": reference, "sampling_steps": 1}
            rows.append({"experiment": "digits", **run, **cell, "value": 1.0 + seed + len(name)})
    write_table(tmp_path / "metrics.csv", pd.DataFrame(rows).drop(columns="group"))
    out = tmp_path / "tradeoff.html"
    tradeoff.draw(out, PAGES / "tradeoff.html", tmp_path / "metrics.csv", {"digits": runs}, {"digits": TITLE})
    with opened(out) as page:
        page.wait_for_selector("#plot .scatterlayer")
        quiet(page, "ODE error against sample quality")
        assert page.locator("#plot .legendtext").evaluate_all("all => all.map(e => e.textContent)") == [method, "CM"]
        # the words of a wrapped title stand in lines of their own
        axis = page.locator("#plot .ytitle").text_content().replace(" ", "")
        assert axis == f"Fréchet distance to the data, in features of {extractor} (lower is better)".replace(" ", "")
        points = page.locator("#plot .scatterlayer path.point")
        texts = []
        for number in range(points.count()):
            points.nth(number).hover(force=True)
            page.wait_for_selector(".hoverlayer .hovertext")
            texts.append(page.locator(".hoverlayer .hovertext").first.text_content())
        assert any(f"{method}, DDIM, N = 5, w = 1" in text for text in texts), texts
        assert page.locator("#plot a[href*=invalid], #plot svg a").count() == 0
        page.locator("summary").click()
        assert method in page.locator("#values td").all_text_contents()


@pytest.mark.parametrize("points", [False, True])
def test_names_and_captions_beside_samples(tmp_path, opened, points):
    rng = np.random.default_rng(0)
    method, caption = TEXTS["attribute"] + TEXTS["image"], TITLE + TEXTS["right to left"]
    shape = (4, 2) if points else (4, 1, 8, 8)
    for name in ("samples", "steps_1"):
        save_tensors(tmp_path / name, {name: rng.uniform(-1, 1, shape).astype(np.float32)})
    save_tensors(tmp_path / "noise", {"labels": np.zeros(4, np.int64)})
    save_tensors(tmp_path / "truth", {"vp": rng.uniform(-1, 1, shape).astype(np.float32)})
    write_json(tmp_path / "captions.json", {"captions": [caption]})
    condition = {"condition": "ddim-n5-w1"}
    rows = [{"method": "teacher", "n_steps": 5, **condition}]
    rows.append({"method": method, "group": "ddim-n5-w1", "seed": 0, "sampling_steps": [1], **condition})
    files = [str(tmp_path / "samples"), str(tmp_path / "steps_1")]
    more = {"truth": tmp_path / "truth"} if points else {"captions": tmp_path / "captions.json"}
    out = tmp_path / "samples.html"
    samples.draw(
        out, PAGES / "samples.html", TITLE, rows, samples=files, pictures=files, noise=tmp_path / "noise", **more
    )
    with opened(out) as page:
        page.wait_for_selector("body[data-shown]")
        quiet(page, f"{as_written(TITLE)}: samples from the same noise")
        labels = page.locator("[role=img]").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
        if points:
            assert f"{method}, 4 points" in labels
            assert method in "".join(page.locator("figcaption").all_text_contents())
        else:
            assert f"{method}, noise 0, {caption}" in labels
            assert page.locator("#prompts li").all_text_contents() == [caption] * 4
            assert page.locator("thead th[title]").first.get_attribute("title") == caption
            assert any(text.startswith(method) for text in page.locator("tbody th").all_text_contents())


@pytest.mark.parametrize("width", [1280, 390])
def test_the_comparison_of_two_folders(opened, tmp_path, width):
    """Its tables scroll by themselves: the page is as wide as the screen."""
    claim = {"experiment": TITLE, "claim": TITLE, "condition": TITLE, "quantity": TITLE, "reason": TITLE}
    claim |= {"effect": 1.0, "ci_low": 0.5, "ci_high": 2.0, "n_seeds": 3}
    for folder, verdict in (("a", "reproduced"), ("b", "inconclusive")):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "claims.csv", pd.DataFrame([claim | {"verdict": verdict}]))
        names = {"experiment": TITLE, "run": TITLE, "metric": TITLE, "extractor": TITLE, "reference": TITLE}
        numbers = [names | {"sampling_steps": 1, "seed": seed, "value": len(verdict) + seed} for seed in (0.0, 0.1)]
        write_table(tmp_path / folder / "metrics.csv", pd.DataFrame(numbers))
    comparison.write(tmp_path / "page.html", comparison.compare(tmp_path / "a", tmp_path / "b"))
    with opened(tmp_path / "page.html", width) as page:
        quiet(page, "Two folders of results")
        assert as_written(TITLE) in text_of(page, "td")
        assert page.locator("td.reproduced, td.inconclusive").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width
