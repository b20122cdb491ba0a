"""Every preset in a dry run: it resolves, says what it will cost, and touches nothing. And one without its files."""

import re

import pytest
import yaml
from consistency import config
from consistency.data import datasets
from helpers import Project

PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml") if "suite:" not in path.read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("presets"))
    (project.folder / "config.yaml").write_text(yaml.safe_dump({"experiments": ["digits"]}))
    return project


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Offline, with a home and caches of our own, all empty."""
    for name in ("XDG_CACHE_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    changes = {"CONSISTENCY_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    changes |= {"HOME": tmp_path / "home", "CONSISTENCY_CACHE": tmp_path / "cache", "HF_HOME": tmp_path / "hf"}
    (tmp_path / "home").mkdir()
    for name, value in changes.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def files(folder):
    """What is in a folder, without what snakemake keeps for itself."""
    own = {".snakemake", "__pycache__", "snakemake", ".running"}
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not own & set(p.parts)}


LARGE = {"digits-full"}  # 3,000 jobs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LARGE else []) for name in PRESETS]
)
def test_dry_run(project, outside, name):
    before = files(project.folder)
    done = project.snakemake("-n", "--config", f"experiments={name}", f"results={outside / 'results'}")
    text = done.stdout + done.stderr
    experiment = config.load_experiment(name)
    runs = config.expand(name, experiment)

    assert f"{name}: {experiment.title}; {len(runs)} runs. Estimate, not measured" in text
    assert re.search(r"^  total +[\d,]+ ", text, re.MULTILINE)
    rules = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    assert rules.get("train_student", 0) == len(runs)
    assert {"collect_metrics", "check_claims"} <= set(rules)
    assert ("download_teacher" in rules) == (experiment.teacher.source == "hub")
    assert ("encode_images" in rules) == (experiment.data.kind == "captions")

    assert files(project.folder) == before
    assert files(outside) == set()
    assert not (outside / "cache").exists()
    assert not (outside / "hf").exists()


def test_the_suites_members_are_presets():
    for path in config.PRESETS.glob("*.yaml"):
        if path.stem not in PRESETS:
            assert set(yaml.safe_load(path.read_text())["suite"]) <= set(PRESETS)


def test_several_presets_have_an_estimate_each(project, outside):
    done = project.snakemake("-n", "--config", "experiments=digits,gaussians-ring", f"results={outside / 'results'}")
    text = done.stdout + done.stderr
    assert text.count("Estimate, not measured") == 2


def test_without_its_files_a_run_stops_before_any_job(project, outside):
    """cifar10 needs a teacher, an extractor's weights and the data: one line each."""
    before, results = files(project.folder), outside / "results"
    done = project.snakemake("--config", "experiments=cifar10", f"results={results}", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    lines = [line.strip() for line in text.splitlines() if "not in the cache" in line]
    assert [re.sub(r".*(cifar10: [\w-]+):.*", r"\1", line) for line in lines] == [
        "cifar10: teacher",
        "cifar10: inception-v3",
        "cifar10: data",
    ]
    experiment = config.load_experiment("cifar10")
    hub, inception = experiment.teacher.hub, experiment.extractors[0].weights
    expected = [
        [f"https://huggingface.co/{hub.repo}", hub.revision, *hub.sha256.values(), str(outside / "hf")],
        [inception.url, inception.sha256, str(outside / "cache" / "files" / inception.name)],
        [datasets.CIFAR10_URL, datasets.CIFAR10_SHA256, str(outside / "cache" / "files" / "cifar-10-binary.tar.gz")],
    ]
    for line, words in zip(lines, expected):
        for word in words:
            assert word in line, (word, line)
    assert "offline is set" in lines[0]
    assert not re.search(r"^(local)?rule \w+:$", text, re.MULTILINE)  # no job was started
    assert files(project.folder) == before
    assert files(outside) == set()


def test_without_its_files_other_experiments_do_not_start_either(project, outside):
    """Nor does a target that would need none of the missing files stay silent about them."""
    results = outside / "results"
    done = project.snakemake("--config", "experiments=digits,imagenet32", f"results={results}", check=False)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    (line,) = [line for line in text.splitlines() if "data/imagenet32 does not exist" in line]
    assert "imagenet32: data:" in line
    assert datasets.IMAGENET_URL in line
    assert files(outside) == set()
