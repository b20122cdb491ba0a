"""The whole small experiment through the real snakemake, and what a second call does."""

import csv
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from consistency.evaluate.measure import COLUMNS
from consistency.files.storage import load_tensors
from consistency.flow.schedules import VPSchedule
from consistency.report.verdicts import COLUMNS as CLAIM_COLUMNS
from consistency.students import maps
from helpers import Project


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_outputs_are_the_contracts(finished):
    results = finished.folder / "results"
    metrics, claims = rows(results / "metrics.csv"), rows(results / "claims.csv")
    assert list(metrics[0]) == COLUMNS
    assert list(claims[0]) == CLAIM_COLUMNS
    assert {row["method"] for row in metrics} == {"cm", "direct", "teacher", "data"}
    assert {row["extractor"] for row in metrics} == {"digits-classifier", "pixels"}
    assert {row["verdict"] for row in claims} == {"unsound"}  # the teacher has hardly been trained
    for name in ("forest", "tradeoff", "samples", "start-times", "sampling-steps", "training"):
        for kind, magic in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            assert (results / "figures" / f"digits-{name}.{kind}").read_bytes().startswith(magic)
    for table in ("digits-main", "claims"):
        for kind in ("md", "tex", "html"):
            text = (results / "tables" / f"{table}.{kind}").read_text(encoding="utf-8")
            assert "ODE error" in text
            assert ("Direct CM" if table == "digits-main" else "unsound") in text
    assert not list(results.glob("**/.tmp-*"))
    assert not list(results.glob("*/checkpoints/*"))


def test_every_metric_can_be_traced(finished):
    paths = sorted((finished.folder / "results" / "digits" / "metrics").glob("*-s*.json"))
    assert len(paths) == 8  # two methods, two guidance scales, two seeds
    for path in paths:
        measured = json.loads(path.read_text())
        assert [card["name"] for card in measured["protocol"]["extractors"]] == ["digits-classifier"]
        assert all(len(value) == 64 for value in measured["protocol"]["files_sha256"].values())
        student = measured["settings"]["student"]
        assert student["settings"]["training"]["steps"] == 40
        assert len(student["inputs"]["teacher_sha256"]) == 64
        assert "torch" in student["environment"]["packages"]
        for environment in (student["environment"], measured["environment"]):
            assert environment["cpu"] and environment["instruction_set"] and "cpu_variables" in environment
        assert 0 < measured["wall_time_s"] < 3600


def test_report_is_one_page_with_everything(finished):
    page = (finished.folder / "results" / "report.html").read_text(encoding="utf-8")
    figures = ("digits-tradeoff.png", "digits-samples.png", "digits-training.png")
    for name in (*figures, "digits-main.html", "claims.html", "digits-samples.html", "tradeoff.html"):
        assert name in page
    assert "Where to look" in page  # the introduction, workflow/report/workflow.rst


def test_figures_show_the_runs_metrics(finished, tmp_path):
    """Drawn here from metrics.csv they are the files of the run, byte for byte, and their lines are the csv's means."""
    from consistency.report.figures import start_times, tradeoff
    from consistency.report.tables import method_label

    results = finished.folder / "results"
    table = pd.read_csv(results / "metrics.csv")
    own = table[table.method.isin(["cm", "direct"])].drop_duplicates("run")
    runs = [
        {
            "run": r.run,
            "method": r.method,
            "group": r.run[len(r.method) + 1 : -3],
            "seed": r.seed,
            "guidance": r.guidance,
        }
        for r in own.itertuples()
    ]
    for module in (tradeoff, start_times):
        name = f"digits-{module.__name__.rpartition('.')[2].replace('_', '-')}"
        figure = module.draw(tmp_path / "f.pdf", tmp_path / "f.png", runs, results / "metrics.csv")
        for kind in ("pdf", "png"):
            assert (tmp_path / f"f.{kind}").read_bytes() == (results / "figures" / f"{name}.{kind}").read_bytes(), name
    for axes, guidance in zip(figure.axes, (1.0, 4.0), strict=True):  # of start_times
        lines = {line.get_label(): line.get_xydata() for line in axes.lines}
        for method in ("cm", "direct"):
            chosen = table[(table.method == method) & (table.guidance == guidance)]
            means = chosen[chosen.metric.str.startswith("ode_error@s=")].groupby("metric").value.mean()
            expected = sorted((int(metric.removeprefix("ode_error@s=")), mean) for metric, mean in means.items())
            assert len(expected) == 5
            assert lines[method_label(method)] == pytest.approx(np.array(expected))


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.jobs() == {}
    assert "Nothing to be done" in (done := finished.snakemake()).stdout + done.stderr


def test_one_figure_is_one_job(finished_copy):
    figure = finished_copy.folder / "results" / "figures" / "digits-tradeoff.pdf"
    before = figure.read_bytes()
    figure.unlink()
    done = finished_copy.snakemake("results/figures/digits-tradeoff.pdf", cores="1")
    assert "1 of 1 steps (100%) done" in done.stdout + done.stderr
    assert figure.read_bytes() == before  # the same data give the same bytes


def test_another_run_of_the_same_seed_gives_the_same_metrics(finished, tmp_path):
    project = Project(tmp_path)
    project.snakemake("results/metrics.csv")
    assert rows(project.folder / "results/metrics.csv") == rows(finished.folder / "results/metrics.csv")


def test_a_teacher_from_a_folder(finished, tmp_path):
    """Source `path`: checked, copied, and what follows is the same; another shape is refused."""
    project = Project(tmp_path)
    source = shutil.copytree(finished.folder / "results/digits/teacher", tmp_path / "teacher")
    project.configure({"teacher": {"source": "path", "path": str(source)}})
    assert "train_teacher" not in project.jobs()
    project.snakemake("results/digits/targets/paper-ddim-n5-w4/manifest.json")
    found, expected = (
        json.loads((p.folder / "results/digits/targets/paper-ddim-n5-w4/manifest.json").read_text())
        for p in (project, finished)
    )
    assert found == expected

    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"sample_shape": [3, 8, 8]}))
    project.snakemake("--delete-all-output", "results/digits/teacher")
    done = project.snakemake("results/digits/teacher", check=False)
    assert done.returncode != 0
    assert "import_teacher: " in done.stderr


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_a_teacher_from_a_pipeline_that_predicts_v(tmp_path, parameters):
    """Its student is sampled as what it is: the ends of one step are f, with the formulas for v by hand."""
    from consistency.runtime.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1}
    net = UNet2DModel(**sizes, **blocks, num_class_embeds=11).requires_grad_(False)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(net, scheduler).save_pretrained(tmp_path / "pipeline")
    project = Project(tmp_path / "project")
    changes = {
        "teacher": {"source": "path", "path": str(tmp_path / "pipeline"), "subfolder": "unet"},
        "schedule": {"kind": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        "targets": {"count": 32, "batch_size": 32, "shards": 1},
        "student": {"parameters": parameters, "lora_rank": 2, "training": {"steps": 3, "batch_size": 8}},
        "evaluation": {"count": 8},
        "runs": [{"solver": "ddim", "n_steps": 5, "guidance": 1, "seed": 0}],
    }
    project.configure(changes)
    run = "cm-ddim-n5-w1-lora-s0" if parameters == "lora" else "cm-ddim-n5-w1-s0"
    project.snakemake(f"results/digits/samples/{run}.safetensors")
    folder = project.folder / "results" / "digits"
    assert json.loads((folder / "teacher/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"

    flow = VPSchedule(1000, 0.0001, 0.02, "linear")
    student = maps.load(folder / "students" / run, flow, timestep_offset=-1, base=folder / "teacher")
    noise, _ = load_tensors(folder / "noise.safetensors")
    found, _ = load_tensors(folder / "samples" / f"{run}.safetensors")
    x, labels = noise["noise"], noise["labels"]
    v = student.network(x, torch.full((8,), 999), labels)
    end = scheduler.alphas_cumprod[999]  # at T c_skip is 2.5e-9 and c_out 1: f is α x − σ v
    torch.testing.assert_close(found["steps_1"], end.sqrt() * x - (1 - end).sqrt() * v, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", ["shard", "noise"])
def test_damaged_inputs_stop_the_job_with_one_line(finished_copy, damage):
    folder = finished_copy.folder / "results" / "digits"
    names = {"shard": "targets/paper-ddim-n5-w1/shard-0.safetensors", "noise": "noise.safetensors"}
    path = folder / names[damage]
    original, stat = path.read_bytes(), path.stat()
    target = {"shard": "students/cm-ddim-n5-w1-s0", "noise": "samples/cm-ddim-n5-w1-s0.safetensors"}[damage]
    if damage == "shard":
        content = bytearray(original)
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        from consistency.files.storage import save_tensors
        from consistency.flow.noise import draw_noise

        save_tensors(path, draw_noise(99, (1, 8, 8), 10, 2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # rot leaves no trace
    done = finished_copy.snakemake("--force", f"results/digits/{target}", check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("train_student: ", "sample_student: "))]
    assert len(lines) == 1
    assert path.name in lines[0]
    assert ("sha256" in lines[0]) if damage == "shard" else ("99 noises" in lines[0] and "100" in lines[0])

    path.write_bytes(original)  # put back, the same command heals what was refused
    finished_copy.snakemake()
    assert finished_copy.jobs() == {}
