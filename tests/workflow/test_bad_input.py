"""What a user sees on the terminal when something is wrong before a job starts."""

import subprocess
import sys

import pytest
from helpers import ROOT, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize(
    ("changes", "keys", "expected"),
    [
        ({"student": {"training": {"stesp": 3}}}, {}, "digits: student.training.stesp: unknown key"),
        ({"runs": [{"n_steps": 7}]}, {}, "digits: runs.0.n_steps: 7 does not divide schedule.steps 1000"),
        ({"runs": [{"solver": "hune"}]}, {}, "did you mean 'heun'?"),
        ({"runs": [{"seed": -1}]}, {}, "runs.0.seed.0: -1 is not allowed"),
        ({}, {"experiments": ["fashoin"]}, "experiments: unknown 'fashoin'"),
        ({}, {"results": "/proc/results"}, "results: /proc/results cannot be written"),
    ],
)
def test_configuration(project, changes, keys, expected):
    project.configure(changes, **keys)
    done = project.snakemake("--dry-run", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    lines = [line for line in text.splitlines() if expected in line]
    assert len(lines) == 1, text
    assert "Traceback" not in text


def test_a_full_disk_in_a_job(small_disk, project):
    project.configure({"evaluation": {"count": 8000}}, results=str(small_disk))
    done = project.snakemake(f"{small_disk}/digits/noise.safetensors", check=False)
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("draw_noise: "))
    assert "noise.safetensors: disk full while writing" in line
    assert not list((small_disk / "digits").glob("*noise*"))


def test_a_missing_script_stops_before_any_job(tmp_path):
    """Also where scripts have wildcards and that of another job is there."""
    project = Project(tmp_path)
    with open(project.folder / "Snakefile", "a") as file:
        file.write('\n\nrule made:\n    output: "{name}.made"\n    script: "{wildcards.name}.py"\n')
    wanted = [f"{number}.made" for number in range(8)]
    for number in range(8):
        (project.folder / f"{number}.py").touch()
    assert project.jobs(*wanted) == {"made": 8}
    done = project.snakemake("--dry-run", *wanted, "gone.made", check=False)
    assert done.returncode != 0
    assert "gone.py" in done.stdout + done.stderr


def test_a_wrong_number_of_cores_or_an_unknown_target_is_snakemakes_own_error(project):
    project.configure({})
    done = project.snakemake("--dry-run", "results/figures/nonsense.pdf", check=False)
    assert done.returncode != 0
    assert "nonsense" in done.stdout + done.stderr


def test_lint_and_format():
    prefix = [sys.executable, "-m"]
    for command in (
        [*prefix, "ruff", "check", "."],
        [*prefix, "ruff", "format", "--check", "."],
        [*prefix, "snakefmt", "--check", "."],
        [*prefix, "snakemake", "--lint"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
