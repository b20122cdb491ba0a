"""Decorators that mark a user's functions, and functions loaded by their names."""

import logging
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from consistency import config, plugins
from consistency.config.registry import Registry
from consistency.errors import ConfigError, MismatchError, PluginError
from consistency.evaluate import own
from consistency.files.storage import save_tensors
from consistency.flow import solvers
from consistency.report.figures import own as own_figure
from consistency.students import objectives
from helpers import ROOT


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes mine.py into the working directory."""
    monkeypatch.chdir(tmp_path)
    plugins._module.cache_clear()

    def write(text):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return "mine.py"

    return write


@pytest.mark.parametrize("kind", plugins.OPTIONS)
def test_a_decorator_marks_and_changes_nothing_else(kind):
    def function(a):
        return a + 1

    decorate = getattr(plugins, kind)
    for decorated in (decorate(function), decorate()(function)):
        assert decorated is function
        assert (function.kind, function.options, function(1)) == (kind, {}, 2)


def test_options():
    assert plugins.objective(draws="pairs", capturable=False)(lambda: 0).options == {
        "draws": "pairs",
        "capturable": False,
    }
    assert plugins.sampler(least_steps=2)(lambda: 0).options == {"least_steps": 2}
    for decorate, options, words in (
        (plugins.objective, {"draw": "pairs"}, "@objective: unknown option 'draw'; allowed: draws, capturable"),
        (plugins.objective, {"draws": "all"}, "@objective: draws='all' is not allowed; allowed: 'targets', 'pairs'"),
        (plugins.objective, {"capturable": 1}, "@objective: capturable=1 is not allowed; allowed: True, False"),
        (plugins.sampler, {"least_steps": 0}, "@sampler: least_steps=0 is not allowed; allowed: 1 to 999"),
        (plugins.sampler, {"least_steps": True}, "@sampler: least_steps=True is not allowed"),
        (plugins.figure, {"title": "x"}, "@figure: unknown option 'title'; allowed: none"),
    ):
        with pytest.raises(ConfigError) as error:
            decorate(**options)
        assert str(error.value).startswith(words)


def test_built_in_functions_by_name():
    assert plugins.load("objective", "direct") is objectives.direct
    assert plugins.load("solver", "heun") is solvers.heun
    assert objectives.consistency_training.options == {"draws": "pairs"}
    with pytest.raises(PluginError, match="built in: no solver 'direct'"):
        plugins.load("solver", "direct")


def test_a_users_file_is_run_once(file):
    path = file(
        "from dataclasses import dataclass\nfrom consistency.plugins import metric\n@dataclass\nclass P:\n    x: int = 1\n"
        "COUNT = []\nCOUNT.append(1)\n@metric\ndef count(samples, pixels, context):\n    return len(COUNT)\n"
    )
    function = plugins.load("metric", "count", path)
    assert plugins.load("metric", "count", path) is function
    assert function(None, None, None) == 1
    assert pickle.loads(pickle.dumps(function)) is function
    with pytest.raises(PluginError, match="mine.py: no objective 'count'"):
        plugins.load("objective", "count", path)
    with pytest.raises(PluginError, match="mine.py: no metric 'other'"):
        plugins.load("metric", "other", path)


def test_an_edit_within_a_second_is_seen(file, tmp_path):
    for value in "12":
        plugins._module.cache_clear()
        path = file(f"from consistency.plugins import metric\n@metric\ndef m(s, p, c):\n    return {value}\n")
        assert plugins.load("metric", "m", path)(0, 0, 0) == int(value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"], "loading leaves files beside the user's"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ny = x / 0\n", "mine.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_module_anywhere\n", "mine.py:1: ModuleNotFoundError: No module named"),
        ("def f():\n    raise KeyError('a\\nb')\nf()\n", "mine.py:2: KeyError"),
        ("import sys\nsys.exit('over')\n", "mine.py:2: SystemExit: over"),
        ("x =\n", "mine.py:1: SyntaxError"),
    ],
)
def test_a_file_that_fails(file, text, line, caplog):
    path = file(text)
    with caplog.at_level(logging.INFO), pytest.raises(PluginError) as error:
        plugins.load("metric", "m", path)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert "Traceback" in caplog.text, "the log has no traceback"


def test_a_missing_file(file):
    with pytest.raises(PluginError, match=r"absent.py: FileNotFoundError"):
        plugins.load("metric", "m", "absent.py")


def test_what_is_no_fault_of_the_users_file_passes():
    for error in (MismatchError("two inputs"), MemoryError("no memory")):
        with pytest.raises(type(error), match=str(error)), plugins.blaming("mine.py", "m"):
            raise error


def test_the_examples_of_the_docs(file, tmp_path):
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    settings = yaml.safe_load(settings)
    (tmp_path / settings["plugins"][0]).write_text("".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    _, experiments = config.load({"experiments": "digits", **settings})
    functions = Registry.read(settings["plugins"])
    evaluation, figures = experiments["digits"].evaluation, experiments["digits"].figures
    images = torch.full((6, 1, 2, 2), 0.5)
    save_tensors("data.safetensors", {"train_images": -images, "train_labels": torch.zeros(6)})
    calls = [functions.get("metric", metric.name).call(metric.params) for metric in evaluation.metrics]
    measured = own.OwnMetrics(calls, "pixels", "train_images", None, "data.safetensors", "data.safetensors")
    rows = measured.of_samples(images.numpy(), np.zeros(6), 1)
    assert [(row["metric"], row["value"]) for row in rows] == [("ink", 0.5), ("ink_error", 1.0)]
    runs = [{"run": f"{method}-s0", "method": method} for method in ("cm", "direct")]
    table = [rows[0] | {"run": run["run"], "sampling_steps": n, "value": n} for run in runs for n in (1, 2)]
    pd.DataFrame(table).to_csv("metrics.csv", index=False)
    call = functions.get("figure", figures[0].name).call(figures[0].params)
    drawn = own_figure.draw("a.pdf", "a.png", runs=runs, metrics="metrics.csv", own=call)
    assert [line.get_ydata().tolist() for line in drawn.axes[0].lines] == [[1, 2], [1, 2]]
