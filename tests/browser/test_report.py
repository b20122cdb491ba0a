"""The report as a reader sees it: every item opens, reads, and asks for nothing, at a desk's and at a phone's width."""

import re

import pandas as pd
import pytest
from consistency.report.figures.style import plt
from matplotlib.font_manager import FontProperties
from PIL import Image

SMALLEST = 11  # px, of any text
# Font sizes of all text that is seen, px. Figures' text is part of their pictures.
FONTS = """root => [...root.querySelectorAll("*")]
    .filter(e => !e.closest("svg") && e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .filter(e => !["SCRIPT", "STYLE", "OPTION"].includes(e.tagName))
    .map(e => parseFloat(getComputedStyle(e).fontSize))"""
CATEGORIES = ["1. Claims", "2. Results", "3. Explore", "4. Details"]


@pytest.fixture(params=["finished", "exact"])
def project(request):
    """Digits with paper A's methods, and two modes with both papers'."""
    return request.getfixturevalue(request.param)


def menu(page, name):
    page.locator("nav").get_by_text(name, exact=True).first.click()


def tables_of_items(page):
    """Each list of items that the menu leads to, opened as a reader does; yields its rows."""
    for category in CATEGORIES:
        for number in range(20):
            page.locator("nav nav ol a").first.click()  # home
            menu(page, category)
            folders = page.locator("nav div.p-3 > ul > li > a")
            if folders.count():
                folders.nth(number).click()
            yield page.locator("nav tbody tr")
            if number + 1 >= folders_in(page, category):
                break


def folders_in(page, category):
    return page.evaluate("category => Object.keys(categories[category]).length", category)


def no_overflow(frame):
    return frame.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.long)])
def test_every_item_shows_and_reads(project, opened, width):
    results = project.folder / "results"
    files = [path for kind in ("figures/*.png", "tables/*.html", "pages/*.html") for path in results.glob(kind)]
    expected = {str(path.relative_to(project.folder)) for path in files}
    seen = set()
    with opened(results / "report.html", width) as page:
        page.get_by_text("Does solving a diffusion model").wait_for()
        for rows in tables_of_items(page):
            for row in range(rows.count()):
                before = page.evaluate("app.state.resultPath")
                rows.nth(row).locator("a").first.click()
                page.wait_for_function("before => app.state.resultPath && app.state.resultPath !== before", arg=before)
                path = page.evaluate("app.state.resultPath")
                seen.add(path)
                (see_picture if path.endswith(".png") else see_page)(page, project.folder / path)
                rows.nth(row).locator("a").nth(1).click()  # what the item is
                assert len(page.locator("nav .prose").inner_text()) > 100, path
                page.locator("nav nav ol a").nth(-2).click()
        assert no_overflow(page)
        assert min(page.locator("nav.h-screen").evaluate(FONTS)) >= SMALLEST
    assert seen == expected


def see_picture(page, file):
    """The figure is there, and large enough to read its smallest text, by scrolling if need be."""
    picture = page.locator("#app .grow img")
    picture.wait_for()
    page.wait_for_function("document.querySelector('#app .grow img').naturalWidth > 0")
    natural = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert natural == list(Image.open(file).size)
    shown = picture.bounding_box()["width"]
    smallest = FontProperties(size="x-small").get_size_in_points()
    assert smallest * shown / natural[0] * plt.rcParams["savefig.dpi"] / 72 >= SMALLEST
    holder = page.locator("#app .grow").first
    assert holder.evaluate("e => e.scrollWidth <= e.clientWidth || getComputedStyle(e).overflowX === 'auto'")


def see_page(page, file):
    """The embedded page is that file's, with text of a size to read, and scrolls its tables, not itself."""
    title = re.search("<title>(.*?)</title>", file.read_text(encoding="utf-8"))[1].replace("&#x27;", "'")
    frame = page.frame_locator("iframe")
    frame.locator("h1", has_text=title).wait_for()
    inside = next(f for f in page.frames[1:] if f.url.startswith("blob:"))
    assert len(inside.locator("body").inner_text()) > 150
    assert no_overflow(inside), file
    assert min(inside.locator("body").evaluate(FONTS)) >= SMALLEST


def test_claims_read_as_text(finished, opened):
    """Every verdict stands beside its claim's sentence with its numbers, and what the words mean above them."""
    from consistency.config.claims import CLAIMS
    from consistency.report.decisions import VERDICTS
    from consistency.report.verdicts import is_overall

    claims = pd.read_csv(finished.folder / "results/claims.csv")
    overall = claims[claims.condition.map(is_overall).astype(bool)]
    with opened(finished.folder / "results/report.html") as page:
        menu(page, "1. Claims")
        page.locator("nav tbody tr a").first.click()
        frame = page.frame_locator("iframe")
        for name, rows in overall.groupby("claim"):
            heading = frame.locator("h2", has_text=f"{name}, paper")
            assert CLAIMS[name].sentence in heading.inner_text()
            table = heading.locator("xpath=following-sibling::div[1]//tbody")
            cells = [line.split("\t") for line in table.inner_text().splitlines()]
            assert [(row[0], row[1]) for row in cells] == list(zip(rows.verdict, rows.quantity))
            assert [row[2] for row in cells] == [
                f"{r.effect:.3g} [{r.ci_low:.3g}, {r.ci_high:.3g}]" for r in rows.itertuples()
            ]
        for verdict in VERDICTS:
            assert frame.locator("p span", has_text=verdict).is_visible()


def test_large_pages_show_only_with_our_script(finished, opened, tmp_path):
    """Why report.html is changed after Snakemake wrote it: Chromium refuses a frame with 2 MiB of data: address."""
    text = (finished.folder / "results/report.html").read_text(encoding="utf-8")
    script = finished.folder / "workflow/report/frames.js"
    plain = tmp_path / "report.html"
    plain.write_text(text.replace(script.read_text(encoding="utf-8"), ""), encoding="utf-8")
    with opened(plain) as page:
        menu(page, "3. Explore")
        menu(page, "all experiments")
        page.locator("nav tbody tr a").first.click()
        page.wait_for_timeout(1000)
        assert page.frames[1].url == "about:blank#blocked"
