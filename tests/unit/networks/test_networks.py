"""diffusers' UNet2DModel: from other people's folders, and with the options that presets choose."""

import json

import pytest
import torch
from consistency import networks
from consistency.errors import MismatchError, StorageError
from consistency.files.storage import save_tensors, weights_sha256, write_json
from consistency.flow.noise import normal
from consistency.flow.schedules import VPSchedule
from consistency.networks.classifier import Classifier
from consistency.networks.classifier import load as load_classifier
from consistency.runtime.compat import ensure_torchvision
from consistency.teachers.protocol import Teacher
from consistency.training import recipes
from safetensors.torch import load_file, save_file

ensure_torchvision()
SHAPE, SCHEDULE = (3, 16, 16), {"steps": 1000}
# As google/ddpm-cifar10-32 is described, smaller.
CONFIG = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


@pytest.fixture(scope="module")
def plain():
    """An unconditional network as diffusers makes it."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(**CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return net


@pytest.fixture
def data_file(tmp_path):
    """Data of one class and of the network's shape."""

    def make(shape=SHAPE, classes=1):
        path = tmp_path / "data.safetensors"
        save_tensors(path, {"train_images": torch.zeros(2, *shape)}, {"name": "x", "classes": classes})
        return path

    return make


@pytest.fixture(params=["safetensors", "bin"])
def folder(request, tmp_path, plain):
    """The network as it is published: with safetensors, or of the time before them."""
    folder = tmp_path / "published"
    plain.save_pretrained(folder)
    if request.param == "bin":
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(plain.state_dict(), folder / "diffusion_pytorch_model.bin")
    return folder


def inputs():
    return normal(0, "noise", range(3), SHAPE), torch.tensor([999, 300, 0])


def test_an_unconditional_network_has_one_class(folder, plain):
    network = networks.load(folder, SHAPE, 1)
    assert (network.classes, network.timesteps, network.sample_shape) == (1, 1000, SHAPE)
    assert not network.training
    x, t = inputs()
    for cond in (torch.zeros(3).long(), torch.ones(3).long()):  # the one class, and the null class
        assert torch.equal(network(x, t, cond), plain(x, t).sample)
    teacher = Teacher.load(folder, VPSchedule(), -1, SHAPE, 1)
    assert torch.equal(teacher.eps(torch.zeros(3).long(), 1.0)(x, t + 1), plain(x, t).sample)


def test_it_is_imported_as_safetensors(tmp_path, folder, plain, data_file):
    recipes.import_teacher(tmp_path / "teacher", folder, data_file(), SCHEDULE)
    names = sorted(path.name for path in (tmp_path / "teacher").iterdir())
    assert names == ["SHA256SUMS", "config.json", "diffusion_pytorch_model.safetensors"]
    assert len(weights_sha256(tmp_path / "teacher")) == 64
    x, t = inputs()
    assert torch.equal(networks.load(tmp_path / "teacher", SHAPE, 1)(x, t, torch.zeros(3).long()), plain(x, t).sample)


def test_in_a_pipelines_folder(tmp_path, folder, plain, data_file):
    folder.rename(tmp_path / "unet")
    recipes.import_teacher(tmp_path / "teacher", tmp_path, data_file(), SCHEDULE, "unet")
    x, t = inputs()
    assert torch.equal(networks.load(tmp_path / "teacher")(x, t, torch.zeros(3).long()), plain(x, t).sample)


@pytest.mark.parametrize(
    ("shape", "classes", "timesteps", "expected"),
    [
        ((1, 16, 16), 1, 1000, "for samples of shape (3, 16, 16), the data has (1, 16, 16)"),
        ((3, 32, 32), 1, 1000, "for samples of shape (3, 16, 16), the data has (3, 32, 32)"),
        (SHAPE, 10, 1000, "the network has 1 classes, the data has 10"),
        (SHAPE, 1, 500, "the network has 1000 timesteps, schedule.steps is 500"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, folder, data_file, shape, classes, timesteps, expected):
    with pytest.raises(MismatchError) as caught:
        recipes.import_teacher(tmp_path / "teacher", folder, data_file(shape, classes), {"steps": timesteps})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("damage", ["truncated", "another network's", "none", "one missing"])
def test_damaged_weights(tmp_path, folder, plain, damage):
    (file,) = (path for path in folder.iterdir() if path.name != "config.json")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-2000])
    elif damage == "none":
        file.unlink()
    elif damage == "one missing":
        state = {
            name: value for name, value in plain.state_dict().items() if name != "mid_block.resnets.0.conv1.weight"
        }
        torch.save(state, file) if file.suffix == ".bin" else save_file(state, file)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"block_out_channels": [8, 16]}))
    with pytest.raises(StorageError) as caught:
        networks.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


class Attack:
    """Unpickled without care, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["teacher", "classifier"])
def test_a_missing_weight_of_our_own_networks(tmp_path, kind):
    """Not left at its random start."""
    if kind == "teacher":
        networks.save(networks.build({"kind": "mlp", "width": 8, "depth": 1}, SHAPE, 2, 1000, 0), tmp_path / "n")
    else:
        Classifier(list(SHAPE), 2, 4, 4).save_pretrained(tmp_path / "n")
        write_json(tmp_path / "n" / "card.json", {"name": "x"})
    (file,) = (tmp_path / "n").glob("*.safetensors")
    weights = load_file(file)
    weights.pop("outward.weight" if kind == "teacher" else "hidden.weight")
    save_file(weights, file)
    with pytest.raises(StorageError) as caught:
        (networks.load if kind == "teacher" else load_classifier)(tmp_path / "n")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "n") in str(caught.value)


def test_weights_that_run_code_are_refused(tmp_path, plain):
    plain.save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "diffusion_pytorch_model.safetensors").unlink()
    weights = torch.zeros(200_000)  # as many as the network has
    torch.save({"x": Attack(tmp_path / "ran"), "w": weights}, tmp_path / "published" / "diffusion_pytorch_model.bin")
    with pytest.raises(StorageError) as caught:
        networks.load(tmp_path / "published")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_conditional_network_counts_its_null_class(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(**CONFIG | {"num_class_embeds": 11, "num_train_timesteps": 500}).save_pretrained(tmp_path / "n")
    network = networks.load(tmp_path / "n", SHAPE, 10)
    assert (network.classes, network.timesteps) == (10, 500)
    x, t = inputs()
    a, null = (network(x, t.clamp(max=499), torch.full((3,), label)) for label in (4, 10))
    assert not torch.equal(a, null)


# Presets' options


def build(shape=(1, 32, 32), **changes):
    settings = {"kind": "unet", "channels": [8, 16, 16], "layers_per_block": 1} | changes
    return networks.build(settings, shape, 2, 1000, 0).eval()


def attending(network, shape=(1, 32, 32)):
    """Side in pixels → how often a block of the way down, in the middle, and up attends there."""
    from diffusers.models.attention_processor import Attention

    counts = {"down_blocks": {}, "mid_block": {}, "up_blocks": {}}
    for name, module in network.net.named_modules():
        if isinstance(module, Attention):
            part = name.split(".")[0]

            def hook(module, args, kwargs, part=part):
                states = args[0] if args else kwargs["hidden_states"]
                side = states.shape[-1] if states.ndim == 4 else int(states.shape[1] ** 0.5)
                counts[part][side] = counts[part].get(side, 0) + 1

            module.register_forward_pre_hook(hook, with_kwargs=True)
    network(torch.zeros(1, *shape), torch.zeros(1).long(), torch.zeros(1).long())
    return counts


@pytest.mark.parametrize(
    ("attention", "down", "up"),
    [
        ([], {}, {}),
        ([16], {16: 2}, {16: 3}),
        ([8], {8: 2}, {8: 3}),
        ([32, 8], {32: 2, 8: 2}, {32: 3, 8: 3}),
        ([5, 64], {}, {}),  # no resolution has that side
    ],
)
def test_attention_is_at_the_sides_that_were_asked_for(attention, down, up):
    """A block of the way down has layers_per_block layers, one of the way up has one more."""
    counts = attending(build(attention=attention, layers_per_block=2))
    assert counts == {"down_blocks": down, "mid_block": {8: 1}, "up_blocks": up}


def test_attention_follows_the_datas_side():
    assert attending(build((3, 64, 64), attention=[16]), (3, 64, 64))["down_blocks"] == {16: 1}
    assert attending(build((3, 16, 16), attention=[16]), (3, 16, 16))["down_blocks"] == {16: 1}


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_norm_groups(groups):
    network = build(norm_groups=groups, attention=[8])
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) > 10
    assert {norm.num_groups for norm in norms} == {groups}


def test_eight_groups_are_the_default():
    assert build().net.config.norm_num_groups == 8
    assert build().net.config.num_class_embeds == 3


def test_options_survive_saving(tmp_path):
    network = build(attention=[8, 16], norm_groups=4, layers_per_block=2)
    networks.save(network, tmp_path / "n")
    loaded = networks.load(tmp_path / "n", (1, 32, 32), 2)
    x, t, cond = normal(0, "noise", range(2), (1, 32, 32)), torch.tensor([999, 5]), torch.tensor([0, 2])
    assert torch.equal(loaded(x, t, cond), network(x, t, cond))
    assert attending(loaded) == attending(network)


def test_dropout_is_of_training_alone():
    network = build(dropout=0.5)
    torch.nn.init.normal_(network.net.conv_out.weight)
    x, t, cond = normal(0, "noise", range(2), (1, 32, 32)), torch.tensor([9, 5]), torch.tensor([0, 1])
    assert torch.equal(network(x, t, cond), network(x, t, cond))
    network.train()
    assert not torch.equal(network(x, t, cond), network(x, t, cond))


def test_gradient_checkpointing_of_the_unet():
    gradients, runs = [], []
    x, t, cond = normal(0, "noise", range(2), (1, 32, 32)), torch.tensor([9, 500]), torch.tensor([0, 1])
    for checkpointing in (False, True):
        network, count = build(attention=[8]).train(), []
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: count.append(1))
        network(x, t, cond).square().mean().backward()
        runs.append(len(count))
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert runs == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_the_input_is_taken_in_the_precision_of_the_weights(kind):
    """In double precision times are told apart that are one in single precision; in half precision none are lost."""
    settings = {"mlp": {"width": 16, "depth": 1}, "unet": {"channels": [8], "layers_per_block": 1}}[kind]
    network = networks.build({"kind": kind, **settings}, (1, 8, 8), 10, 1000, 0).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x, cond = normal(0, "noise", range(2), (1, 8, 8)), torch.tensor([1, 10])
    near = torch.tensor([801.0, 802.0])
    whole = network(x, near, cond)
    half = network.to(torch.bfloat16)(x, near, cond)
    assert half.dtype == torch.bfloat16
    assert not torch.equal(half, network(x, near + 1, cond))
    torch.testing.assert_close(half.float(), whole, rtol=0.2, atol=0.05 * whole.abs().max().item())
    if kind == "mlp":
        wide, near = network.double(), near.double()
        assert not torch.equal(wide(x.double(), near, cond), wide(x.double(), near + 1e-8, cond))
