"""The pins of pyproject.toml, envs/ and requirements.lock are the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def lock():
    files = [ROOT / "requirements.lock", ROOT / "requirements-test.lock"]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pins.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_environments(path):
    environment = yaml.safe_load(path.read_text(encoding="utf-8"))
    pins = environment["dependencies"][-1]["pip"]
    assert pins
    for pin in pins:
        name, version = pin.split("==")
        assert lock()[name] == version


def test_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [r for name, rs in extras.items() if name != "sdxl" for r in rs]
    for requirement in wanted:
        name, sign, version = re.fullmatch(r"([\w-]+)(==|>=|<)(.+)", requirement).groups()
        locked = tuple(int(part) for part in re.findall(r"\d+", lock()[name])[:3])
        asked = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        assert {"==": locked[: len(asked)] == asked, ">=": locked >= asked, "<": locked < asked}[sign], requirement


def test_every_rule_names_its_log_and_environment():
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"\n(?=rule )", path.read_text(encoding="utf-8"))[1:]:
            assert "\n    log:" in rule, rule.splitlines()[0]
            found = re.search(r"\n    conda:\n        \"\.\./\.\./(envs/\w+\.yaml)\"", rule)
            assert found, rule.splitlines()[0]
            assert (ROOT / found[1]).is_file()


def test_nothing_of_this_machine_is_in_the_files():
    tracked = [
        p for p in ROOT.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(ROOT).parts)
    ]
    texts = {".py", ".smk", ".yaml", ".md", ".toml", ".rst", ".lock", ".cff", ".json"}
    skip = {"results", "profiles"}
    for path in tracked:
        if path.suffix in texts and path.relative_to(ROOT).parts[0] not in skip:
            assert str(ROOT) not in path.read_text(encoding="utf-8"), path
