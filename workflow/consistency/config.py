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

from .claims import CLAIMS
from .errors import ConfigError
from .settings import LARGEST_ASSIGNMENT, PAIR_OBJECTIVES, Config, Coupling, Experiment, Frozen, Run, nearest

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
            )
            if run.run in runs:
                raise ConfigError(f"{where}: run {run.run!r} occurs twice; remove one")
            runs[run.run] = run
    return list(runs.values())


def _message(name: str, error: ValidationError) -> str:
    """The first of pydantic's errors in one line: key, what was given, what is allowed."""
    errors = error.errors()
    # Of the ways to write a generator, a mapping was meant where one was given.
    first = next((e for e in errors if "Frozen" in e["loc"] and isinstance(errors[0]["input"], dict)), errors[0])
    tags = {"mlp", "unet", "mse", "pseudo_huber", "pseudo_huber_norm", "digits", "mixture", "Frozen"}
    location = [str(part) for part in first["loc"] if part not in tags]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(error.title, first["loc"][:-1])
        return f"{name}: {key}: unknown key; allowed here: {', '.join(allowed)}{nearest(location[-1], allowed)}"
    if first["type"] == "missing":
        return f"{name}: {key}: required key is missing"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "allowed:")
    if allowed := first.get("ctx", {}).get("expected"):
        words = [word.strip("'") for word in str(allowed).replace(" or ", ", ").split(", ")]
        message += nearest(str(first["input"]), words)
    return f"{name}: {key}: {first['input']!r} is not allowed; {message}"


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
    if "kind" in change and change["kind"] != base.get("kind"):
        return change  # another variant has other keys
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
    if experiment.teacher.source == "path" and not experiment.teacher.path:
        raise ConfigError(f"{name}: teacher.path: required when teacher.source is path")
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
    _check_mixture(name, experiment, runs)
    _check_pairs(name, experiment, runs)
    return experiment


def _check_mixture(name: str, experiment: Experiment, runs: list[Run]) -> None:
    """What data of kind mixture and an analytic teacher need."""
    data, analytic = experiment.data, experiment.teacher.source == "analytic"
    if analytic != (data.kind == "mixture"):
        raise ConfigError(
            f"{name}: teacher.source: {experiment.teacher.source!r} with data.kind {data.kind!r}; "
            "allowed: analytic with mixture, train or path with the others"
        )
    if not analytic:
        return
    total = sum(component.weight for component in data.components)
    if abs(total - 1) > 1e-9:
        raise ConfigError(f"{name}: data.components: the weights sum to {total:g}; they must sum to 1")
    for number, component in enumerate(data.components):
        where = f"{name}: data.components.{number}"
        if len(component.mean) > data.dimension:
            raise ConfigError(f"{where}.mean: {len(component.mean)} coordinates, data.dimension is {data.dimension}")
        if (component.deviation is None) == (component.covariance is None):
            raise ConfigError(f"{where}: give either deviation or covariance")
        if component.covariance is not None and not _positive_definite(component.covariance, data.dimension):
            raise ConfigError(
                f"{where}.covariance: {component.covariance} is not a symmetric positive definite matrix of "
                f"{data.dimension} × {data.dimension}"
            )
    for run in runs:
        if run.guidance not in (None, 1):
            raise ConfigError(
                f"{name}: runs: guidance {run.guidance:g} with an analytic teacher; allowed: 1 (one class)"
            )
    if experiment.network.kind != "mlp":
        raise ConfigError(f"{name}: network.kind: {experiment.network.kind!r} with data.kind mixture; allowed: mlp")
    for key, count, most in (
        ("evaluation.count", experiment.evaluation.count, LARGEST_ASSIGNMENT),
        ("data.test_count", data.test_count, 2 * LARGEST_ASSIGNMENT),
    ):
        if count > most:
            raise ConfigError(
                f"{name}: {key}: {count} is too large for exact assignment, which measures the Wasserstein distance "
                f"and whose time grows with its cube; allowed: at most {most}"
            )
    if data.test_count < 2 * experiment.evaluation.count:
        raise ConfigError(
            f"{name}: data.test_count: {data.test_count}; allowed: at least 2 × evaluation.count, "
            f"which is {experiment.evaluation.count}"
        )
    for steps in experiment.analysis.order_steps:
        if experiment.schedule.steps % steps:
            raise ConfigError(f"{name}: analysis.order_steps: {steps} does not divide schedule.steps")


def _positive_definite(matrix: list[list[float]], size: int) -> bool:
    """Whether a matrix is size × size, symmetric and positive definite, by Cholesky's decomposition."""
    if len(matrix) != size or any(len(row) != size for row in matrix):
        return False
    if any(abs(matrix[i][j] - matrix[j][i]) > 1e-12 for i in range(size) for j in range(i)):
        return False
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            if i == j and rest <= 0:
                return False
            lower[i][j] = rest**0.5 if i == j else rest / lower[j][j]
    return True


def _check_pairs(name: str, experiment: Experiment, runs: list[Run]) -> None:
    """What methods that learn from pairs need."""
    settings = experiment.consistency_training
    edm, curriculum = settings.edm, settings.curriculum
    if edm.sigma_min >= edm.sigma_max:
        raise ConfigError(
            f"{name}: consistency_training.edm.sigma_min: {edm.sigma_min:g}; allowed: below sigma_max {edm.sigma_max:g}"
        )
    if curriculum.s0 > curriculum.s1:
        raise ConfigError(
            f"{name}: consistency_training.curriculum.s0: {curriculum.s0}; allowed: at most s1 {curriculum.s1}"
        )
    ids = {run.run: run for run in runs}
    for run in runs:
        where, coupling = f"{name}: methods.{run.method}", run.coupling
        if not run.from_pairs:
            if coupling is not None or run.velocity != "pair":
                raise ConfigError(
                    f"{where}: coupling and velocity belong to {', '.join(PAIR_OBJECTIVES)}, not to {run.objective}"
                )
            continue
        if coupling.kind == "optimal_transport" and settings.training.batch_size > LARGEST_ASSIGNMENT:
            raise ConfigError(
                f"{name}: consistency_training.training.batch_size: {settings.training.batch_size} is too large for "
                f"exact assignment, whose time grows with its cube; allowed with {run.method}: at most "
                f"{LARGEST_ASSIGNMENT} (seconds a step)"
            )
        if run.velocity == "teacher" and experiment.teacher.source != "analytic":
            ratio = _largest_ratio(experiment)
            if edm.sigma_max > ratio:
                raise ConfigError(
                    f"{where}.velocity: the teacher was trained up to σ/α = {ratio:.3g}; allowed: "
                    f"consistency_training.edm.sigma_max of at most that, it is {edm.sigma_max:g}"
                )
        if isinstance(coupling.generator, Frozen):
            frozen = coupling.generator
            source = ids.get(f"{frozen.method}-s{run.seed}")
            if source is None or not source.from_pairs or frozen.method == run.method:
                known = sorted(
                    {r.method for r in runs if r.from_pairs and r.method != run.method and r.seed == run.seed}
                )
                raise ConfigError(
                    f"{where}.coupling.generator.method: {frozen.method!r} has no run from pairs with seed {run.seed}; "
                    f"allowed: {', '.join(known) or 'none here'}{nearest(frozen.method, known)}"
                )
            if isinstance(source.coupling.generator, Frozen):
                raise ConfigError(f"{where}.coupling.generator.method: {frozen.method!r} has a frozen generator itself")
            if frozen.budget not in settings.budgets:
                raise ConfigError(
                    f"{where}.coupling.generator.budget: {frozen.budget:g}; allowed: consistency_training.budgets, "
                    f"{settings.budgets}"
                )
        if coupling.kind == "generator_induced" and coupling.generator == "ema" and not settings.training.ema_decay:
            raise ConfigError(
                f"{where}.coupling.generator: 'ema' without consistency_training.training.ema_decay; allowed: online, "
                "a frozen one, or an ema_decay"
            )
    _check_claims(name, experiment, {run.method for run in runs})
    known = [method for method, line in experiment.methods.items() if line.objective in PAIR_OBJECTIVES]
    for method in experiment.analysis.coupling_methods:
        if method not in known:
            raise ConfigError(
                f"{name}: analysis.coupling_methods: {method!r} is not a method that learns from pairs; allowed: "
                f"{', '.join(known) or 'none here'}{nearest(method, known)}"
            )
    if 2 * experiment.analysis.batch_size > experiment.analysis.count:
        raise ConfigError(
            f"{name}: analysis.batch_size: {experiment.analysis.batch_size}; allowed: at most half of analysis.count "
            f"{experiment.analysis.count}"
        )
    if experiment.analysis.coupling_methods and experiment.analysis.gradient_budget not in settings.budgets:
        raise ConfigError(
            f"{name}: analysis.gradient_budget: {experiment.analysis.gradient_budget:g}; allowed: "
            f"consistency_training.budgets, {settings.budgets}"
        )


def _check_claims(name: str, experiment: Experiment, methods: set[str]) -> None:
    """That what the claims compare is measured, where its methods have runs."""
    analysis, budgets = experiment.analysis, experiment.consistency_training.budgets
    for claim in experiment.claims:
        for quantity in CLAIMS[claim].quantities:
            place = quantity.ours.metric.partition("@")[2]
            if not {quantity.ours.method, quantity.other.method} <= methods:
                continue
            number = float(place.partition("=")[2] or 0)
            if place.startswith("steps=") and (
                quantity.ours.method not in analysis.coupling_methods or number not in analysis.steps
            ):
                raise ConfigError(
                    f"{name}: claims: {claim} needs {quantity.ours.method} in analysis.coupling_methods and {number:g} "
                    f"in analysis.steps; they are {analysis.coupling_methods} and {analysis.steps}"
                )
            if place.startswith("budget=") and number not in budgets:
                raise ConfigError(
                    f"{name}: claims: {claim} needs {number:g} in consistency_training.budgets; they are {budgets}"
                )


def _largest_ratio(experiment: Experiment) -> float:
    """σ_T / α_T of the VP schedule."""
    schedule, kept = experiment.schedule, 1.0
    for t in range(schedule.steps):
        share = t / max(schedule.steps - 1, 1)
        root = schedule.beta_start**0.5 + share * (schedule.beta_end**0.5 - schedule.beta_start**0.5)
        kept *= 1 - root**2
    return ((1 - kept) / kept) ** 0.5


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
