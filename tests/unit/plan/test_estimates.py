"""What a dry run says that a preset will cost: against numbers worked out by hand."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from consistency import config
from consistency.config.registry import BUILT_INS
from consistency.plan import estimates, scaling
from helpers import ROOT

PRESETS = sorted(path.stem for path in config.PRESETS.glob("*.yaml") if "suite:" not in path.read_text())
KNOWN = json.loads(estimates.FLOPS.read_text(encoding="utf-8"))
HALF, WHOLE = 3e14, 3e13  # operations a second of a made-up GPU
PLAIN = estimates.Device("GPU", {"bf16": HALF, "fp16": HALF, "no": WHOLE}, {}, {}, 0.0, "made up")


def stages_of(name, overrides=None, device=PLAIN):
    experiment = config.load_experiment(name, overrides)
    return estimates.estimate(experiment, config.expand(name, experiment), device)


# flops.json


def needed(name):
    """The networks that a preset runs and that are counted."""
    experiment = config.load_experiment(name)
    keys = set() if experiment.data.kind == "captions" else {estimates.key_of(experiment)}
    if experiment.teacher.source == "hub":
        keys.add(estimates.key_of(experiment, experiment.teacher.hub.repo))
    if experiment.data.kind == "captions":
        keys.add(experiment.data.vae.repo)
    return keys


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_networks_are_counted(name):
    """Fails when a preset's network is changed without `python -m consistency.plan.estimates` (in workflow/)."""
    assert needed(name) <= set(KNOWN), "run `python -m consistency.plan.estimates` in workflow/"


def test_nothing_else_is_kept():
    assert set(KNOWN) == set(estimates.hub_networks()).union(*map(needed, PRESETS))
    for key, entry in KNOWN.items():
        assert set(entry) == {"flops", "parameters"}, key
        assert min(entry.values()) > 10_000, key


@pytest.mark.parametrize(
    ("preset", "network", "same"),
    [
        ("fashion-small", {"channels": [16, 32]}, False),
        ("fashion-small", {"attention": [16]}, False),
        ("fashion-small", {"layers_per_block": 2}, False),
        ("fashion-small", {"norm_groups": 4}, False),
        ("fashion-small", {"dropout": 0.5}, True),  # costs nothing
        ("digits", {"width": 130}, False),
        ("digits", {"depth": 4}, False),
    ],
)
def test_a_changed_network_has_another_key(preset, network, same):
    changed = config.load_experiment(preset, {"network": network})
    assert (estimates.key_of(changed) in KNOWN) == same


COUNTED = """
import dataclasses
import json
from consistency import config
from consistency.plan import estimates
estimates.hub_networks = dict
presets = [config.load_experiment(name) for name in ("digits", "fashion-small", "digits-long")]
print(json.dumps(estimates.count_flops(presets)))
"""


def test_counted_again_on_the_meta_device():
    """Without the large networks of the hub; in a fresh process, as transformers takes torch.linspace off `meta`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, env=environment, check=True)
    keys = {estimates.key_of(config.load_experiment(name)) for name in ("digits", "fashion-small")}
    assert json.loads(done.stdout) == {key: KNOWN[key] for key in keys}


def test_operations_of_an_mlp_by_hand():
    """Two for each multiplication of a matrix: in, time (twice), two a block, out; nothing else is counted."""
    width, size, depth = 128, 64, 3
    matrices = 2 * size * width + 2 * width * width + depth * 2 * (width * 2 * width)
    (entry,) = [v for k, v in KNOWN.items() if k == estimates.key_of(config.load_experiment("digits"))]
    assert entry["flops"] == 2 * matrices


# The estimate


def fake(monkeypatch, path, entries):
    path.write_text(json.dumps(entries))
    monkeypatch.setattr(estimates, "FLOPS", path)


TRAINING = {"steps": 100, "batch_size": 10}
MADE_UP = {
    "network": {"kind": "mlp", "width": 6, "depth": 1},
    "teacher": {"training": TRAINING | {"precision": "bf16"}, "precision": "no"},
    "targets": {"count": 1000, "shards": 1, "mode": "paper"},
    "student": {"training": {"steps": 20, "batch_size": 5, "precision": "no"}},
    "consistency_training": {"training": {"steps": 30, "batch_size": 4, "precision": "fp16"}, "budgets": [0.25, 0.5]},
    "evaluation": {"count": 50, "sampling_steps": [1, 2], "start_times": 3, "precision": "bf16"},
    "analysis": {"coupling_methods": []},
    "replicates": "students",
    "claims": [],
}
SAMPLE = 4 * 8 * 8  # bytes of one


def check(row, passes, flops, rate, stored):
    assert row["passes"] == pytest.approx(passes)
    assert row["flops"] == pytest.approx(flops)
    assert row["hours"] == pytest.approx(flops / rate / 3600)
    assert row["bytes"] == pytest.approx(stored)


def test_a_replicate_has_a_teacher_and_targets_of_its_own():
    overrides = MADE_UP | {"runs": [{"n_steps": 4, "seed": [0, 1, 2]}]}
    shared, redrawn = stages_of("digits", overrides), stages_of("digits", overrides | {"replicates": "all"})
    for stage in ("teacher", "teacher samples", "targets"):
        assert redrawn[stage]["passes"] == 3 * shared[stage]["passes"], stage
    assert redrawn["students"] == shared["students"]


def test_students_of_targets_by_hand(monkeypatch, tmp_path):
    """CM and Direct CM, two seeds each, on Heun with guidance: two calls a step, each of two branches."""
    overrides = MADE_UP | {"runs": [{"solver": "heun", "n_steps": 4, "guidance": 3, "seed": [0, 1]}]}
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    stages = stages_of("digits", overrides)
    assert list(stages) == ["data", "teacher", "teacher samples", "targets", "students", "samples"]
    check(stages["data"], 0, 0, HALF, 1797 * 64)
    check(stages["teacher"], 1000, 3 * 1000 * 1000, HALF, 40)  # forward, and backward for two
    check(stages["teacher samples"], 50 * 4 * 4, 800 * 1000, WHOLE, (1 + 3) * 50 * SAMPLE)  # ends and start points
    # a draw starts at k = 0..3: 2.5 steps on average; x_s, x_n and x_0 are kept
    check(stages["targets"], 1000 * 2.5 * 4, 10_000 * 1000, WHOLE, 1000 * 3 * SAMPLE)
    # CM computes its own target: 4 passes for each of 100 samples, Direct CM 3
    check(stages["students"], 4 * 100, (2 * 4 + 2 * 3) * 100 * 1000, WHOLE, 4 * 40)
    # 1 + 2 passes, and one from each of three start times: five sets of 50
    check(stages["samples"], 4 * 50 * 6, 1200 * 1000, HALF, 4 * 5 * 50 * SAMPLE)


@pytest.mark.parametrize(
    ("changes", "passes", "stored"),
    [
        ({"solver": "ddim", "guidance": 1}, 1000 * 2.5, 1000 * 3),
        ({"solver": "ddim", "guidance": 3}, 1000 * 2.5 * 2, 1000 * 3),
        ({"solver": "euler", "guidance": 0}, 1000 * 2.5 * 2, 1000 * 3),
        ({"solver": "heun", "guidance": 1}, 1000 * 2.5 * 2, 1000 * 3),
        ({"solver": "ddim", "guidance": 1, "targets": "trajectory"}, 1000 * 4, 1000 * 5),
        ({"guidance": [1, 3]}, 1000 * 2.5 * 3, 2 * 1000 * 3),
        ({"guidance": 1, "targets": ["paper", "trajectory"]}, 1000 * 2.5 + 1000 * 4, 1000 * (3 + 5)),
    ],
)
def test_teacher_calls_by_hand(monkeypatch, tmp_path, changes, passes, stored):
    """One solve for all methods and seeds of a condition and mode."""
    overrides = MADE_UP | {"runs": [{"n_steps": 4, "seed": [0, 1, 2]} | changes]}
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    check(stages_of("digits", overrides)["targets"], passes, 1000 * passes, WHOLE, stored * SAMPLE)


def test_students_of_pairs_by_hand(monkeypatch, tmp_path):
    """No teacher at all; a generator is one more pass, and each budget a snapshot and a set of samples."""
    overrides = MADE_UP | {"runs": [{"method": ["ct-ic", "ct-gc"], "seed": [0]}]}
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    stages = stages_of("digits", overrides)
    assert list(stages) == ["data", "students", "samples"]
    check(stages["students"], 2 * 120, (4 + 5) * 120 * 1000, HALF, 2 * 40 * 3)
    check(stages["samples"], 2 * 50 * 5, 500 * 1000, HALF, 2 * 4 * 50 * SAMPLE)


def test_checkpointing_is_one_more_pass_and_adapters_are_small(monkeypatch, tmp_path):
    student = {"training": {"steps": 20, "batch_size": 5, "gradient_checkpointing": True}, "parameters": "lora"}
    overrides = MADE_UP | {"student": student, "runs": [{"method": "direct", "n_steps": 4, "seed": 0}]}
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    students = stages_of("digits", overrides)["students"]
    assert students["flops"] == 4 * 100 * 1000
    assert students["bytes"] < 40


def test_what_a_run_leaves_out_is_not_counted(monkeypatch, tmp_path):
    """Numbers of sampling steps above N, and more start times than steps."""
    evaluation = {"count": 50, "sampling_steps": [1, 2, 8], "start_times": 10}
    overrides = MADE_UP | {"evaluation": evaluation, "runs": [{"method": "direct", "n_steps": 4, "seed": 0}]}
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    samples = stages_of("digits", overrides)["samples"]
    assert samples["passes"] == 50 * (1 + 2 + 4)
    assert samples["bytes"] == 50 * 6 * SAMPLE


def test_latents_by_hand():
    """The preset sdxl at two sets of samples: each image is encoded once, each measured latent decoded once."""
    stages = stages_of("sdxl", {"evaluation": {"sampling_steps": [1, 2]}})
    vae = KNOWN["madebyollin/sdxl-vae-fp16-fix"]["flops"]
    unet = KNOWN["stabilityai/stable-diffusion-xl-base-1.0"]["flops"]
    latent = 4 * 4 * 128 * 128
    check(stages["encode"], 10_274, 10_274 * vae, HALF, 10_274 * (3 * 1024 * 1024 + latent))
    check(stages["targets"], 4000 * 50.5 * 2, 404_000 * unet, HALF, 4000 * 3 * latent)
    check(stages["teacher samples"], 10_274 * 100 * 2, 2_054_800 * unet, HALF, 5 * 10_274 * latent)
    assert stages["students"]["passes"] == 6 * 250 * 16
    assert stages["students"]["flops"] == pytest.approx((3 * 5 + 3 * 4) * 4000 * unet)
    assert stages["samples"]["passes"] == 6 * 10_274 * (1 + 2 + 4)


def test_teachers_samples_are_decoded_too():
    """For features: the students' few-step samples, and the teacher's of each condition."""
    stages = stages_of("sdxl", {"evaluation": {"sampling_steps": [1, 2]}})
    assert stages["decode"]["passes"] == 10_274 * (6 * 2 + 1)


# What is not known


def unknown(row, *names):
    for name in ("flops", "hours", "bytes"):
        assert (row[name] is None) == (name in names), (name, row[name])


def test_a_network_that_was_not_counted_is_unknown(monkeypatch, tmp_path):
    fake(monkeypatch, tmp_path / "f", {})
    stages = stages_of("digits", MADE_UP)
    unknown(stages["targets"], "flops", "hours")  # how many calls and bytes is known all the same
    unknown(stages["samples"], "flops", "hours")
    assert stages["targets"]["passes"] > 0
    experiment = config.load_experiment("digits", MADE_UP)
    lines = estimates.table("digits", experiment, config.expand("digits", experiment)).splitlines()
    cells = {line[2:18].strip(): line[18:].split() for line in lines[2:]}
    for stage in ("teacher", "teacher samples", "targets", "students", "samples", "total"):
        assert cells[stage][1:3] == ["unknown", "unknown"], stage
        assert cells[stage][0] not in ("unknown", "0"), stage
    assert cells["data"] == ["0", "0.0", "0.00", "0.00"]


def test_weights_of_a_network_that_was_not_counted_are_unknown(monkeypatch, tmp_path):
    """Not 0 bytes."""
    fake(monkeypatch, tmp_path / "f", {})
    stages = stages_of("digits", MADE_UP)
    unknown(stages["teacher"], "flops", "hours", "bytes")
    unknown(stages["students"], "flops", "hours", "bytes")


def test_a_teacher_from_a_folder_is_unknown():
    """And with it the students, which are copies; not what is learned from scratch."""
    pairs = stages_of(
        "digits", {"teacher": {"source": "path", "path": "x"}, "runs": [{"method": ["ct-ic"]}], "claims": []}
    )
    unknown(pairs["students"])
    stages = stages_of("digits", {"teacher": {"source": "path", "path": "x"}})
    assert "teacher" not in stages
    for stage in ("teacher samples", "targets", "students", "samples"):
        assert stages[stage]["flops"] is None, stage


def test_students_of_an_analytic_teacher_are_known():
    """They start as a network that the pipeline builds and trains, not as the formula."""
    stages = stages_of("gaussians-ring")
    unknown(stages["targets"], "flops", "hours")
    unknown(stages["students"])
    unknown(stages["samples"])


def test_how_many_images_a_folder_holds_is_unknown():
    unknown(stages_of("celeba64")["data"], "bytes")
    unknown(stages_of("cifar10")["data"])


@pytest.mark.parametrize("sizes", [(None, None), (0.5, None)])
def test_a_download_without_a_size_is_unknown(sizes):
    url = {"url": "https://example.org/x.pt", "name": "x.pt", "gigabytes": sizes[0]}
    hub = {"repo": "a/b", "revision": "0" * 40, "files": ["x"], "gigabytes": sizes[1]}
    stages = stages_of(
        "digits", {"extractors": [{"kind": "inception-v3", "weights": url}, {"kind": "dinov2", "weights": hub}]}
    )
    assert stages["download"]["bytes"] is None


def test_downloads_add_up():
    """Teacher, data, VAE and the extractors' weights, in the preset's own numbers."""
    assert stages_of("sdxl")["download"]["bytes"] == pytest.approx(1e9 * (1.7 + 0.33 + 6.8 + 0.1 + 1.2 + 1.7), rel=0.01)
    assert "download" not in stages_of("digits")


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_every_preset(name):
    experiment = config.load_experiment(name)
    runs = config.expand(name, experiment)
    text = estimates.table(name, experiment, runs)
    assert f"{name}: {experiment.title}; {len(runs)} runs. Estimate, not measured" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[1:]}) == 1  # the columns line up
    assert lines[-1].split()[0] == "total"
    stages = estimates.estimate(experiment, runs)
    assert len(lines) == 3 + len(stages)
    assert f"{'GPU' if experiment.gpu else 'core'} hours" in lines[1]
    if all(row["hours"] is not None for row in stages.values()):
        assert lines[-1].split()[3] == format(sum(row["hours"] for row in stages.values()), ",.2f")


def test_steps_and_jobs_take_their_time(monkeypatch, tmp_path):
    """One condition, two shards, two methods, one seed; what is not known as a network has no constant of its own."""
    changes = {"targets": {"count": 1000, "shards": 2}, "runs": [{"n_steps": 4, "seed": [0]}]}
    overrides = MADE_UP | changes
    experiment = config.load_experiment("digits", overrides)
    fake(monkeypatch, tmp_path / "f", {estimates.key_of(experiment): {"flops": 1000, "parameters": 10}})
    device = estimates.Device("core", {"mlp": 1e3, "no": 1.0}, {"mlp": 5e2}, {"mlp": 0.5}, 3.0, "made up")
    hours = {stage: row["hours"] * 3600 for stage, row in stages_of("digits", overrides, device).items()}
    assert hours == pytest.approx(
        {
            "data": 3,
            "teacher": 3 * 1000 * 2 + 100 * 0.5 + 3,
            "teacher samples": 50 * 4 + 3,
            "targets": 1000 * 2.5 + 2 * 3,
            "students": (3 + 4) * 100 * 2 + 2 * 20 * 0.5 + 2 * 3,
            "samples": 2 * 50 * (1 + 2 + 3) + 2 * 3,
        }
    )


def test_rates_by_the_networks_size():
    """Between two measured sizes the logarithms are interpolated; beyond the outermost, their numbers hold."""
    sizes = ((1e9, 1e13, 4e13, 1e-3), (1e11, 1e15, 1e14, 4e-3))
    device = dataclasses.replace(PLAIN, sizes=sizes)
    seconds = lambda size, steps: device.seconds(1e15, kind="unet", precision="bf16", size=size, steps=steps)  # noqa: E731
    for size, solving, training, beside in (
        (1e8, 1e13, 4e13, 1e-3),
        (1e9, 1e13, 4e13, 1e-3),
        (1e10, 1e14, (4e13 * 1e14) ** 0.5, 2e-3),
        (1e11, 1e15, 1e14, 4e-3),
        (1e12, 1e15, 1e14, 4e-3),
    ):
        assert seconds(size, 0) == pytest.approx(1e15 / solving)
        assert seconds(size, 100) == pytest.approx(1e15 / training + 100 * beside)
    assert device.seconds(1e15, kind="unet", precision="no", size=1e10) == pytest.approx(1e15 / WHOLE)


def test_the_gpus_rates_are_those_that_were_measured():
    text = (ROOT / "benchmarks" / "gpu.md").read_text(encoding="utf-8")
    for name, (_, solving, training, beside) in zip(("fashion", "cifar10"), estimates.GPU.sizes, strict=False):
        for quantity, number, unit in (
            ("solving: rate, fitted", solving, 1e9),
            ("training: rate, fitted", training, 1e9),
            ("training: a step beside its operations, fitted", beside, 1e-3),
        ):
            (measured,) = re.findall(rf"\| {name} \|[^|]*\| {re.escape(quantity)} \| ([\d.e+]+) ", text)
            assert number == pytest.approx(float(measured) * unit, rel=0.02)


def test_ten_million_targets_by_hand():
    """SDXL: N = 100 with guidance, 50.5 steps of two calls a target; three latents each on disk."""
    experiment = config.load_experiment("sdxl")
    found = scaling.targets(experiment, "ddim", 100, 9.0, 10_000_000, 100)
    unet = KNOWN["stabilityai/stable-diffusion-xl-base-1.0"]["flops"]
    assert found["calls"] == pytest.approx(10_000_000 * 101)
    assert found["hours"] == pytest.approx(found["calls"] * unet / 3.79e14 / 3600, rel=1e-3)  # benchmarks/gpu.md
    assert found["wall"] == pytest.approx(found["hours"] / 100)
    assert found["bytes"] == 10_000_000 * 3 * 4 * 4 * 128 * 128
    heun = scaling.targets(experiment, "heun", 100, 1.0, 10_000_000, 100)
    assert heun["calls"] == found["calls"]


def test_the_pages_tables_are_what_the_model_says():
    """docs/scaling.md holds what `python -m consistency.plan.scaling` prints."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in scaling.tables().split("\n\n"):
        assert table.strip() in page, "run `python -m consistency.plan.scaling` in workflow/ and copy its tables"


def test_solver_calls_are_those_of_the_solvers():
    from consistency.flow import solvers
    from consistency.flow.schedules import VPSchedule
    from consistency.teachers import targets

    for name in BUILT_INS.names("solver"):
        assert estimates.CALLS.get(name, 1) == targets.calls_of(getattr(solvers, name), VPSchedule())


def test_a_dry_run_imports_nothing_heavy():
    code = (
        "import sys; from consistency import config; from consistency.plan import estimates\n"
        "e = config.load_experiment('sdxl'); estimates.table('sdxl', e, config.expand('sdxl', e))\n"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'safetensors') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
