"""The preset sdxl, end to end, on a tiny SDXL with random weights that a hub on loopback serves: only the preset's
sizes and addresses differ."""

import csv
import json

import numpy as np
import pytest
import tiny
import torch
import yaml
from consistency.config.sources import INCEPTION_SHA256
from consistency.files.storage import load_tensors, sha256
from helpers import Project
from hubserver import COMMIT, HubServer

COUNT = 24
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    hub = folder / "hub"
    pipeline = tiny.sdxl(hub / "tiny" / "sdxl")
    tiny.clip_folder(hub / "tiny" / "clip")
    tiny.inception_folder(hub / "files")
    tiny.aesthetic_file(hub / "files" / "aesthetic.pth", 16)
    tiny.captioned(hub / "files" / "preprocessed_11k.tar.gz", COUNT)
    (folder / "project").mkdir()
    project = Project(folder / "project")
    # the one Inception that this copy of the project takes
    source = project.folder / "workflow/consistency/config/sources.py"
    stand_in = sha256(hub / "files" / "inception-2015-12-05.pt")
    source.write_text(source.read_text().replace(INCEPTION_SHA256, stand_in))
    with HubServer(hub) as server:

        def url(name):
            path = hub / "files" / name
            return {"url": f"{server.url}/files/{name}", "name": name, "sha256": sha256(path)}

        def repo(name, files, pinned=()):
            pins = {file: sha256(hub / name / file) for file in pinned}
            return {"repo": name, "revision": COMMIT, "files": files, "sha256": pins}

        unet = "unet/diffusion_pytorch_model.safetensors"
        parts = [
            "model_index.json",
            "scheduler/*",
            "tokenizer/*",
            "tokenizer_2/*",
            "text_encoder/*",
            "text_encoder_2/*",
        ]
        preset = {
            "base": "sdxl",
            "title": "Tiny SDXL",
            "data": {
                "download": url("preprocessed_11k.tar.gz"),
                "side": 32,
                "vae": repo("tiny/sdxl", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]),
                "precision": "no",
            },
            "teacher": {
                "hub": repo("tiny/sdxl", [*parts, "unet/config.json", unet], [unet]),
                "precision": "no",
            },
            "extractors": [
                {"kind": "efficientnet-lite0"},
                {"kind": "inception-v3", "weights": url("inception-2015-12-05.pt")},
                {
                    "kind": "clip",
                    "weights": repo("tiny/clip", ["*.json", "*.txt", "model.safetensors"]),
                    "aesthetic": url("aesthetic.pth"),
                },
            ],
            "targets": {"count": 32, "shards": 2},
            "student": {
                "lora_rank": 4,
                "training": {"steps": 10, "batch_size": 4, "learning_rate": 0.01, "precision": "no", "accumulate": 2},
            },
            "evaluation": {"count": COUNT, "sampling_steps": [1, 2], "precision": "no", "start_times": 2},
            "gpu": 0,
            "runs": [{"solver": "ddim", "n_steps": 5, "guidance": 9, "seed": [24, 25, 26]}],
        }
        # the VAE is a folder of the same repository
        preset["data"]["vae"] = str(pipeline / "vae")
        (project.folder / "workflow/presets/tiny.yaml").write_text(yaml.safe_dump(preset))
        (project.folder / "config.yaml").write_text(yaml.safe_dump({"experiments": ["tiny"]}))
        changes = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(folder / "home"),
            "CONSISTENCY_CACHE": str(folder / "cache"),
            "HF_TOKEN": "hf_a_secret_token",
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("HF_HUB_OFFLINE", raising=False)
            for name, value in changes.items():
                patch.setenv(name, value)
            done = project.snakemake("all")
            again = project.jobs()
        paths = [request.path for request in server.requests]
    return {"project": project, "pipeline": pipeline, "again": again, "paths": paths, "done": done}


def results(run):
    return run["project"].folder / "results"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_only_the_named_files_are_fetched_and_nothing_runs_again(run):
    assert run["again"] == {}
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in run["paths"] if "/resolve/" in path}
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not any(name.startswith("vae/") for name in fetched)


def test_the_token_is_written_nowhere(run):
    for path in results(run).rglob("*"):
        if path.is_file():
            assert b"hf_a_secret_token" not in path.read_bytes(), path
    assert "hf_a_secret_token" not in run["done"].stdout + run["done"].stderr


def test_metrics_have_every_column_of_the_paper(run):
    found = rows(results(run) / "metrics.csv")
    assert all(np.isfinite(float(row["value"])) for row in found)
    kinds = {(row["metric"], row["extractor"], row["reference"]) for row in found if row["method"] in ("cm", "direct")}
    assert ("ode_error", "latents", "teacher") in kinds
    for extractor in ("efficientnet-lite0", "inception-v3"):
        for reference in ("teacher", "data"):
            assert ("frechet_distance", extractor, reference) in kinds
            assert ("kernel_distance", extractor, reference) in kinds
    assert ("clip_score", "clip", "prompts") in kinds
    assert ("aesthetic_score", "aesthetic", "none") in kinds
    of_data = {row["metric"] for row in found if row["method"] == "data"}
    assert {"frechet_distance", "clip_score", "aesthetic_score"} <= of_data
    claims = {(row["claim"], row["quantity"].split(",")[0]) for row in rows(results(run) / "claims.csv")}
    assert {("A1", "ODE error to teacher"), ("A2", "FID to data"), ("A2", "CLIP score")} <= claims
    table = (results(run) / "tables/tiny-main.md").read_text()
    assert "FID to teacher, 1 step" in table
    assert "CLIP score, 1 step" in table
    for name in ("tradeoff", "samples", "training", "sampling-steps", "start-times"):
        assert (results(run) / f"figures/tiny-{name}.pdf").read_bytes().startswith(b"%PDF")


def test_latents_and_embeddings_are_the_plain_pipelines(run):
    from diffusers import StableDiffusionXLPipeline

    folder = results(run) / "tiny"
    pipe = StableDiffusionXLPipeline.from_pretrained(run["pipeline"])
    captions = json.loads((folder / "captions.json").read_text())["captions"]
    assert captions == [tiny.CAPTIONS[i % len(tiny.CAPTIONS)] for i in range(COUNT)]
    prompts, _ = load_tensors(folder / "prompts.safetensors")
    with torch.no_grad():
        expected, _, pooled, _ = pipe.encode_prompt(captions[5], device="cpu", do_classifier_free_guidance=False)
        images, _ = load_tensors(folder / "images.safetensors")
        latent = pipe.vae.encode(images["train_images"][5:6].float() / 127.5 - 1).latent_dist.mode() * 0.13025
    torch.testing.assert_close(prompts["embeddings"][5:6], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prompts["pooled"][5:6], pooled, rtol=1e-5, atol=1e-5)
    data, _ = load_tensors(folder / "data.safetensors")
    torch.testing.assert_close(data["train_images"][5:6], latent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("student", ["cm-ddim-n5-w9-lora-s24", "direct-ddim-n5-w9-lora-s25"])
def test_the_lora_gives_the_same_images_in_a_plain_pipeline_with_lcm_scheduler(run, student):
    from consistency.networks import latents
    from consistency.networks.sdxl import LORA_MODULES
    from diffusers import LCMScheduler, StableDiffusionXLPipeline
    from safetensors.torch import load_file

    folder = results(run) / "tiny"
    weights = load_file(folder / "students" / student / "pytorch_lora_weights.safetensors")
    for module in LORA_MODULES:
        assert any(f"{module}.lora_A" in name for name in weights), module
    pipe = StableDiffusionXLPipeline.from_pretrained(run["pipeline"])
    pipe.load_lora_weights(str(folder / "students" / student))
    assert sum("lora_" in name for name in pipe.unet.state_dict()) == len(weights)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    noise, _ = load_tensors(folder / "noise.safetensors")
    ours, _ = load_tensors(folder / "samples" / f"{student}.safetensors")
    rows = [0, 1, 5]
    captions = json.loads((folder / "captions.json").read_text())["captions"]
    pipe.set_progress_bar_config(disable=True)
    prompts = [captions[label] for label in noise["labels"][rows].tolist()]
    sizes = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32, "output_type": "pt"}
    found = pipe(prompts, latents=noise["noise"][rows], **sizes).images
    decode = latents.decoder(run["pipeline"] / "vae", 4, "no")
    expected = (decode(ours["steps_1"][rows]) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pipe.unload_lora_weights()
    plain = pipe(prompts, latents=noise["noise"][rows], **sizes).images
    assert (plain - found).abs().max() > 1e-3  # the adapters matter
