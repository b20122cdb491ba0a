"""From config.yaml and presets to checked experiments and their tables of runs.

A preset is one experiment. `config.yaml` names the experiments and may override any key of theirs.
`load` resolves and checks everything before a job starts; the JSON schemas in workflow/schemas are
generated from `settings` (`python -m consistency.config`).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import checks
from .claims import CLAIMS
from .errors import ConfigError
from .settings import PAIR_OBJECTIVES, Config, Coupling, Experiment, Run, nearest

PRESETS = Path(__file__).parents[1] / "presets"
SCHEMAS = Path(__file__).parents[1] / "schemas"


def expand(name: str, experiment: Experiment) -> list[Run]:
    """The table of runs, in the preset's order.

    Raises:
        ConfigError: an unknown method, an N that does not divide T, or a row that occurs twice.
    """
    runs: dict[str, Run] = {}
    methods, total = experiment.methods, experiment.schedule.steps
    from_pairs = {method for method, line in methods.items() if line.objective in PAIR_OBJECTIVES}
    for row, grid in enumerate(experiment.runs):
        where = f"{name}: runs.{row}"
        for n_steps in grid.n_steps:
            if total % n_steps:
                divisors = [n for n in range(1, total + 1) if total % n == 0]
                raise ConfigError(
                    f"{where}.n_steps: {n_steps} does not divide schedule.steps {total}; allowed: {divisors}"
                )
        chosen = grid.method or [method for method in methods if method not in from_pairs]
        for method in chosen:
            if method not in methods:
                known = list(methods)
                raise ConfigError(
                    f"{where}.method: unknown {method!r}; allowed: {', '.join(known)}{nearest(method, known)}"
                )
        if from_pairs & set(chosen) and (
            set(chosen) - from_pairs
            or grid.model_fields_set & {"solver", "n_steps", "guidance", "targets", "parameters"}
        ):
            raise ConfigError(
                f"{where}: {', '.join(sorted(from_pairs & set(chosen)))}: methods that learn from pairs take a row of "
                "their own, with method and seed only"
            )
        axes = (
            grid.solver,
            grid.n_steps,
            grid.guidance,
            grid.targets or [experiment.targets.mode],
            grid.parameters or [experiment.student.parameters],
            chosen,
            grid.seed,
        )
        if from_pairs & set(chosen):
            axes = ([None], [None], [None], [None], ["full"], chosen, grid.seed)
        for solver, n_steps, guidance, mode, parameters, method, seed in itertools.product(*axes):
            section = experiment.consistency_training if method in from_pairs else experiment.student
            independent = Coupling(kind="independent") if method in from_pairs else None
            run = Run(
                method=method,
                objective=methods[method].objective,
                solver=solver,
                n_steps=n_steps,
                guidance=guidance,
                seed=seed,
                targets=mode,
                parameters=parameters,
                loss=methods[method].loss or section.loss,
                coupling=methods[method].coupling or independent,
                velocity=methods[method].velocity,
                dropout=methods[method].dropout,
            )
            if run.run in runs:
                raise ConfigError(f"{where}: run {run.run!r} occurs twice; remove one")
            runs[run.run] = run
    return list(runs.values())


def results_folder(file: str | Path = "config.yaml") -> Path:
    """The folder of all outputs that a config.yaml names; `results` where it names none or is not there."""
    path = Path(file)
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return Path((given or {}).get("results", Config.model_fields["results"].default))


def _message(name: str, error: ValidationError) -> str:
    """The first of pydantic's errors in one line: key, what was given, what is allowed."""
    errors = error.errors()
    # Of the ways to write a generator, a mapping was meant where one was given.
    first = next((e for e in errors if "Frozen" in e["loc"] and isinstance(errors[0]["input"], dict)), errors[0])
    kinds = {"mlp", "unet", "mse", "pseudo_huber", "pseudo_huber_norm", "Frozen"}
    data = {"digits", "mixture", "fashion", "cifar10", "imagenet32", "images", "captions"}
    tags = kinds | data | {"efficientnet-lite0", "inception-v3", "dinov2", "clip"}
    location = [str(part) for part in first["loc"] if part not in tags]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(error.title, first["loc"][:-1])
        return f"{name}: {key}: unknown key; allowed here: {', '.join(allowed)}{nearest(location[-1], allowed)}"
    if first["type"] == "missing":
        return f"{name}: {key}: required key is missing"
    if first["type"] == "union_tag_invalid":
        tag, words = first["ctx"]["tag"], [word.strip("'") for word in first["ctx"]["expected_tags"].split(", ")]
        return f"{name}: {key}.kind: {_shown(tag)} is not allowed; allowed: {', '.join(words)}{nearest(tag, words)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "allowed:")
    if allowed := first.get("ctx", {}).get("expected"):
        words = [word.strip("'") for word in str(allowed).replace(" or ", ", ").split(", ")]
        message += nearest(str(first["input"]), words)
    return f"{name}: {key}: {_shown(first['input'])} is not allowed; {message}"


def _shown(value: Any) -> str:
    """A value in a message; the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _keys_at(title: str, location: tuple) -> list[str]:
    """The keys that the model at this place of the configuration has."""
    schema = {"Experiment": Experiment, "Config": Config}[title].model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(schema, node, str(part))
        if isinstance(part, int):
            node = node.get("items", node)
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
    return list(_resolve(schema, node, "").get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any], tag: str) -> dict[str, Any]:
    """Follow references; of a union take the variant with this tag, else the first."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "oneOf" in node or "anyOf" in node:
            mapping = node.get("discriminator", {}).get("mapping", {})
            node = {"$ref": mapping[tag]} if tag in mapping else node.get("oneOf", node.get("anyOf"))[0]
        else:
            return node


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mappings merged key by key."""
    for key in ("kind", "repo", "url"):
        if key in change and change[key] != base.get(key):
            return change  # another variant has other keys, another source other hashes
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _read_preset(name: str, folder: Path) -> dict[str, Any]:
    """A preset's mapping, laid over the one that its `base` names."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ConfigError(f"experiments: unknown {name!r}; allowed: {', '.join(known)}{nearest(name, known)}")
    try:
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(preset, dict):
        raise ConfigError(f"{path}: a preset is a mapping of keys")
    base = preset.pop("base", None)
    return preset if base is None else _merge(_read_preset(base, folder), preset)


def load_experiment(name: str, overrides: dict[str, Any] | None = None, presets: Path = PRESETS) -> Experiment:
    """A preset with overrides laid over it, checked.

    Raises:
        ConfigError: one line with the key's path, what was given, what is allowed.
    """
    settings = _merge(_read_preset(name, presets), overrides or {})
    try:
        experiment = Experiment.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_message(name, error)) from error
    if experiment.schedule.beta_start >= experiment.schedule.beta_end:
        raise ConfigError(
            f"{name}: schedule.beta_start: must be below schedule.beta_end {experiment.schedule.beta_end}"
        )
    largest = max(experiment.evaluation.sampling_steps)
    if largest > experiment.schedule.steps:
        raise ConfigError(f"{name}: evaluation.sampling_steps: {largest} is more than schedule.steps")
    if experiment.evaluation.neighbours >= experiment.evaluation.count:
        raise ConfigError(
            f"{name}: evaluation.neighbours: must be below evaluation.count {experiment.evaluation.count}"
        )
    if experiment.targets.shards > experiment.targets.count:
        raise ConfigError(f"{name}: targets.shards: more shards than targets.count {experiment.targets.count}")
    steps = experiment.evaluation.sampling_steps
    if 1 not in steps or len(set(steps)) < len(steps):
        raise ConfigError(f"{name}: evaluation.sampling_steps: {steps} must hold 1, and no number twice")
    for method in experiment.methods:
        if method in ("teacher", "data"):
            raise ConfigError(f"{name}: methods.{method}: the name is taken; choose another")
        if not method.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"{name}: methods.{method}: a name has letters, digits, - and _ only")
    runs = expand(name, experiment)
    for claim in experiment.claims:
        if not any({q.ours.method, q.other.method} <= set(experiment.methods) for q in CLAIMS[claim].quantities):
            needed = sorted({side.method for q in CLAIMS[claim].quantities for side in (q.ours, q.other)})
            raise ConfigError(
                f"{name}: claims: {claim} compares {', '.join(needed)}; methods has {list(experiment.methods)}"
            )
    checks.check_sources(name, experiment, runs)
    checks.check_mixture(name, experiment)
    checks.check_pairs(name, experiment, runs)
    return experiment


def load(settings: dict[str, Any], presets: Path = PRESETS) -> tuple[Config, dict[str, Experiment]]:
    """Resolve config.yaml's mapping and every experiment that it names.

    Raises:
        ConfigError: one line with the key's path, what was given, what is allowed.
    """
    settings = dict(settings)
    if isinstance(settings.get("experiments"), str):
        settings["experiments"] = [name.strip() for name in settings["experiments"].split(",") if name.strip()]
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_message("config.yaml", error)) from error
    names = [member for name in config.experiments for member in _members(name, presets)]
    if len(set(names)) < len(names):
        raise ConfigError(f"config.yaml: experiments: named twice in {names}")
    known = sorted(p.stem for p in presets.glob("*.yaml") if _members(p.stem, presets) == [p.stem])
    for name in config.overrides:
        if name not in known:
            raise ConfigError(
                f"config.yaml: overrides.{name}: unknown; allowed: {', '.join(known)}{nearest(name, known)}"
            )
    return config, {name: load_experiment(name, config.overrides.get(name), presets) for name in names}


def _members(name: str, folder: Path) -> list[str]:
    """A preset's own name, or the experiments of a suite (a file with the one key `suite`)."""
    path = folder / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if any(line.startswith("suite:") for line in lines):
        return [str(member) for member in yaml.safe_load("\n".join(lines))["suite"]]
    return [name]


def schemas() -> dict[str, str]:
    """File name → JSON schema text, for config.yaml and for presets."""
    return {
        f"{model.__name__.lower()}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for model in (Config, Experiment)
    }


if __name__ == "__main__":
    for file, text in schemas().items():
        (SCHEMAS / file).write_text(text, encoding="utf-8")
        print(SCHEMAS / file)
