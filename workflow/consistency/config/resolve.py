"""From config.yaml and presets to checked experiments and their tables of runs.

A preset is one experiment. `config.yaml` names the experiments and may override any key of theirs.
`load` resolves and checks everything before a job starts; the JSON schemas in workflow/schemas are
generated from `settings` (`python -m consistency.config`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from . import cautions, checks, claims, limits, strict
from .messages import message
from .names import nearest
from .registry import BUILT_INS, Registry, check_params
from .settings import OF_FLOW, Config, Coupling, Experiment, LogitNormal, Run
from .uses import check_overrides, idle

LARGEST_TABLE = 20_000  # runs: a dry run of more takes minutes and gigabytes
PRESETS = Path(__file__).parents[2] / "presets"
SCHEMAS = Path(__file__).parents[2] / "schemas"
Model = TypeVar("Model", bound=BaseModel)


def expand(name: str, experiment: Experiment) -> list[Run]:
    """The table of runs, in the preset's order.

    Raises:
        ConfigError: an unknown method, an N that does not divide T, a row that occurs twice, or too many of them.
    """
    runs: dict[str, Run] = {}
    methods, total = experiment.methods, experiment.schedule.steps
    from_pairs = {method for method in methods if experiment.draws(method) == "pairs"}
    for row, grid in enumerate(experiment.runs):
        where = f"{name}: runs.{row}"
        for n_steps in grid.n_steps:
            if total % n_steps:
                divisors = [n for n in range(1, total + 1) if total % n == 0]  # total: at most 100,000
                raise ConfigError(
                    f"{where}.n_steps: {n_steps} does not divide schedule.steps {total}; allowed: {divisors}"
                )
        chosen = grid.method or [method for method in methods if method not in from_pairs]
        for method in chosen:
            _check_known(f"{where}.method", method, list(methods))
        axes = {
            "solver": grid.solver,
            "n_steps": grid.n_steps,
            "guidance": grid.guidance,
            "targets": grid.targets or [experiment.targets.mode],
            "parameters": grid.parameters or [experiment.student.parameters],
            "method": chosen,
            "seed": grid.seed,
        }
        if paired := from_pairs & set(chosen):
            if set(chosen) - from_pairs or grid.model_fields_set - {"method", "seed"}:
                raise ConfigError(
                    f"{where}: {', '.join(sorted(paired))}: methods that learn from pairs take a row of their own, "
                    "with method and seed only"
                )
            axes = {"method": chosen, "seed": grid.seed}
        if (count := len(runs) + math.prod(map(len, axes.values()))) > LARGEST_TABLE:
            raise ConfigError(f"{where}: makes {count} runs; allowed: at most {LARGEST_TABLE} in an experiment")
        for values in itertools.product(*axes.values()):
            run = _run(experiment, dict(zip(axes, values, strict=True)))
            if (other := runs.get(run.id)) is not None:
                pair = sorted({run.method, other.method})
                of = f", of methods {' and '.join(pair)}" if len(pair) > 1 else ""
                raise ConfigError(f"{where}: run {run.id!r} occurs twice{of}; remove or rename one")
            runs[run.id] = run
    return list(runs.values())


def _run(experiment: Experiment, row: dict[str, Any]) -> Run:
    """One run: a row's values, and its method's settings with their defaults."""
    line = experiment.methods[row["method"]]
    pairs = experiment.draws(row["method"]) == "pairs"
    section = experiment.consistency_training if pairs else experiment.student
    flow = line.flow or ("ve" if pairs else "vp")
    parameterisation = line.parameterisation or OF_FLOW[flow]
    sampler = line.sampler or ("flow_map" if parameterisation == "average_velocity" else "renoise")
    coupling = Coupling(kind="independent") if pairs else None
    times = LogitNormal(kind="logit_normal") if pairs and flow != "ve" else None
    return Run(
        **row,
        objective=line.objective,
        params=line.params,
        draws="pairs" if pairs else "targets",
        flow=flow,
        parameterisation=parameterisation,
        sampler=sampler,
        sampler_params=line.sampler_params,
        least_steps=max(line.least_steps, experiment.registry.get("sampler", sampler).options.get("least_steps", 1)),
        loss=line.loss or section.loss,
        coupling=line.coupling or coupling,
        velocity=line.velocity,
        times=line.times or times,
        dropout=line.dropout,
    )


def _refuse(name: str, *problems: Iterable[str]) -> None:
    """Raise the first of the problems that checks yield."""
    for problem in itertools.chain(*problems):
        raise ConfigError(f"{name}: {problem}")


def _validated(model: type[Model], name: str, settings: Any, context: Registry | None = None) -> Model:
    """The settings as a model; raises ConfigError with the first of pydantic's messages."""
    try:
        return model.model_validate(settings, context=context)
    except ValidationError as error:
        raise ConfigError(message(name, error)) from error


def results_folder(file: str | Path = "config.yaml") -> Path:
    """The folder of all outputs that a config.yaml names; `results` where it names none or is not there."""
    path = Path(file)
    content = strict.read(path) if path.is_file() else None
    folder = content.get("results") if isinstance(content, dict) else None
    settings = {"experiments": ["any"]} | ({} if folder is None else {"results": folder})
    return Path(_validated(Config, path.name, settings).results)


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


def _read_preset(name: str, folder: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset's mapping, laid over the one that its `base` names."""
    _check_known(f"{above[-1]}: base" if above else "experiments", name, _presets(folder))
    if name in above:
        raise ConfigError(f"{name}: base: {' → '.join((*above, name))}: a preset cannot stand on itself")
    path = folder / f"{name}.yaml"
    preset = strict.read(path)
    if not isinstance(preset, dict):
        raise ConfigError(f"{path}: a preset is a mapping of keys")
    base = preset.pop("base", None)
    return preset if base is None else _merge(_read_preset(base, folder, (*above, name)), preset)


def _presets(folder: Path) -> list[str]:
    """Names of the presets and suites in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.is_file())


def single(folder: Path = PRESETS) -> list[str]:
    """Names of the presets in a folder that are no suites."""
    return [name for name in _presets(folder) if not _is_suite(name, folder)]


def _check_known(where: str, name: Any, allowed: list[str]) -> None:
    if name not in allowed:
        raise ConfigError(f"{where}: unknown {name!r}; allowed: {', '.join(allowed)}{nearest(str(name), allowed)}")


def load_experiment(
    name: str, overrides: dict[str, Any] | None = None, presets: Path = PRESETS, registry: Registry = BUILT_INS
) -> Experiment:
    """A preset with overrides laid over it, checked.

    Args:
        registry: the functions that it may name.

    Raises:
        ConfigError: one line with the key's path, what was given, what is allowed.
    """
    experiment = _validated(Experiment, name, _merge(_read_preset(name, presets), overrides or {}), registry)
    _refuse(name, limits.check_names(name, experiment), limits.check_schedule(experiment.schedule))
    for path, kind, uses in (
        ("evaluation.metrics", "metric", experiment.evaluation.metrics),
        ("figures", "figure", experiment.figures),
    ):
        for number, use in enumerate(uses):
            check_params(registry.get(kind, use.name), use.params, f"{name}: {path}.{number}.params")
    for method, line in experiment.methods.items():
        where = f"{name}: methods.{method}"
        check_params(registry.get("objective", line.objective), line.params, f"{where}.params")
        if line.sampler is not None:
            check_params(registry.get("sampler", line.sampler), line.sampler_params, f"{where}.sampler_params")
    runs = expand(name, experiment)
    _refuse(
        name,
        checks.check_sources(experiment, runs),
        checks.check_mixture(experiment),
        checks.check_pairs(experiment, runs),
        claims.check(experiment, runs, registry.names("metric")),
        limits.check(experiment, runs),
    )
    return experiment


def load(
    settings: dict[str, Any], presets: Path = PRESETS, chosen_elsewhere: bool = False
) -> tuple[Config, dict[str, Experiment]]:
    """Resolve config.yaml's mapping and every experiment that it names.

    Args:
        chosen_elsewhere: `experiments` comes from outside the file that has the overrides (the command line), which
            may then name other experiments too; otherwise such an override reaches nothing and is an error.

    Raises:
        ConfigError: one line with the key's path, what was given, what is allowed.
    """
    settings = dict(settings)
    if isinstance(settings.get("experiments"), str):
        settings["experiments"] = [name.strip() for name in settings["experiments"].split(",") if name.strip()]
    config = _validated(Config, "config.yaml", settings)
    registry = Registry.read(config.plugins)
    names = [member for name in config.experiments for member in _members(name, presets)]
    _refuse("config.yaml", limits.check_experiments(names))
    allowed = single(presets)
    for name in config.overrides:
        where = f"config.yaml: overrides.{name}"
        if name in _presets(presets) and name not in allowed:
            members = ", ".join(_members(name, presets))
            raise ConfigError(f"{where}: a suite has no keys of its own; allowed: its experiments, {members}")
        if name not in allowed:
            raise ConfigError(f"{where}: unknown; allowed: {', '.join(allowed)}{nearest(name, allowed)}")
        if name not in names and not chosen_elsewhere:
            raise ConfigError(
                f"{where}: reaches nothing, for {name} is not among the experiments ({', '.join(names)}); add it to "
                "them, or remove the override"
            )
    experiments = {name: load_experiment(name, config.overrides.get(name), presets, registry) for name in names}
    claims.check_shared(experiments)
    for name, experiment in experiments.items():
        if changes := config.overrides.get(name):
            check_overrides(name, experiment, expand(name, experiment), changes)
    return config, experiments


def warnings(config: Config, experiments: dict[str, Experiment]) -> list[str]:
    """What a loaded configuration may say but probably does not mean, one line each."""
    left = [name for name in config.overrides if name not in experiments]
    lines = [f"config.yaml: overrides.{name}: not used, because {name} does not run" for name in left]
    for name, experiment in experiments.items():
        runs, changes = expand(name, experiment), config.overrides.get(name, {})
        lines += [f"config.yaml: overrides.{name}.{line}" for line in idle(experiment, runs, changes)]
        lines += [f"{name}: {line}" for line in cautions.lines(experiment, runs)]
    return lines


def _is_suite(name: str, folder: Path) -> bool:
    """Whether a preset file is a suite. Only its text is searched, because every preset is asked."""
    lines = (folder / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("suite:") for line in lines)


def _members(name: str, folder: Path) -> list[str]:
    """A preset's own name, or the experiments of a suite (a file with the one key `suite`)."""
    _check_known("experiments", name, _presets(folder))
    if not _is_suite(name, folder):
        return [name]
    path = folder / f"{name}.yaml"
    content = strict.read(path)
    members = content.get("suite") if isinstance(content, dict) else None
    if not isinstance(members, list) or not members or set(content) != {"suite"}:
        raise ConfigError(f"{path}: a suite has the one key suite, a list of experiments")
    allowed = single(folder)
    for member in members:
        _check_known(f"{path}: suite", member, allowed)
    return members


def schemas() -> dict[str, str]:
    """File name → JSON schema text, for config.yaml and for presets."""
    return {
        f"{model.__name__.lower()}.schema.json": json.dumps(model.model_json_schema(), indent=2) + "\n"
        for model in (Config, Experiment)
    }
