"""The whole small experiment through the real snakemake, and what a second call does."""

import csv
import json
import os
import shutil

import pytest
from consistency.claims import COLUMNS as CLAIM_COLUMNS
from consistency.metrics.measure import COLUMNS
from helpers import Project


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_outputs_are_the_contracts(finished):
    results = finished.folder / "results"
    metrics, claims = rows(results / "metrics.csv"), rows(results / "claims.csv")
    assert list(metrics[0]) == COLUMNS
    assert list(claims[0]) == CLAIM_COLUMNS
    assert {row["method"] for row in metrics} == {"cm", "direct", "teacher", "data"}
    assert {row["extractor"] for row in metrics} == {"digits-classifier", "pixels"}
    assert {row["verdict"] for row in claims} == {"inconclusive"}  # two seeds are too few for a verdict
    for name in ("tradeoff", "samples", "start-times", "sampling-steps", "training"):
        for kind, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            assert (results / "figures" / f"digits-{name}.{kind}").read_bytes().startswith(magic)
    for table in ("digits-main", "claims"):
        for kind in ("md", "tex", "html"):
            assert (results / "tables" / f"{table}.{kind}").stat().st_size > 200
    assert not list(results.glob("**/.tmp-*"))
    assert not list(results.glob("*/checkpoints/*"))


def test_every_metric_can_be_traced(finished):
    paths = sorted((finished.folder / "results" / "digits" / "metrics").glob("*-s*.json"))
    assert len(paths) == 8  # two methods, two guidance scales, two seeds
    for path in paths:
        measured = json.loads(path.read_text())
        assert [card["name"] for card in measured["protocol"]["extractors"]] == ["digits-classifier"]
        assert all(len(value) == 64 for value in measured["protocol"]["files_sha256"].values())
        student = measured["settings"]["student"]
        assert student["settings"]["training"]["steps"] == 40
        assert len(student["inputs"]["teacher_sha256"]) == 64
        assert "torch" in student["environment"]["packages"]
        assert 0 < measured["wall_time_s"] < 3600


def test_report_is_one_page_with_everything(finished):
    page = (finished.folder / "results" / "report.html").read_text(encoding="utf-8")
    figures = ("digits-tradeoff.png", "digits-samples.png", "digits-training.png")
    for name in (*figures, "digits-main.html", "claims.html", "digits-samples.html", "tradeoff.html"):
        assert name in page
    assert "Where to look" in page  # the introduction, workflow/report/workflow.rst


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.jobs() == {}
    assert "Nothing to be done" in (done := finished.snakemake()).stdout + done.stderr


def test_one_figure_is_one_job(finished_copy):
    figure = finished_copy.folder / "results" / "figures" / "digits-tradeoff.pdf"
    before = figure.read_bytes()
    figure.unlink()
    done = finished_copy.snakemake("results/figures/digits-tradeoff.pdf", cores="1")
    assert "1 of 1 steps (100%) done" in done.stdout + done.stderr
    assert figure.read_bytes() == before  # the same data give the same bytes


def test_another_run_of_the_same_seed_gives_the_same_metrics(finished, tmp_path):
    project = Project(tmp_path)
    project.snakemake("results/metrics.csv")
    assert rows(project.folder / "results/metrics.csv") == rows(finished.folder / "results/metrics.csv")


def test_a_teacher_from_a_folder(finished, tmp_path):
    """Source `path`: checked, copied, and what follows is the same; another shape is refused."""
    project = Project(tmp_path)
    source = shutil.copytree(finished.folder / "results/digits/teacher", tmp_path / "given")
    project.configure({"teacher": {"source": "path", "path": str(source)}})
    assert "train_teacher" not in project.jobs()
    project.snakemake("results/digits/targets/paper-ddim-n5-w4/manifest.json")
    found, expected = (
        json.loads((p.folder / "results/digits/targets/paper-ddim-n5-w4/manifest.json").read_text())
        for p in (project, finished)
    )
    assert found == expected

    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"sample_shape": [3, 8, 8]}))
    project.snakemake("--delete-all-output", "results/digits/teacher")
    done = project.snakemake("results/digits/teacher", check=False)
    assert done.returncode != 0
    assert "import_teacher: " in done.stderr


@pytest.mark.parametrize("damage", ["shard", "noise"])
def test_damaged_inputs_stop_the_job_with_one_line(finished_copy, damage):
    folder = finished_copy.folder / "results" / "digits"
    names = {"shard": "targets/paper-ddim-n5-w1/shard-0.safetensors", "noise": "noise.safetensors"}
    path = folder / names[damage]
    original, stat = path.read_bytes(), path.stat()
    target = {"shard": "students/cm-ddim-n5-w1-s0", "noise": "samples/cm-ddim-n5-w1-s0.safetensors"}[damage]
    if damage == "shard":
        content = bytearray(original)
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        from consistency.noise import draw_noise
        from consistency.storage import save_tensors

        save_tensors(path, draw_noise(99, (1, 8, 8), 10, 2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # rot leaves no trace
    done = finished_copy.snakemake("--force", f"results/digits/{target}", check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("train_student: ", "sample_student: "))]
    assert len(lines) == 1
    assert path.name in lines[0]
    assert ("sha256" in lines[0]) if damage == "shard" else ("99 noises" in lines[0] and "100" in lines[0])

    path.write_bytes(original)  # put back, the same command heals what was refused
    finished_copy.snakemake()
    assert finished_copy.jobs() == {}
