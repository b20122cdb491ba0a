"""A user's own images through the real workflow: what is passed over is seen on the terminal, in the log and in the
protocol; data that cannot carry the experiment stop before anything is trained."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from consistency.files.storage import load_tensors, read_json
from helpers import Project
from PIL import Image

DATA = {"kind": "images", "name": "mine", "source": "data/mine", "side": 8, "labels": "folder", "test_share": 0.3}
QUICK = {"training": {"steps": 20, "batch_size": 32, "warmup_steps": 5}}


def pictures(folder, names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.configure({"data": DATA, "teacher": QUICK, "classifier": {"channels": 4} | QUICK})
    return project


def test_what_is_passed_over_is_seen(project):
    """Also what a job warns of that is a fork of `warm_server.py`: of a damaged checkpoint."""
    pictures(project.folder / "data/mine", [f"{name}/{k}.png" for name in ("ant", "bee") for k in range(8)])
    (project.folder / "data/mine/ant/notes.txt").write_text("of no use")
    checkpoint = project.folder / "results/digits/checkpoints/classifier/checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    made = [f"results/digits/{name}" for name in ("metrics/data.json", "teacher", "noise.safetensors")]
    said = project.snakemake(*made).stderr.splitlines()
    line = "data/mine: 1 file passed over (1 of type .txt: ant/notes.txt)"
    assert said.count(f"prepare_data: {line}") == 1, said
    log = (project.folder / "results/logs/digits/prepare_data.log").read_text()
    assert line in log
    assert "data/mine: class 1: bee: " in log
    place = "results/digits/checkpoints/classifier/checkpoint.pt: damaged checkpoint"
    assert len([row for row in said if row.startswith(f"train_classifier: {place}")]) == 1, said
    data_read = read_json(project.folder / made[0])["protocol"]["data_read"]
    assert data_read["passed_over"] == {"of type .txt": {"count": 1, "first": ["ant/notes.txt"]}}
    assert data_read["classes"]["names"] == ["ant", "bee"]
    assert data_read == load_tensors(project.folder / "results/digits/data.safetensors")[1]["read"]


def test_data_that_cannot_carry_the_experiment(project):
    pictures(project.folder / "data/mine", ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png"])
    done = project.snakemake(check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("prepare_data: ")]
    assert len(lines) == 1, done.stderr
    assert "data/mine: too few images to train on, 3: " in lines[0]
    assert "unexpected error" not in done.stderr
    assert not (project.folder / "results/digits/teacher").exists()


def test_a_teacher_of_noise_ends_unsound(project):
    """An MLP narrower than the images learns noise: it is said before any student is trained, and nothing is decided."""
    for number in range(100):
        kind, random = number % 4, np.random.default_rng(number)
        pixels = random.integers(0, 80, (16, 16, 3), np.uint8)
        pixels[8 * (kind // 2) :, 8 * (kind % 2) :][:8, :8] += 150
        (folder := project.folder / f"data/mine/{kind}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    project.configure(
        {
            "data": DATA | {"side": 16},
            "network": {"width": 128, "depth": 1},
            "classifier": {"channels": 8, "training": {"steps": 60, "batch_size": 32}},
            "runs": [{"solver": "ddim", "n_steps": 5, "seed": 0}],
            "claims": ["A1", "A2"],
        }
    )
    said = project.snakemake(cores="1").stderr.splitlines()
    place = "measure_teacher: results/digits/metrics/teacher-ddim-n5-w1.json: "
    (warning,) = [line for line in said if line.startswith(place)]
    reason = re.fullmatch(
        r"(teacher recognised at 0\.\d+, needs 0\.\d+): every verdict .* will be unsound", warning[len(place) :]
    )[1]
    assert said.index(warning) < min(n for n, line in enumerate(said) if "rule train_student" in line)
    results = project.folder / "results"
    claims = pd.read_csv(results / "claims.csv")
    assert set(claims.verdict) == {"unsound"}
    assert set(claims.reason) == {reason}
    summary = [sys.executable, "workflow/scripts/summary.py", "results"]
    shown = subprocess.run(summary, cwd=project.folder, check=True, capture_output=True, text=True).stdout
    for text in (shown, *((results / f"tables/claims.{kind}").read_text() for kind in ("md", "tex", "html"))):
        assert "unsound" in text
        assert reason in text
    assert "unsound" in (results / "report.html").read_text()
