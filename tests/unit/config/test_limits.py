"""What is known of sizes, grids, names and seeds before any job: one line that names the key, and what is allowed."""

import contextlib
import math

import pytest
import torch
import yaml
from consistency import config, networks
from consistency.config import components, limits, settings, sources
from consistency.errors import ConfigError
from consistency.flow import curricula, schedules
from consistency.teachers import targets
from pydantic import TypeAdapter, ValidationError


def refused(preset, overrides, *expected, presets=config.PRESETS):
    with pytest.raises(ConfigError) as caught:
        config.load_experiment(preset, overrides, presets)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


PLAIN = {"claims": [], "runs": [{"n_steps": 10, "seed": 0}]}


# Seeds


def seeds(model):
    """Paths of all keys called seed."""
    schema = model.model_json_schema()
    found, waiting = [], [(schema, ())]
    while waiting:
        node, path = waiting.pop()
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        for variant in node.get("oneOf", []) + node.get("anyOf", []):
            waiting.append((variant, path))
        if "items" in node:
            waiting.append((node["items"], path))
        for key, inner in node.get("properties", {}).items():
            if key == "seed":
                found.append((".".join((*path, key)), inner.get("items", inner)))
            else:
                waiting.append((inner, (*path, key)))
    return found


def test_every_seed_has_the_range_that_tables_and_pages_keep_exactly():
    found = seeds(settings.Experiment)
    assert {path for path, _ in found} == {
        *("data.seed", "teacher.seed", "classifier.seed", "targets.seed", "evaluation.seed", "runs.seed")
    }
    for path, schema in found:
        assert (schema["minimum"], schema["maximum"]) == (0, 2**53 - 1), path


@pytest.mark.parametrize("seed", [2**53, 2**63, 2**64, -1])
def test_a_seed_out_of_range(seed):
    for section in ("data", "teacher", "classifier", "targets", "evaluation"):
        refused("digits", {section: {"seed": seed}}, f"{section}.seed: {seed} is not allowed")
    refused("digits", PLAIN | {"runs": [{"seed": [0, seed]}]}, f"runs.0.seed.1: {seed} is not allowed")


def test_the_largest_seed_comes_back_from_a_table(tmp_path):
    """Beside rows without a seed, where pandas keeps whole numbers as float64; one more would not."""
    from consistency.evaluate import measure
    from consistency.files import storage

    largest = config.load_experiment("digits", PLAIN | {"runs": [{"seed": 2**53 - 1}]}).runs[0].seed[0]
    row = {"metric": "m", "extractor": "e", "reference": "r", "sampling_steps": 1, "n_samples": 1, "value": 1.0}
    for name, run in (("data", {"run": "data", "method": "data"}), ("a", {"run": "a", "method": "a", "seed": largest})):
        storage.write_json(tmp_path / name, {"run": run, "rows": [row]})
    measure.collect(tmp_path / "metrics.csv", "digits", [tmp_path / "data", tmp_path / "a"])
    assert storage.read_table(tmp_path / "metrics.csv").seed.dropna().astype("int64").tolist() == [largest]
    assert float(largest + 2) == float(largest + 1)


# UNets

UNET = {"kind": "unet", "channels": [16, 16, 16], "layers_per_block": 1, "norm_groups": 8}


def images(folder, side, **network):
    """A preset with images of one class."""
    preset = {
        "title": "x",
        "data": {"kind": "images", "name": "x", "source": "x", "side": side},
        "network": UNET | network,
        "extractors": [{"kind": "efficientnet-lite0"}],
        "methods": {"direct": {"objective": "direct"}},
        "runs": [{"n_steps": 5, "seed": 0}],
    }
    (folder / "im.yaml").write_text(yaml.safe_dump(preset))
    return folder


@pytest.mark.parametrize("side", range(2, 17))
def test_a_side_is_refused_exactly_where_the_network_fails(tmp_path, side):
    network = networks.build(UNET, (3, side, side), 1, 1000, 0)
    try:
        network(torch.zeros(1, 3, side, side), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        works = True
    except RuntimeError:
        works = False
    assert works == (side % 4 == 0)
    if works:
        assert config.load_experiment("im", {}, images(tmp_path, side)).data.side == side
    else:
        refused(
            "im",
            {},
            f"network.channels: 3 widths halve the side 2 times, which data.side {side}",
            presets=images(tmp_path, side),
        )


def test_the_widths_that_a_side_allows_are_named(tmp_path):
    refused("im", {}, "allowed: at most 2 widths, or a side that 4 divides", presets=images(tmp_path, 30))
    assert config.load_experiment("im", {}, images(tmp_path, 30, channels=[16, 16])).data.side == 30
    refused("digits", {"network": UNET | {"channels": [8] * 5}}, "the side of digits, 8 does", "at most 4 widths")


def test_attention_at_a_side_that_is_not_there():
    refused("fashion", {"network": {"attention": [16, 7]}}, "network.attention: 7 is no side", "allowed: 32, 16, 8")
    refused("fashion", {"network": {"attention": [4]}}, "network.attention: 4 is no side")


def test_a_network_that_is_not_built_is_not_measured(tmp_path):
    """Students of a teacher from elsewhere start as that."""
    folder = images(tmp_path, 30)
    assert config.load_experiment("im", {"teacher": {"source": "path", "path": "x"}}, folder).data.side == 30


# Targets


@pytest.mark.parametrize(("count", "shards", "mode"), [(64, 2, "paper"), (65, 2, "paper"), (16, 4, "trajectory")])
def test_shards_that_are_just_large_enough(count, shards, mode):
    """As the reader of targets itself wants them: a batch from one shard."""
    student = {"training": {"batch_size": 32 if mode == "paper" else 40}}
    runs = [{"n_steps": 10, "seed": 0, "targets": mode}]
    overrides = {"claims": [], "student": student, "targets": {"count": count, "shards": shards}, "runs": runs}
    assert config.load_experiment("digits", overrides).targets.shards == shards
    overrides["targets"] = {"count": count, "shards": shards + 1}
    refused("digits", overrides, f"targets.shards: {shards + 1} of targets.count {count}", f"at most {shards} shards")


def test_fewer_targets_than_a_batch():
    overrides = PLAIN | {"targets": {"count": 100, "shards": 1}}
    refused("digits", overrides, "fewer than student.training.batch_size 128", "allowed: a larger targets.count or")


def test_the_reader_of_targets_agrees(tmp_path):
    from consistency.files import storage

    entries = [{"file": f"{n}", "count": 16, "sha256": "0" * 64} for n in range(4)]
    given = {"mode": "paper", "n_steps": 10, "shards": entries, "teacher_sha256": "0" * 64, "count": 64}
    storage.write_json(tmp_path / "manifest.json", given)
    assert targets.TargetReader(tmp_path / "manifest.json", schedules.VPSchedule(), 16, 0).batches == [1] * 4
    with pytest.raises(ConfigError, match="a shard has fewer pairs than batch_size 17"):
        targets.TargetReader(tmp_path / "manifest.json", schedules.VPSchedule(), 17, 0)


# Guidance


@pytest.mark.parametrize("guidance", [0, 0.5, 4])
@pytest.mark.parametrize("dropout", [0, 1e-9])
def test_guidance_without_a_null_class(guidance, dropout):
    changes = {"claims": [], "teacher": {"label_dropout": dropout}, "runs": [{"guidance": [1, guidance]}]}
    refused(
        "digits", changes, f"teacher.label_dropout: {dropout:g} leaves the null class", f"guidance {guidance:g} needs"
    )


def test_no_null_class_where_none_is_needed():
    assert config.load_experiment("digits", PLAIN | {"teacher": {"label_dropout": 0}}).teacher.label_dropout == 0


# Noise levels


def test_a_schedule_that_leaves_nothing_of_the_data():
    refused("digits", {"schedule": {"beta_start": 0.5}}, "schedule.beta_start: must be below")
    refused("digits", {"schedule": {"beta_end": 0.9}}, "schedule.beta_end: 0.9 over 1000 steps leaves α_T")
    refused("digits", {"schedule": {"steps": 10**12}}, "schedule.steps: 1000000000000 is not allowed", "100000")


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_what_is_left_of_the_data_is_the_schedules_own(kind, steps):
    given = {"kind": kind, "steps": steps, "beta_start": 0.001, "beta_end": 0.02}
    expected = schedules.VPSchedule(**given).alpha[-1].item() ** 2
    assert limits.kept(settings.Schedule(**given)) == pytest.approx(expected, rel=1e-12)


def pairs(**changes):
    return {"consistency_training": changes}


@pytest.mark.parametrize(
    ("steps", "s0", "s1", "reached"),
    [
        (700, 10, 1280, 1280),
        (8, 10, 1280, 1280),
        (7, 10, 1280, 640),
        (1, 10, 1280, 10),
        (100, 10, 19, 10),
        (9, 5, 5, 5),
    ],
)
def test_a_curriculum_reaches_its_last_grid_or_is_refused(steps, s0, s1, reached):
    assert curricula.curriculum(steps - 1, steps, s0, s1) - 1 == reached
    changes = pairs(curriculum={"s0": s0, "s1": s1}, training={"steps": steps})
    if reached == s1:
        assert config.load_experiment("gaussians-modes", changes).consistency_training.curriculum.s1 == s1
    else:
        refused("gaussians-modes", changes, f"curriculum.s1: {s1} is not reached", f"allowed: at most {reached}")
        changes["consistency_training"]["curriculum"]["s1"] = reached
        config.load_experiment("gaussians-modes", changes)


@pytest.mark.parametrize(("mean", "deviation"), [(60, 2), (-80, 2), (8, 0.1), (-1.1, 1e-3), (1e300, 1), (0, 1e300)])
def test_a_distribution_without_mass_on_the_grid(mean, deviation):
    """Where the probabilities of `schedules` are not numbers, the configuration has been refused."""
    changes = pairs(curriculum={"p_mean": mean, "p_std": deviation})
    grid = schedules.VESchedule(0.001, 5).grid(1281)
    probabilities = schedules.step_probabilities(grid, mean, deviation)
    if limits.LEAST_MASS <= curricula.mass(0.001, 5, mean, deviation):
        assert probabilities.sum().item() == pytest.approx(1)
        config.load_experiment("gaussians-modes", changes)
    else:
        refused("gaussians-modes", changes, "consistency_training.curriculum.p_mean", "of the distribution of ln σ")


def test_the_mass_is_that_of_the_step_distribution():
    low, high = 0.002, 80.0
    edges = torch.erf((torch.tensor([low, high], dtype=torch.float64).log() + 1.1) / (math.sqrt(2) * 2))
    assert curricula.mass(low, high, -1.1, 2.0) == pytest.approx((edges[1] - edges[0]).item() / 2)
    assert 0.9 < curricula.mass(low, high, -1.1, 2.0) < 1


@pytest.mark.parametrize(
    ("edm", "expected"),
    [
        ({"sigma_min": 1.0, "sigma_max": 1.0000001}, "closer than float32 resolves"),
        ({"sigma_min": 1e-30}, "edm.sigma_min: 1e-30 is not allowed"),
        ({"sigma_max": 1e30}, "edm.sigma_max: 1e+30 is not allowed"),
        ({"rho": 1e-3}, "edm.rho: 0.001 is not allowed"),
        ({"rho": 1e9}, "edm.rho: 1000000000.0 is not allowed"),
        ({"sigma_data": 1e-30}, "edm.sigma_data: 1e-30 is not allowed"),
    ],
)
def test_noise_levels_that_no_float32_tells_apart(edm, expected):
    refused("gaussians-modes", pairs(edm=edm), expected)


@pytest.mark.parametrize("rho", [0.1, 1, 7, 1000])
@pytest.mark.parametrize(("low", "high"), [(1e-9, 1e9), (1e-9, 1e-8), (1e8, 1e9), (0.002, 80)])
def test_every_allowed_grid_rises_and_its_scalings_are_finite(rho, low, high):
    """The corners of what is allowed, in float32 as trained."""
    schedule = schedules.VESchedule(low, high, rho)
    grid = schedule.grid(1281)
    assert (grid.diff() > 0).all()
    assert (1 / grid.diff()).float().isfinite().all()
    for sigma_data in (1e-9, 0.5, 1e9):
        found = schedules.VESchedule(low, high, rho, sigma_data).scalings(grid, torch.zeros(len(grid), 2))
        assert all(value.isfinite().all() for value in found), sigma_data


def test_more_sampling_steps_than_noise_levels():
    refused(
        "digits-couplings",
        {"schedule": {"steps": 2000}, "evaluation": {"sampling_steps": [1, 2000]}},
        "of pairs: at most 1280",
    )


# Names


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("solver", "the name is taken"),
        ("teacher-x", "begins with couplings- or teacher- is taken"),
        ("couplings-ct-gc", "begins with couplings- or teacher- is taken"),
        ("CM", "methods.CM: differs from cm in case alone"),
        ("a/b", "a name has letters, digits"),
        ("-a", "begins with a letter or digit"),
        ("a b", "a name has letters, digits"),
        ("x" * 101, "at most 100 characters, this one has 101"),
    ],
)
def test_names_of_methods_that_something_else_has(method, expected):
    refused("digits", {"methods": {method: {"objective": "direct"}}}, expected)


def test_two_methods_whose_runs_have_one_name():
    methods = {"cm-ddim-n10-w1": {"objective": "consistency_training"}}
    runs = [{"method": "cm", "n_steps": 10, "seed": 0}, {"method": ["cm-ddim-n10-w1"], "seed": 0}]
    refused(
        "digits",
        {"methods": methods, "runs": runs, "claims": []},
        "run 'cm-ddim-n10-w1-s0' occurs twice, of methods cm and cm-ddim-n10-w1",
    )


def test_two_guidance_scales_that_have_one_name():
    runs = [{"guidance": 1.5, "seed": 0}, {"guidance": 1.5000001, "seed": 1}]
    refused("digits", {"runs": runs, "claims": []}, "guidance 1.5 and 1.5000001 have one name, ddim-n10-w1.5")


@pytest.mark.parametrize("name", ["logs", "figures", "tables", "pages", "Tables"])
def test_an_experiment_named_as_a_folder_of_results(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    refused(name, {}, "the preset's name is taken by a folder of results", presets=tmp_path)


def test_experiments_that_differ_in_case_alone(tmp_path):
    for name in ("a", "A", "b.c"):
        (tmp_path / f"{name}.yaml").write_text((config.PRESETS / "digits.yaml").read_text())
    with pytest.raises(ConfigError, match="experiments: a and A differ in case alone"):
        config.load({"experiments": ["a", "A"]}, tmp_path)
    refused("b.c", {}, "the preset's name has letters, digits, - and _ only", presets=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"claims": ["A1", "A1"]}, "claims: A1 is given twice"),
        (pairs(budgets=[0.125, 0.25, 0.5, 0.75, 0.125]), "consistency_training.budgets: 0.125 is given twice"),
        (pairs(budgets=[0.125, 0.25, 0.5, 0.75, 0.12500001]), "consistency_training.budgets: 0.125 is given twice"),
        ({"analysis": {"steps": [10, 20, 10]}}, "analysis.steps: 10 is given twice"),
        ({"analysis": {"coupling_methods": ["ct-gc", "ct-gc"]}}, "analysis.coupling_methods: ct-gc is given twice"),
    ],
)
def test_what_would_be_measured_twice(overrides, expected):
    refused("digits", overrides, expected)


# Data, devices, sources


@pytest.mark.parametrize("share", [1e-6, 0.9999])
def test_a_share_that_leaves_no_digits(share):
    refused("digits", {"data": {"test_share": share}}, f"data.test_share: {share:g} holds out")


def test_half_precision_on_the_cpu():
    changes = {"student": {"training": {"device": "cpu", "precision": "fp16"}}}
    refused("digits", changes, "student.training.precision: fp16 with device cpu; allowed there: no, bf16")


def test_a_path_beside_another_source():
    refused("sdxl", {"teacher": {"path": "x"}}, "teacher.path: 'x' with teacher.source hub")
    refused(
        "digits", {"analysis": {"order_steps": [10]}}, "analysis.order_steps: [10]; allowed: with data.kind mixture"
    )


# Paths


def test_a_home_is_expanded_everywhere(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    loaded, experiments = config.load(
        {
            "experiments": ["fashion", "celeba64", "sdxl", "digits"],
            "results": "~/out/",
            "overrides": {
                "fashion": {"data": {"folder": "~/f"}},
                "celeba64": {"data": {"source": "~/c/*.tar"}},
                "sdxl": {"data": {"source": "~/s", "vae": "~/v"}},
                "digits": {"teacher": {"source": "path", "path": "~/t"}},
            },
        }
    )
    assert loaded.results == "/homes/me/out"
    assert experiments["fashion"].data.folder == "/homes/me/f"
    assert experiments["celeba64"].data.source == "/homes/me/c/*.tar"
    assert (experiments["sdxl"].data.source, experiments["sdxl"].data.vae) == ("/homes/me/s", "/homes/me/v")
    assert experiments["digits"].teacher.path == "/homes/me/t"


def test_every_key_that_is_a_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    found = {}
    for model in [*vars(sources).values(), *vars(components).values(), *vars(settings).values()]:
        if not (isinstance(model, type) and issubclass(model, sources.Strict)):
            continue
        for key, field in model.model_fields.items():
            if key in ("folder", "path", "results", "source", "vae"):
                with contextlib.suppress(ValidationError):  # one of some words, such as teacher.source
                    found[f"{model.__name__}.{key}"] = TypeAdapter(field.rebuild_annotation()).validate_python("~/x")
    data = {"Fashion.folder", "Cifar10.folder", "ImageNet32.folder", "Images.source", "Captions.source", "Captions.vae"}
    assert found == dict.fromkeys(data | {"TeacherConfig.path", "Config.results"}, "/homes/me/x")


@pytest.mark.parametrize(
    ("given", "used"), [("a/", "a"), ("./a", "a"), ("a//b", "a/b"), ("/a/", "/a"), ("../a", "../a")]
)
def test_a_results_folder_is_written_as_snakemake_likes_it(given, used):
    assert config.load({"experiments": ["digits"], "results": given})[0].results == used


def test_a_home_that_is_not_known():
    with pytest.raises(ConfigError, match="results: '~nobody-here/x' is not allowed; allowed: ~ for a home"):
        config.load({"experiments": ["digits"], "results": "~nobody-here/x"})


# Sampling steps


def test_a_method_that_begins_with_more_steps_than_are_asked_for():
    methods = {"late": {"objective": "direct", "least_steps": 4}}
    runs = [{"method": ["cm", "late"], "n_steps": 5, "seed": 0}]
    settings = {"methods": methods, "runs": runs, "claims": []}
    expected = "digits: methods.late: sampled in at least 4 steps, of which evaluation.sampling_steps [1, 2] has none"
    refused("digits", settings | {"evaluation": {"sampling_steps": [1, 2]}}, expected, "its N is 5")
    experiment = config.load_experiment("digits", settings | {"evaluation": {"sampling_steps": [1, 2, 4, 8]}})
    late = next(run for run in config.expand("digits", experiment) if run.method == "late")
    assert late.sampling_steps(experiment.evaluation.sampling_steps) == [4]
