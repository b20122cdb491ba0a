"""SDXL's path on a tiny SDXL: targets, student and losses against a plain computation that shares no code with the
library, adapters, text embeddings, and folders of half precision."""

import json
import shutil

import numpy as np
import pytest
import students
import tiny
import torch
from consistency import networks
from consistency.errors import ConfigError, MismatchError, StorageError
from consistency.files.storage import load_tensors, save_tensors, weights_sha256, write_json
from consistency.flow.schedules import VPSchedule
from consistency.networks import latents
from consistency.networks.sdxl import LORA_MODULES, SDXLUNet
from consistency.students import losses, maps, objectives
from consistency.teachers import manifest as manifests
from consistency.teachers import targets
from consistency.teachers.protocol import Teacher
from consistency.training import recipes
from safetensors.torch import load_file, save_file
from students import begin

CAPTIONS = [*tiny.CAPTIONS, "a cat and a dog", "dogs"]
COUNT, SIDE, N, SEED, RANK = 6, 32, 5, 8, 4  # the draws of this seed start at each of the N times


class Files:
    """Where the module's inputs lie."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pipeline with a UNet that depends on everything, captioned images, and what the stages make of them."""
    files = Files()
    folder = tmp_path_factory.mktemp("latents")
    files.pipeline = tiny.sdxl(folder / "sdxl")
    files.captions, files.images = folder / "captions.json", folder / "images.safetensors"
    files.prompts, files.data, files.teacher = (folder / n for n in ("prompts.safetensors", "data.safetensors", "t"))
    write_json(files.captions, {"captions": CAPTIONS})
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIDE, SIDE), dtype=np.uint8)
    save_tensors(files.images, {"train_images": images}, {"name": "tiny"})
    latents.encode_prompts(files.prompts, files.captions, files.pipeline, SIDE, 4, "no")
    latents.encode_images(files.data, files.images, files.pipeline / "vae", 4, "no")
    recipes.import_teacher(files.teacher, files.pipeline, files.data, {"steps": 1000}, "unet", files.prompts)
    return files


@pytest.fixture(scope="module")
def plain(files):
    """The pipeline as diffusers loads it, without this library."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(files.pipeline, local_files_only=True)
    pipe.unet.requires_grad_(False)
    return pipe


def pool(files):
    tensors, _ = load_tensors(files.data)
    return tensors["train_images"], tensors["train_labels"]


def teacher_of(files):
    return Teacher.load(files.teacher, VPSchedule(), prompts=files.prompts)


def student_of(files, parameters="lora", seed=0, **options):
    return begin(files.teacher, parameters, RANK, seed, options.pop("prompts", files.prompts), **options)


def shake(student, size=0.05):
    """Adapters that are not zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def solved(folder, files, guidance):
    """One shard of all draws, and its manifest."""
    teacher, shard = teacher_of(files), folder / "shard-0.safetensors"
    targets.solve_shard(shard, teacher, *pool(files), range(COUNT), "paper", "ddim", N, guidance, SEED, 4)
    settings = {"mode": "paper", "solver": "ddim", "n_steps": N, "guidance": guidance, "seed": SEED, "count": COUNT}
    manifests.gather(folder / "manifest.json", [shard], settings, weights_sha256(files.teacher))
    return load_tensors(shard)[0], folder / "manifest.json"


def one_line(error):
    assert "\n" not in str(error.value), str(error.value)
    return str(error.value)


# The plain computation: sections A.2 to A.5 with diffusers' UNet alone, one draw at a time.


def alpha_sigma(t):
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = 1.0 if t == 0 else float(np.prod(1 - beta[:t]))
    return kept**0.5, (1 - kept) ** 0.5


def predict(unet, x, t, embedding, pooled):
    """ε of the UNet at timestep t = 1..1000, whose index is t − 1."""
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32)
    added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(x, t - 1, encoder_hidden_states=embedding, added_cond_kwargs=added).sample


def guided(unet, x, t, embedding, pooled, w):
    conditional = predict(unet, x, t, embedding, pooled)
    if w == 1:
        return conditional
    unconditional = predict(unet, x, t, torch.zeros_like(embedding), torch.zeros_like(pooled))
    return unconditional + w * (conditional - unconditional)


def ddim_path(unet, x, times, embedding, pooled, w):
    points = [x]
    for s, n in zip(times, times[1:]):
        (a_s, s_s), (a_n, s_n) = alpha_sigma(s), alpha_sigma(n)
        eps = guided(unet, points[-1], s, embedding, pooled, w)
        points.append(a_n * (points[-1] - s_s * eps) / a_s + s_n * eps)
    return points


def consistency(unet, x, s, embedding, pooled):
    """f of section A.4: σ_data = 0.5 and the timestep scaled by 10."""
    if s == 0:
        return x
    alpha, sigma = alpha_sigma(s)
    skip, out = 0.25 / ((10 * s) ** 2 + 0.25), 10 * s / ((10 * s) ** 2 + 0.25) ** 0.5
    return skip * x + out * (x - sigma * predict(unet, x, s, embedding, pooled)) / alpha


def by_hand(files, plain, unet, w, student=None):
    """For each draw x_s, x_n, x_0, f(x_s, s) and f(x_n, n), and the two losses, as the paper writes them."""
    student = student or unet
    images, _ = load_tensors(files.images)
    drawn = targets.draw(*pool(files), range(COUNT), N, SEED)  # the random numbers; the data are checked below
    results = {name: [] for name in ("x_s", "x_n", "x_0", "f_s", "f_n")}
    for row in range(COUNT):
        number, k = int(drawn["cond"][row]), int(drawn["k"][row])
        with torch.no_grad():
            image = images["train_images"][number : number + 1].float() / 127.5 - 1
            clean = plain.vae.encode(image).latent_dist.mode() * plain.vae.config.scaling_factor
            text, _, pooled, _ = plain.encode_prompt(CAPTIONS[number], device="cpu", do_classifier_free_guidance=False)
            times = [1000 - j * 1000 // N for j in range(k, N + 1)]
            alpha, sigma = alpha_sigma(times[0])
            points = ddim_path(unet, alpha * clean + sigma * drawn["noise"][row : row + 1], times, text, pooled, w)
            f_n = consistency(student, points[1], times[1], text, pooled)
        f_s = consistency(student, points[0], times[0], text, pooled)
        for name, value in zip(results, (points[0], points[1], points[-1], f_s, f_n)):
            results[name].append(value)
    results = {name: torch.cat(values) for name, values in results.items()}
    results["cm"] = ((results["f_s"] - results["f_n"]) ** 2).mean()
    results["direct"] = ((results["f_s"] - results["x_0"]) ** 2).mean()
    return results, drawn


def near(ours, expected, tolerance=1e-5):
    """Equal to a tolerance relative to the largest value of each sample."""
    assert ours.shape == expected.shape
    for a, b in zip(ours, expected):
        assert (a - b).abs().max() <= tolerance * b.abs().max(), ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("w", [1.0, 9.0])
def test_targets_student_and_losses_are_the_papers(tmp_path, files, plain, w):
    shard, manifest = solved(tmp_path, files, w)
    expected, drawn = by_hand(files, plain, plain.unet, w)
    assert set(drawn["k"].tolist()) == set(range(N))  # whole solves, and a step that ends at time 0
    assert torch.equal(shard["k"], drawn["k"])
    for name in ("x_s", "x_n", "x_0"):
        near(shard[name], expected[name])
    assert (expected["x_n"] - expected["x_0"]).abs().max() > 0.1

    student = student_of(files)
    batch = targets.TargetReader(manifest, VPSchedule(), COUNT, 0)(0)
    rows = [int((shard["x_s"] == x).flatten(1).all(1).nonzero()) for x in batch["x_t"]]
    assert sorted(rows) == list(range(COUNT))
    for objective, loss, target in (("consistency_distillation", "cm", "f_n"), ("direct", "direct", "x_0")):
        with torch.no_grad():
            prediction, value = getattr(objectives, objective)(student, batch, None)
        near(prediction, expected["f_s"][rows])
        near(value, expected[target][rows])
        assert losses.mse(prediction, value).mean().item() == pytest.approx(expected[loss].item(), rel=1e-5)


def test_the_student_is_the_papers_at_every_time(files, plain):
    """Near the data too, where the boundary's scalings matter: f(x, 0) = x."""
    student, x = student_of(files), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        text, _, pooled, _ = plain.encode_prompt(CAPTIONS[3], device="cpu", do_classifier_free_guidance=False)
        for s in (0, 1, 2, 5, 50, 1000):
            value = student(x, s, torch.tensor([3]))
            near(value, consistency(plain.unet, x, s, text, pooled))
        assert torch.equal(student(x, 0, torch.tensor([3])), x)


@pytest.mark.parametrize(("objective", "loss"), [("consistency_distillation", "cm"), ("direct", "direct")])
def test_the_loss_that_training_logs_is_the_papers(tmp_path, files, plain, monkeypatch, objective, loss):
    """Through the whole stage, in parts and with gradient checkpointing: the first step's loss, at the teacher."""
    enable, enabled = SDXLUNet.enable_gradient_checkpointing, []
    monkeypatch.setattr(SDXLUNet, "enable_gradient_checkpointing", lambda self: enabled.append(1) or enable(self))
    _, manifest = solved(tmp_path, files, 9.0)
    records = fit(tmp_path, files, manifest, objective, steps=1, accumulate=2, gradient_checkpointing=True)
    assert enabled == [1]
    expected, _ = by_hand(files, plain, plain.unet, 9.0)
    assert records[0]["loss"] == pytest.approx(expected[loss].item(), rel=1e-5)


def test_gradients_are_the_papers(tmp_path, files, plain):
    """CM's target is stopped, Direct CM's does not depend on the student."""
    _, manifest = solved(tmp_path, files, 9.0)
    batch = targets.TargetReader(manifest, VPSchedule(), COUNT, 0)(0)
    for objective, loss in (("consistency_distillation", "cm"), ("direct", "direct")):
        student = student_of(files, "full")
        losses.mse(*getattr(objectives, objective)(student, batch, None)).mean().backward()
        unet = type(plain.unet).from_pretrained(files.pipeline / "unet")
        by_hand(files, plain, unet, 9.0)[0][loss].backward()
        weights = dict(student.network.net.named_parameters())
        norm = max(p.grad.norm() for p in unet.parameters())
        assert norm > 0
        for name, parameter in unet.named_parameters():
            assert (weights[name].grad - parameter.grad).norm() <= 1e-4 * norm, name


def watched(network):
    """What the UNet is called with."""
    calls = []

    def hook(module, args, kwargs):
        calls.append((args, kwargs))

    network.net.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def test_the_unconditional_branch_is_the_null_prompt(files):
    """Embeddings and pooled are zero, sizes the same, in one call with the conditional branch."""
    teacher, prompts = teacher_of(files), load_tensors(files.prompts)[0]
    calls, cond = watched(teacher.network), torch.tensor([3, 0])
    x = torch.randn(2, 4, 16, 16)
    teacher.eps(cond, 9.0)(x, torch.tensor([1000, 1]))
    assert len(calls) == 1
    assert teacher.calls == 4
    (both, index), named = calls[0]
    added = named["added_cond_kwargs"]
    assert torch.equal(both, torch.cat([x, x]))
    assert index.tolist() == [999, 0, 999, 0]
    assert not named["encoder_hidden_states"][:2].any()
    assert not added["text_embeds"][:2].any()
    assert torch.equal(named["encoder_hidden_states"][2:], prompts["embeddings"][cond])
    assert torch.equal(added["text_embeds"][2:], prompts["pooled"][cond])
    assert added["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 4


def test_without_guidance_there_is_one_call(tmp_path, files):
    teacher = teacher_of(files)
    calls, x, cond = watched(teacher.network), torch.randn(3, 4, 16, 16), torch.tensor([1, 2, 5])
    plain = teacher.eps(cond, 1.0)(x, 500)
    assert [len(args[0]) for args, _ in calls] == [3]
    assert teacher.calls == 3
    with torch.no_grad():
        assert torch.equal(plain, teacher.network(x, torch.full((3,), 499), cond))
    assert (teacher.eps(cond, 9.0)(x, 500) - plain).abs().max() > 1e-3  # guidance matters here
    torch.testing.assert_close(teacher.eps(cond, 1 + 1e-7)(x, 500), plain, rtol=1e-4, atol=1e-5)


# Adapters


def fit(folder, files, manifest, objective="direct", **changes):
    training = {"steps": 3, "batch_size": COUNT, "learning_rate": 1e-2, "warmup_steps": 0, "log_every": 1} | changes
    job = students.job_of_targets(
        run=students.row("student"), objective=objective, parameters="lora", lora_rank=RANK, training=training
    )
    students.fit(job, folder, teacher=files.teacher, manifest=manifest, prompts=files.prompts)
    return [json.loads(line) for line in (folder / "student.jsonl").read_text().splitlines()]


def merged_by_hand(files, file):
    """diffusers' UNet with W + B A in place of each adapted weight (alpha = rank)."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(files.pipeline / "unet").requires_grad_(False)
    weights, adapters = unet.state_dict(), load_file(file)
    names = sorted(name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight"))
    assert len(adapters) == 2 * len(names)
    for name in names:
        down, up = adapters[f"{name}.lora_A.weight"], adapters[f"{name}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == RANK
        change = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        weights[f"{name.removeprefix('unet.')}.weight"] += change
    return unet, [name.removeprefix("unet.") for name in names]


def test_adapters_start_at_the_teacher_and_alone_are_trained(files):
    student, teacher = student_of(files), teacher_of(files)
    x, t, cond = torch.randn(3, 4, 16, 16), torch.tensor([999, 500, 0]), torch.tensor([0, 4, 6])
    with torch.no_grad():
        torch.testing.assert_close(
            student.network.eval()(x, t, cond), teacher.network(x, t, cond), rtol=1e-6, atol=1e-6
        )
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == sum("lora_" in name for name, _ in student.named_parameters())
    adapted = {name.split(".lora_")[0] for name in trained}
    linear = torch.nn.Linear | torch.nn.Conv2d
    for module in LORA_MODULES:  # every layer whose name ends so, and no other
        wanted = {n for n, m in teacher.network.named_modules() if isinstance(m, linear) and n.endswith(f".{module}")}
        assert wanted, module
        assert {name for name in adapted if name.endswith(f".{module}")} == {f"network.{n}" for n in wanted}
    assert all(any(name.endswith(f".{module}") for module in LORA_MODULES) for name in adapted)
    assert len(set(LORA_MODULES)) == 14
    other = student_of(files, seed=1)
    differing = {n for (n, p), q in zip(student.named_parameters(), other.parameters()) if not torch.equal(p, q)}
    assert differing == {name for name in trained if ".lora_A." in name}


def test_training_moves_the_adapters_alone(tmp_path, files, plain):
    _, manifest = solved(tmp_path, files, 9.0)
    before = weights_sha256(files.teacher)
    records = fit(tmp_path, files, manifest, steps=4, learning_rate=1e-3)  # small: each step sees all targets
    assert records[-1]["loss"] < records[0]["loss"]
    assert weights_sha256(files.teacher) == before
    adapters = load_file(tmp_path / "student" / "pytorch_lora_weights.safetensors")
    assert all(value.abs().max() > 0 for value in adapters.values())  # B starts at 0: each one got a gradient
    assert {value.dtype for value in adapters.values()} == {torch.float32}


def test_saved_and_merged_adapters_are_the_unmerged_ones(tmp_path, files, plain):
    student = student_of(files)
    shake(student)
    maps.save(student, tmp_path / "student", {})
    loaded = maps.load(tmp_path / "student", VPSchedule(), base=files.teacher, prompts=files.prompts)
    assert not any("lora" in name for name, _ in loaded.named_modules())
    unet, names = merged_by_hand(files, tmp_path / "student" / "pytorch_lora_weights.safetensors")
    for module in LORA_MODULES:
        assert any(name.endswith(f".{module}") for name in names), module
    x, s, cond = torch.randn(3, 4, 16, 16), torch.tensor([1000, 400, 200]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        unmerged, merged, start = (f.eval()(x, s, cond) for f in (student, loaded, student_of(files)))
        expected = []
        for row in range(3):
            text, _, pooled, _ = plain.encode_prompt(
                CAPTIONS[int(cond[row])], device="cpu", do_classifier_free_guidance=False
            )
            expected.append(consistency(unet, x[row : row + 1], int(s[row]), text, pooled))
    assert (unmerged - start).abs().max() > 0.05 * start.abs().max()
    near(merged, unmerged)
    near(merged, torch.cat(expected))


def another(files, folder, **changes):
    """A teacher folder of a UNet of another make."""
    from diffusers import UNet2DConditionModel

    config = {k: v for k, v in json.loads((files.teacher / "config.json").read_text()).items() if k[0] != "_"}
    UNet2DConditionModel(**config | changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"block_out_channels": [16, 32]}, "size mismatch"),
        (
            {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2},
            "fit this network",
        ),
    ],
)
def test_adapters_of_another_network(tmp_path, files, changes, expected):
    torch.manual_seed(0)
    folder = another(files, tmp_path / "other", **changes)
    student = begin(folder, "lora", RANK, 0, files.prompts)
    maps.save(student, tmp_path / "student", {})
    with pytest.raises((MismatchError, StorageError)) as caught:
        maps.load(tmp_path / "student", VPSchedule(), base=files.teacher, prompts=files.prompts)
    assert expected in one_line(caught)
    assert str(tmp_path / "student") in one_line(caught)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "no adapters"])
def test_damaged_adapters(tmp_path, files, damage):
    maps.save(student_of(files), tmp_path / "student", {})
    file = tmp_path / "student" / "pytorch_lora_weights.safetensors"
    content = file.read_bytes()
    if damage == "no adapters":
        save_tensors(file, {"something": torch.zeros(2)})
    else:
        file.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"x" * 500, "empty": b""}[damage])
    with pytest.raises((MismatchError, StorageError)) as caught:
        maps.load(tmp_path / "student", VPSchedule(), base=files.teacher, prompts=files.prompts)
    assert str(tmp_path / "student") in one_line(caught)


def test_gradient_checkpointing_gives_the_same_gradient(files):
    x, s, cond = torch.randn(2, 4, 16, 16), torch.tensor([800, 200]), torch.tensor([1, 3])
    gradients, runs = [], []
    for checkpointing in (False, True):
        student = student_of(files)
        shake(student)
        if checkpointing:
            student.network.enable_gradient_checkpointing()
        count = []
        student.network.net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: count.append(1))
        student(x, s, cond).square().mean().backward()
        runs.append(len(count))
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.requires_grad})
    assert runs == [1, 2]  # computed again in the backward pass
    scale = max(gradient.abs().max() for gradient in gradients[0].values())
    assert scale > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6 * scale.item())


@pytest.fixture
def another_precision():
    """accelerate keeps the first precision of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_bf16_keeps_the_frozen_weights_half_and_the_adapters_whole(tmp_path, files, another_precision):
    student = student_of(files, precision="bf16")
    kinds = {p.requires_grad: p.dtype for p in student.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    _, manifest = solved(tmp_path, files, 9.0)
    half = fit(tmp_path, files, manifest, precision="bf16")
    adapters = load_file(tmp_path / "student" / "pytorch_lora_weights.safetensors")
    assert {value.dtype for value in adapters.values()} == {torch.float32}
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    whole = fit(tmp_path, files, manifest)
    assert half[0]["loss"] != whole[0]["loss"]
    assert [r["loss"] for r in half] == pytest.approx([r["loss"] for r in whole], rel=0.05)


@pytest.mark.parametrize("w", [1.0, 9.0])
def test_a_teacher_in_bf16_is_near_float32(files, w):
    x, t, cond = torch.randn(4, 4, 16, 16), torch.tensor([1000, 600, 300, 1]), torch.arange(4)
    whole = teacher_of(files).eps(cond, w)(x, t)
    teacher = Teacher.load(files.teacher, VPSchedule(), prompts=files.prompts, precision="bf16").to(torch.device("cpu"))
    half = teacher.eps(cond, w)(x, t)
    assert half.dtype == torch.float32
    assert {p.dtype for p in teacher.network.parameters()} == {torch.bfloat16}
    assert 1e-4 < ((half - whole).norm() / whole.norm()).item() < 0.01 * (1 + w)


# Prompts and images


def test_embeddings_of_another_width(tmp_path, files):
    prompts, metadata = load_tensors(files.prompts)
    save_tensors(tmp_path / "p", prompts | {"embeddings": prompts["embeddings"][..., :32]}, metadata)
    with pytest.raises(MismatchError) as caught:
        networks.load(files.teacher, prompts=tmp_path / "p")
    assert "embeddings of width 32, the network takes 64" in one_line(caught)
    with pytest.raises(MismatchError):
        recipes.import_teacher(tmp_path / "t", files.pipeline, files.data, {"steps": 1000}, "unet", tmp_path / "p")


def test_pooled_embeddings_of_another_width(tmp_path, files):
    """Both encoders are of the pipeline; the second's pooled output is the other half of what it gives."""
    prompts, metadata = load_tensors(files.prompts)
    save_tensors(tmp_path / "p", prompts | {"pooled": prompts["pooled"][:, :16]}, metadata)
    with pytest.raises(MismatchError) as caught:
        networks.load(files.teacher, prompts=tmp_path / "p")
    one_line(caught)


@pytest.mark.parametrize("number", [COUNT - 1, COUNT + 1])
def test_another_number_of_prompts_than_latents(tmp_path, files, number):
    prompts, metadata = load_tensors(files.prompts)
    some = {name: torch.cat([value, value])[:number] for name, value in prompts.items()}
    save_tensors(tmp_path / "p", some, metadata)
    with pytest.raises(MismatchError, match=f"{number} classes, the data has {COUNT}"):
        recipes.import_teacher(tmp_path / "t", files.pipeline, files.data, {"steps": 1000}, "unet", tmp_path / "p")


def test_prompts_do_not_depend_on_the_batch(tmp_path, files, plain):
    for size in (1, 4):
        latents.encode_prompts(tmp_path / str(size), files.captions, files.pipeline, SIDE, size, "no")
    one, four = (load_tensors(tmp_path / str(size)) for size in (1, 4))
    assert one[1] == four[1] == {"side": SIDE}
    for name, shape in (("embeddings", (COUNT, 77, 64)), ("pooled", (COUNT, 32))):
        assert one[0][name].shape == shape
        torch.testing.assert_close(one[0][name], four[0][name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        texts, _, pooled, _ = plain.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(one[0]["embeddings"], texts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[0]["pooled"], pooled, rtol=1e-5, atol=1e-5)
    assert torch.pdist(one[0]["pooled"]).min() > 1e-3  # the prompts differ


def test_images_to_latents_and_back(tmp_path, files, plain):
    tensors, metadata = load_tensors(files.data)
    images, _ = load_tensors(files.images)
    assert tensors["train_images"].shape == (COUNT, 4, 16, 16)
    assert tensors["train_images"].dtype == torch.float32
    assert tensors["train_labels"].tolist() == list(range(COUNT))
    assert metadata["classes"] == COUNT
    with torch.no_grad():
        expected = plain.vae.encode(images["train_images"].float() / 127.5 - 1).latent_dist.mode() * 0.13025
        back = plain.vae.decode(tensors["train_images"] / 0.13025).sample
    torch.testing.assert_close(tensors["train_images"], expected, rtol=1e-5, atol=1e-6)
    decoded = [latents.decoder(files.pipeline / "vae", size, "no")(tensors["train_images"]) for size in (1, 4)]
    assert decoded[0].shape == (COUNT, 3, SIDE, SIDE)
    assert decoded[0].dtype == torch.float32
    torch.testing.assert_close(decoded[0], back, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded[0], decoded[1], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def halves(files, plain, tmp_path_factory):
    """The pipeline as it is published in half precision: files named *.fp16.safetensors alone, and its weights."""
    from diffusers import StableDiffusionXLPipeline

    folder = tmp_path_factory.mktemp("halves") / "sdxl"
    pipe = StableDiffusionXLPipeline.from_pretrained(files.pipeline, torch_dtype=torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    names = {path.name for path in folder.rglob("*.safetensors")}
    assert names == {"model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    return folder, pipe.to(torch.float32)


def test_folders_of_half_precision(tmp_path, files, plain, halves):
    folder, pipe = halves
    latents.encode_prompts(tmp_path / "prompts", files.captions, folder, SIDE, 4, "no")
    latents.encode_images(tmp_path / "data", files.images, folder / "vae", 4, "no")
    recipes.import_teacher(
        tmp_path / "teacher", folder, tmp_path / "data", {"steps": 1000}, "unet", tmp_path / "prompts"
    )
    assert [path.name for path in (tmp_path / "teacher").glob("*.safetensors")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    images, x = load_tensors(files.images)[0]["train_images"].float() / 127.5 - 1, torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        texts, _, pooled, _ = pipe.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False)
        latent = pipe.vae.encode(images).latent_dist.mode() * 0.13025
        eps = torch.cat([predict(pipe.unet, x[i : i + 1], 700, texts[i : i + 1], pooled[i : i + 1]) for i in (0, 1)])
        rough = predict(plain.unet, x[:1], 700, texts[:1], pooled[:1])
    prompts = load_tensors(tmp_path / "prompts")[0]
    torch.testing.assert_close(prompts["embeddings"], texts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prompts["pooled"], pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load_tensors(tmp_path / "data")[0]["train_images"], latent, rtol=1e-5, atol=1e-6)
    teacher = Teacher.load(tmp_path / "teacher", VPSchedule(), prompts=tmp_path / "prompts").to(torch.device("cpu"))
    value = teacher.eps(torch.tensor([0, 1]), 1.0)(x, 700)
    near(value, eps)
    assert not torch.allclose(value[:1], rough, rtol=0, atol=1e-6)  # half precision is another network
    # ... and what is solved, sampled and trained with it is float32
    assert {p.dtype for p in teacher.network.parameters()} == {torch.float32}
    prompted = {"prompts": tmp_path / "prompts"}
    for parameters in ("full", "lora"):
        student = begin(tmp_path / "teacher", parameters, RANK, 0, **prompted)
        assert {p.dtype for p in student.parameters()} == {torch.float32}
    maps.save(student, tmp_path / "student", {})
    loaded = maps.load(tmp_path / "student", VPSchedule(), base=tmp_path / "teacher", **prompted)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    near(loaded.network(x, torch.full((2,), 699), torch.tensor([0, 1])), eps)


def test_variant_is_half_only_where_nothing_else_is(tmp_path):
    assert latents.variant(tmp_path) is None
    (tmp_path / "model.fp16.safetensors").touch()
    assert latents.variant(tmp_path) == "fp16"
    (tmp_path / "model.safetensors").touch()
    assert latents.variant(tmp_path) is None


@pytest.mark.needs("no gpu")
def test_a_gpus_precision_on_the_cpu(tmp_path, files):
    for call in (
        lambda: latents.encode_prompts(tmp_path / "p", files.captions, files.pipeline, SIDE, 4, "fp16"),
        lambda: latents.encode_images(tmp_path / "d", files.images, files.pipeline / "vae", 4, "fp16"),
        lambda: latents.decoder(files.pipeline / "vae", 4, "fp16"),
    ):
        with pytest.raises(ConfigError, match="fp16 needs a GPU") as caught:
            call()
        one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_damaged_pipeline(tmp_path, files, part):
    folder = shutil.copytree(files.pipeline, tmp_path / "sdxl")
    for file in (folder / part).iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(StorageError) as caught:
        if part == "vae":
            latents.encode_images(tmp_path / "d", files.images, folder / "vae", 4, "no")
        else:
            latents.encode_prompts(tmp_path / "p", files.captions, folder, SIDE, 4, "no")
    assert str(folder) in one_line(caught)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_weight_is_missing(tmp_path, files, part):
    """What a library would leave at random, or without a value."""
    folder = shutil.copytree(files.pipeline, tmp_path / "sdxl")
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(name for name in weights if name.endswith(".weight") and weights[name].ndim > 1))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(StorageError) as caught:
        if part == "unet":
            networks.load(folder / "unet")
        elif part == "vae":
            latents.encode_images(tmp_path / "d", files.images, folder / "vae", 4, "no")
        else:
            latents.encode_prompts(tmp_path / "p", files.captions, folder, SIDE, 4, "no")
    assert str(folder) in one_line(caught)
