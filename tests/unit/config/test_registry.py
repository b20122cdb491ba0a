"""Functions that a configuration may name: read from source, checked, and hashed with what they use."""

import re
import subprocess
import sys
import textwrap

import pytest
from consistency import config
from consistency.config import registry
from consistency.config.registry import BUILT_INS, REQUIRED, Registry, check_params, loaded
from consistency.errors import ConfigError, PluginError
from consistency.evaluate import measure
from helpers import ROOT, surroundings

PLUGIN = '''
"""My methods."""
import math
from functools import cache, partial

from consistency.plugins import metric, objective

SCALE = 2.0
TABLE = {}
TABLE["offset"] = 1
UNUSED = 3


class Shape:
    """Of something."""

    side = SCALE


def _inner(x):
    return x * SCALE


def _helper(x):
    """Scaled."""
    return _inner(x) + TABLE["offset"]


def neighbour(x):
    UNUSED = 5
    return math.sqrt(x) + UNUSED


@objective(draws="pairs")
def mixed(student, batch, context, *, c=0.5, name="a", on=True, parts=[1, 2]):
    """A mixture."""
    neighbour = _helper(1)  # a local name, not the function
    return neighbour, Shape.side


@cache
def unrelated(x):
    return partial(x)


@metric
def brightness(samples, pixels, context, *, gain):
    return gain * pixels.mean()


if __name__ == "__main__":
    print(mixed)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plug-in and reads it: `plugin(text, old, new, …)` with replacements, each of which must apply."""
    monkeypatch.chdir(tmp_path)

    def write(text=PLUGIN, *replaced):
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the plug-in"
            text = text.replace(old, new)
        (tmp_path / "mine.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return Registry.read(["mine.py"])

    return write


def test_what_a_function_is(plugin):
    mixed, brightness = plugin().get("objective", "mixed"), plugin().get("metric", "brightness")
    assert (mixed.kind, mixed.name, mixed.file) == ("objective", "mixed", "mine.py")
    assert mixed.params == {"c": 0.5, "name": "a", "on": True, "parts": [1, 2]}
    assert mixed.options == {"draws": "pairs"}
    assert (brightness.params, brightness.options) == ({"gain": REQUIRED}, {})
    assert PLUGIN.splitlines()[mixed.line - 1].startswith("def mixed")


def test_names_of_a_kind(plugin):
    functions = plugin()
    assert functions.names("objective") == [*BUILT_INS.names("objective"), "mixed"]
    draws = {name: functions.get("objective", name).options.get("draws") for name in functions.names("objective")}
    assert [name for name, of in draws.items() if of == "pairs"] == ["consistency_training", "mixed"]
    assert functions.names("metric") == ["brightness"]
    assert BUILT_INS.names("metric") == []
    assert "frechet_distance" in BUILT_INS.built_in_code("metric")
    assert set(BUILT_INS.built_in_code("solver")) == {"ddim", "euler", "heun"}


USED = [
    ("return x * SCALE", "return x / SCALE"),  # two calls away
    ("SCALE = 2.0", "SCALE = 2.5"),
    ('TABLE["offset"] = 1', 'TABLE["offset"] = 2'),
    ("side = SCALE", "side = SCALE + 1"),
    ("neighbour = _helper(1)", "neighbour = _helper(2)"),
    ("c=0.5", "c=0.25"),
    ('draws="pairs"', 'draws="targets"'),
]
ELSEWHERE = [
    ("return math.sqrt(x) + UNUSED", "return math.sin(x)"),
    ("\nUNUSED = 3", "\nUNUSED = 4"),
    ("import cache, partial", "import cache"),
    ("import math\n", "import math, os\n"),
    ("# a local name, not the function", "# another comment"),
    ('"""A mixture."""', '"""Other words."""'),
    ('    """Scaled."""\n', ""),
    ('"""Of something."""', '"""Of something else."""'),
    ('"""My methods."""', ""),
    ("return _inner(x) + TABLE", "return (_inner( x )\n\n        + TABLE"),
    ('name="a"', "name='a'"),
    ("return gain * pixels.mean()", "return gain * pixels.std()"),
    ("print(mixed)", "print(mixed, 1)"),
]


@pytest.mark.parametrize(("old", "new"), USED, ids=[old for old, _ in USED])
def test_the_hash_follows_what_is_used(plugin, old, new):
    before = plugin().get("objective", "mixed").code_sha256
    assert plugin(PLUGIN, old, new).get("objective", "mixed").code_sha256 != before


@pytest.mark.parametrize(("old", "new"), ELSEWHERE, ids=[old for old, _ in ELSEWHERE])
def test_the_hash_is_independent_of_the_rest(plugin, old, new):
    before = plugin().get("objective", "mixed").code_sha256
    closing = ['["offset"]\n', '["offset"])\n'] if new.startswith("return (") else []
    assert plugin(PLUGIN, old, new, *closing).get("objective", "mixed").code_sha256 == before


def test_the_hash_follows_an_import(plugin):
    text = "from os import path\nfrom consistency.plugins import metric\n@metric\ndef m(samples, pixels, context):\n"
    text += "    return path\n"
    first = plugin(text).get("metric", "m").code_sha256
    assert plugin(text, "import path", "import path, sep").get("metric", "m").code_sha256 == first
    assert plugin(text, "import path", "import sep as path").get("metric", "m").code_sha256 != first


def test_a_hash_stays_the_same_in_all_versions_of_python(plugin):
    """A change of this number runs everyone's students again."""
    text = "@metric\ndef m(samples, pixels, context, *, a=1):\n    return [a, *(x for x in samples if x is not None)]\n"
    code = plugin("from consistency.plugins import metric\n" + text).get("metric", "m").code_sha256
    assert code[:16] == "97492c83b45dbf60"


REFUSED = {
    "syntax": ("def f(:\n    pass\n", ["mine.py:1: not valid Python"]),
    "null byte": ("x = 1\0\n", ["mine.py", "not valid Python"]),
    "nested too deeply": ("x = " + "(" * 5000 + ")" * 5000, ["mine.py", "not valid Python"]),
    "long sum": (
        f"from consistency.plugins import metric\n@metric\ndef m(samples, pixels, context):\n    return {'1+' * 9000}1\n",
        ["mine.py", "not valid Python"],
    ),
    "nothing decorated": ("def f():\n    pass\n", ["mine.py: no function is decorated", "objective, coupling"]),
    "misspelt import": (
        "from consistency.plugins import objektive\n",
        ["mine.py:1: unknown decorator 'objektive'", "did you mean 'objective'?"],
    ),
    "misspelt attribute": (
        "from consistency import plugins\n\n@plugins.metrik\ndef f(samples, pixels, context):\n    pass\n",
        ["mine.py:3: unknown decorator 'metrik'", "did you mean 'metric'?"],
    ),
    "misspelt name": (
        "@metrc(direction='lower')\ndef f(a, b, c):\n    pass\n",
        ["mine.py:1: unknown decorator 'metrc'"],
    ),
    "not imported": (
        "\n@metric\ndef f(samples, pixels, context):\n    pass\n",
        ["mine.py:2: unknown decorator 'metric'", "import it from consistency.plugins"],
    ),
}
BODY = {  # what follows the import of all decorators
    "computed default": ("def f(samples, pixels, context, *, c=2 * 3):", "mine.py:3: f: c=2 * 3 is not allowed"),
    "default of a kind that YAML lacks": ("def f(samples, pixels, context, *, c={1}):", "f: c={1} is not allowed"),
    "args": ("def f(samples, pixels, context, *args):", "mine.py:3: @metric: f: has *args or **kwargs"),
    "kwargs": ("def f(samples, pixels, context, **kwargs):", "f: has *args or **kwargs"),
    "async": ("async def f(samples, pixels, context):", "mine.py:3: @metric: f: async; allowed: a function"),
    "class": ("class f:", "f: a class; allowed: a function"),
    "two arguments": ("def f(samples, pixels):", "f: has 2 positional arguments; allowed: samples, pixels, context"),
    "param before *": ("def f(samples, pixels, context, c=1):", "f: has 4 positional arguments"),
    "other letters": ("def größe(samples, pixels, context):", "größe: not allowed as name"),
    "hidden": ("def _f(samples, pixels, context):", "_f: not allowed as name"),
    "the pipeline's own": ("def ode_error(samples, pixels, context):", "ode_error: a name of the pipeline's own"),
    "a built-in one's": (
        "def frechet_distance(a, b, c):",
        "mine.py:3: frechet_distance is also the name of a built-in",
    ),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_files_that_are_refused(plugin, text, words):
    with pytest.raises(ConfigError) as error:
        plugin(text)
    assert str(error.value).startswith("config.yaml: plugins: mine.py")
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(("head", "line"), BODY.values(), ids=BODY)
def test_functions_that_are_refused(plugin, head, line):
    with pytest.raises(ConfigError) as error:
        plugin(f"from consistency.plugins import *\n@metric\n{head}\n    pass\n")
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("decorator", "line"),
    [
        ("@metric(directon='lower')", "mine.py:2: @metric: unknown option 'directon'; allowed: direction"),
        ("@metric(direction='down')", "@metric: direction='down' is not allowed; allowed: 'lower', 'higher'"),
        ("@metric(direction=DOWN)", "@metric: DOWN is no constant; allowed: direction=…"),
        ("@metric('lower')", "unknown option \"'lower'\""),
        ("@metric(**{'direction': 'lower'})", "unknown option"),
        ("@metric\n@objective", "several decorators; allowed: one"),
    ],
)
def test_decorators_that_are_refused(plugin, decorator, line):
    with pytest.raises(ConfigError) as error:
        plugin(f"from consistency.plugins import *\n{decorator}\ndef f(samples, pixels, context):\n    pass\n")
    assert line in str(error.value).replace("{'direction': 'lower'} is no constant", "unknown option")


def test_nested_and_repeated_functions_are_refused(plugin):
    head = "from consistency.plugins import metric\n"
    function = "@metric\ndef f(samples, pixels, context):\n    return 1\n"
    with pytest.raises(ConfigError, match=r"mine.py:4: @metric: f: nested; allowed: a function at the top level"):
        plugin(f"{head}if True:\n{textwrap.indent(function, '    ')}")
    with pytest.raises(ConfigError, match=r"f: stands twice at the top level of the file"):
        plugin(f"{head}{function}{function}")
    with pytest.raises(ConfigError, match=r"f: stands twice"):
        plugin(f"{head}{function}f = None\n")


def test_two_files_with_one_name(plugin, tmp_path):
    plugin()
    (tmp_path / "other.py").write_text(PLUGIN, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other.py:\d+: mixed is also the name of mine.py:\d+; rename it"):
        Registry.read(["mine.py", "other.py"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py", "cannot be read"),
        ("mine.txt", "a path that ends in .py"),
        ("folder.py", "Is a directory"),
    ],
)
def test_files_that_are_none(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match=rf"config.yaml: plugins: {name}.*{words}"):
        Registry.read([name])


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("mine.py", "wb") as file:
        file.truncate(2 * 10**9)
    with pytest.raises(ConfigError, match=r"mine.py: 2,000 MB, allowed: at most"):
        Registry.read(["mine.py"])


def test_other_decorators_are_left_alone(plugin):
    nested = "def g(d):\n    @d\n    def inner(): ...\n    return inner\n"
    text = nested + "import functools as ft\nimport consistency.plugins as own\n@own.metric()\n@ft.wraps(print)\n"
    functions = plugin(
        text + "def f(samples, pixels, context):\n    return 1\nclass A:\n    @property\n    def b(s): ...\n"
    )
    assert functions.names("metric") == ["f"]


def test_params(plugin):
    mixed, brightness = plugin().get("objective", "mixed"), plugin().get("metric", "brightness")
    assert check_params(mixed, {"c": 1, "parts": []}) == {"c": 1, "name": "a", "on": True, "parts": []}
    assert check_params(brightness, {"gain": "anything"}) == {"gain": "anything"}
    for function, params, words in (
        (mixed, {"d": 1}, r"here: d: unknown param of mixed; allowed: c, name, on, parts"),
        (mixed, {"nmae": "b"}, r"did you mean 'name'\?"),
        (mixed, {"c": "1"}, r"here: c: '1' is not allowed; allowed for mixed: a number"),
        (mixed, {"c": True}, r"c: True is not allowed; allowed for mixed: a number"),
        (mixed, {"on": 1}, r"on: 1 is not allowed; allowed for mixed: true or false"),
        (mixed, {"parts": 1}, r"parts: 1 is not allowed; allowed for mixed: a list"),
        (mixed, {"name": None}, r"name: None is not allowed; allowed for mixed: a text"),
        (brightness, {}, r"here: gain: required param of brightness is missing"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_params(function, params, "here")


def test_presets_name_functions_of_plugins(plugin):
    plugin()
    own = {"metrics": [{"name": "brightness", "params": {"gain": 2}}]}
    overrides = {"methods": {"mine": {"objective": "mixed"}}, "evaluation": own}
    settings = {"experiments": "digits", "overrides": {"digits": {"evaluation": own}}}
    _, experiments = config.load(settings | {"plugins": "mine.py"})
    assert experiments["digits"].evaluation.metrics[0].params == {"gain": 2}
    with pytest.raises(ConfigError, match=r"evaluation.metrics.0.name: 'brightness' is not allowed; .*none here"):
        config.load(settings)
    with pytest.raises(ConfigError, match=r"digits: methods.mine.objective: 'mixed' is not allowed; allowed: consis"):
        config.load_experiment("digits", overrides)


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"metrics": ["brightnes"]}, r"evaluation.metrics.0.name: 'brightnes' .*; did you mean 'brightness'\?"),
        ({"metrics": ["brightness"]}, r"evaluation.metrics.0.params: gain: required param of brightness is missing"),
        ({"metrics": [{"name": "brightness", "parms": {}}]}, r"metrics.0.parms: unknown key; .*did you mean 'params'"),
        (
            {"metrics": [{"name": "brightness", "params": {"gain": 1}}] * 2},
            r"evaluation.metrics: brightness is given tw",
        ),
        ({"metrics": ["frechet_distance"]}, r"evaluation.metrics.0.name: 'frechet_distance' is not allowed"),
    ],
)
def test_metrics_that_a_preset_may_not_name(plugin, evaluation, words):
    with pytest.raises(ConfigError, match=words):
        config.load_experiment("digits", {"evaluation": evaluation}, registry=plugin())


def test_nothing_is_run_and_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN + "raise SystemExit('run')\n", encoding="utf-8")
    code = (
        "import sys; from consistency import config\n"
        "config.load({'experiments': 'digits', 'plugins': ['mine.py']})\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    environment = surroundings(PYTHONPATH=str(ROOT / "workflow"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_call_is_plain_data_from_which_a_job_gets_the_function(plugin):
    call = plugin().get("metric", "brightness").call({"gain": 3})
    assert {key: call[key] for key in ("kind", "name", "file", "params")} == {
        "kind": "metric",
        "name": "brightness",
        "file": "mine.py",
        "params": {"gain": 3},
    }
    assert loaded(call).__name__ == "brightness"
    assert loaded(BUILT_INS.get("solver", "heun").call({})).__name__ == "heun"
    plugin(PLUGIN, "gain * pixels", "gain + pixels")
    with pytest.raises(PluginError, match=r"mine.py: brightness was changed while this run went on; run again"):
        loaded(call)


def test_names_of_the_pipelines_rows_are_taken():
    """A metric of the user's own never has the name of one of the pipeline's rows."""
    texts = [(ROOT / f"workflow/consistency/evaluate/{name}.py").read_text() for name in ("measure", "velocity_gap")]
    names = {name for text in texts for name in re.findall(r"""(?:\b(?:_?row|add)\(|\byield)\s*f?"([a-z_]+)""", text)}
    assert {"ode_error", "recall", "transport_cost", "frechet_distance"} <= names, "the search no longer works"
    names |= set(measure._SCORES)
    assert names - registry.TAKEN["metric"] - set(BUILT_INS.built_in_code("metric")) == set()
