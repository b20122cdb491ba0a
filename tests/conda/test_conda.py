"""`snakemake --cores all --use-conda` for real: with the conda client of the machine, else with a stand-in (client.py).

Snakemake lets scripts fall back on packages of its own environment. So that a package missing from envs/ shows, it is
started here from envs/report.yaml's environment, which has no torch, pandas or matplotlib.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import channel
import client
import pandas as pd
import pytest
import yaml
from helpers import ROOT, Project

pytestmark = pytest.mark.long
TINY = {
    "evaluation": {"count": 32},
    "teacher": {"training": {"steps": 40}},
    "classifier": {"training": {"steps": 30}},
    "targets": {"count": 64, "batch_size": 64, "shards": 1},
    "runs": [{"solver": "ddim", "n_steps": 5, "guidance": 1, "seed": 0}],
}


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """Folder of a conda client for PATH, and where environments go."""
    base = tmp_path_factory.mktemp("conda")
    found = shutil.which("conda")
    if found is None:
        bin_ = client.install(base / "client", channel.build(base / "channels" / "conda-forge").parent)
    else:
        bin_ = Path(found).parent
    return bin_, base / "environments"


def run(conda, folder, *arguments, python=sys.executable):
    """Snakemake as a user starts it who has this Python's environment and a conda client."""
    bin_, prefix = conda
    drop = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in drop}
    environment |= {
        "PATH": f"{Path(python).parent}:{bin_}:{environment['PATH']}",
        "SNAKEMAKE_CONDA_PREFIX": str(prefix),
        "PIP_NO_DEPS": "1",  # the files pin everything that is needed; `pip check` below holds them to it
        "PIP_COMPILE": "0",  # modules are compiled when they are first imported
    }
    command = ["snakemake", "--cores", "all", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny experiment: one teacher condition, one seed, both methods."""
    project = Project(tmp_path_factory.mktemp("plain"))
    project.configure(TINY)
    return project


@pytest.fixture(scope="module")
def environments(conda, project):
    """Name of each file of envs/ → the environment that Snakemake made of it."""
    printed = run(conda, project.folder, "--use-conda", "--conda-create-envs-only")
    made = re.findall(r"Environment for (\S+) created \(location: (.+)\)", printed)
    return {Path(file).stem: (project.folder / place).resolve() for file, place in made}


def test_environments_hold_their_pins_and_nothing_is_missing(environments):
    assert set(environments) == {path.stem for path in (ROOT / "envs").glob("*.yaml")}
    for name, prefix in environments.items():
        pins = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())["dependencies"][-1]["pip"]
        pip = [prefix / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        checked = subprocess.run([*pip, "check"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
        listed = json.loads(subprocess.check_output([*pip, "list", "--format", "json"], stderr=subprocess.DEVNULL))
        # a build's own tag (torch's +cpu) is not part of the version that is pinned
        versions = {p["name"].lower().replace("_", "-"): p["version"].split("+")[0] for p in listed}
        assert {pin: versions.get(pin.split("==")[0]) for pin in pins} == {pin: pin.split("==")[1] for pin in pins}
        assert ("torch" in versions) == any(pin.startswith("torch==") for pin in pins)


def test_same_numbers_as_a_plain_run(conda, environments, project, tmp_path):
    project.snakemake("--cores", "all")
    other = Project(tmp_path)
    other.configure(TINY)
    printed = run(conda, tmp_path, "--use-conda", python=environments["report"] / "bin" / "python")
    assert "Activating conda environment" in printed
    tables = [pd.read_csv(folder / "results" / "metrics.csv") for folder in (project.folder, tmp_path)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert (tmp_path / "results" / "report.html").stat().st_size > 100_000
    assert "training curves" in (tmp_path / "results" / "report.html").read_text()

    # Going over from the one to the other runs nothing again.
    assert "Nothing to be done" in run(conda, tmp_path, "--dry-run")
    changed = ("--dry-run", "--use-conda")
    assert "Nothing to be done" in run(conda, project.folder, *changed)
    # By Snakemake's own default it would, beginning with the data.
    assert "software environment definition has changed" in run(
        conda, project.folder, *changed, "--rerun-triggers", "software-env"
    )
