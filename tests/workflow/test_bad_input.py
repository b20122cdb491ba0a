"""What a user sees on the terminal when something is wrong before a job starts."""

import os
import subprocess
import sys

import pytest
import yaml
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
        ({}, {"overrides": {"digits-long": {"gpu": 0}}}, "overrides.digits-long: reaches nothing"),
        ({"teacher": {"subfolder": "x"}}, {}, "overrides.digits.teacher.subfolder: reaches nothing: teacher.source is"),
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


def lines_of(done, expected):
    """The lines with this in them."""
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if expected in line]


def test_a_key_twice_in_any_file_of_the_configuration(project):
    """Snakemake reads config.yaml before the workflow does, with a reader that takes the last of two."""
    project.configure({})
    text = (project.folder / "config.yaml").read_text()
    (project.folder / "config.yaml").write_text(f"{text}overrides: {{}}\n")
    done = project.snakemake("--dry-run", check=False)
    (line,) = lines_of(done, "twice")
    count = text.count("\n") + 1
    first = text.splitlines().index("overrides:") + 1
    assert line.strip() == f"configuration: config.yaml: overrides: given twice (lines {first} and {count}); keep one"
    assert done.returncode != 0

    project.configure({})
    (project.folder / "mine.yaml").write_text("overrides:\n  digits: {gpu: 0}\n  digits: {gpu: 1}\n")
    done = project.snakemake("--dry-run", "--configfile", "mine.yaml", check=False)
    (line,) = lines_of(done, "twice")
    assert line.strip() == "configuration: mine.yaml: overrides.digits: given twice (lines 2 and 3); keep one"
    assert done.returncode != 0


def test_a_misspelt_key_on_the_command_line(project):
    project.configure({})
    done = project.snakemake("--dry-run", "--config", "experimnts=fashion", check=False)
    assert lines_of(done, "experimnts: unknown key; allowed here: experiments, results")
    assert done.returncode != 0


def test_other_experiments_on_the_command_line_leave_overrides_aside(project):
    """A warning then says so: config.yaml may keep them for its own experiments."""
    project.configure({})
    done = project.snakemake("--dry-run", "--config", "experiments=gaussians-ring")
    (line,) = lines_of(done, "overrides.digits")
    assert line.strip() == "configuration: config.yaml: overrides.digits: not used, because digits does not run"


def test_warnings_are_lines_of_the_run_and_not_of_its_jobs(project):
    """SMALL is narrower than the digits' 64 values."""
    project.configure({})
    done = project.snakemake("results/digits/noise.safetensors", "--forceall")
    assert len(lines_of(done, "configuration: digits: network.width: 32 is less than the 64 values")) == 1


# The folder of results


def command(project, name, *arguments):
    """What `make status` and the like start; the lines that it prints."""
    script = [sys.executable, "workflow/scripts/" + name, *arguments]
    done = subprocess.run(script, cwd=project.folder, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_status_and_verify_follow_the_folder_that_a_run_used(project, tmp_path):
    """Whatever named it: the command line, a home; not a dry run. An argument comes first."""
    project.configure({})
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(tmp_path)
    try:
        project.snakemake("--config", "results=~/else/", "--", f"{tmp_path}/else/digits/data.safetensors")
        project.snakemake("--dry-run", "--config", "results=third")
    finally:
        os.environ.pop("HOME") if before is None else os.environ.update(HOME=before)
    assert not (project.folder / "~").exists()
    assert (tmp_path / "else/digits/data.safetensors").is_file()
    code, lines = command(project, "verify.py")
    assert (code, lines[0][: lines[0].index(" are")]) == (0, f"{tmp_path}/else: 2 files")  # with its record
    assert command(project, "status.py")[1][0] == f"{tmp_path}/else:"
    assert command(project, "status.py", "third")[1][0] == "third:"
    code, lines = command(project, "summary.py")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"summary: {tmp_path}/else/claims.csv: ")
    project.snakemake("--config", "results=results", "--", "results/digits/data.safetensors")
    assert command(project, "status.py")[1][0] == "results:"
    # nothing to do, and yet the last one
    project.snakemake("--config", f"results={tmp_path}/else", "--", f"{tmp_path}/else/digits/data.safetensors")
    assert command(project, "status.py")[1][0] == f"{tmp_path}/else:"


def test_before_any_run_it_is_config_yamls(tmp_path):
    project = Project(tmp_path / "new")
    (project.folder / "config.yaml").write_text(yaml.safe_dump({"experiments": ["digits"], "results": "mine/"}))
    assert command(project, "status.py")[1][0] == "mine:"
    (project.folder / "config.yaml").write_text("results: a\nresults: b\n")
    assert command(project, "status.py") == (
        1,
        ["configuration: config.yaml: results: given twice (lines 1 and 2); keep one"],
    )


@pytest.mark.parametrize("target", ["status", "verify"])
def test_make_names_the_folder(target):
    command = ["make", "--no-print-directory", "-n", target, "RESULTS=x"]
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=alone)
    assert done.stdout.splitlines()[-1].split()[-2:] == [f"workflow/scripts/{target}.py", "x"]


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
