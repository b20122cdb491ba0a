"""The consistency function, LoRA and full students, the UNet behind the same interface."""

import pytest
import torch
from consistency import networks
from consistency.errors import ConsistencyError, MismatchError, StorageError
from consistency.flow.schedules import VPSchedule
from consistency.students import maps
from consistency.students.parameterisations import boundary
from students import begin, fit, job_of_targets

SCHEDULE = VPSchedule()


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_f_at_time_zero_is_the_identity(teacher_folder, parameters):
    student = begin(teacher_folder, parameters, 4)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(student(x, 0, torch.arange(5)), x)


def test_boundary_follows_the_formula():
    like = torch.zeros(3, 1, dtype=torch.float64)
    skip, out = boundary(torch.tensor([0, 1, 100]), like)
    expected_skip = [0.25 / ((10 * t) ** 2 + 0.25) for t in (0, 1, 100)]
    expected_out = [10 * t / ((10 * t) ** 2 + 0.25) ** 0.5 for t in (0, 1, 100)]
    assert skip.flatten().tolist() == pytest.approx(expected_skip, rel=1e-12)
    assert out.flatten().tolist() == pytest.approx(expected_out, rel=1e-12)


def test_f_is_the_parameterisation_of_the_paper(teacher_folder, teacher):
    student = begin(teacher_folder)
    x, cond, s = torch.randn(4, 1, 8, 8), torch.arange(4), torch.tensor([1000, 700, 300, 1])
    eps = teacher.network(x, s - 1, cond)
    alpha, sigma = (v[s].float()[:, None, None, None] for v in (SCHEDULE.alpha, SCHEDULE.sigma))
    u = 10.0 * s[:, None, None, None]
    expected = 0.25 / (u**2 + 0.25) * x + u / (u**2 + 0.25).sqrt() * (x - sigma * eps) / alpha
    torch.testing.assert_close(student(x, s, cond), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_students_start_at_the_teacher_and_survive_saving(tmp_path, teacher_folder, teacher, parameters):
    student = begin(teacher_folder, parameters, 4)
    x, cond = torch.randn(4, 1, 8, 8), torch.arange(4)
    torch.testing.assert_close(
        student.network(x, torch.full((4,), 99), cond), teacher.network(x, torch.full((4,), 99), cond)
    )
    trainable = [p for p in student.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trainable:
            p.add_(0.05 * torch.randn_like(p))
    before = student(x, 500, cond)
    maps.save(student, tmp_path / "student", {"note": "test"})
    loaded = maps.load(tmp_path / "student", SCHEDULE, base=teacher_folder)
    torch.testing.assert_close(loaded(x, 500, cond), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, begin(teacher_folder)(x, 500, cond), atol=1e-3)
    if parameters == "lora":
        total = sum(p.numel() for p in teacher.network.parameters())
        assert sum(p.numel() for p in trainable) < total
        layers = [m for m in teacher.network.modules() if isinstance(m, torch.nn.Linear)]
        assert len(trainable) == 2 * len(layers)  # every layer is adapted, none is dropped on reload


def test_lora_seed_changes_only_the_adapters(teacher_folder):
    a, b = (begin(teacher_folder, "lora", 4, seed) for seed in (0, 1))
    differing = {name for (name, p), q in zip(a.named_parameters(), b.parameters()) if not torch.equal(p, q)}
    assert differing
    assert all("lora_A" in name for name in differing)


def test_teacher_of_another_shape(teacher_folder):
    with pytest.raises(MismatchError, match=r"\(1, 8, 8\), the data has \(3, 32, 32\)"):
        networks.load(teacher_folder, (3, 32, 32))
    with pytest.raises(MismatchError, match="10 classes, the data has 100"):
        networks.load(teacher_folder, (1, 8, 8), 100)


@pytest.mark.parametrize("damage", ["no weights", "no config", "truncated"])
def test_damaged_teacher(tmp_path, teacher_folder, damage):
    import shutil

    folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StorageError) as caught:
        networks.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unet_trains_through_the_same_interface(tmp_path, digits):
    """diffusers' UNet2DModel as teacher and as student: fit, save, solve, distil a few steps."""
    from consistency.config.settings import Training
    from consistency.data import prepare
    from consistency.files import storage
    from consistency.teachers import manifest as manifests
    from consistency.teachers import targets
    from consistency.teachers.protocol import Teacher
    from consistency.training import recipes

    network = {"kind": "unet", "channels": [8, 16], "layers_per_block": 1, "dropout": 0.0}
    settings = Training(steps=4, batch_size=16, warmup_steps=1, log_every=1).model_dump()
    folder = tmp_path / "teacher"
    recipes.fit_teacher(
        folder, tmp_path / "t.jsonl", tmp_path / "side-t", digits, network, {"steps": 1000}, 0.1, settings, 0
    )
    assert (folder / "diffusion_pytorch_model.safetensors").is_file()
    from diffusers import UNet2DModel

    assert UNet2DModel.from_pretrained(folder).config.num_class_embeds == 11
    tensors, classes = prepare.load(digits)
    teacher = Teacher.load(folder, SCHEDULE, -1, (1, 8, 8), classes)
    shard, manifest = tmp_path / "shard-0.safetensors", tmp_path / "manifest.json"
    pool = tensors["train_images"], tensors["train_labels"]
    targets.solve_shard(shard, teacher, *pool, range(64), "paper", "heun", 5, 2.0, 0, 32)
    chosen = {"mode": "paper", "solver": "heun", "n_steps": 5, "guidance": 2.0, "seed": 0, "count": 64}
    manifests.gather(manifest, [shard], chosen, storage.weights_sha256(folder))
    for parameters in ("full", "lora"):
        job = job_of_targets(
            objective="consistency_distillation",
            loss={"kind": "pseudo_huber"},
            parameters=parameters,
            lora_rank=4,
            training=settings,
        )
        student = fit(job, tmp_path / parameters, teacher=folder, manifest=manifest)
        loaded = maps.load(student, SCHEDULE, base=folder)
        trained, start = loaded(torch.ones(2, 1, 8, 8), 900, torch.tensor([1, 2])), begin(folder)
        assert trained.shape == (2, 1, 8, 8)
        assert not torch.allclose(trained, start(torch.ones(2, 1, 8, 8), 900, torch.tensor([1, 2])), atol=1e-6)


def test_adapters_that_are_not_there(tmp_path, teacher_folder):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConsistencyError, match="one .safetensors file expected, found 0"):
        maps.load(tmp_path, SCHEDULE, base=teacher_folder)
