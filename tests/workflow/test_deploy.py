"""The workflow catalogue's standard-usage rules, and a deployment with snakedeploy from a hosted repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, SMALL

RUNS = {"runs": [{"solver": "ddim", "n_steps": 5, "guidance": 1, "seed": 0}]}
URL = "https://github.com/lab/consistency-pipeline"


def test_the_catalogues_rules():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (ROOT / "workflow/Snakefile").is_file()
    assert list((ROOT / "workflow/rules").glob("*.smk"))
    assert "config.yaml" in (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert (ROOT / "config/config.yaml").read_text() == (ROOT / "config.yaml").read_text()
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": True}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}


def test_every_preset_is_in_the_configurations_readme():
    readme = (ROOT / "config/README.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "workflow/presets").glob("*.yaml")} - {"gaussians-skewed"}
    assert [name for name in sorted(names) if f"`{name}`" not in readme] == []


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A folder that snakedeploy has filled from the repository at URL, which git finds on this disk instead.

    Everything else is as from GitHub: snakedeploy clones the tag, and the Snakefile that it writes names the module
    as github(…), of which Snakemake keeps a bare clone and takes single files.
    """
    snakedeploy = Path(sys.executable).with_name("snakedeploy")
    place = tmp_path_factory.mktemp("deployed")
    repository = place / "hosted/lab/consistency-pipeline"
    repository.mkdir(parents=True)
    for name in ("Snakefile", "config.yaml", "LICENSE", ".snakemake-workflow-catalog.yml"):
        shutil.copy(ROOT / name, repository)
    for name in ("workflow", "envs", "config"):
        shutil.copytree(ROOT / name, repository / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (repository / "profiles").symlink_to("workflow/profiles")
    environment = {key: value for key, value in os.environ.items() if key not in ("GITHUB_TOKEN", "PYTHONPATH")} | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{place}/hosted/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(place / "cache"),
    }

    def run(*command, folder=repository):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("git", "init", "--quiet")
    run("git", "add", "--all")
    run("git", "-c", "user.name=lab", "-c", "user.email=lab@example.org", "commit", "--quiet", "--message", "release")
    run("git", "tag", "v1.0.0")
    folder = place / "study"
    folder.mkdir()
    run(str(snakedeploy), "deploy-workflow", URL, str(folder), "--tag", "v1.0.0")
    return folder, lambda *arguments: run(sys.executable, "-m", "snakemake", *arguments, folder=folder), repository


def test_deployed_files(deployed):
    folder, _, _ = deployed
    assert (
        'github("lab/consistency-pipeline", path="workflow/Snakefile", tag="v1.0.0")'
        in (folder / "workflow/Snakefile").read_text()
    )
    assert (folder / "config/config.yaml").read_text() == (ROOT / "config.yaml").read_text()
    assert not (folder / "config/config.yaml").is_symlink()
    assert (folder / "config/README.md").is_file()
    assert (folder / "profiles/default/config.yaml").is_file()
    assert not list(folder.glob("workflow/consistency"))


@pytest.mark.long
def test_the_deployed_workflow_runs(deployed):
    folder, snakemake, repository = deployed
    assert "everything " in snakemake("--dry-run")  # with the configuration as it came
    settings = {"experiments": ["digits"], "overrides": {"digits": SMALL | RUNS}}
    (folder / "config/config.yaml").write_text(yaml.safe_dump(settings))
    snakemake("--cores", "2", "results/figures/digits-tradeoff.pdf", "results/tables/digits-main.html")
    assert (folder / "results/figures/digits-tradeoff.pdf").read_bytes().startswith(b"%PDF")
    measured = json.loads((folder / "results/digits/metrics/cm-ddim-n5-w1-s0.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert measured["settings"]["student"]["environment"]["git_commit"] == head.stdout.strip()
    assert "Nothing to be done" in snakemake("--cores", "2", "results/figures/digits-tradeoff.pdf")
