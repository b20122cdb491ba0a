"""The pins of pyproject.toml, envs/ and the lock files are the same; what is installed has a hash of the locks."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("generate", ROOT / "envs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


HASHED = ["requirements.lock", "requirements-kubernetes.lock", "requirements-test.lock"]
PIP, TORCH = "requirements-pip.lock", "requirements-torch.lock"


def lock():
    return generate.lock(*HASHED, TORCH)


def test_all_lock_files_are_here():
    assert {path.name for path in ROOT.glob("requirements*.lock")} == {*HASHED, PIP, TORCH}


@pytest.mark.parametrize("name", [*HASHED, PIP])
def test_every_pin_has_hashes(name):
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines()]
    assert len(lines) == len(generate.lock(name)) >= (1 if name == PIP else 17)
    for pin, *hashes in lines:
        assert re.fullmatch(r"[a-z\d-]+==[\w.]+", pin), f"{name}: expected NAME==VERSION, not {pin}"
        assert hashes, f"{name}: {pin} has no hash: run `make lock`"
        assert [h for h in hashes if not re.fullmatch(r"--hash=sha256:[\da-f]{64}", h)] == [], f"{name}: {pin}"
        assert len(hashes) == len(set(hashes)), f"{name}: {pin} has a hash twice"


def test_torchs_builds_are_all_that_has_no_hash_and_no_package_is_pinned_twice():
    assert set(generate.lock(TORCH)) == {"torch", "torchvision"}
    names = [package for name in [*HASHED, TORCH] for package in generate.lock(name)]
    assert sorted(names) == sorted(set(names))


MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
NEWER = {"python_version": "3.14", "python_full_version": "3.14.0"}


@pytest.mark.parametrize("other", [{}, {"platform_machine": "aarch64"}, MAC, NEWER, MAC | NEWER], ids=str)
def test_the_locks_are_complete(other):
    """With --no-deps pip adds nothing to them. Those of the pipeline and of the image do without the tests' one."""
    for files in ([HASHED[0], TORCH], [*HASHED[:2], TORCH], [*HASHED, TORCH]):
        pins = generate.lock(*files)
        generate.closure(list(pins), pins, generate.PLATFORM | other)  # ends with the name of what is not pinned


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "envs").glob("*.yaml")))
def test_environments_are_those_of_the_lock(name):
    assert (ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8") == generate.text(name), "run `make envs`"


def test_the_lock_must_name_what_an_environment_needs():
    pins = generate.lock()
    assert "sympy" in generate.closure(["torch"], pins)
    del pins["sympy"]
    with pytest.raises(SystemExit, match="do not pin sympy"):
        generate.closure(["torch"], pins)


def imported(path, deep):
    """Modules that a file imports: when it is imported itself or, with `deep`, anywhere in it."""
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    package = ".".join(path.relative_to(ROOT / "workflow").parent.parts)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (base + (node.module or "")).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif deep and isinstance(node, ast.Call) and ast.unparse(node.func) == "_package":
            yield node.args[0].value  # extractors import their packages by name
        elif deep or not isinstance(node, ast.FunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


def needed(files, deep):
    """Packages outside the standard library that these files import, through the library's modules."""
    todo, seen, found = list(files), set(), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path, deep):
            parts = name.split(".")
            if parts[0] != "consistency" and parts[0] not in OWN:
                found.add(parts[0])
            for end in range(1, len(parts) + 1):
                place = (SCRIPTS if parts[0] in OWN else ROOT / "workflow").joinpath(*parts[:end])
                todo += [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
    return found - sys.stdlib_module_names


SCRIPTS, LIBRARY = ROOT / "workflow" / "scripts", ROOT / "workflow" / "consistency"
OWN = {path.stem for path in SCRIPTS.glob("_*.py")}  # what scripts share
# Reached from train's scripts, but optional, or in a function that only collect_metrics calls.
NOT_IN_TRAIN = {"bitsandbytes", "pandas"}


@pytest.mark.parametrize("name", ["train", "paper", "report"])
def test_environments_hold_what_their_scripts_import(name):
    rules = [
        rule for path in (ROOT / "workflow/rules").glob("*.smk") for rule in re.split(r"\n(?=rule )", path.read_text())
    ]
    files = {SCRIPTS / re.search(r"scripts/(\w+\.py)", rule)[1] for rule in rules if f"envs/{name}.yaml" in rule}
    files |= {SCRIPTS / "_job.py"}
    if name == "paper":
        files |= set((LIBRARY / "report/figures").glob("*.py"))  # figure.py imports the one of its rule
    if name == "report":
        files |= {ROOT / "workflow/rules/common.smk"}  # it starts a Snakemake
    assert len(files) > 1
    modules = needed(files, deep=name == "train") - (NOT_IN_TRAIN if name == "train" else set())
    assert {"train": "torch", "paper": "seaborn", "report": "snakemake"}[name] in modules
    pins = set(re.findall(r"- ([\w-]+)==", (ROOT / "envs" / f"{name}.yaml").read_text()))
    places = packages_distributions()
    lacking = {m for m in modules if not pins & {canonicalize_name(package) for package in places[m]}}
    assert not lacking, f"name them in envs/generate.py, for {name}"


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
