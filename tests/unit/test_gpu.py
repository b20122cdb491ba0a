"""What is otherwise on a GPU: CUDA graphs, batches on their way, rows that come back late. Needs one."""

from functools import partial

import pytest
import tiny
import torch
from consistency import networks
from consistency.errors import TrainingError
from consistency.files.storage import read_sealed, save_tensors
from consistency.flow.schedules import VESchedule, VPSchedule
from consistency.students import couplings, losses, maps, objectives
from consistency.students.pairs import CurriculumTimes, PairSource
from consistency.teachers import targets
from consistency.teachers.protocol import Teacher
from consistency.training import loop, steps
from consistency.training.graphs import WARM, Graphed
from consistency.training.recipes import objective_of
from consistency.training.steps import Task
from helpers import constant_rate
from students import job_of_targets

pytestmark = pytest.mark.needs("gpu")
DEVICE = torch.device("cuda")
NETWORK = {"kind": "unet", "channels": [16, 32], "layers_per_block": 1, "norm_groups": 8}
SHAPE = (1, 16, 16)
direct, distillation, training = (
    objective_of(job_of_targets(objective=name), VPSchedule())
    for name in ("direct", "consistency_distillation", "consistency_training")
)


def batches(step):
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(3, 32, *SHAPE, generator=rng)
    t = torch.randint(100, 1000, (32,), generator=rng)
    cond = torch.randint(0, 10, (32,), generator=rng)
    return {"x_t": x[0], "x_r": x[1], "x_0": x[2], "t": t, "r": t - 100, "cond": cond}


def fit(folder, objective=direct, network=None, **settings):
    model = maps.FlowMap(networks.build(NETWORK | (network or {}), SHAPE, 10, 1000, 0), VPSchedule())
    sizes = {"steps": 20, "batch_size": 32, "learning_rate": 1e-3}
    options = constant_rate(**sizes | {"precision": "bf16", "ema_decay": 0.9} | settings)
    task = Task(objective, batches, losses.mse)
    records = loop.train(model, task, options, seed=0, side_folder=folder, fingerprint={})
    return model.state_dict(), records


def captures(monkeypatch):
    seen = []

    class Watched(Graphed):
        def _capture(self, inputs):
            super()._capture(inputs)
            seen.append(self.graph is not None)

    monkeypatch.setattr(steps, "Graphed", Watched)
    return seen


@pytest.fixture(autouse=True)
def fixed_algorithms():
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("objective", [direct, distillation])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_captured_training_is_the_plain_one(tmp_path, monkeypatch, objective, precision):
    seen = captures(monkeypatch)
    graph, records = fit(tmp_path / "a", objective, precision=precision, log_every=5)
    assert seen == [True]
    monkeypatch.setattr(steps, "capturable", lambda model, objective: False)
    plain, others = fit(tmp_path / "b", objective, precision=precision, log_every=5)
    for name, value in plain.items():
        torch.testing.assert_close(graph[name], value, rtol=2e-3, atol=2e-4)
    for one, other in zip(records, others, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_resumed_as_undisturbed(tmp_path):
    whole, _ = fit(tmp_path / "a", steps=30, checkpoint_every=10)

    def stopping(model, batch):
        if stop["at"] == 0:
            raise KeyboardInterrupt
        stop["at"] -= 1
        return direct(model, batch)

    stop = {"at": WARM}  # the first call after the warm-up is the capture
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", stopping, steps=30, checkpoint_every=1)
    stop["at"] = 10**9
    resumed, _ = fit(tmp_path / "b", stopping, steps=30, checkpoint_every=1)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=2e-3, atol=2e-4)


def test_an_objective_that_waits_for_the_gpu_is_run_as_it_is(tmp_path, monkeypatch, caplog):
    def waiting(model, batch):
        assert batch["x_t"].mean().item() < 10
        return direct(model, batch)

    seen = captures(monkeypatch)
    with caplog.at_level("INFO", "consistency"):
        waited, _ = fit(tmp_path / "a", waiting)
    assert seen == [False]
    assert "not captured as a CUDA graph" in caplog.text
    plain, _ = fit(tmp_path / "b")
    for name, value in plain.items():
        torch.testing.assert_close(waited[name], value, rtol=2e-3, atol=2e-4)


def test_a_capture_that_fails_in_the_backward_pass_leaves_no_gradients(tmp_path, monkeypatch):
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient.sum().item()
            return gradient

    def waiting(model, batch):
        prediction, target = objectives.direct(lambda x, t, cond: Waits.apply(model(x, t, cond)), batch, None)
        return prediction, target

    seen = captures(monkeypatch)
    waited, _ = fit(tmp_path / "a", waiting)
    assert seen == [False]
    plain, _ = fit(tmp_path / "b")
    for name, value in plain.items():
        torch.testing.assert_close(waited[name], value, rtol=2e-3, atol=2e-4)


def test_batches_of_other_shapes_after_the_capture(tmp_path, monkeypatch):
    whole, results = batches, []

    def fewer(step):
        batch = whole(step)
        return {name: value[:16] for name, value in batch.items()} if step == 10 else batch

    monkeypatch.setitem(fit.__globals__, "batches", fewer)
    for folder in ("a", "b"):
        results.append(fit(tmp_path / folder)[0])
        monkeypatch.setattr(steps, "capturable", lambda model, objective: False)
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=2e-3, atol=2e-4)


def test_a_loss_that_is_not_finite_is_named_in_a_captured_step(tmp_path, monkeypatch):
    whole = batches

    def broken(step):
        batch = whole(step)
        if step == 8:
            batch["x_t"][3] = float("nan")
        return batch

    monkeypatch.setitem(fit.__globals__, "batches", broken)
    seen = captures(monkeypatch)
    with pytest.raises(TrainingError, match=r"step 8: input 'x_t' is not finite in batch rows \[3\]"):
        fit(tmp_path)
    assert seen == [True]


@pytest.mark.parametrize("way", ["captured", "plain", "fp16"])
def test_gradients_that_are_not_finite_do_not_reach_the_weights(tmp_path, monkeypatch, way):
    """In fp16 the scaler leaves the step out; otherwise training stops, and the checkpoint of before stays."""
    whole = batches

    def with_root(step):
        batch = whole(step)
        return batch | {"z": torch.full((len(batch["t"]), 1, 1, 1), float(step != 8))}

    def rooted(model, batch):
        prediction, target = direct(model, batch)
        return prediction + torch.sqrt(0 * prediction + batch["z"]), target

    monkeypatch.setitem(fit.__globals__, "batches", with_root)
    if way == "plain":
        monkeypatch.setattr(steps, "capturable", lambda model, objective: False)
    if way == "fp16":
        weights, records = fit(tmp_path, rooted, precision="fp16", log_every=1)
        assert all(value.isfinite().all() for value in weights.values())
        assert records[8]["grad_norm"] == 0
        return
    with pytest.raises(TrainingError, match="the gradient of weight .* is not finite at step 8, "):
        fit(tmp_path, rooted, checkpoint_every=1)
    state = read_sealed(tmp_path / "checkpoint.pt", partial(torch.load, map_location="cpu"))
    assert state["step"] == 8
    assert all(value.isfinite().all() for value in state["weights"].values())


@pytest.mark.parametrize("coupling", ["independent", "optimal_transport", "generator_induced"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_consistency_training_from_pairs(tmp_path, monkeypatch, coupling, dropout):
    images, labels = torch.rand(200, *SHAPE) * 2 - 1, torch.arange(200) % 10
    results = []
    for graphs in (True, False):
        seen = captures(monkeypatch)
        if not graphs:
            monkeypatch.setattr(steps, "capturable", lambda model, objective: False)
        network = networks.build(NETWORK | {"dropout": dropout}, SHAPE, 10, 1000, 0)
        student = maps.FlowMap(network, VESchedule())
        options = constant_rate(
            steps=16, batch_size=32, learning_rate=1e-3, optimizer="radam", ema_decay=0.9, precision="bf16", log_every=4
        )
        times = CurriculumTimes(VESchedule(), 16)
        options_of_pairs = {"batch_size": 32, "seed": 0, "coupling": getattr(couplings, coupling), "share": 0.5}
        source = PairSource(images, labels, VESchedule(), times, **options_of_pairs)
        task = Task(training, source, losses.pseudo_huber_norm, source.prepare, source.together)
        records = loop.train(student, task, options, seed=0, side_folder=tmp_path / str(graphs), fingerprint={})
        results.append(records)
        expected = [] if dropout or not graphs else [True, True] if coupling == "generator_induced" else [True]
        assert seen == expected
    for one, other in zip(*results, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun"])
def test_targets_of_gpu_and_cpu(tmp_path, monkeypatch, solver):
    images = torch.randint(0, 256, (50, *SHAPE), dtype=torch.uint8)
    labels, shards = torch.arange(50) % 10, {}
    for kind in ("cuda", "cpu"):
        network = networks.build(NETWORK, SHAPE, 10, 1000, 0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        monkeypatch.setattr(targets, "pick_device", lambda kind=kind: torch.device(kind))
        path = tmp_path / kind
        teacher = Teacher(network.eval(), VPSchedule())
        targets.solve_shard(path, teacher, images, labels, range(300), "paper", solver, 10, 3.0, 1, 64)
        shards[kind] = targets.load_tensors(path)[0]
    for name, value in shards["cpu"].items():
        torch.testing.assert_close(shards["cuda"][name], value, rtol=2e-3, atol=2e-3)


def test_compiled_blocks_of_sdxl(tmp_path):
    unet = networks.load(tiny.sdxl(tmp_path / "sdxl") / "unet")
    config = unet.net.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    embeddings = {"embeddings": torch.randn(4, 77, config.cross_attention_dim), "pooled": torch.randn(4, pooled)}
    save_tensors(tmp_path / "prompts", embeddings, {"side": 64})
    unet.read_prompts(tmp_path / "prompts")
    x, cond = torch.randn(6, *unet.sample_shape, device=DEVICE), torch.tensor([0, 1, 2, 3, 0, 1], device=DEVICE)
    expected = Teacher(unet, VPSchedule()).to(DEVICE).eps(cond, 3.0)(x, 500)
    torch._dynamo.reset()
    value = Teacher(unet, VPSchedule(), compiled=True).to(DEVICE).eps(cond, 3.0)(x, 500)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # an error would leave it as it is
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)
