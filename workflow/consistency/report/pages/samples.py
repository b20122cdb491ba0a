"""Samples of teacher and students side by side for the same noise, with condition, seed and steps to choose."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...files import bounds
from ...files.storage import load_tensors, read_json
from ..tables import condition_label, method_label
from . import shell

PICTURES, POINTS = 24, 256  # most noises of a page
SIDE = 128  # largest side of a picture, px; larger ones are scaled down
# Chromium shows no page of more than 2 MiB as a data: address in a frame, which is what Snakemake's report does with
# it, in base64: so 3/4 of that, less the page around the data.
LIMIT = 1_500_000
# Okabe and Ito's colours, grey for their yellow: by the direction in which a noise's true end lies.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c"]

Rows = list[dict[str, Any]]


def draw(
    path: str | Path,
    template: str | Path,
    title: str,
    rows: Rows,
    *,
    samples: str | list[str],
    pictures: str | list[str],
    noise: str | Path,
    truth: str | Path | None = None,
    captions: str | Path | None = None,
) -> None:
    """Write the page; with more sets than `LIMIT` allows for, of fewer noises.

    Args:
        rows: method, group, condition, seed and sampling_steps of each set, in the order of `samples` and
            `pictures`; a teacher's has method and condition alone.
        samples: files of samples; errors are measured on these.
        pictures: the same files; where samples are latents, of features, which hold decoded pictures.
        noise: the shared noise file, for its labels.
        truth: the ODE's true ends from that noise: samples are then points and are drawn so.
        captions: the prompts; labels are their numbers.
    """
    count = PICTURES if truth is None else POINTS
    labels = load_tensors(noise, ["labels"], framework="np", rows=count)[0]["labels"].tolist()
    ends = {} if truth is None else load_tensors(truth, framework="np", rows=count)[0]
    sections = _sections(rows, _listed(samples), _listed(pictures), ends, count)
    count = min(len(line["drawn"]) for section in sections for line in section["rows"])
    prompts = None if captions is None else read_json(captions, most=bounds.CAPTIONS)["captions"]
    while True:
        data: dict[str, Any] = {"labels": labels[:count], "sections": [_packed(s, count, bool(ends)) for s in sections]}
        data |= _plane(sections, ends, count) if ends else _tile(sections)
        if prompts:
            data["prompts"] = [prompts[label] for label in labels[:count]]
        if count == 1 or len(json.dumps(data)) <= LIMIT:
            break
        count = count * 2 // 3
    shell.write(path, f"{title}: samples from the same noise", template, data)


def _sections(rows: Rows, samples: list[str], pictures: list[str], ends: dict[str, np.ndarray], count: int) -> Rows:
    """A section per group of runs: the references first, then the sets of each run.

    A line has name, seed and steps (None: shown always), error (count,) or None, drawn (count, …).
    """
    read = [_read(row, *paths, count) for row, *paths in zip(rows, samples, pictures, strict=True)]
    teachers = {row["condition"]: sets for row, sets in zip(rows, read, strict=True) if row["method"] == "teacher"}
    sections: dict[str, dict[str, Any]] = {}
    for row, sets in zip(rows, read, strict=True):
        if row["method"] == "teacher":
            continue
        scratch = row["group"] == "scratch"
        true = ends.get(row.get("flow", "vp"))
        teacher = None if scratch else teachers[row["condition"]][0]
        if row["group"] not in sections:
            lines = [] if true is None else [_line("True end of the ODE", true)]
            if teacher:
                lines.append(_line(f"Teacher, {teacher['steps']} steps", teacher["drawn"]))
            label = "From scratch" if scratch else condition_label(row["group"])
            sections[row["group"]] = {"label": label, "scratch": scratch, "rows": lines}
            sections[row["group"]]["reference"] = "the teacher" if teacher else "the true end" if ends else None
        reference = teacher["values"] if teacher else true
        for part in sets:
            error = None
            if reference is not None:
                difference = part["values"].astype(np.float64) - reference
                error = np.square(difference).reshape(len(difference), -1).mean(1)
            line = _line(method_label(row["method"], [row]), part["drawn"])
            sections[row["group"]]["rows"].append(line | {"seed": row["seed"], "steps": part["steps"], "error": error})
    return list(sections.values())


def _line(name: str, drawn: np.ndarray) -> dict[str, Any]:
    return {"name": name, "seed": None, "steps": None, "error": None, "drawn": drawn}


def _read(row: dict[str, Any], samples: str, pictures: str, count: int) -> Rows:
    """The first samples of a file's sets: steps, values (n, …) and what is drawn of them (n, …)."""
    if row["method"] == "teacher":
        names = {row["n_steps"]: "samples"}
    else:
        names = {steps: f"steps_{steps}" for steps in row["sampling_steps"]}
    values = load_tensors(samples, list(names.values()), framework="np", rows=count)[0]
    drawn = values
    if pictures != samples:
        asked = [f"{name}.pictures" for name in names.values()]
        of_pictures = load_tensors(pictures, asked, framework="np", rows=count)[0]
        drawn = {name: of_pictures[f"{name}.pictures"] for name in names.values()}
        values = {name: values[name][: len(drawn[name])] for name in drawn}
    return [{"steps": steps, "values": values[name], "drawn": drawn[name]} for steps, name in names.items()]


def _packed(section: dict[str, Any], count: int, points: bool) -> dict[str, Any]:
    """A section as the page takes it, its drawn samples as points or as one picture of all rows."""
    lines = [line | {"drawn": line["drawn"][:count]} for line in section["rows"]]
    packed = []
    for line in lines:
        error = None if line["error"] is None else [float(f"{value:.3g}") for value in line["error"][:count]]
        packed.append({"name": line["name"], "seed": line["seed"], "steps": line["steps"], "error": error})
        if points:
            packed[-1]["points"] = _first_two(line["drawn"]).round(3).tolist()
    sprite = None if points else _sprite([line["drawn"] for line in lines])
    return section | {"rows": packed, "sprite": sprite}


def _sprite(sets: list[np.ndarray]) -> str:
    """Sets of pictures as one: a row per set, a column per noise. Small ones without loss."""
    rows = [np.concatenate([_thumbnail(image) for image in images], axis=1) for images in sets]
    picture = np.concatenate(rows).squeeze()
    buffer = io.BytesIO()
    if _side(sets[0]) <= 32:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
        return shell.data_uri(buffer.getvalue(), "image/png")
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return shell.data_uri(buffer.getvalue(), "image/jpeg")


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Channels first, in [−1, 1] or 0..255, as uint8 (H, W, C) with a largest side of `SIDE`."""
    if image.dtype != np.uint8:
        image = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    picture = image.transpose(1, 2, 0)
    if max(picture.shape[:2]) <= SIDE:
        return picture
    scaled = Image.fromarray(picture.squeeze())
    scaled.thumbnail((SIDE, SIDE))
    return np.asarray(scaled).reshape(scaled.height, scaled.width, -1)


def _side(images: np.ndarray) -> int:
    return min(max(images.shape[-2:]), SIDE)


def _tile(sections: Rows) -> dict[str, Any]:
    """The size of one picture in the sprites, and how large it is shown, px: a whole number of times."""
    height, width = _thumbnail(sections[0]["rows"][0]["drawn"][0]).shape[:2]
    times = -(-40 // max(height, width))
    return {"size": [width, height], "shown": [width * times, height * times]}


def _plane(sections: Rows, ends: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """The square that all panels show, from the references, and the colour of each noise, by its true end."""
    references = np.concatenate([_first_two(r["drawn"]) for s in sections for r in s["rows"] if r["seed"] is None])
    middle, half = (references.max(0) + references.min(0)) / 2, 0.65 * np.ptp(references, axis=0).max()
    end = _first_two(next(iter(ends.values()))[:count])
    x, y = (end - end.mean(0)).T
    sectors = np.floor(np.arctan2(y, x) / (2 * np.pi) * len(_COLOURS) + 0.5).astype(int) % len(_COLOURS)
    limits = {"low": (middle - half).round(3).tolist(), "high": (middle + half).round(3).tolist()}
    return limits | {"colours": [_COLOURS[sector] for sector in sectors]}


def _first_two(points: np.ndarray) -> np.ndarray:
    """The first two coordinates (P, 2); a single one lies on a line."""
    return np.pad(points.reshape(len(points), -1), ((0, 0), (0, 1)))[:, :2].astype(np.float64)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
