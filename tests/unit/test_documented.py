"""Numbers and papers that the pages name are those of the code."""

import inspect
import re

import pytest
import yaml
from consistency.config import components
from consistency.data.fetch import downloads, hub
from consistency.evaluate import distances, yardstick
from consistency.report.pages import samples
from consistency.teachers import truth
from consistency.training import feed, optimizers
from helpers import ROOT

# page, words with the number in brackets, what the code has
NUMBERS = [
    ("equations", r"relative tolerance ([\d.e-]+)\)", inspect.signature(truth.endpoint).parameters["rtol"].default),
    ("equations", r"batches beyond ([\d,]+) are refused", components.LARGEST_ASSIGNMENT),
    ("metrics", r"of sets of more than ([\d,]+) a fixed draw", distances.LARGEST),
    ("architecture", r"of at most (\d+) noises", samples.PICTURES),
    ("architecture", r"noises \((\d+) for points\)", samples.POINTS),
    ("architecture", r"three seeds and (\d+) px a side", samples.SIDE),
    ("architecture", r"more\s+than ([\d.]+) MB", samples.LIMIT / 1e6),
    ("architecture", r"batches and seeds of (\d+) steps are drawn at once", feed.AHEAD),
    ("data", r"files of (\d+) MB and more", hub.LARGE / 1e6),
]


@pytest.mark.parametrize(("page", "words", "expected"), NUMBERS, ids=[f"{p}: {w}" for p, w, _ in NUMBERS])
def test_numbers(page, words, expected):
    found = re.findall(words, (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert len(found) == 1, f"docs/{page}.md: {words!r} stands there {len(found)} times; expected once, with {expected}"
    assert float(found[0].replace(",", "")) == expected


def test_numbers_in_words(monkeypatch):
    texts = {
        page: (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("architecture", "metrics", "data")
    }
    assert ("up to 10⁷ elements" in texts["architecture"]) == (optimizers.Joined.LARGEST == 10**7)
    assert ("mean of five\nsplits" in texts["metrics"]) == (
        inspect.signature(yardstick.measure_data).parameters["splits"].default == 5
    )
    monkeypatch.delenv("CONSISTENCY_TIMEOUT", raising=False)
    assert f"before a connection is given up ({downloads.timeout():g})" in texts["data"]


@pytest.mark.parametrize("page", ["security", "reliability"])
def test_the_tests_that_a_page_names_are_there(page):
    """As FILE.py, FOLDER/FILE.py or FILE.py::test_…, with … for what is left out."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:[\w/]*?(test_\w+)\.py)?(?:::|…)?(test_\w+)?(?:…)?`", text)
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    absent = [f"{file}::{test}" for file, test in named if file and file not in sources]
    absent += [
        f"{file}::{test}"
        for file, test in named
        if test
        and not any(f"def {test}" in source for source in ([sources[file]] if file in sources else sources.values()))
    ]
    assert sum(map(bool, (test for _, test in named))) > 8, f"docs/{page}.md: hardly any test was found in it"
    assert absent == [], f"docs/{page}.md names tests that are not there"


def test_both_papers_are_cited():
    """Those that docs/equations.md walks through, with authors by name."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = (ROOT / "docs/equations.md").read_text(encoding="utf-8")
    papers = re.findall(r"^- \*\*[AB]\*\* — \*(.+?)\*.* arXiv ([\d.]+\d)", text, re.MULTILINE)
    assert len(papers) == 2
    for (title, number), reference in zip(papers, citation["references"], strict=True):
        assert reference["title"] == title
        assert reference["url"].endswith(number)
        assert all(author["given-names"] and author["family-names"] for author in reference["authors"])
        assert len(reference["authors"]) > 1
