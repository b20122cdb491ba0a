"""The typed configuration: grids, ids, and one clear line for everything that is wrong."""

import re
from pathlib import Path

import pytest
from consistency import config
from consistency.config import claims, components, functions, gates, settings, sources, strict
from consistency.config.registry import BUILT_INS
from consistency.errors import ConfigError
from consistency.flow import solvers
from consistency.students import objectives
from pydantic import BaseModel

PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml") if "suite:" not in path.read_text())


def refused(preset, overrides, expected):
    """One line, which holds all that is expected."""
    with pytest.raises(ConfigError) as caught:
        config.load_experiment(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


ROOT = Path(__file__).parents[3]
HUB = {"repo": "a/b", "revision": "0" * 40, "files": ["*"]}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_nothing_is_said_of_it(name):
    loaded, experiments = config.load({"experiments": [name]})
    assert config.warnings(loaded, experiments) == []
    runs = config.expand(name, experiments[name])
    assert {run.method for run in runs} <= set(experiments[name].methods)


def test_digits_has_both_papers_grids():
    runs = config.expand("digits", config.load_experiment("digits"))
    found = {(r.method, r.solver, r.n_steps, r.guidance, r.seed) for r in runs}
    conditions = ((10, 1), (50, 4))
    assert found == {(m, "ddim", n, w, s) for m in ("cm", "direct") for n, w in conditions for s in range(5)}
    runs = config.expand("digits-couplings", config.load_experiment("digits-couplings"))
    assert {(r.method, r.seed) for r in runs} == {(m, s) for m in ("ct-ic", "ct-ot", "ct-gc") for s in range(5)}


def test_run_ids_are_readable():
    experiment = config.load_experiment(
        "digits", {"runs": [{"n_steps": 50, "guidance": [4, 7.5], "seed": 0, "parameters": ["full", "lora"]}]}
    )
    names = [run.id for run in config.expand("digits", experiment)]
    assert names[0] == "cm-ddim-n50-w4-s0"
    assert "direct-ddim-n50-w7.5-lora-s0" in names
    assert len(names) == 8


def test_a_method_is_one_line():
    """Named in `methods`, a new method is in every grid that names none."""
    extra = {"mine": {"objective": "direct", "loss": {"kind": "pseudo_huber"}}}
    runs = config.expand("digits", config.load_experiment("digits", {"methods": extra}))
    mine = [run for run in runs if run.method == "mine"]
    assert len(mine) == len([run for run in runs if run.method == "cm"]) > 0
    assert mine[0].loss.c == 0.001


def test_names_are_read_from_the_code():
    assert BUILT_INS.names("solver") == ["ddim", "euler", "heun"]
    assert all(callable(getattr(solvers, name)) for name in BUILT_INS.names("solver"))
    assert all(callable(getattr(objectives, name)) for name in BUILT_INS.names("objective"))
    assert {"consistency_distillation", "direct", "consistency_training"} <= set(BUILT_INS.names("objective"))
    draws = {name: BUILT_INS.get("objective", name).options.get("draws") for name in BUILT_INS.names("objective")}
    assert [name for name, of in draws.items() if of == "pairs"] == ["consistency_training"]


def test_schemas_have_not_drifted():
    """`python -m consistency.config` in workflow/ writes them."""
    for file, text in config.schemas().items():
        assert (config.SCHEMAS / file).read_text(encoding="utf-8") == text, f"{file} is out of date"


MODELS = [
    model
    for module in (claims, components, functions, gates, settings, sources)
    for model in vars(module).values()
    if isinstance(model, type)
    and issubclass(model, BaseModel)
    and model.__module__ == module.__name__
    # without keys of a user's, or with those of its subclasses, and a result
    and model not in (sources.Strict, sources.Labelled, claims._About, functions._Use, settings.Run)
]


@pytest.mark.parametrize("model", MODELS)
def test_every_key_has_a_description_of_its_own(model):
    found = {key: field.description or "" for key, field in model.model_fields.items()}
    for key, description in found.items():
        assert re.search(r"\w", description), f"{model.__name__}.{key} has no description"
        assert description != key, f"{model.__name__}.{key}: the description only repeats the key"
        same = [other for other, text in found.items() if text == description]
        assert same == [key], f"{model.__name__}: {', '.join(same)} have one description, {description!r}"


def test_the_models_above_are_those_of_the_schemas():
    described = {model.__name__ for model in MODELS}
    for model in (settings.Config, settings.Experiment):
        missing = {model.__name__, *model.model_json_schema().get("$defs", {})} - described
        assert not missing, f"not looked at: {', '.join(sorted(missing))}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"student": {"training": {"stesp": 100}}},
            ["digits: student.training.stesp: unknown key", "did you mean 'steps'?", "learning_rate"],
        ),
        ({"network": {"kind": "mlp", "widht": 64}}, ["network.widht: unknown key", "did you mean 'width'?"]),
        ({"network": {"kind": None}}, ["digits: network.kind: 'None' is not allowed; allowed: mlp, unet"]),
        ({"studnet": {}}, ["digits: studnet: unknown key", "did you mean 'student'?"]),
        ({"runs": [{"n_steps": 7}]}, ["runs.0.n_steps: 7 does not divide schedule.steps 1000", "allowed: [1, 2, 4, 5"]),
        ({"runs": [{"solver": "hune"}]}, ["runs.0.solver", "'hune'", "allowed: ddim, euler, heun", "mean 'heun'?"]),
        ({"runs": [{"seed": [0, -1]}]}, ["runs.0.seed.1: -1 is not allowed", "greater than or equal to 0"]),
        ({"runs": [{"n_steps": 0}]}, ["runs.0.n_steps.0: 0 is not allowed", "greater than 0"]),
        ({"student": {"training": {"steps": 0}}}, ["student.training.steps: 0 is not allowed"]),
        ({"runs": [{"guidance": -2}]}, ["runs.0.guidance.0: -2 is not allowed"]),
        ({"runs": [{"method": "direkt"}]}, ["runs.0.method: unknown 'direkt'", "allowed: cm, direct", "'direct'?"]),
        ({"runs": [{}, {"n_steps": 10}]}, ["run 'cm-ddim-n10-w1-s0' occurs twice"]),
        ({"runs": []}, ["digits: runs: [] is not allowed", "at least 1 item"]),
        ({"methods": {"x": {"objective": "dierct"}}}, ["methods.x.objective", "'dierct'", "did you mean 'direct'?"]),
        ({"methods": {"a/b": {"objective": "direct"}}}, ["methods.a/b: a name has letters"]),
        ({"teacher": {"source": "path"}}, ["teacher.path: required"]),
        (
            {"teacher": {"source": "huub"}},
            ["teacher.source: 'huub' is not allowed", "'train', 'path', 'hub' or 'analytic'"],
        ),
        ({"schedule": {"beta_start": 0.5}}, ["schedule.beta_start: must be below"]),
        ({"claims": ["A9"]}, ["claims.0", "'A9'", "A1, A2, A3"]),
        ({"student": {"loss": {"kind": "huber"}}}, ["student.loss.kind: 'huber' is not allowed", "pseudo_huber_norm"]),
        ({"evaluation": {"sampling_steps": [1, 0]}}, ["evaluation.sampling_steps.1: 0 is not allowed"]),
        ({"evaluation": {"neighbours": 5000}}, ["evaluation.neighbours: must be below evaluation.count 1500"]),
        ({"targets": {"count": 2, "shards": 3}}, ["targets.shards: more shards than targets.count 2"]),
        ({"evaluation": {"sampling_steps": [2, 4]}}, ["evaluation.sampling_steps: [2, 4] must hold 1"]),
        ({"methods": {"data": {"objective": "direct"}}}, ["methods.data: the name is taken"]),
        ({"data": {"kind": "mnist"}}, ["data.kind: 'mnist' is not allowed", "digits", "mixture"]),
    ],
)
def test_bad_values_give_one_clear_line(overrides, expected):
    refused("digits", overrides, expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["config.yaml: experiments: required key is missing"]),
        ({"experiments": "digit"}, ["unknown 'digit'", "did you mean 'digits'?"]),
        ({"experiments": ["digits", "digits"]}, ["named twice"]),
        ({"experiments": []}, ["config.yaml: experiments: [] is not allowed", "at least 1 item"]),
        ({"experimnts": "digits"}, ["config.yaml: experimnts: unknown key", "did you mean 'experiments'?"]),
        ({"experiments": "digits", "overides": {}}, ["overides: unknown key", "did you mean 'overrides'?"]),
        ({"experiments": "digits", "overrides": {"digts": {}}}, ["overrides.digts: unknown", "'digits'?"]),
    ],
)
def test_bad_config_yaml(given, expected):
    with pytest.raises(ConfigError) as caught:
        config.load(given)
    for part in expected:
        assert part in str(caught.value)


def test_a_comma_list_of_experiments():
    loaded, experiments = config.load({"experiments": "digits, digits-full"})
    assert loaded.experiments == list(experiments) == ["digits", "digits-full"]


def test_overrides_merge_key_by_key():
    changed = config.load_experiment("digits", {"student": {"training": {"steps": 7}}})
    plain = config.load_experiment("digits")
    assert changed.student.training.steps == 7
    assert changed.student.training.learning_rate == plain.student.training.learning_rate
    assert changed.student.loss == plain.student.loss


def test_another_variant_replaces_the_keys_of_the_first():
    changed = config.load_experiment("digits", {"network": {"kind": "unet", "channels": [8, 16]}})
    assert changed.network.channels == [8, 16]
    assert config.load_experiment("digits", {"network": {"depth": 5}}).network.width == 128


def test_a_preset_may_stand_on_another(tmp_path):
    (tmp_path / "a.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    (tmp_path / "b.yaml").write_text("base: a\nevaluation: {count: 50}\n")
    assert config.load_experiment("b", presets=tmp_path).evaluation.count == 50
    (tmp_path / "c.yaml").write_text("base: d\n")
    with pytest.raises(ConfigError, match="unknown 'd'"):
        config.load_experiment("c", presets=tmp_path)
    (tmp_path / "e.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load_experiment("e", presets=tmp_path)


def test_config_yaml_is_valid_and_explains_every_key():
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    loaded, _ = config.load(strict.parse(text, "config.yaml"))
    assert (loaded.experiments, loaded.overrides) == (
        ["gaussians-modes", "digits", "digits-paper"],
        {},
    )
    lines = text.splitlines()
    for key in type(loaded).model_fields:
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[place - 1].startswith(f"# {key}: ")


@pytest.mark.parametrize("mark", ["# ", "#"])
def test_the_example_in_config_yaml_may_be_uncommented(mark):
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    before, after = text.split("\noverrides:\n")
    uncommented = "\n".join(line.removeprefix(mark) for line in after.splitlines())
    _, experiments = config.load(strict.parse(f"{before}\noverrides:\n{uncommented}", "config.yaml"))
    assert experiments["digits"].student.training.learning_rate == 1e-4
    assert config.load_experiment("digits").student.training.learning_rate != 1e-4


def test_a_suite_stands_for_its_experiments():
    _, experiments = config.load({"experiments": "gaussians,digits"})
    assert list(experiments) == ["gaussians-modes", "gaussians-ring", "gaussians-64d", "digits"]
    with pytest.raises(ConfigError, match="named twice"):
        config.load({"experiments": "gaussians,gaussians-ring"})


def test_runs_from_pairs_have_neither_solver_nor_targets():
    runs = config.expand("gaussians-modes", config.load_experiment("gaussians-modes"))
    run = next(run for run in runs if run.method == "ct-gc")
    assert (run.id, run.solver, run.targets, run.from_pairs) == ("ct-gc-s0", None, None, True)
    assert (run.coupling.kind, run.coupling.share, run.coupling.generator) == ("generator_induced", 0.5, "ema")
    assert next(run for run in runs if run.method == "cd").coupling.kind == "independent"
    runs = config.expand("gaussians-modes-mu", config.load_experiment("gaussians-modes-mu"))
    shares = {run.coupling.share for run in runs if run.method.startswith("ct-gc")}
    assert shares == {0.3, 0.5, 0.7, 1.0}


PLANE = {"weight": 1.0, "mean": [0.0, 0.0], "deviation": None}
GC = {"objective": "consistency_training", "coupling": {"kind": "generator_induced"}}


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        (
            "gaussians-ring",
            {"data": {"components": [PLANE | {"covariance": [[1.0, 2.0], [2.0, 1.0]]}]}},
            ["data.components.0.covariance", "not a symmetric positive definite matrix of 2 × 2"],
        ),
        (
            "gaussians-ring",
            {"data": {"components": [PLANE | {"covariance": [[1.0, 0.5], [0.2, 1.0]]}]}},
            ["data.components.0.covariance", "not a symmetric positive definite"],
        ),
        (
            "gaussians-ring",
            {"data": {"components": [PLANE | {"weight": 0.9, "deviation": 1.0}]}},
            ["data.components: the weights sum to 0.9; they must sum to 1"],
        ),
        ("gaussians-ring", {"data": {"components": [PLANE]}}, ["components.0: give either deviation or covariance"]),
        (
            "gaussians-ring",
            {"data": {"components": [PLANE | {"mean": [0, 0, 0], "deviation": 1.0}]}},
            ["components.0.mean: 3 coordinates, data.dimension is 2"],
        ),
        ("gaussians-ring", {"runs": [{"guidance": 4}]}, ["guidance 4 with data of one class; allowed: 1"]),
        ("gaussians-ring", {"teacher": {"source": "train"}}, ["teacher.source: 'train'", "analytic with mixture"]),
        ("digits", {"teacher": {"source": "analytic"}}, ["teacher.source: 'analytic'", "data.kind 'digits'"]),
        ("gaussians-ring", {"analysis": {"order_steps": [7]}}, ["analysis.order_steps: 7 does not divide"]),
        (
            "gaussians-modes",
            {"methods": {"ct-gc": {"coupling": {"share": 1.5}}}},
            ["methods.ct-gc.coupling.share: 1.5 is not allowed", "less than or equal to 1"],
        ),
        (
            "gaussians-modes",
            {"methods": {"ct-gc": {"coupling": {"kind": "generator_inducted"}}}},
            ["methods.ct-gc.coupling.kind", "did you mean 'generator_induced'?"],
        ),
        (
            "gaussians-modes",
            {"consistency_training": {"edm": {"sigma_min": 5.0}}},
            ["consistency_training.edm.sigma_min: 5; allowed: below sigma_max 5"],
        ),
        (
            "gaussians-modes",
            {"consistency_training": {"curriculum": {"s0": 20, "s1": 10}}},
            ["consistency_training.curriculum.s0: 20; allowed: at most s1 10"],
        ),
        (
            "gaussians-modes",
            {"consistency_training": {"training": {"batch_size": 4096}}},
            ["batch_size: 4096 is too large for exact assignment", "cube", "at most 2048"],
        ),
        (
            "gaussians-modes-mu",
            {"methods": {"ct-gc-frozen": {"coupling": {"generator": {"method": "ct-id", "budget": 0.25}}}}},
            ["generator.method: 'ct-id' has no run from pairs with seed 0", "did you mean 'ct-ic'?"],
        ),
        (
            "gaussians-modes-mu",
            {"methods": {"ct-gc-frozen": {"coupling": {"generator": {"method": "ct-ic", "budget": 0.3}}}}},
            ["generator.budget: 0.3; allowed: consistency_training.budgets"],
        ),
        (
            "gaussians-modes-mu",
            {"methods": {"ct-ic": {"flow": "linear"}}},
            ["methods.ct-gc-frozen.coupling.generator.method: 'ct-ic' has flow linear; allowed: ve"],
        ),
        (
            "gaussians-modes",
            {"methods": {"cd": {"flow": "linear"}}},
            ["analysis.coupling_methods: 'cd' is not a method that learns from pairs, with flow ve"],
        ),
        (
            "gaussians-modes",
            {"runs": [{"method": ["ct-gc"], "solver": "heun"}]},
            ["runs.0: ct-gc: methods that learn from pairs take a row of their own, with method and seed only"],
        ),
        (
            "digits",
            {"methods": {"cd": GC | {"velocity": "teacher"}}, "runs": [{"method": ["cd"]}], "claims": []},
            ["methods.cd.velocity: the teacher was trained up to σ/α = 14.6", "it is 80"],
        ),
        (
            "digits",
            {"methods": {"cm": {"velocity": "teacher"}}},
            ["methods.cm.velocity: belongs to methods that learn from pairs, not to consistency_distillation"],
        ),
        (
            "digits",
            {"analysis": {"coupling_methods": ["ct-id"]}},
            ["'ct-id' is not a method that learns from pairs", "did you mean 'ct-ic'?"],
        ),
        (
            "digits-couplings",
            {"analysis": {"batch_size": 600, "count": 1024}},
            ["analysis.batch_size: 600; allowed: at most half of analysis.count"],
        ),
        (
            "digits-couplings",
            {"analysis": {"gradient_budget": 0.3}},
            ["analysis.gradient_budget: 0.3; allowed: consistency_tr"],
        ),
        (
            "gaussians-modes",
            {"methods": {"ct-gc-frozen": {"coupling": {"generator": {"method": "ct-ic", "budget": 2}}}}},
            ["methods.ct-gc-frozen.coupling.generator.budget: 2 is not allowed", "less than or equal to 1"],
        ),
        (
            "gaussians-modes",
            {"consistency_training": {"training": {"ema_decay": None}}},
            ["'ema' without", "ema_decay"],
        ),
        (
            "gaussians-modes",
            {"analysis": {"steps": [10]}},
            ["claims: B1 needs cd in analysis.coupling_methods and 1280"],
        ),
        (
            "gaussians-modes-mu",
            {"consistency_training": {"budgets": [0.25, 0.5]}},
            ["claims: B4 needs 0.125 in consistency_training.budgets"],
        ),
        (
            "gaussians-ring",
            {"evaluation": {"count": 4000}},
            ["evaluation.count: 4000 is too large for exact assignment"],
        ),
        (
            "gaussians-ring",
            {"network": {"kind": "unet"}},
            ["network.kind: 'unet' with data.kind mixture; allowed: mlp"],
        ),
        ("digits", {"claims": ["B1"]}, ["claims: B1 compares cd; methods has"]),
    ],
)
def test_bad_input_of_the_exact_tier_and_of_couplings_is_one_clear_line(preset, overrides, expected):
    refused(preset, overrides, expected)


def test_the_average_stays_when_another_key_of_its_training_is_set():
    experiment = config.load_experiment("gaussians-ring", {"consistency_training": {"training": {"steps": 7}}})
    assert experiment.consistency_training.training.ema_decay == 0.999


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("digits", {"teacher": {"source": "hub"}}, ["digits: teacher.hub: required when teacher.source is hub"]),
        ("sdxl", {"teacher": {"hub": {"revision": "main"}}}, ["teacher.hub.revision: 'main' is not allowed", "40"]),
        ("sdxl", {"teacher": {"hub": {"repo": "sdxl"}}}, ["teacher.hub.repo: 'sdxl' is not allowed"]),
        ("digits", {"teacher": {"compile": True}}, ["teacher.compile: true with data.kind 'digits'", "allowed: false"]),
        ("sdxl", {"teacher": {"source": "train"}}, ["teacher.source: 'train' with data.kind captions", "hub, path"]),
        ("sdxl", {"data": {"download": None}}, ["data.source: required, unless data.download is given"]),
        ("sdxl", {"extractors": [{"kind": "clip", "weights": HUB}]}, ["extractors: clip gives scores only"]),
        ("sdxl", {"extractors": [{"kind": "classifier"}]}, ["extractors: classifier needs data with classes"]),
        ("sdxl", {"extractors": [{"kind": "inceptoin-v3"}]}, ["extractors.0", "inceptoin-v3", "mean 'inception-v3'?"]),
        ("digits", {"extractors": [{"kind": "classifier"}] * 2}, ["extractors", "names one twice"]),
        (
            "digits",
            {"classifier": {"name": "inception-v3"}},
            ["classifier.name: 'inception-v3' is another extractor's"],
        ),
        (
            "digits",
            {"extractors": [{"kind": "classifier"}, {"kind": "clip", "weights": HUB}]},
            ["extractors: clip compares with captions"],
        ),
        ("cifar10", {"runs": [{"guidance": 4}]}, ["runs: guidance 4 with data of one class; allowed: 1"]),
        ("cifar10", {"network": {"norm_groups": 48}}, ["network.norm_groups: 48 does not divide network.channels 128"]),
        ("digits", {"student": {"training": {"accumulate": 3}}}, ["student.training.accumulate: 3 does not divide"]),
        ("digits-couplings", {"methods": {"ct-gc": {"dropout": 0.1}}}, ["methods.ct-gc.dropout: only for a UNet"]),
        ("fashion", {"data": {"foldre": "x"}}, ["data.foldre: unknown key", "did you mean 'folder'?"]),
        ("celeba64", {"data": {"name": "a/b"}}, ["data.name: 'a/b' is not allowed"]),
    ],
)
def test_bad_input_of_downloads_data_and_extractors_is_one_clear_line(preset, overrides, expected):
    refused(preset, overrides, expected)


def borrowed(**overrides):
    """The experiments that train the teachers of `digits-paper`, which borrows them."""
    return config.lenders(*config.load({"experiments": ["digits-paper"], "overrides": overrides}))


def test_a_teacher_that_another_preset_trains():
    assert list(borrowed()) == ["digits"]
    assert borrowed(**{"digits": {"teacher": {"precision": "bf16"}}})  # how it is called is the borrower's own affair
    assert config.lenders(*config.load({"experiments": ["digits", "digits-paper"]})) == {}  # it runs by itself


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"digits-paper": {"teacher": {"of": "digit"}}}, "unknown 'digit'; allowed: .*did you mean 'digits'"),
        (
            {"digits": {"teacher": {"training": {"steps": 9}}}},
            "'digits' has another teacher; allowed: presets that share",
        ),
        ({"digits": {"network": {"width": 64}}}, "'digits' has another network; allowed: presets that share"),
        ({"digits": {"replicates": "students"}}, "'digits' has another replicates; allowed: presets that share"),
        (
            {"digits-paper": {"teacher": {"of": "digits-long"}}},
            "'digits-long'; allowed: with source train here and there",
        ),
    ],
)
def test_a_teacher_that_another_preset_does_not_train_is_one_clear_line(overrides, expected):
    with pytest.raises(ConfigError, match=rf"^digits-paper: teacher\.of: {expected}"):
        borrowed(**overrides)


def test_another_repository_does_not_inherit_files_or_hashes():
    hub = {"repo": "a/b", "revision": "0" * 40, "files": ["*"]}
    changed = config.load_experiment("sdxl", {"teacher": {"hub": hub}}).teacher.hub
    assert (changed.files, changed.sha256) == (["*"], {})
    kept = config.load_experiment("sdxl", {"teacher": {"hub": {"revision": "0" * 40}}}).teacher.hub
    assert kept.repo == "stabilityai/stable-diffusion-xl-base-1.0"
    assert len(kept.sha256) == 3
