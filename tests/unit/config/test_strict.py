"""YAML keys that stand twice, in every file that is read; and the YAML that the documents show."""

import re
import textwrap

import pytest
from consistency import config
from consistency.config import strict
from consistency.config.registry import BUILT_INS
from consistency.config.settings import Experiment
from consistency.errors import ConfigError
from helpers import ROOT, registry_of


def refused(text, tmp_path, expected):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for read in (strict.read, strict.check):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {expected}; keep one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "a: given twice (lines 1 and 3)"),
        ("a: 1\na: 1\na: 1\n", "a: given 3 times (lines 1, 2 and 3)"),
        ("x:\n  - {}\n  - y:\n      a: 1\n      'a': 2\n", "x.1.y.a: given twice (lines 4 and 5)"),
        ("x: {a: 1, a: 2}\n", "x.a: given twice (line 1)"),
        ("a: &a {k: 1}\nb: &b {k: 2}\nc:\n  <<: *a\n  <<: *b\n", "c.<<: given twice (lines 4 and 5)"),
        ("a: null\na:\n", "a: given twice (lines 1 and 2)"),
        ('{"a": 1,\n "a": 2}', "a: given twice (lines 1 and 2)"),
    ],
)
def test_a_key_twice(tmp_path, text, expected):
    refused(text, tmp_path, expected)


def test_json_with_tabs_which_yaml_forbids(tmp_path):
    """Snakemake takes JSON too."""
    path = tmp_path / "x.json"
    path.write_text('{\n\t"a": {\n\t\t"b": 1,\n\t\t"b": 2}}')
    with pytest.raises(ConfigError, match="b: given twice"):
        strict.check(path)
    path.write_text('{\n\t"a": {\n\t\t"b": 1}}')
    strict.check(path)


def test_a_key_of_a_merge_may_be_given_again(tmp_path):
    """Also where the merged mapping has merged another one, and where it is used again."""
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {k: 1, l: 2}\nb: &b {<<: *a, k: 3}\nc: {<<: [*b, *a], l: 4}\nd: *b\n")
    strict.check(path)
    b = {"k": 3, "l": 2}
    assert strict.read(path) == {"a": {"k": 1, "l": 2}, "b": b, "c": b | {"l": 4}, "d": b}


@pytest.mark.parametrize(
    "text", ["a: [1\n", "a: b: c\n", "a: 2020-13-45\n", "--- 1\n--- 2\n", "a: !tag 1\n", "[" * 5000, "a: \x07\n"]
)
def test_what_is_no_yaml_is_one_line(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        strict.read(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot be read"):
        strict.read(tmp_path / "x.yaml")


def test_presets_suites_and_the_results_folder_are_read_so(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: digits\ntargets: {seed: 1}\ntargets: {seed: 2}\n")
    (tmp_path / "digits.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    with pytest.raises(ConfigError, match=r"mine\.yaml: targets: given twice \(lines 2 and 3\)"):
        config.load({"experiments": ["mine"]}, tmp_path)
    (tmp_path / "all.yaml").write_text("suite: [digits]\nsuite: [mine]\n")
    with pytest.raises(ConfigError, match=r"all\.yaml: suite: given twice"):
        config.load({"experiments": ["all"]}, tmp_path)
    (tmp_path / "config.yaml").write_text("results: a\nresults: b\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: results: given twice"):
        config.results_folder(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("suite: [digits]\ntitle: x\n", "a suite has the one key suite"),
        ("suite: []\n", "a suite has the one key suite"),
        ("suite: 5\n", "a suite has the one key suite"),
        ("suite: [digts]\n", "suite: unknown 'digts'; allowed: digits; did you mean 'digits'?"),
        ("suite: [s]\n", "suite: unknown 's'"),
        ("suite: [[digits]]\n", r"suite: unknown \['digits'\]"),
        ("suite: [../digits]\n", "suite: unknown '../digits'"),
    ],
)
def test_a_suite_names_experiments_and_nothing_else(tmp_path, text, expected):
    (tmp_path / "digits.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        config.load({"experiments": ["s"]}, tmp_path)


@pytest.mark.parametrize("base", ["a", "{a: 1}", "../b", "b"])
def test_a_base_is_another_preset(tmp_path, base):
    """Not itself, not what stands on it, and no path."""
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    with pytest.raises(ConfigError, match=r"base: (unknown|.*a preset cannot stand on itself)"):
        config.load_experiment("a", presets=tmp_path)


def test_no_file_of_the_repository_has_a_key_twice():
    files = [ROOT / "config.yaml", *ROOT.glob("workflow/**/*.yaml"), *ROOT.glob("envs/*.yaml")]
    assert len(files) > 20
    for path in files:
        strict.check(path)


# The documents' examples: settings, and the functions in Python that they name.
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "config/README.md"]


def blocks(page, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = [
    pytest.param(page, block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "yaml"))
]


def test_there_are_examples():
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_the_examples_of_the_documents(page, block, tmp_path, monkeypatch):
    """Whole configurations, changes of an experiment, and lines of `methods`."""
    content = strict.parse(textwrap.dedent(block), "page")
    functions = "".join(textwrap.dedent(text) for text in blocks(page, "python"))
    if "plugins" in content:
        monkeypatch.chdir(tmp_path)
        for file in content["plugins"]:
            (tmp_path / file).write_text(functions, encoding="utf-8")
        content = {"experiments": "digits", **content}
    if "experiments" in content:
        config.load(content)
        return
    registry = registry_of(functions) if "consistency.plugins" in functions else BUILT_INS
    changes = content if content.keys() & Experiment.model_fields else {"methods": content}
    config.load_experiment("digits", changes, registry=registry)
