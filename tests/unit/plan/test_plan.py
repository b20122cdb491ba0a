"""What jobs an experiment has and what each needs: expected values are written down, for presets and for small tables."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from consistency.config import load_experiment
from consistency.config.settings import Experiment
from consistency.errors import ConfigError
from consistency.plan.outputs import paper, pattern
from consistency.plan.plan import Plan, megabytes, row_of
from helpers import ROOT, registry_of

MIXTURE = {
    "kind": "mixture",
    "dimension": 2,
    "components": [{"weight": 1.0, "mean": [0.0, 0.0], "deviation": 1.0}],
    "train_count": 64,
    "test_count": 64,
}
PAIRS = {
    "ic": {"objective": "consistency_training"},
    "gc": {"objective": "consistency_training", "coupling": {"kind": "generator_induced", "share": 0.3}},
    "online": {
        "objective": "consistency_training",
        "coupling": {"kind": "generator_induced", "share": 0.7, "generator": "online"},
    },
    "frozen": {
        "objective": "consistency_training",
        "coupling": {"kind": "generator_induced", "generator": {"method": "ic", "budget": 0.25}},
    },
    "cd": {"objective": "consistency_training", "velocity": "teacher"},
}
OF_PAIRS = """
from consistency.plugins import objective


@objective(draws="pairs")
def own(student, batch, context):
    return batch["x_t"], batch["x_t"]
"""
MIXED = """
from consistency.plugins import objective


@objective(draws="targets")
def mixed(student, batch, context, *, share=0.5, kind="a"):
    return share * batch["x_0"]
"""
TARGETS = {"cm": {"objective": "consistency_distillation"}, "direct": {"objective": "direct"}}


def small(results="out", job_results=None, **changes):
    """The plan of an experiment on digits: two methods, two conditions, seeds 3 and 4."""
    settings = {
        "title": "small",
        "data": {"kind": "digits"},
        "methods": TARGETS,
        "runs": [{"n_steps": [5, 10], "guidance": 4, "seed": [3, 4]}],
        "replicates": "students",
    }
    return Plan("small", Experiment.model_validate(settings | changes), results, job_results)


def of_pairs(*methods, **changes):
    """The plan of an experiment from pairs, one seed."""
    return small(methods=PAIRS, runs=[{"method": list(methods), "seed": 0}], **changes)


def exact(**changes):
    """The plan of an experiment whose teacher is known in closed form."""
    return small(data=MIXTURE, teacher={"source": "analytic"}, **changes)


def preset(name, **changes):
    return Plan(name, load_experiment(name, changes), "results")


@pytest.fixture(scope="module")
def digits():
    return preset("digits")


@pytest.fixture(scope="module")
def modes():
    return preset("gaussians-modes")


@pytest.fixture(scope="module")
def sdxl():
    return preset("sdxl")


@pytest.fixture(scope="module")
def cifar10():
    return preset("cifar10")


def test_nothing_heavy_is_imported():
    code = "import sys, consistency.plan.plan; print(*{'torch', 'pandas', 'snakemake', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "workflow", capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_runs_by_what_they_learn_from(digits):
    assert len(digits.from_targets) == 20  # 2 methods, 2 conditions, 5 seeds
    assert list(digits.from_targets)[:6] == [*(f"cm-ddim-n10-w1-s{seed}" for seed in range(5)), "direct-ddim-n10-w1-s0"]
    assert digits.from_pairs == {}
    couplings = preset("digits-couplings")
    assert list(couplings.from_pairs) == [f"ct-{name}-s{seed}" for name in ("ic", "ot", "gc") for seed in range(5)]
    assert (couplings.from_targets, couplings.runs) == ({}, couplings.from_pairs)


def test_a_table_that_cannot_be_expanded():
    with pytest.raises(ConfigError, match=r"small: runs\.0\.n_steps: 7 does not divide schedule\.steps 1000"):
        small(runs=[{"n_steps": 7, "seed": 0}])


def test_conditions(digits, modes):
    assert list(digits.conditions) == ["ddim-n10-w1", "ddim-n50-w4"]
    assert digits.conditions["ddim-n50-w4"] == {"solver": "ddim", "n_steps": 50, "guidance": 4.0}
    assert modes.conditions == {}


def test_a_condition_that_runs_share_is_there_once():
    plan = small(runs=[{"n_steps": 5, "seed": 0}, {"n_steps": 5, "seed": 0, "parameters": "lora"}])
    assert (len(plan.runs), list(plan.conditions)) == (4, ["ddim-n5-w1"])


def seeds_of(method):
    return [f"{method}-s{seed}" for seed in range(5)]


def test_analysed(digits, modes):
    assert digits.analysed == []
    assert preset("digits-couplings").analysed == seeds_of("ct-gc")
    assert modes.analysed == seeds_of("cd")
    assert small().analysed == []


def test_sources():
    plan = small(
        methods=TARGETS | PAIRS,
        runs=[{"method": "direct", "n_steps": 5, "seed": 3}, {"method": ["ic", "gc"], "seed": 0}],
        analysis={"order_steps": [5], "coupling_methods": ["gc"]},
    )
    expected = ["data", "teacher-ddim-n5-w1", "direct-ddim-n5-w1-s3", "ic-s0", "gc-s0", "couplings-gc-s0", "orders"]
    assert plan.sources == expected
    assert plan.measured == [f"out/small/metrics/{source}.json" for source in expected]
    assert plan.metrics == "out/small/metrics.csv"


def test_true_ends():
    def ends(plan):
        return {name: schedule.get("steps", schedule.get("sigma_max")) for name, schedule in plan.true_ends.items()}

    orders = {"analysis": {"order_steps": [5, 10]}}
    assert ends(exact()) == {"vp": 1000}
    assert ends(exact(**orders)) == {"vp": 1000, "vp_refined": 1000}
    pairs = {"methods": PAIRS, "runs": [{"method": "ic", "seed": 0}], "consistency_training": {"edm": {"sigma_max": 5}}}
    assert ends(exact(**pairs)) == {"ve": 5.0}
    assert ends(exact(**pairs, **orders)) == {"vp": 1000, "vp_refined": 1000, "ve": 5.0}


def test_inputs_of_a_teacher_that_is_a_network(digits):
    assert not digits.exact
    assert (digits.initial("-s1"), digits.truth("-s1")) == ("results/digits/teacher-s1", [])


def test_inputs_of_a_closed_form(modes):
    assert modes.exact
    assert modes.teacher("-s1") == "results/gaussians-modes/teacher"
    assert modes.initial("-s1") == "results/gaussians-modes/initial-s1"
    assert modes.truth("-s1") == "results/gaussians-modes/truth-s1.safetensors"


def test_inputs_of_images(digits):
    assert not digits.in_latents
    assert (digits.prompts, digits.captions, digits.pixels) == ([], [], "results/digits/data.safetensors")


def test_inputs_of_captions(sdxl):
    assert sdxl.in_latents
    assert sdxl.prompts == "results/sdxl/prompts.safetensors"
    assert sdxl.captions == "results/sdxl/captions.json"
    assert sdxl.pixels == "results/sdxl/images.safetensors"


def test_samples_and_pictures(digits, sdxl):
    assert digits.samples(["a", "b"]) == [
        "results/digits/samples/a.safetensors",
        "results/digits/samples/b.safetensors",
    ]
    assert digits.pictures(["a"]) == ["results/digits/samples/a.safetensors"]
    assert sdxl.samples(["a"]) == ["results/sdxl/samples/a.safetensors"]
    assert sdxl.pictures(["a"]) == ["results/sdxl/features/a.safetensors"]  # decoded there


def test_teachers_of_runs():
    assert small().teachers(["cm-ddim-n5-w4-s3", "direct-ddim-n10-w4-s4"]) == [
        "teacher-ddim-n5-w4",
        "teacher-ddim-n10-w4",
    ]


REDRAWN = {"replicates": "all", "runs": [{"n_steps": 5, "seed": [3, 4]}]}


def test_a_seed_redraws_all():
    """Teacher, targets, noise: each seed has its own, with seeds of their own, which are the preset's where students
    alone are redrawn."""
    plan, folder = small(**REDRAWN), "out/small"
    assert plan.replicates == {"-s3": 3, "-s4": 4}
    assert plan.sources[:3] == ["data", "teacher-ddim-n5-w1-s3", "teacher-ddim-n5-w1-s4"]
    assert plan.lessons("cm-ddim-n5-w1-s4") == {
        "manifest": f"{folder}/targets/paper-ddim-n5-w1-s4/manifest.json",
        "shards": plan.shards("paper-ddim-n5-w1-s4"),
        "teacher": f"{folder}/teacher-s4",
        "initial": f"{folder}/teacher-s4",
        "prompts": [],
    }
    assert plan.sampled_from("cm-ddim-n5-w1-s4") == {
        "noise": f"{folder}/noise-s4.safetensors",
        "initial": f"{folder}/teacher-s4",
        "prompts": [],
        "teacher_samples": f"{folder}/samples/teacher-ddim-n5-w1-s4.safetensors",
    }
    assert plan.teacher_row("ddim-n5-w1", "-s4")["seed"] == 4
    drawn = [
        (plan.teacher_training(end)["seed"], plan.targets(end)["seed"], plan.sampling(f"cm-ddim-n5-w1{end}")["seed"])
        for end in plan.replicates
    ]
    assert len(set(sum(drawn, ()))) == 6, drawn
    shared = small(**REDRAWN | {"replicates": "students"})
    assert shared.replicates == {"": 3}
    assert (shared.teacher_training("")["seed"], shared.targets("")["seed"]) == (0, 1)
    assert "seed" not in shared.teacher_row("ddim-n5-w1", "")


def test_one_more_seed_changes_nothing_of_the_others():
    def needs(plan, run_id):
        end = plan.replicate(run_id)
        inputs = plan.lessons(run_id), plan.sampled_from(run_id), plan.compared_with(run_id)
        return inputs, plan.training(run_id), plan.sampling(run_id), plan.teacher_training(end), plan.targets(end)

    before, after = small(**REDRAWN), small(**REDRAWN | {"runs": [{"n_steps": 5, "seed": [3, 4, 5]}]})
    assert set(after.sources) - set(before.sources) == {
        *("teacher-ddim-n5-w1-s5", "cm-ddim-n5-w1-s5", "direct-ddim-n5-w1-s5")
    }
    assert after.shown == before.shown
    for run_id in before.runs:
        assert needs(after, run_id) == needs(before, run_id), run_id


def test_what_is_shown_is_of_one_replicate():
    """The one with most runs."""
    plan = small(replicates="all", runs=[{"n_steps": 5, "seed": [3, 4]}, {"n_steps": 10, "seed": 4}])
    assert plan.shown == "-s4"
    assert {row["source"] for row in plan.compared} == {
        *("teacher-ddim-n5-w1-s4", "teacher-ddim-n10-w1-s4"),
        *(f"{method}-ddim-n{n}-w1-s4" for method in ("cm", "direct") for n in (5, 10)),
    }
    assert plan.pictured == ["cm-ddim-n5-w1-s4", "direct-ddim-n5-w1-s4"]


def test_a_teacher_that_another_preset_trains():
    plan = preset("digits-paper")
    assert plan.teacher("-s1") == "results/digits/teacher-s1"
    assert plan.noise("-s1") == "results/digits-paper/noise-s1.safetensors"
    assert plan.teacher_training("-s1") == preset("digits").teacher_training("-s1")


def test_stats():
    assert small().stats(["a", "b"]) == ["out/small/stats/a.jsonl", "out/small/stats/b.jsonl"]


def test_training_from_targets(cifar10):
    folder = "results/cifar10/targets/paper-heun-n50-w1-s2"
    assert cifar10.lessons("direct-heun-n50-w1-s2") == {
        "manifest": f"{folder}/manifest.json",
        "shards": [f"{folder}/shard-{shard}.safetensors" for shard in range(8)],
        "teacher": "results/cifar10/teacher",
        "initial": "results/cifar10/teacher",
        "prompts": [],
    }


def test_a_student_of_a_closed_form_starts_as_a_network_trained_here():
    inputs = exact().lessons("cm-ddim-n5-w4-s3")
    assert (inputs["teacher"], inputs["initial"]) == ("out/small/teacher", "out/small/initial")


def test_training_from_targets_of_a_runs_own_mode():
    plan = small(runs=[{"n_steps": 5, "seed": 0, "targets": "trajectory"}], targets={"shards": 1})
    inputs = plan.lessons("cm-ddim-n5-w1-trajectory-s0")
    assert inputs["shards"] == ["out/small/targets/trajectory-ddim-n5-w1/shard-0.safetensors"]


def test_training_from_pairs():
    plan, data = of_pairs(*PAIRS), {"data": "out/small/data.safetensors"}
    assert plan.lessons("ic-s0") == data
    assert plan.lessons("online-s0") == data
    assert plan.lessons("cd-s0") == data | {"teacher": "out/small/teacher"}
    assert plan.lessons("frozen-s0") == data | {"frozen": "out/small/students/ic-s0"}


def test_a_frozen_generator_has_the_runs_seed():
    plan = small(methods=PAIRS, runs=[{"method": ["ic", "frozen"], "seed": [0, 7]}])
    assert plan.lessons("frozen-s7")["frozen"] == "out/small/students/ic-s7"


def test_a_network_that_gives_the_velocity_is_asked_by_its_own_schedule():
    """And with its own offset of time; a closed form, or pairs alone, have neither."""
    pairs = {"methods": PAIRS, "runs": [{"method": ["ic", "cd"], "seed": 0}]}
    plan, closed_form = small(teacher={"timestep_offset": 0}, **pairs), exact(**pairs)
    assert plan.training("cd-s0")["teacher_schedule"] == plan.experiment.schedule.model_dump()
    assert [plan.training(run)["timestep_offset"] for run in ("cd-s0", "ic-s0")] == [0, -1]
    assert plan.training("ic-s0")["teacher_schedule"] is closed_form.training("cd-s0")["teacher_schedule"] is None


def test_a_runs_own_dropout(cifar10):
    """It replaces the network's, zero too; the preset's own settings stay as they are."""
    networks = {run: cifar10.training(run)["network"] for run in ("ct-ic-s0", "ct-gc-s0")}
    assert networks["ct-ic-s0"]["dropout"] == 0.3
    assert networks["ct-gc-s0"] == networks["ct-ic-s0"] | {"dropout": 0.0}
    assert cifar10.experiment.network.dropout == 0.3


def test_own_files(digits, sdxl):
    assert digits.own == {"data": None, "teacher": None, "vae": None} == sdxl.own
    assert preset("celeba64").own["data"] == "data/celeba/img_align_celeba.zip"
    assert small(data={"kind": "fashion", "folder": "idx"}).own["data"] == "idx"
    assert small(teacher={"source": "path", "path": "mine"}).own["teacher"] == "mine"
    own = preset("sdxl", data={"source": "pictures", "vae": "my-vae"})
    assert (own.own["data"], own.own["vae"]) == ("pictures", "my-vae")


def test_downloads(digits, cifar10, sdxl):
    assert digits.downloads == {}
    assert list(cifar10.downloads) == ["teacher", "inception-v3"]
    assert list(sdxl.downloads) == ["teacher", "vae", "inception-v3", "dinov2", "clip", "aesthetic"]
    assert sdxl.downloads["vae"].repo == "madebyollin/sdxl-vae-fp16-fix"
    assert "vae" not in preset("sdxl", data={"vae": "my-vae"}).downloads


def test_megabytes(sdxl):
    assert megabytes(sdxl.downloads["teacher"]) == 6800
    assert megabytes(sdxl.downloads["aesthetic"]) == 4
    assert megabytes(None) == 0


def test_weights_of_extractors(digits, modes, sdxl):
    assert digits.weights == ["results/digits/classifier"]
    assert modes.weights == []  # a mixture's features are its coordinates
    folder = "results/sdxl/downloads"
    assert sdxl.weights == [f"{folder}/{part}" for part in ("inception-v3", "dinov2", "clip", "aesthetic")]


def test_an_extractor_without_a_file():
    plan = small(extractors=[{"kind": "efficientnet-lite0"}, {"kind": "classifier"}])
    assert plan.weights == ["out/small/classifier"]
    assert plan.measuring["extractors"][0] == {"kind": "efficientnet-lite0", "folder": None}


def test_measuring(modes, sdxl):
    assert sdxl.measuring == {
        "extractors": [
            {"kind": "inception-v3", "folder": "results/sdxl/downloads/inception-v3"},
            {"kind": "dinov2", "folder": "results/sdxl/downloads/dinov2"},
            {
                "kind": "clip",
                "folder": "results/sdxl/downloads/clip",
                "aesthetic": "results/sdxl/downloads/aesthetic",
            },
        ],
        "batch_size": 8,
    }
    assert modes.measuring == {"extractors": [], "batch_size": 2000}


def test_vae(digits, sdxl):
    assert digits.vae is None
    assert sdxl.vae == {"folder": "results/sdxl/downloads/vae", "batch_size": 8, "precision": "fp16"}
    assert preset("sdxl", data={"vae": "my-vae"}).vae["folder"] == "my-vae"


def test_space(digits, modes, sdxl):
    assert [plan.space for plan in (digits, modes, sdxl)] == ["pixels", "coordinates", "latents"]


def test_how_a_teacher_is_called_is_not_how_it_is_trained(digits):
    called = preset("digits", teacher={"timestep_offset": 0, "precision": "bf16"})
    trained = preset("digits", teacher={"training": {"steps": 9}})
    how = [plan.teacher_training("-s0") for plan in (called, digits, trained)]
    assert how[0] == how[1] != how[2]
    assert how[1]["training"]["steps"] == 3500


def test_a_modules_prefix_is_in_params_alone():
    """Snakemake puts a module's prefix before inputs and outputs by itself."""
    plan = small(job_results="prefix/out")
    assert plan.weights == ["out/small/classifier"]
    assert plan.measuring["extractors"] == [{"kind": "classifier", "folder": "prefix/out/small/classifier"}]
    captioned = Plan("sdxl", load_experiment("sdxl"), "out", "prefix/out")
    assert captioned.vae["folder"] == "prefix/out/sdxl/downloads/vae"


def test_rows():
    plan = small(methods=TARGETS | PAIRS, runs=[{"method": "cm", "n_steps": 5, "seed": 3}, {"method": "gc", "seed": 0}])
    from_targets = {
        "run": "cm-ddim-n5-w1-s3",
        "method": "cm",
        "seed": 3,
        "group": "ddim-n5-w1",
        "solver": "ddim",
        "n_steps": 5,
        "guidance": 1.0,
        "targets": "paper",
        "parameters": "full",
        "label": None,
    }
    from_pairs = {
        "run": "gc-s0",
        "method": "gc",
        "seed": 0,
        "group": "scratch",
        "solver": None,
        "n_steps": None,
        "guidance": None,
        "targets": None,
        "parameters": "full",
        "label": None,
    }
    assert plan.rows == [from_targets, from_pairs]
    assert plan.rows_from_targets == [from_targets]
    assert plan.rows_from_pairs == [from_pairs | {"share": 0.3, "steps": 1500}]
    assert row_of(plan.runs["cm-ddim-n5-w1-s3"]) == {
        "run": "cm-ddim-n5-w1-s3",
        "method": "cm",
        "solver": "ddim",
        "n_steps": 5,
        "guidance": 1.0,
        "seed": 3,
    }


def test_labels_of_methods():
    """The method's own, else its key with the params that are numbers; None where that is the key alone."""
    mixed = {"objective": "mixed", "params": {"share": 0.5, "kind": "a"}}
    methods = {"named": mixed | {"label": "Ours"}, "mixed": mixed, "default": {"objective": "mixed"}}
    changes = {"methods": methods, "runs": [{"method": list(methods), "seed": 0}], "claims": []}
    plan = Plan("digits", load_experiment("digits", changes, registry=registry_of(MIXED)))
    labels = {"named": "Ours", "mixed": "mixed (share=0.5)", "default": None}
    assert {row["method"]: row["label"] for row in plan.rows} == labels
    assert {row["method"]: row["label"] for row in plan.compared if row["method"] != "teacher"} == labels


def test_shares_of_generated_pairs():
    """μ, of the runs that the comparison by μ has: independent pairs are its 0; other generators and velocities are none."""
    shares = {row["method"]: row["share"] for row in of_pairs(*PAIRS).rows_from_pairs}
    assert shares == {"ic": 0.0, "gc": 0.3, "online": None, "frozen": None, "cd": None}


def test_an_objective_of_ones_own_is_not_compared_by_its_share():
    methods = {"ic": PAIRS["ic"], "own": {"objective": "own"}, "mean_flow": {"objective": "own", "flow": "linear"}}
    changes = {"methods": methods, "runs": [{"method": list(methods), "seed": 0}], "claims": []}
    changes |= {"analysis": {"coupling_methods": []}}
    plan = Plan("digits", load_experiment("digits", changes, registry=registry_of(OF_PAIRS)))
    assert {row["method"]: row["share"] for row in plan.rows_from_pairs} == {"ic": 0.0, "own": None, "mean_flow": None}


def test_rows_analysed(modes):
    assert [row["run"] for row in modes.rows_analysed] == seeds_of("cd")
    assert {row["steps"] for row in modes.rows_analysed} == {1500}
    assert small().rows_analysed == []


def test_pictured(digits):
    """The first seed of each method, under the first condition of each guidance scale."""
    assert digits.pictured == [
        "cm-ddim-n10-w1-s0",
        "direct-ddim-n10-w1-s0",
        "cm-ddim-n50-w4-s0",
        "direct-ddim-n50-w4-s0",
    ]
    assert [row["run"] for row in digits.rows_pictured] == digits.pictured
    row = digits.rows_pictured[2]
    assert (row["run"], row["method"], row["group"]) == ("cm-ddim-n50-w4-s0", "cm", "ddim-n50-w4")
    assert of_pairs("ic").pictured == []


def test_a_method_that_lacks_the_first_condition_is_not_pictured():
    plan = small(runs=[{"method": "cm", "n_steps": 5, "seed": 3}, {"n_steps": 10, "seed": 3}])
    assert plan.pictured == ["cm-ddim-n5-w1-s3"]


def test_compared():
    plan = small(evaluation={"sampling_steps": [1, 5, 8]}, runs=[{"method": "cm", "n_steps": 5, "seed": 3}])
    assert plan.compared == [
        {"source": "teacher-ddim-n5-w1", "method": "teacher", "condition": "ddim-n5-w1", "n_steps": 5},
        {
            "source": "cm-ddim-n5-w1-s3",
            "method": "cm",
            "label": None,
            "group": "ddim-n5-w1",
            "seed": 3,
            "flow": "vp",
            "condition": "ddim-n5-w1",
            "sampling_steps": [1, 5],  # 8 is above its N
        },
    ]


def test_a_run_from_pairs_is_compared_with_all_sampling_steps():
    rows = of_pairs("gc", evaluation={"sampling_steps": [1, 8]}).compared
    assert [(row["source"], row["condition"], row["sampling_steps"]) for row in rows] == [("gc-s0", None, [1, 8])]


def test_three_seeds_of_each_method_are_compared():
    plan = small(runs=[{"n_steps": [5, 10], "seed": [9, 8, 7, 6]}])
    seeds = Counter((row["method"], row["group"], row["seed"]) for row in plan.compared if row["method"] != "teacher")
    methods, groups = ("cm", "direct"), ("ddim-n5-w1", "ddim-n10-w1")
    assert seeds == {(method, group, seed): 1 for method in methods for group in groups for seed in (9, 8, 7)}


@pytest.mark.parametrize(
    "name, figures",
    [
        ("digits", "forest tradeoff training start-times sampling-steps samples"),
        ("digits-couplings", "forest convergence share velocity-variance transport"),
        ("gaussians-modes", "forest convergence share velocity-variance transport discrepancy trajectories"),
        ("gaussians-skewed", "forest tradeoff training points orders"),
        ("sdxl", "forest tradeoff training start-times sampling-steps samples"),
        ("celeba64", "forest convergence share"),
    ],
)
def test_figures(name, figures):
    assert preset(name).figures == figures.split()


def test_one_share_makes_no_figure_of_shares():
    assert "share" not in of_pairs("gc", "frozen").figures
    assert "share" in of_pairs("gc", "ic").figures


def test_paper():
    both = [small(), of_pairs("ic")]
    both[1].name = "pairs"
    outputs = paper(iter(both), "out")
    assert len(outputs) == len(set(outputs))
    tables = [name.removeprefix("out/tables/") for name in outputs if "/tables/" in name]
    assert [name for name in tables if name.startswith("claims")] == ["claims.md", "claims.tex", "claims.html"]
    assert [name for name in tables if name.endswith("csv")] == [
        "small-main.csv",
        "pairs-main.csv",
        "pairs-couplings.csv",
    ]
    assert [name for name in outputs if "/pages/" in name] == [
        "out/pages/small-samples.html",
        "out/pages/pairs-samples.html",
        "out/pages/tradeoff.html",
    ]
    assert {"out/metrics.csv", "out/claims.csv", "out/figures/pairs-convergence.png"} <= set(outputs)
    assert "out/figures/small-convergence.png" not in outputs


def test_the_tradeoff_page_needs_an_ode_error():
    assert "out/pages/tradeoff.html" not in paper([of_pairs("ic")], "out")
    pairs = {"methods": PAIRS, "runs": [{"method": "ic", "seed": 0}]}
    assert "out/pages/tradeoff.html" in paper([exact(**pairs)], "out")


def test_pattern():
    names = ["cm-s0", "cm-s1", "cm-s10", "cm", "direct.x", "d+"]
    matched = [name for name in (*names, "cm-s", "cm-s2", "directox", "dd", "") if re.fullmatch(pattern(names), name)]
    assert matched == names
    assert not re.search(pattern([]), "anything")
    assert re.fullmatch(pattern([""]), "")


def test_pattern_of_presets_runs(digits):
    expression = re.compile(pattern(digits.runs))
    assert all(map(expression.fullmatch, digits.runs))
    assert not any(expression.fullmatch(f"{run}0") or expression.fullmatch(run[:-1]) for run in digits.runs)


def test_pattern_of_many_names_is_short():
    """A beginning that names have in common stands there once."""
    names = [f"direct-ddim-n10-w{scale / 100:g}-s{seed}" for scale in range(100) for seed in range(5)]
    expression = pattern(names)
    assert expression.count("ddim") == 1
    assert all(re.fullmatch(expression, name) for name in names)
