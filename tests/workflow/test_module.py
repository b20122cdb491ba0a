"""The workflow as a module of another one: its outputs are under the prefix, the other's rules use them."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers import SMALL, Project

RUNS = {"runs": [{"solver": "ddim", "n_steps": 5, "guidance": 1, "seed": 0}]}

SNAKEFILE = """
configfile: "study.yaml"


rule summary:
    input:
        "ours/results/metrics.csv",
        "ours/results/report.html",
    output:
        "summary.txt",
    shell:
        "wc -l {input[0]} > {output}"


module consistency:
    snakefile:
        "checkout/workflow/Snakefile"
    config:
        config["consistency"]
    prefix:
        "ours"


use rule * from consistency as consistency_*


# The same workflow with other settings, as a second module; one rule with other resources.
module teachers:
    snakefile:
        "checkout/Snakefile"
    config:
        config["teachers"]
    prefix:
        "theirs"


use rule * from teachers as teachers_*


use rule train_teacher from teachers as teachers_train_teacher with:
    threads: 2
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with another workflow, which has been run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "checkout").mkdir()
    Project(folder / "checkout")
    (folder / "Snakefile").write_text(SNAKEFILE)
    small = {"experiments": ["digits"], "overrides": {"digits": SMALL | RUNS}}
    other = SMALL | RUNS | {"teacher": {"training": {"steps": 10, "batch_size": 32}}}
    settings = {
        "consistency": small,
        "teachers": small | {"results": "out", "overrides": {"digits": other}},
        "mine": {"anything": 1},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    snakemake(folder, "summary", "theirs/out/digits/teacher")
    return folder


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_outputs_are_under_the_prefix(study):
    assert int((study / "summary.txt").read_text().split()[0]) > 20
    assert {path.name for path in study.iterdir()} == {
        *("Snakefile", "checkout", "study.yaml"),
        *(".snakemake", "ours", "theirs", "summary.txt"),
    }
    assert {path.name for path in (study / "ours").iterdir()} == {"results"}
    assert (study / "ours/results/figures/digits-tradeoff.pdf").read_bytes().startswith(b"%PDF")
    assert (study / "ours/results/digits/checkpoints").is_dir()
    assert not (study / "checkout/results").exists()
    measured = json.loads((study / "ours/results/digits/metrics/cm-ddim-n5-w1-s0.json").read_text())
    assert [card["name"] for card in measured["protocol"]["extractors"]] == ["digits-classifier"]


def test_two_modules_keep_apart(study):
    assert {path.name for path in (study / "theirs/out/digits").iterdir()} == {
        *("data.safetensors", "teacher", "stats", "checkpoints", ".records"),
    }
    steps = [
        json.loads((study / f"{place}/digits/stats/teacher.jsonl").read_text().splitlines()[-1])["step"]
        for place in ("ours/results", "theirs/out")
    ]
    assert steps == [120, 10]


def test_the_report_is_of_the_module(study):
    page = (study / "ours/results/report.html").read_text(encoding="utf-8")
    for name in ("figures/digits-tradeoff.png", "tables/digits-main.html", "tables/claims.html"):
        assert f"ours/results/{name}" in page
    assert "Where to look" in page
    assert "summary.txt" not in page


def test_the_first_rule_stays_the_default(study):
    assert "Nothing to be done" in snakemake(study, "--dry-run")
    assert "Nothing to be done" in snakemake(study, "--dry-run", "consistency_all")
    jobs = dict(re.findall(r"^(teachers_\w+) +(\d+)$", snakemake(study, "--dry-run", "teachers_paper"), re.MULTILINE))
    assert jobs["teachers_train_student"] == "2"
    assert "teachers_train_teacher" not in jobs


def test_a_misspelt_key_is_named(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study", symlinks=True)
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(text.replace("n_steps: 5", "n_stps: 5"))
    command = [sys.executable, "-m", "snakemake", "--dry-run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "digits: runs.0.n_stps: unknown key" in done.stdout + done.stderr
