"""The page of samples stays small enough to show in a frame, whatever the experiment; text in it is text."""

import base64
import io
import json
import re

import numpy as np
import pytest
from consistency.files.storage import save_tensors, write_json
from consistency.report.pages import samples, shell
from PIL import Image

TEMPLATE = "workflow/consistency/report/pages/samples.html"


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])


def pictures(folder, rng, side, seeds, count=30, decoded=False):
    """Files of one condition's teacher and CM, pictures of noise, which hardly packs; the rows of the page."""
    rows = [{"source": "teacher", "method": "teacher", "condition": "ddim-n5-w1", "n_steps": 5}]
    for seed in range(seeds):
        row = {"method": "cm", "group": "ddim-n5-w1", "condition": "ddim-n5-w1", "seed": seed, "sampling_steps": [1, 2]}
        rows.append({"source": f"cm-{seed}"} | row)
    files, features = [], []
    for row in rows:
        names = ["samples"] if row["method"] == "teacher" else ["steps_1", "steps_2"]
        shape = (count, 3, 8, 8) if decoded else (count, 3, side, side)
        values = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name in names}
        save_tensors(folder / f"{row['source']}.safetensors", values)
        files.append(str(folder / f"{row['source']}.safetensors"))
        if decoded:
            shown = {f"{name}.pictures": rng.integers(0, 256, (15, 3, side, side), dtype=np.uint8) for name in names}
            save_tensors(folder / f"{row['source']}-pictures.safetensors", shown)
            features.append(str(folder / f"{row['source']}-pictures.safetensors"))
    save_tensors(folder / "noise.safetensors", {"labels": np.arange(count) % 10})
    return rows, files, features or files


@pytest.mark.parametrize(("side", "seeds", "all_of_them"), [(8, 3, True), (32, 12, False), (200, 3, False)])
def test_fewer_noises_where_pictures_are_large(tmp_path, side, seeds, all_of_them):
    rows, files, shown = pictures(tmp_path, np.random.default_rng(0), side, seeds)
    samples.draw(
        tmp_path / "page.html",
        TEMPLATE,
        "Title",
        rows,
        samples=files,
        pictures=shown,
        noise=tmp_path / "noise.safetensors",
    )
    data = data_of(tmp_path / "page.html")
    count = len(data["labels"])
    assert count == samples.PICTURES if all_of_them else 4 < count < samples.PICTURES
    # in base64, as the report holds it, less than Chromium's 2 MiB
    assert (tmp_path / "page.html").stat().st_size * 4 / 3 < 2 * 2**20
    [section] = data["sections"]
    sprite = Image.open(io.BytesIO(base64.b64decode(section["sprite"].split(",")[1])))
    tile = min(side, samples.SIDE)
    assert data["size"] == [tile, tile]
    assert sprite.size == (tile * count, tile * (1 + 2 * seeds))
    assert [row["steps"] for row in section["rows"]] == [None, *[1, 2] * seeds]


def test_latents_show_their_decoded_pictures_and_measure_themselves(tmp_path):
    from safetensors.numpy import load_file

    rows, files, shown = pictures(tmp_path, np.random.default_rng(1), 16, 1, decoded=True)
    prompts = [f"</script><b>prompt {number}" for number in range(10)]
    write_json(tmp_path / "captions.json", {"captions": prompts})
    out, noise = tmp_path / "page.html", tmp_path / "noise.safetensors"
    samples.draw(
        out, TEMPLATE, "Title", rows, samples=files, pictures=shown, noise=noise, captions=tmp_path / "captions.json"
    )
    data = data_of(out)
    assert data["prompts"] == [prompts[number % 10] for number in range(15)]  # as many as pictures were kept
    teacher, ours = (load_file(file) for file in files)
    errors = np.square(ours["steps_2"] - teacher["samples"]).mean((1, 2, 3))[:15]
    assert data["sections"][0]["rows"][2]["error"] == pytest.approx(errors, rel=0.01)
    sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["sections"][0]["sprite"].split(",")[1]))))
    kept = load_file(shown[1])["steps_2.pictures"]
    assert np.array_equal(sprite[32:48, 16:32], kept[1].transpose(1, 2, 0))


def test_a_page_without_a_teacher(tmp_path):
    row = {"method": "ct-ic", "group": "scratch", "condition": None, "seed": 0, "sampling_steps": [1]}
    save_tensors(tmp_path / "ct.safetensors", {"steps_1": np.zeros((4, 1, 8, 8), np.float32)})
    save_tensors(tmp_path / "noise.safetensors", {"labels": np.arange(4)})
    file = str(tmp_path / "ct.safetensors")
    samples.draw(
        tmp_path / "page.html",
        TEMPLATE,
        "Title",
        [row],
        samples=file,
        pictures=file,
        noise=tmp_path / "noise.safetensors",
    )
    [section] = data_of(tmp_path / "page.html")["sections"]
    assert section["scratch"]
    assert section["reference"] is None
    assert [(line["name"], line["error"]) for line in section["rows"]] == [("CT, independent", None)]


def test_data_cannot_end_its_script(tmp_path):
    template = tmp_path / "template.html"
    template.write_text("<p>body</p>")
    shell.write(tmp_path / "page.html", "A < B", template, {"caption": "</script><script>alert(1)</script>"})
    text = (tmp_path / "page.html").read_text()
    assert text.count("</script>") == 1
    assert "<title>A &lt; B</title>" in text
    assert data_of(tmp_path / "page.html")["caption"].startswith("</script>")
