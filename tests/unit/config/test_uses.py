"""Overrides that reach nothing are errors, and what a configuration hardly means is said in one line each."""

import pytest
from consistency import config
from consistency.errors import ConfigError

TARGETS = [{"method": ["cm", "direct"], "n_steps": 10, "guidance": [1], "seed": 0}]
PAIRS = [{"method": ["ct-gc"], "seed": 0}]
HUB = {"repo": "a/b", "revision": "0" * 40, "files": ["*"]}


def load(name, overrides):
    return config.load({"experiments": [name], "overrides": {name: overrides}})


def warnings(name, overrides):
    return config.warnings(*load(name, overrides))


@pytest.mark.parametrize(
    ("name", "overrides", "key", "why"),
    [
        (
            "digits",
            {"runs": PAIRS, "student": {"training": {"steps": 5}}},
            "student.training.steps",
            "learns from targets",
        ),
        ("digits", {"runs": PAIRS, "targets": {"seed": 5}}, "targets.seed", "no run learns from targets"),
        (
            "digits",
            {"runs": PAIRS, "teacher": {"training": {"steps": 5}}},
            "teacher.training.steps",
            "no run has a teacher",
        ),
        ("digits", {"runs": PAIRS, "schedule": {"steps": 500}}, "schedule.steps", "no run learns from targets"),
        ("digits", {"runs": PAIRS, "evaluation": {"start_times": 5}}, "evaluation.start_times", "learns from targets"),
        (
            "digits",
            {"runs": TARGETS, "consistency_training": {"edm": {"rho": 5}}},
            "consistency_training.edm.rho",
            "from pairs",
        ),
        (
            "digits",
            {"runs": TARGETS, "methods": {"ct-gc": {"loss": {"kind": "mse"}}}},
            "methods.ct-gc.loss.kind",
            "no row",
        ),
        ("digits", {"methods": {"x": {"objective": "consistency_training"}}}, "methods.x.objective", "no row of runs"),
        ("digits", {"runs": TARGETS, "analysis": {"steps": [10]}}, "analysis.steps", "names no method with runs"),
        ("digits", {"teacher": {"hub": HUB}}, "teacher.hub.repo", "teacher.source is train"),
        ("digits", {"teacher": {"subfolder": "x"}}, "teacher.subfolder", "teacher.source is train"),
        (
            "digits",
            {"extractors": [{"kind": "efficientnet-lite0"}], "classifier": {"channels": 8}},
            "classifier.channels",
            "extractors has no classifier",
        ),
        ("gaussians-ring", {"classifier": {"channels": 8}}, "classifier.channels", "extractors has no classifier"),
        ("gaussians-modes", {"teacher": {"training": {"steps": 9}}}, "teacher.training.steps", "no run has a teacher"),
        ("gaussians-ring", {"teacher": {"precision": "bf16"}}, "teacher.precision", "float64"),
        ("gaussians-ring", {"gates": {"student": {"recognised": 0.5}}}, "gates.student.recognised", "no classifier"),
        ("gaussians-modes", {"gates": {"teacher": {"recognised": 0.5}}}, "gates.teacher.recognised", "learns from"),
        (
            "digits",
            {"gates": {"student": {"distance_in_deviations": 1}}},
            "gates.student.distance_in_deviations",
            "not mixture",
        ),
    ],
)
def test_an_override_that_reaches_nothing(name, overrides, key, why):
    with pytest.raises(ConfigError) as caught:
        load(name, overrides)
    message = str(caught.value)
    assert message.startswith(f"config.yaml: overrides.{name}.{key}: reaches nothing: "), message
    assert why in message


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("digits", {"runs": PAIRS, "consistency_training": {"training": {"steps": 900}}, "network": {"width": 256}}),
        (
            "digits",
            {"runs": TARGETS, "teacher": {"training": {"steps": 9}}, "methods": {"cm": {"loss": {"kind": "mse"}}}},
        ),
        ("digits", {"methods": {"mine": {"objective": "direct"}}}),
        ("digits", {"student": {"lora_rank": 8, "parameters": "lora"}}),
        ("gaussians-ring", {"teacher": {"training": {"steps": 9}, "seed": 3, "label_dropout": 0}}),
        ("gaussians-modes", {"teacher": {}}),
        ("cifar10", {"runs": PAIRS, "teacher": {"source": "train"}}),  # no download is then asked for
    ],
)
def test_an_override_that_reaches_something(name, overrides):
    load(name, overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "key", "why"),
    [
        ("digits", {"student": {"lora_rank": 8}}, "student.lora_rank", "no run has parameters lora"),
        ("sdxl", {"teacher": {"label_dropout": 0.2}}, "teacher.label_dropout", "where teacher.source is hub"),
        ("sdxl", {"network": {"kind": "mlp"}}, "network.kind", "no network is built here"),
        ("digits", {"teacher": {"source": "path", "path": "x", "seed": 1}}, "teacher.seed", "teacher.source is path"),
        (
            "digits",
            {"teacher": {"source": "path", "path": "x", "training": {"steps": 9}}},
            "teacher.training.steps",
            "nothing is trained with it where teacher.source is path",
        ),
    ],
)
def test_an_override_that_waits_for_another_choice_is_a_warning(name, overrides, key, why):
    (line,) = warnings(name, overrides)
    assert line.startswith(f"config.yaml: overrides.{name}.{key}: not used, because "), line
    assert why in line


def test_the_presets_own_keys_may_be_unused():
    """A preset on a base has sections of its base that nothing reads; so has one whose runs were narrowed."""
    config.load({"experiments": ["celeba64"]})
    load("digits", {"runs": PAIRS})


def test_overrides_of_experiments_that_do_not_run():
    settings = {"experiments": ["digits"], "overrides": {"digits-long": {"gpu": 0}}}
    with pytest.raises(ConfigError, match="overrides.digits-long: reaches nothing, for digits-long is not among"):
        config.load(settings)
    loaded, experiments = config.load(settings, chosen_elsewhere=True)
    assert list(experiments) == ["digits"]
    assert config.warnings(loaded, experiments) == [
        "config.yaml: overrides.digits-long: not used, because digits-long does not run"
    ]


def test_overrides_of_unknown_experiments_and_suites():
    for elsewhere in (False, True):
        with pytest.raises(ConfigError, match=r"overrides.digts: unknown; .*; did you mean 'digits'\?"):
            config.load({"experiments": "digits", "overrides": {"digts": {}}}, chosen_elsewhere=elsewhere)
        with pytest.raises(
            ConfigError, match="overrides.gaussians: a suite has no keys .* gaussians-modes, gaussians-ring"
        ):
            config.load({"experiments": "gaussians", "overrides": {"gaussians": {}}}, chosen_elsewhere=elsewhere)


# Warnings


def test_a_network_that_is_narrower_than_the_data():
    (line,) = warnings("digits", {"network": {"width": 62}})
    assert line == "digits: network.width: 62 is less than the 64 values of a sample: such an MLP learns little"
    assert warnings("digits", {"network": {"width": 64}}) == []
    assert warnings("digits", {"network": {"kind": "unet", "channels": [8, 16]}}) == []


@pytest.mark.parametrize(
    ("name", "overrides", "count", "size"),
    [
        ("digits", {}, 64, "64 features (classifier)"),
        ("digits", {"classifier": {"feature_size": 128}}, 128, "128 features (classifier)"),
        ("digits", {"extractors": [{"kind": "efficientnet-lite0"}]}, 1280, "1280 features (efficientnet-lite0)"),
        ("cifar10", {}, 2048, "2048 features (inception-v3)"),
        ("gaussians-64d", {}, 64, "64 features (coordinates)"),
    ],
)
def test_fewer_samples_than_features(name, overrides, count, size):
    (line,) = warnings(name, overrides | {"evaluation": {"count": count}})
    assert line.startswith(f"{name}: evaluation.count: {count} samples for {size}: their covariance is singular")
    assert warnings(name, overrides | {"evaluation": {"count": count + 1}}) == []


def test_a_learning_rate_that_is_never_reached():
    """Exactly where the schedule of `training` never gives it."""
    from consistency.config.settings import Training
    from consistency.training.optimizers import rate_at

    for warmup, share in ((60, 0.3), (71, 0.3), (72, 0.3), (200, 0.3), (100, 0), (101, 0), (1, 1), (2, 1)):
        training = {"steps": 100, "warmup_steps": warmup, "decay_share": share, "learning_rate": 0.5}
        reached = max(rate_at(Training(**training), step) for step in range(100)) == 0.5
        found = warnings("digits", {"student": {"training": training}})
        assert (found == []) == reached, (warmup, share, found)
        assert all("student.training.warmup_steps" in line and "never reaches 0.5" in line for line in found)


def test_what_narrowed_runs_leave_over():
    assert warnings("digits-couplings", {"runs": TARGETS}) == [
        "digits-couplings: claims: B3, B4: not decided, because methods that they compare have no runs",
        "digits-couplings: analysis.coupling_methods: ct-gc: not measured, because there are no runs of it",
    ]
    assert warnings("digits", {"runs": TARGETS, "claims": ["A1"]}) == []


def test_a_gate_at_a_share_of_the_training_that_is_not_measured():
    (line,) = warnings("gaussians-modes", {"gates": {"student": {"settled": 0.3}}})
    assert line == "gaussians-modes: gates.student.settled: 0.3 is not checked, because it is not in " + (
        "[0.0625, 0.125, 0.25, 0.5], the budgets"
    )
    assert warnings("gaussians-modes", {"gates": {"student": {"settled": None}}}) == []
