"""The interactive pages: what they draw is what the files hold, and a choice changes it."""

import re

import numpy as np
import pandas as pd
import pytest
from consistency.files.storage import load_tensors


def samples(project, experiment, source, name):
    """Samples of a set as the workflow wrote them."""
    path = project.folder / f"results/{experiment}/samples/{source}.safetensors"
    return load_tensors(path, [name], framework="np")[0][name]


def row_of(page, name):
    """The table's row of the teacher or of a method."""
    return page.locator("tbody tr", has=page.locator("th[scope=row]", has_text=re.compile(f"^{name}(,|seed)")))


def pictures(page, name):
    """The grey values of a row's canvases, (count, H, W)."""
    values = (
        row_of(page, name)
        .locator("canvas")
        .evaluate_all(
            "all => all.map(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0))"
        )
    )
    return np.array(values).reshape(len(values), 8, 8)


def drawn(values):
    """What is drawn of samples in [−1, 1]."""
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).squeeze(1)


@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.long)])
def test_pictures_are_the_samples_of_the_choice(finished, opened, width):
    shown = set()
    with opened(finished.folder / "results/pages/digits-samples.html", width) as page:
        page.wait_for_selector("body[data-shown]")
        choices = [("DDIM, N = 5, w = 1", "ddim-n5-w1", 0, 1), ("DDIM, N = 5, w = 4", "ddim-n5-w4", 1, 2)]
        for number, (label, condition, seed, steps) in enumerate(choices):
            page.get_by_label("Teacher's condition").select_option(label=label)
            page.get_by_label("Training seed").select_option(label=str(seed))
            page.get_by_label("Sampling steps").select_option(label=str(steps))
            page.wait_for_function("v => document.body.dataset.shown === v", arg=f"{number}/{seed}/{steps - 1}")
            teacher = samples(finished, "digits", f"teacher-{condition}", "samples")[:24]
            assert np.array_equal(pictures(page, "Teacher"), drawn(teacher))
            for method, name in (("cm", "CM"), ("direct", "Direct CM")):
                ours = samples(finished, "digits", f"{method}-{condition}-s{seed}", f"steps_{steps}")[:24]
                assert np.array_equal(pictures(page, name), drawn(ours))
                errors = [float(text) for text in row_of(page, name).locator("td span").all_inner_texts()]
                assert errors == pytest.approx(np.square(ours - teacher).mean((1, 2, 3)), rel=0.06)
            shown.add(pictures(page, "Teacher").tobytes())
        # two rows of headings: the noise's number and its label
        labels = load_tensors(finished.folder / "results/digits/noise.safetensors", ["labels"], framework="np")[0][
            "labels"
        ]
        texts = page.locator("thead tr").nth(1).locator("th").all_inner_texts()[1:]
        assert [int(text) for text in texts] == labels[:24].tolist()
        # the table scrolls by keyboard, inside itself
        page.get_by_role("region").focus()
        page.keyboard.press("ArrowRight")
        pixelated = page.locator("canvas").first.evaluate("c => getComputedStyle(c).imageRendering")
        assert pixelated == "pixelated"
    assert len(shown) == 2


def test_points_are_the_samples_of_the_same_noise(exact, opened):
    with opened(exact.folder / "results/pages/gaussians-modes-samples.html") as page:
        page.get_by_label("Training seed").select_option(label="1")
        slider = page.get_by_label("One noise")
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.locator("output").inner_text() == "3"
        for caption, source, name in (
            ("Teacher", "teacher-ddim-n5-w1", "samples"),
            ("Direct CM", "direct-ddim-n5-w1-s1", "steps_1"),
            ("CT, batch-OT", "ct-ot-s1", "steps_1"),
        ):
            figure = page.locator("figure", has_text=caption).first
            x, y = samples(exact, "gaussians-modes", source, name)[3]
            shown = figure.locator("figcaption").inner_text().replace("-0.00", "0.00")
            assert f"noise 3: ({x:.2f}, {y:.2f})".replace("-0.00", "0.00") in shown
            assert figure.locator("circle.picked").get_attribute("data-i") == "3"
            assert figure.locator("circle").count() == 64
        assert page.locator("circle.picked").count() == page.locator("figure").count()
        # pointing at another dot moves all panels
        page.locator("figure circle[data-i='7']").first.dispatch_event("pointerover", {"bubbles": True})
        assert page.locator("output").inner_text() == "7"


def trace(page, name):
    """x, y and the bars of a method in the plot."""
    return page.evaluate(
        """name => { const t = document.getElementById("plot").data.find(t => t.name === name);
        return {x: t.x, y: t.y, bars: t.error_y.array, color: t.marker.color, text: t.hovertext} }""",
        name,
    )


@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.long)])
def test_the_plot_holds_the_means_of_the_choice(finished, opened, width):
    metrics = pd.read_csv(finished.folder / "results/metrics.csv")
    chosen = metrics[(metrics.method == "direct") & (metrics.sampling_steps == 2) & (metrics.guidance == 4)]
    error = chosen[(chosen.metric == "ode_error") & (chosen.reference == "teacher")].value
    recall = chosen[(chosen.metric == "recall") & (chosen.reference == "data")].value
    with opened(finished.folder / "results/pages/tradeoff.html", width) as page:
        page.wait_for_selector("#plot .scatterlayer")
        before = trace(page, "Direct CM")
        assert len(before["x"]) == 2  # both guidance scales
        page.get_by_label("Guidance").select_option(label="4")
        page.get_by_label("Sampling steps").select_option(label="2")
        page.get_by_label("Up: sample quality").select_option(
            label="Recall to the data, of features of digits-classifier"
        )
        after = trace(page, "Direct CM")
        assert after["x"] == pytest.approx([error.mean()], rel=1e-3)
        assert after["y"] == pytest.approx([recall.mean()], rel=1e-3)
        assert after["color"] == before["color"] != trace(page, "CM")["color"]
        half = 12.706 * recall.std() / 2**0.5  # Student's t of two seeds
        assert after["bars"] == pytest.approx([half], rel=2e-3)
        # pointing at the marker tells the run; a double click in the legend leaves this method alone, since
        # two methods' markers may lie on each other
        page.locator(".legend .traces", has_text="Direct CM").locator(".legendtoggle").dblclick()
        page.wait_for_function("document.querySelectorAll('#plot .scatterlayer .trace path.point').length === 1")
        place = page.locator("#plot .scatterlayer .trace", has=page.locator("path.point")).locator("path.point")
        texts = []
        for number in range(place.count()):
            place.nth(number).hover(force=True)
            page.wait_for_selector(".hoverlayer .hovertext")
            texts.append(page.locator(".hoverlayer .hovertext").first.text_content())
        assert any("Direct CM" in text and "w = 4" in text and "seed 1" in text for text in texts), texts
        # the same numbers as text
        page.locator("summary").click()
        rows = [row.split("\t") for row in page.locator("#values").inner_text().splitlines()]
        ours = next(row for row in rows if row[0] == "Direct CM")
        assert ours[1:3] == ["DDIM, N = 5, w = 4", "2"]
        assert float(ours[3].split()[0]) == pytest.approx(error.mean(), rel=6e-3)


def test_methods_from_scratch_have_an_error_to_the_truth(exact, opened):
    metrics = pd.read_csv(exact.folder / "results/metrics.csv")
    chosen = metrics[(metrics.method == "ct-ot") & (metrics.sampling_steps == 1)]
    error = chosen[(chosen.metric == "ode_error") & (chosen.reference == "truth")].value
    with opened(exact.folder / "results/pages/tradeoff.html") as page:
        page.wait_for_selector("#plot .scatterlayer")
        page.get_by_label("Across").select_option(label="ODE error to the true end of the ODE")
        assert trace(page, "CT, batch-OT")["x"] == pytest.approx([error.mean()], rel=1e-3)
        page.get_by_label("Solver").select_option(label="DDIM")
        assert trace(page, "CT, batch-OT")["x"] == []
        assert len(trace(page, "CM")["x"]) == 1
        assert len(trace(page, "Teacher, N steps")["x"]) == 1
