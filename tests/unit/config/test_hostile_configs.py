"""Configurations that ask for too much, or are meant to: one line within two seconds and 500 MB, or they load."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from consistency import config
from consistency.config import strict
from consistency.errors import ConfigError
from helpers import ROOT, surroundings

BASE = "base: digits\n"


def aliases(levels, width, start="[x]", nest="[{}]"):
    """A YAML text of a few hundred bytes whose last anchor stands for width ** levels values."""
    lines = [f"x0: &a0 {start}"]
    for level in range(1, levels + 1):
        lines.append(f"x{level}: &a{level} {nest.format(', '.join([f'*a{level - 1}'] * width))}")
    return "\n".join(lines) + "\n"


PRESETS = {
    "aliases_unused": aliases(9, 10),
    "aliases_in_title": aliases(9, 10) + f"{BASE}title: *a9\n",
    "aliases_in_keys": aliases(14, 4, "{k: 1}", "{{a: {}}}".replace("{}", "[{}]")) + f"{BASE}teacher: *a14\n",
    "merges": "x0: &a0 {k: 1}\n" + "".join(
        f"x{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}], k{n}: [{', '.join([f'*a{n}'] * 9)}]}}\n"
        for n in range(12)
    ) + BASE,
    "loop_of_lists": f"{BASE}title: &t [*t]\n",
    "loop_of_mappings": f"{BASE}teacher: &t {{training: *t}}\n",
    "loop_in_two_steps": f"{BASE}methods: &m {{cm: &c {{loss: *m, x: *c}}}}\n",
    "loop_by_merge": f"{BASE}teacher: &t {{<<: *t}}\n",
    "deep_lists": "[" * 5000,
    "deep_mappings": "{a: " * 5000,
    "deep_by_indent": "".join(f"{' ' * n}a:\n" for n in range(1500)),
    "own_base": "base: {name}\n",
    "base_number": "base: 5\n",
    "base_mapping": "base: {a: 1}\n",
    "base_path": "base: ../../../../etc/passwd\n",
    "base_absolute": "base: /etc/passwd\n",
    "suite_number": "suite: 5\n",
    "suite_open": "suite: [\n",
    "suite_of_lists": "suite: [[digits]]\n",
    "suite_of_itself": "suite: [{name}]\n",
    "suite_path": "suite: [../../outside/e]\n",
    "suite_and_more": "suite: [digits]\n1: 2\n",
    "suite_in_a_list": "- x\nsuite:\n",
    "number_as_key": f"{BASE}1: 2\n",
    "null_as_key": f"{BASE}~: 2\n",
    "list_as_key": f"{BASE}? [a, b]\n: 2\n",
    "huge_number": f"{BASE}gpu: {'9' * 5000}\n",
    "large_number": f"{BASE}gpu: {'9' * 4000}\n",
    "huge_exponent": f"{BASE}mem_mb: 1e400\n",
    "sexagesimal": f"{BASE}mem_mb: {':'.join(['59'] * 2000)}\n",
    "zero_byte": f'{BASE}title: "a\\0b"\n',
    "line_end": f'{BASE}title: "a\\nb"\n',
    "line_separator": f'{BASE}title: "a\\Lb"\n',
    "turned_around": f'{BASE}title: "a\\u202eb"\n',
    "escape": f'{BASE}title: "\\e[2J"\n',
    "surrogate": f'{BASE}title: "\\ud800"\n',
    "long_title": f"{BASE}title: {'x' * 190_000}\n",
    "latin": b"base: digits\ntitle: \xff\xfe\n",
    "utf_16": "base: digits\ntitle: x\n".encode("utf-16"),
    "bell": b"base: digits\ntitle: a\x07b\n",
    "python_tag": f"{BASE}title: !!python/object/apply:os.system ['touch RAN']\n",
    "python_name": f"{BASE}title: !!python/name:os.system ''\n",
    "binary_tag": f"{BASE}title: !!binary {'AAAA' * 1000}\n",
    "set_tag": f"{BASE}title: !!set {{a, b}}\n",
    "omap_tag": f"{BASE}methods: !!omap [cm: 1]\n",
    "date": f"{BASE}title: 2026-02-31\n",
    "two_documents": f"{BASE}---\n{BASE}",
    "scalar": "just text\n",
    "empty": "",
    "big_file": BASE + "# " + "x" * 200_000 + "\n",
    "many_keys": BASE + "".join(f"k{n}: 1\n" for n in range(16_000)),
    "many_values": BASE + f"runs: [{{seed: [{', '.join(map(str, range(30_000)))}]}}]\n",
}  # fmt: skip

OVERRIDES = {
    "steps_not_dividing": {"schedule": {"steps": 10**12}, "runs": [{"n_steps": 7}]},
    "steps_just_allowed": {"schedule": {"steps": 99_999}, "runs": [{"n_steps": 7}]},
    "huge_n": {"schedule": {"steps": 10**18}, "runs": [{"n_steps": 10**18}]},
    "shards": {"targets": {"shards": 10**9, "count": 10**15}},
    "grid": {"runs": [{"n_steps": [1, 2, 5, 10], "guidance": [x / 10 for x in range(1000)], "seed": [*range(1000)]}]},
    "rows": {"runs": [{"seed": [*range(n * 500, n * 500 + 500)]} for n in range(60)]},
    "methods": {"methods": {f"m{n}": {"objective": "direct"} for n in range(5000)}, "runs": [{"seed": [*range(20)]}]},
    "seeds": {"runs": [{"seed": [2**53 - 1, 2**63, 2**200]}]},
    "seconds": {"runs": [{"seed": [10**4000]}]},
    "widths": {"network": {"kind": "unet", "channels": [8 * 10**12]}},
    "levels": {"network": {"kind": "unet", "channels": [8] * 5000}},
    "attention": {"network": {"kind": "unet", "channels": [8], "attention": [*range(1, 50_000)]}},
    "gpus": {"gpu": 10**15},
    "warm_up": {"student": {"training": {"warmup_steps": 10**30}}},
    "sampling_steps": {"evaluation": {"sampling_steps": [*range(1, 50_000)]}},
    "count": {"evaluation": {"count": 10**18}},
    "budgets": {"consistency_training": {"budgets": [n / 99_999 for n in range(1, 50_000)]}},
    "curriculum": {"consistency_training": {"curriculum": {"s0": 1, "s1": 10**9}, "training": {"steps": 10**9}}},
    "nested": {"teacher": {"training": json.loads("[" * 500 + "]" * 500)}},
}

RUN = """
import json, pathlib, resource, sys, time, yaml
sys.path.insert(0, sys.argv[1])
from consistency import config
from consistency.errors import ConfigError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)
for name, overrides in json.loads(sys.stdin.read()).items():
    begin = time.process_time()
    try:
        experiments = {"experiments": [name if overrides is None else "digits"]}
        config.load(experiments | ({} if overrides is None else {"overrides": {"digits": overrides}}), pathlib.Path("."))
        line = "loaded"
    except ConfigError as error:
        line = "error: " + str(error)
    except BaseException as error:
        line = f"not one line: {type(error).__name__} {str(error)[:200]!r}"
    print(json.dumps([name, time.process_time() - begin, line]), flush=True)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Name → seconds of CPU and what came of it, of each; under "MB" the memory that all took together."""
    folder = tmp_path_factory.mktemp("presets")
    (folder / "digits.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    for name, text in PRESETS.items():
        content = text if isinstance(text, bytes) else text.replace("{name}", name).encode()
        (folder / f"{name}.yaml").write_bytes(content)
    os.mkfifo(folder / "pipe.yaml")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "workflow")],
        input=json.dumps(dict.fromkeys([*PRESETS, "pipe"]) | OVERRIDES),
        cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, megabytes = map(json.loads, done.stdout.splitlines())
    assert not (folder / "RAN").exists(), "a tag ran a command"
    return {name: (seconds, line) for name, seconds, line in lines} | {"MB": megabytes}


@pytest.mark.parametrize("name", [*PRESETS, *OVERRIDES, "pipe"])
def test_one_line_in_two_seconds(outcome, name):
    seconds, line = outcome[name]
    assert seconds < 2, f"{seconds:.1f} s of CPU: {line[:200]}"
    assert line.startswith("error: "), line[:300]
    assert "\n" not in line
    assert len(line) < 3100, f"{len(line)} characters: {line[:300]}…"


def test_500_mb_are_enough(outcome):
    assert outcome["MB"] < 500


def test_an_alias_that_is_no_loop_and_small_is_fine():
    text = "a: &a {b: [1, 2]}\nc: [*a, *a, {<<: *a}]\n"
    assert strict.parse(text, "x") == yaml.safe_load(text)


def test_what_is_refused_is_named():
    with pytest.raises(ConfigError, match="x: line 2: holds an alias of itself"):
        strict.parse("a: 1\nb: &b [*b]\n", "x")
    with pytest.raises(ConfigError, match="more than 100000 values, aliases counted as what they stand for"):
        strict.parse(aliases(5, 10), "x")


def test_no_tag_of_yaml_makes_an_object():
    for tag in ("python/object:os.system", "python/name:os.system", "python/module:os", "python/tuple"):
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            strict.parse(f"a: !!{tag} x\n", "x")
