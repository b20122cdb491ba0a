"""Snakemake's between-workflow cache: what another checkout takes instead of computing it, and what it must not."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from consistency.errors import ConfigError
from consistency.runtime import provenance
from helpers import ROOT, Project

RUNS = {"runs": [{"solver": "ddim", "n_steps": 5, "guidance": 1, "seed": 0}]}
SHARDS = {f"targets/paper-ddim-n5-w1/shard-{shard}.safetensors" for shard in (0, 1)}
TARGETS = SHARDS | {"targets/paper-ddim-n5-w1/manifest.json"}
NOISE = {"noise.safetensors", "samples/teacher-ddim-n5-w1.safetensors"}
TEACHER = {"teacher", "stats/teacher.jsonl"}
EVERYTHING = {"data.safetensors", "classifier", "stats/classifier.jsonl"} | TEACHER | NOISE | TARGETS
WANTED = ("classifier", "samples/teacher-ddim-n5-w1.safetensors", "targets/paper-ddim-n5-w1/manifest.json")


def checkout(folder, changes=RUNS, **keys):
    """A copy of the project with the small experiment and its changes."""
    folder.mkdir()
    project = Project(folder)
    project.configure(RUNS | changes, **keys)
    project.results = folder / keys.get("results", "results") / "digits"
    project.wanted = [str((project.results / name).relative_to(folder)) for name in WANTED]
    return project


def made(project, *wanted):
    """Run with --cache; the outputs that were computed and put into the cache."""
    done = project.snakemake(*(wanted or project.wanted), "--cache")
    moved = re.findall(r"Moving output file (\S+) to cache", done.stdout + done.stderr)
    return {str((project.folder / path).relative_to(project.results)) for path in moved}


def contents(project):
    """Name → bytes of every cached output, links followed."""
    files = {}
    for name in EVERYTHING:
        path = project.results / name
        for file in path.iterdir() if path.is_dir() else [path]:
            if file.name != ".snakemake_timestamp":
                files[f"{name}/{file.name}"] = file.read_bytes()
    return files


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A checkout that has filled a cache."""
    place = tmp_path_factory.mktemp("shared")
    cache = place / "cache"
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(cache))
        project = checkout(place / "first")
        assert made(project) == EVERYTHING
    project.cache = cache
    return project


@pytest.fixture
def cache(first, monkeypatch):
    """That cache, in the environment."""
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(first.cache))
    return first.cache


def test_another_checkout_takes_everything(first, cache, tmp_path):
    second = checkout(tmp_path / "second", results="elsewhere")
    assert made(second) == set()
    assert contents(second) == contents(first)
    names = ("train_teacher.log", "train_classifier.log", "solve_targets-paper-ddim-n5-w1-0.log")
    for project, empty in ((first, False), (second, True)):  # no script has run
        assert [(project.results.parent / "logs/digits" / name).stat().st_size == 0 for name in names] == 3 * [empty]
    assert not (second.results / "checkpoints").exists()
    for arguments in ([], ["--cache"]):  # and with or without the cache nothing is left to do
        assert second.jobs(*second.wanted, *arguments) == {}


def test_a_changed_line_of_the_library_is_not_taken(cache, tmp_path):
    other = checkout(tmp_path / "other")
    code = other.folder / "workflow/consistency/flow/noise.py"
    code.write_text(code.read_text() + "\nCHANGED = True\n")
    assert made(other) == NOISE  # what noise.py has no part in is taken


def test_a_changed_key_is_not_taken(cache, tmp_path):
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    other = checkout(tmp_path / "other", {"targets": {"seed": 7}})
    assert made(other) == TARGETS
    other.configure(RUNS | {"teacher": {"training": {"steps": 5}}})
    assert made(other, other.wanted[-1]) == TEACHER | TARGETS
    assert all(path.read_bytes() == content for path, content in before.items())  # what others use is as it was


def test_the_code_is_no_reason_to_run_again(first, cache, tmp_path):
    project = first.copy(tmp_path / "project")
    with open(project.folder / "workflow/consistency/training/loop.py", "a") as code:
        code.write("\nCHANGED = True\n")
    assert project.jobs(*first.wanted) == {}
    assert project.jobs(*first.wanted, "--cache") == {}


def test_without_the_flag_nothing_of_it_shows(first, cache):
    done = first.snakemake("--dry-run", "results/digits/students/cm-ddim-n5-w1-s0")
    assert "cach" not in (done.stdout + done.stderr).replace("cache_", "")
    assert not (first.results / "students").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (None, "'' is not allowed; set it to a folder's absolute path"),
        ("../cache", "'../cache' is not allowed; set it to a folder's absolute path"),
        ("/nowhere/cache", "/nowhere/cache is no folder that can be written; make it"),
    ],
)
def test_no_job_starts_for_a_cache_that_cannot_be(first, monkeypatch, place, message):
    monkeypatch.delenv("SNAKEMAKE_OUTPUT_CACHE", raising=False)
    if place:
        monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", place)
    done = first.snakemake(*first.wanted, "--cache", check=False)
    assert done.returncode != 0
    assert f"--cache: SNAKEMAKE_OUTPUT_CACHE: {message}" in done.stderr


@pytest.mark.long
def test_a_flipped_bit_in_the_cache_is_noticed(first, monkeypatch, tmp_path):
    cache = shutil.copytree(first.cache, tmp_path / "cache")
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(cache))
    project = checkout(tmp_path / "project")
    assert made(project) == set()
    entry = (project.results / min(SHARDS)).resolve()
    good, damaged = entry.read_bytes(), bytearray(entry.read_bytes())
    damaged[-9] ^= 1
    entry.write_bytes(damaged)
    student = "results/digits/students/cm-ddim-n5-w1-s0"
    done = project.snakemake(student, "--cache", check=False)
    assert done.returncode != 0
    assert re.search(r"^train_student: results/\S+shard-0.safetensors: damaged: .*delete", done.stderr, re.MULTILINE)
    for path in (project.results / min(SHARDS), entry):  # the link and what it leads to
        path.unlink()
    assert min(SHARDS) in made(project, student)
    assert entry.read_bytes() == good


def test_room_that_was_made_in_the_cache_asks_for_nothing(monkeypatch, tmp_path):
    """The recipe of docs/reuse.md: what was made from the removed entries stays as it is."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(cache))
    project, student = checkout(tmp_path / "project"), "results/digits/students/cm-ddim-n5-w1-s0"
    project.snakemake(student, "--cache")
    for path in cache.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(["find", "results", "-xtype", "l", "-delete"], cwd=project.folder, check=True)
    assert [path for path in project.results.rglob("*") if path.is_symlink()] == []
    for arguments in ([], ["--cache"]):
        assert project.jobs(student, *arguments) == {}
    sample = "results/digits/samples/cm-ddim-n5-w1-s0.safetensors"
    assert made(project, sample) >= NOISE, "what it needs is made anew"


@pytest.mark.long
def test_two_checkouts_fill_a_cache_at_once(monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    both = [checkout(tmp_path / name) for name in ("one", "two")]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *both[0].wanted, "--cache"]
    running = [
        subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for project in both
    ]
    for process in running:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    third = checkout(tmp_path / "three")
    assert made(third) == set()
    for name in ("teacher/model.safetensors", *TARGETS):
        assert len({(project.results / name).read_bytes() for project in (*both, third)}) == 1


@pytest.mark.long
def test_a_teacher_of_the_users_own(first, cache, tmp_path):
    """Its files are hashed: as a folder, Snakemake's cache could not read it."""
    teacher = shutil.copytree(first.results / "teacher", tmp_path / "teacher")
    (teacher / "SHA256SUMS").unlink()  # as in a folder from elsewhere
    change = {"teacher": {"source": "path", "path": str(teacher)}}
    projects = [checkout(tmp_path / name, change) for name in ("one", "two", "three")]
    manifest = projects[0].wanted[-1]
    assert made(projects[0], manifest) == TARGETS | {"teacher"}
    assert made(projects[1], manifest) == set()
    with open(teacher / "README.md", "a") as file:
        file.write("\n")
    assert made(projects[2], manifest) == TARGETS | {"teacher"}


def test_the_code_of_a_script_is_all_that_it_imports(tmp_path):
    workflow = tmp_path / "workflow"
    shutil.copytree(ROOT / "workflow", workflow, ignore=shutil.ignore_patterns("__pycache__"))
    # in a process of its own: the library is read where it is imported from
    program = (
        "import sys; from pathlib import Path; from consistency.runtime import provenance\n"
        "for name in sys.argv[1:]: print(provenance.code_sha256(Path('scripts', name + '.py').resolve()))"
    )
    names = ["prepare_data", "train_teacher", "solve_targets", "gather_targets"]

    def hashes():
        command = [sys.executable, "-c", program, *names]
        environment = os.environ | {"PYTHONPATH": str(workflow)}
        done = subprocess.run(command, cwd=workflow, env=environment, capture_output=True, text=True, check=True)
        return dict(zip(names, done.stdout.split()))

    before = hashes()
    for changed, expected in (
        ("consistency/flow/solvers.py", {"train_teacher", "solve_targets"}),  # the teacher's module trains students too
        ("consistency/networks/unet.py", {"train_teacher", "solve_targets"}),  # imported inside a function
        ("consistency/data/datasets.py", {"prepare_data", "train_teacher", "solve_targets"}),
        ("consistency/teachers/manifest.py", {"train_teacher", "solve_targets", "gather_targets"}),
        ("consistency/__init__.py", set(names)),
        ("scripts/_job.py", set(names)),
        ("scripts/gather_targets.py", {"gather_targets"}),
        ("consistency/report/figures/tradeoff.py", set()),
        ("consistency/report/tables.py", set()),
    ):
        original = (workflow / changed).read_text()
        (workflow / changed).write_text(original + "\n# changed\n")
        after = hashes()
        (workflow / changed).write_text(original)
        assert {name for name in names if after[name] != before[name]} == expected, changed


def test_the_users_files_are_told_apart(tmp_path):
    folder = tmp_path / "photos [2020]"
    (folder / "a").mkdir(parents=True)
    (folder / "a/1.png").write_bytes(b"one")
    (folder / ".hidden").write_bytes(b"x")
    (tmp_path / "elsewhere/b").mkdir(parents=True)
    (tmp_path / "elsewhere/b/2.png").write_bytes(b"two")
    (folder / "b").symlink_to(tmp_path / "elsewhere/b")
    (folder / "a/around").symlink_to(folder)
    names = [path.relative_to(folder).as_posix() for path in provenance.own_files(folder)]
    assert names == ["a/1.png", "b/2.png"], "hidden files are left out, links followed, but not in circles"
    assert [path.name for path in provenance.own_files(tmp_path / "elsew*/b/*.png")] == ["2.png"]
    assert provenance.own_files(tmp_path / "nothing") == []

    before = provenance.files_sha256(folder)
    assert provenance.files_sha256(folder) == before
    for change in (
        lambda: os.utime(folder / "a/1.png", ns=(0, 0)),
        lambda: (tmp_path / "elsewhere/b/2.png").write_bytes(b"three"),
        lambda: (folder / "a/1.png").rename(folder / "a/3.png"),
        lambda: (folder / "a/3.png").unlink(),
    ):
        change()
        after = provenance.files_sha256(folder)
        assert after != before
        before = after


def test_a_cache_elsewhere_than_on_disk_is_snakemakes_affair(monkeypatch, tmp_path):
    for place in ("s3://bucket/cache", str(tmp_path)):
        monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", place)
        provenance.check_shared()
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="no folder that can be written"):
        provenance.check_shared()
