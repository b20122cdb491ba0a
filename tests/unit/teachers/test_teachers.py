"""Teachers from elsewhere: what their pipelines' schedulers say of them, and where their weights are."""

import json
import shutil

import pytest
import torch
from consistency import networks
from consistency.errors import MismatchError, StorageError
from consistency.files.storage import load_tensors, save_tensors
from consistency.flow.noise import normal
from consistency.flow.schedules import VPSchedule
from consistency.flow.solvers import ddim
from consistency.networks.pretrained import variant
from consistency.runtime.compat import ensure_torchvision
from consistency.students import maps
from consistency.teachers.protocol import Teacher
from consistency.teachers.targets import trajectory
from consistency.training import recipes
from students import fit, job_of_pairs

ensure_torchvision()
from diffusers import (  # noqa: E402 (the line above comes first)
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)

SHAPE = (1, 8, 8)
KIND = {"kind": "linear", "steps": 1000, "beta_start": 0.0001, "beta_end": 0.02}  # DDPMScheduler's defaults
SCHEDULE = VPSchedule(**KIND)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def unet(**changes):
    torch.manual_seed(0)
    options = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "norm_num_groups": 4,
        "num_class_embeds": 11,
    }
    net = UNet2DModel(**options | changes).eval().requires_grad_(False)
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return net


def pipeline(folder, scheduler=None, net=None):
    DDPMPipeline(net or unet(), scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    save_tensors(path, {"train_images": torch.zeros(2, *SHAPE)}, {"name": "x", "classes": 10})
    return path


def import_from(source, data_file, out, schedule=None, subfolder="unet"):
    recipes.import_teacher(out, source, data_file, schedule or KIND, subfolder)
    return out


def inputs(count=3):
    return normal(0, "noise", range(count), SHAPE), torch.arange(count)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_an_imported_teacher_is_solved_as_diffusers_solves_it(tmp_path, data_file, prediction, kind):
    """diffusers' own DDIM on the source's network gives the ends that our solver gives on the imported one."""
    schedule = KIND | {"kind": kind}
    theirs = DDPMScheduler(prediction_type=prediction, beta_schedule=kind)
    source = pipeline(tmp_path / "source", theirs)
    import_from(source, data_file, tmp_path / "teacher", schedule)
    teacher = Teacher.load(tmp_path / "teacher", VPSchedule(**schedule), -1, SHAPE, 10)
    x, cond = inputs()
    ours = trajectory(x, teacher.schedule.grid(5), ddim, teacher.eps(cond, 1.0), teacher.schedule)[:, -1]

    net = UNet2DModel.from_pretrained(source, subfolder="unet")
    scheduler = DDIMScheduler.from_config(theirs.config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t, class_labels=cond).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


class Exact(torch.nn.Module):
    """Knows data and noise of each sample, and gives what a perfect network of its kind would."""

    classes, timesteps, sample_shape = 10, 1000, SHAPE

    def __init__(self, prediction, clean, noise):
        super().__init__()
        self.prediction, self.clean, self.noise = prediction, clean, noise

    def forward(self, x, index, cond):
        rows = len(x) // len(self.clean)
        clean, noise = (v.repeat(rows, 1, 1, 1) for v in (self.clean, self.noise))
        alpha, sigma = (v[index + 1].float()[:, None, None, None] for v in (SCHEDULE.alpha, SCHEDULE.sigma))
        return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[self.prediction]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_and_data_follow_from_what_is_predicted(prediction, guidance):
    clean, noise = normal(0, "noise", range(4), SHAPE), normal(0, "noise", range(4, 8), SHAPE)
    t = torch.tensor([1000, 700, 200, 20])
    x, cond = SCHEDULE.add_noise(clean, noise, t), torch.arange(4)
    network = Exact(prediction, clean, noise)
    teacher, student = Teacher(network, SCHEDULE), maps.FlowMap(network, SCHEDULE)
    torch.testing.assert_close(teacher.eps(cond, guidance)(x, t), noise, rtol=1e-3, atol=2e-3)
    # at these times c_skip is below 1e-4: f is the estimate of the data, to α's rounding where that is small
    torch.testing.assert_close(student(x, t, cond), clean, rtol=1e-3, atol=2e-3)
    assert torch.equal(student(x, 0, cond), x)
    assert teacher.eps(cond, 1.0)(clean, 0).isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_a_student_predicts_what_its_teacher_does_and_survives_saving(tmp_path, data_file, parameters, prediction):
    source = pipeline(tmp_path / "source", DDPMScheduler(prediction_type=prediction))
    folder = import_from(source, data_file, tmp_path / "teacher")
    x, cond = inputs()
    student, teacher = maps.FlowMap(maps.create(folder, parameters, 4), SCHEDULE), Teacher.load(folder, SCHEDULE)
    assert teacher.prediction == prediction
    alpha, sigma = SCHEDULE.alpha[700].float(), SCHEDULE.sigma[700].float()
    clean = (x - sigma * teacher.eps(cond, 1.0)(x, 700)) / alpha  # at 700 f is the teacher's estimate of x_0
    torch.testing.assert_close(student(x, 700, cond), clean, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    expected = student.eval()(x, 700, cond)
    assert not torch.allclose(expected, clean, atol=1e-2)
    maps.save(student, tmp_path / "student", {})
    loaded = maps.load(tmp_path / "student", SCHEDULE, base=folder)
    torch.testing.assert_close(loaded(x, 700, cond), expected, rtol=1e-4, atol=1e-4)
    if parameters == "full":  # diffusers' schedulers can be made of the folder too
        assert DDPMScheduler.from_pretrained(tmp_path / "student").config.prediction_type == prediction
    else:
        assert not (tmp_path / "student" / "scheduler_config.json").exists()


def test_what_the_scheduler_said_is_in_the_imported_folder(tmp_path, data_file, caplog):
    source = pipeline(tmp_path / "source", DDPMScheduler(prediction_type="v_prediction"))
    with caplog.at_level("INFO", "consistency"):
        folder = import_from(source, data_file, tmp_path / "teacher")
    assert "prediction_type v_prediction" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    config = json.loads((folder / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["prediction_type"]) == ("DDPMScheduler", "v_prediction")
    again = import_from(folder, data_file, tmp_path / "again", subfolder=None)
    for name in ("scheduler_config.json", "diffusion_pytorch_model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("where", ["", "scheduler", "../scheduler", ".."])
def test_where_the_scheduler_may_lie(tmp_path, data_file, where):
    """Beside the network, as in old pipelines of one network, or in the pipeline around it."""
    source = tmp_path / "pipeline" / "network"
    unet().save_pretrained(source)
    DDPMScheduler(prediction_type="sample").save_pretrained(source / where)
    folder = import_from(source, data_file, tmp_path / "teacher", subfolder=None)
    assert networks.load(folder).prediction == "sample"


def test_without_a_scheduler_a_warning_says_what_is_assumed(tmp_path, data_file, caplog):
    unet().save_pretrained(tmp_path / "source")
    folder = import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "source") in record.getMessage()
    assert "ε on the preset's schedule is assumed" in record.getMessage()
    assert not (folder / "scheduler_config.json").exists()
    assert networks.load(folder).prediction == "epsilon"


REFUSED = {
    "beta_schedule is squaredcos_cap_v2 and schedule.kind linear": {"beta_schedule": "squaredcos_cap_v2"},
    "beta_schedule is sigmoid and schedule.kind linear": {"beta_schedule": "sigmoid"},
    "beta_schedule is scaled_linear and schedule.kind linear": {"beta_schedule": "scaled_linear"},
    "beta_start is 0.00085 and schedule.beta_start 0.0001, beta_end is 0.012 and schedule.beta_end 0.02": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "num_train_timesteps is 500 and schedule.steps 1000": {"num_train_timesteps": 500},
    "rescale_betas_zero_snr is true": {"rescale_betas_zero_snr": True},
    "trained_betas are others than those of schedule.kind linear": {"trained_betas": [0.01] * 1000},
    "prediction_type is flow_prediction; a teacher's is epsilon or v_prediction or sample": {
        "prediction_type": "flow_prediction"
    },
}


@pytest.mark.parametrize("expected", REFUSED)
def test_another_noise_schedule_or_prediction_is_refused(tmp_path, data_file, expected):
    source = pipeline(tmp_path / "source")
    file = source / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | REFUSED[expected]))
    with pytest.raises(MismatchError) as caught:
        import_from(source, data_file, tmp_path / "teacher")
    assert expected in str(caught.value)
    assert str(source / "unet") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 10**400},
        {"num_train_timesteps": "1000"},
        {"beta_start": None},
        {"beta_end": [0.02]},
        {"beta_schedule": {"a": 1}},
        {"prediction_type": ["epsilon"]},
        {"prediction_type": None},
        {"trained_betas": "x" * 5000},
        {"trained_betas": [float("nan")] * 1000},
        {"_class_name": "StableDiffusionXLPipeline", "beta_start": 1},
        {"_class_name": 7, "beta_start": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_values_that_no_scheduler_has_are_one_line(tmp_path, data_file, changes):
    source = pipeline(tmp_path / "source")
    file = source / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(MismatchError) as caught:
        import_from(source, data_file, tmp_path / "teacher")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_scheduler_of_another_kind_is_refused(tmp_path, data_file):
    unet().save_pretrained(tmp_path / "source")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "source")
    with pytest.raises(MismatchError, match="FlowMatchEulerDiscreteScheduler, states no beta_schedule"):
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)


def test_keys_that_the_file_leaves_out_are_the_classes_defaults(tmp_path, data_file):
    """As diffusers reads it: an old DDPMScheduler without prediction_type predicts ε on the linear schedule."""
    source = pipeline(tmp_path / "source")
    (source / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    folder = import_from(source, data_file, tmp_path / "teacher")
    assert json.loads((folder / "scheduler_config.json").read_text())["beta_schedule"] == "linear"
    with pytest.raises(MismatchError, match="beta_schedule is linear and schedule.kind scaled_linear"):
        import_from(source, data_file, tmp_path / "other", {"steps": 1000})


def test_trained_betas_that_are_the_presets(tmp_path, data_file):
    betas = torch.linspace(0.0001, 0.02, 1000).tolist()
    source = pipeline(tmp_path / "source", DDPMScheduler(trained_betas=betas, beta_schedule="scaled_linear"))
    assert networks.load(import_from(source, data_file, tmp_path / "teacher")).prediction == "epsilon"


def test_the_schedulers_number_of_timesteps_counts_where_the_network_states_none(tmp_path, data_file):
    source = pipeline(tmp_path / "source", DDPMScheduler(num_train_timesteps=500))
    folder = import_from(source, data_file, tmp_path / "teacher", KIND | {"steps": 500})
    assert networks.load(folder).timesteps == 500


def test_of_a_learned_variance_the_mean_is_taken(tmp_path, data_file):
    net = unet(out_channels=2)
    source = pipeline(tmp_path / "source", DDPMScheduler(variance_type="learned_range"), net)
    network = networks.load(import_from(source, data_file, tmp_path / "teacher"), SHAPE, 10)
    x, cond = inputs()
    t = torch.tensor([999, 300, 0])
    assert torch.equal(network(x, t, cond), net(x, t, class_labels=cond).sample[:, :1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"out_channels": 3}, "in_channels 1 and out_channels 3"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is fourier; a teacher's is positional or learned"),
        ({"class_embed_type": "timestep"}, "class_embed_type is timestep; a teacher's is None"),
    ],
)
def test_networks_that_are_called_otherwise_are_refused(tmp_path, data_file, changes, expected):
    unet(**changes).save_pretrained(tmp_path / "source")
    with pytest.raises(MismatchError) as caught:
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)
    assert expected in str(caught.value)


TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "addition_embed_type is None; a teacher's is text_time"),  # Stable Diffusion 1.5's
        (
            TEXT_TIME | {"time_cond_proj_dim": 8},
            "time_cond_proj_dim is 8; a teacher's is None",
        ),  # a consistency model's
    ],
)
def test_text_to_image_networks_other_than_sdxls_are_refused(tmp_path, data_file, changes, expected):
    net = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        mid_block_type=None,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        **changes,
    )
    net.save_pretrained(tmp_path / "source")
    with pytest.raises(MismatchError) as caught:
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)
    assert expected in str(caught.value)


def test_a_pipelines_folder_without_the_networks_name(tmp_path, data_file):
    with pytest.raises(StorageError, match=r"a pipeline's folder; name its network's in teacher\.subfolder"):
        import_from(pipeline(tmp_path / "source"), data_file, tmp_path / "teacher", subfolder=None)
    config = tmp_path / "source" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet1DModel"}))
    with pytest.raises(MismatchError, match="a UNet1DModel; a teacher is a UNet2DModel or a UNet2DConditionModel"):
        import_from(tmp_path / "source", data_file, tmp_path / "teacher")


def test_a_weight_that_is_not_finite_is_refused(tmp_path, data_file):
    net = unet()
    net.conv_in.bias[3] = float("nan")
    net.save_pretrained(tmp_path / "source")
    with pytest.raises(MismatchError, match=r"weight 'net\.conv_in\.bias' is not finite \(1 such"):
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)


# Where the weights are


def save(folder, layout):
    """The same network in a layout that diffusers reads; whether it lies there in half precision alone."""
    net = unet()
    if "plain" in layout:
        net.save_pretrained(folder)
    if "shards" in layout:
        net.save_pretrained(folder, max_shard_size="20KB")
    if "half" in layout:
        sizes = {"max_shard_size": "20KB"} if "shards" in layout else {}
        unet().half().save_pretrained(folder, variant="fp16", **sizes)
        if layout == "half shards":  # without the full ones
            for file in folder.glob("*"):
                if "fp16" not in file.name and file.name != "config.json":
                    file.unlink()
    return "half" in layout and "plain" not in layout


@pytest.mark.parametrize("layout", ["plain", "shards", "plain and half", "half", "half shards"])
def test_weights_are_found_as_diffusers_finds_them(tmp_path, data_file, layout):
    """The full precision where it is there; what is imported is one file, of the same numbers whatever the layout."""
    source = tmp_path / "source"
    half = save(source, layout)
    assert bool(list(source.glob("*.index*.json"))) == ("shards" in layout)
    folder = import_from(source, data_file, tmp_path / "teacher", subfolder=None)
    (file,) = folder.glob("*.safetensors")
    assert file.name == "diffusion_pytorch_model.safetensors"
    expected = UNet2DModel.from_pretrained(source, variant="fp16" if half else None).state_dict()
    weights = networks.load(folder).net.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    exact = unet().state_dict()
    assert torch.equal(weights["conv_in.weight"], exact["conv_in.weight"]) == (not half)


def test_a_shard_that_is_missing_or_lacks_a_weight(tmp_path, data_file):
    save(tmp_path / "source", "shards")
    shard = sorted((tmp_path / "source").glob("*.safetensors"))[1]
    shard.rename(tmp_path / shard.name)
    with pytest.raises(StorageError) as caught:
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)
    assert shard.name in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.move(tmp_path / shard.name, shard)
    index = tmp_path / "source" / "diffusion_pytorch_model.safetensors.index.json"
    index.unlink()
    with pytest.raises(StorageError):
        import_from(tmp_path / "source", data_file, tmp_path / "teacher", subfolder=None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.safetensors"], None),
        (["a.safetensors", "a.fp16.safetensors"], None),
        (["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"], None),
        (["a.fp16.safetensors"], "fp16"),
        (["a.bf16-00001-of-00002.safetensors", "a.bf16-00002-of-00002.safetensors"], "bf16"),
        (["a-00001-of-00002.fp16.safetensors"], "fp16"),  # of older diffusers
        (["a.bf16.safetensors", "a.fp16.safetensors"], "fp16"),
        ([], None),
    ],
)
def test_the_variant_of_a_folder(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert variant(tmp_path) == expected


def test_a_student_of_pairs_knows_its_teachers_prediction(tmp_path, data_file, digits):
    """A checkpoint made with ε assumed is not continued once the scheduler says otherwise; weights are the same."""
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "ema_decay": 0.999}
    cards = {}
    for prediction in ("epsilon", "v_prediction"):
        source = pipeline(tmp_path / prediction, DDPMScheduler(prediction_type=prediction))
        folder = import_from(source, data_file, tmp_path / f"teacher-{prediction}")
        job = job_of_pairs(velocity="teacher", teacher_schedule=KIND, training=training, budgets=[0.5])
        student = fit(job, tmp_path / f"student-{prediction}", data=digits, teacher=folder)
        card = json.loads((student / "student.json").read_text())
        weights, _ = load_tensors(student / "model.safetensors", check=False)
        cards[prediction] = card["inputs"], weights
    assert cards["epsilon"][0]["teacher_sha256"] == cards["v_prediction"][0]["teacher_sha256"]
    assert cards["epsilon"][0].get("teacher_prediction") is None
    assert cards["v_prediction"][0]["teacher_prediction"] == "v_prediction"
    assert any(not torch.equal(value, cards["v_prediction"][1][name]) for name, value in cards["epsilon"][1].items())
