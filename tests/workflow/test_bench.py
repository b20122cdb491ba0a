"""`make bench` at a size whose numbers say nothing: every section runs and writes its rows."""

import subprocess
import sys

import pandas as pd
import pytest
from helpers import ROOT

SECTIONS = {
    "steps": "Direct CM step",
    "solving": "Target solving",
    "training": "Training step",
    "sampling": "Sampling",
    "model": "Cost model",
    "metrics": "Fréchet distance",
    "dag": "Workflow",
    "memory": "Memory",
    "sdxl": "SDXL",
}


def bench(*arguments):
    command = [sys.executable, "benchmarks/bench.py", "--small", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def table(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    done = bench("--out", out, "--folder", finished.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("md", "pdf", "png", "csv.sha256"):
        assert (out / f"benchmark.{kind}").stat().st_size > 50
    assert "commit: " in (out / "benchmark.md").read_text()
    return pd.read_csv(out / "benchmark.csv")


def values(table, **cells):
    for column, text in cells.items():
        table = table[table[column].str.contains(text, regex=False)]
    assert len(table), cells
    return table.value


@pytest.mark.long
def test_every_section_has_its_rows(table):
    assert set(SECTIONS.values()) <= set(table.section)
    assert (table.value.notna() & (table.low <= table.value) & (table.value <= table.high)).all()


@pytest.mark.long
def test_online_solves_ask_the_teacher_and_cached_targets_do_not(table):
    steps = table[table.section == "Direct CM step"]
    assert (values(steps, quantity="calls a sample, cached targets") == 0).all()
    reference = values(steps, setting="N = 50, w = 4", quantity="calls a sample, online solve as in the reference")
    packed = values(steps, setting="N = 50, w = 4", quantity="calls a sample, best online solve")
    assert 2 * 25 < reference.item() <= 2 * 50  # from the largest start of the batch, two calls a step
    assert packed.item() < reference.item()
    slower = values(steps, case="digits", setting="N = 50, w = 4", quantity="times slower: online solve as in the")
    assert slower.item() > 2


@pytest.mark.long
def test_other_implementations_find_the_same_distance(table):
    apart = values(table, section="Fréchet", quantity="relative difference")
    assert len(apart) == 2 and (apart < 1e-6).all()
    assert (values(table, section="Features", quantity="largest difference") < 1e-4).all()


def test_an_unknown_section_is_named(tmp_path):
    done = bench("--out", tmp_path, "--only", "solvign")
    assert done.returncode and "no section 'solvign'; there are steps, solving" in done.stderr
