"""Solves side by side: a sample that is done makes room for one that has not begun, and no call is wasted."""

import json

import pytest
import torch
from consistency.config.shards import shard_range
from consistency.files.storage import load_tensors, weights_sha256
from consistency.flow import solvers
from consistency.flow.noise import normal
from consistency.flow.schedules import VPSchedule
from consistency.teachers import manifest as manifests
from consistency.teachers import targets

SCHEDULE = VPSchedule()
CPU = torch.device("cpu")
CALLS = {"ddim": 1, "euler": 1, "heun": 2}
N = 10


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Calls are counted exactly; a GPU's are filled up."""
    monkeypatch.setattr(targets, "pick_device", lambda: CPU)


def starts(count, seed):
    return torch.randint(N, (count,), generator=torch.Generator().manual_seed(seed))


def prediction(x, t, own):
    """Depends on everything: the state, the time, and the sample's own number."""
    t = torch.as_tensor(t).to(x).reshape(-1, 1) / SCHEDULE.steps
    return torch.tanh(x * own[:, None] + t) + 0.1 * own[:, None]


def packed(x, start, own, solver, batch_size, progress=None):
    """The solve, and the rows of each call."""
    calls = []

    def eps(rows):
        def predict(x, t):
            assert len(x) == len(rows)
            calls.append(rows.tolist())
            return prediction(x, t, own[rows])

        return predict

    grid = SCHEDULE.grid(N)
    return *targets.solve(x, start, grid, solver, eps, SCHEDULE, batch_size, progress=progress), calls


@pytest.mark.parametrize("order", ["ascending", "as drawn", "all at once"])
@pytest.mark.parametrize("name", CALLS)
def test_batches_are_full_until_nobody_waits(name, order):
    count, batch_size, per_step = 200, 16, CALLS[name]
    start = starts(count, 0)
    start = {"ascending": start.sort().values, "as drawn": start, "all at once": torch.zeros_like(start)}[order]
    x, own = normal(0, "noise", range(count), (3,)), torch.linspace(0.5, 1.5, count)
    finished = []
    x_n, x_0, calls = packed(x, start, own, getattr(solvers, name), batch_size, finished.append)

    assert sum(map(len, calls)) == int((N - start).sum()) * per_step
    asked = torch.bincount(torch.tensor(sum(calls, [])), minlength=count)
    assert torch.equal(asked, (N - start) * per_step)  # each sample exactly as often as it needs
    assert all(len(set(rows)) == len(rows) for rows in calls)
    steps = calls[::per_step]
    assert all(calls[i] == steps[i // per_step] for i in range(len(calls)))  # Heun's two calls are of one batch
    sizes = [len(rows) for rows in steps]
    full = next((i for i, size in enumerate(sizes) if size < batch_size), len(sizes))
    tail = sizes[full:]
    assert full > 10
    # the longest first: hardly a call is not full; else at most one solve's length, whatever the number of samples
    assert len(tail) <= (2 if order == "ascending" else N)
    assert tail == sorted(tail, reverse=True)  # nobody joins any more
    assert max(max(rows) for rows in steps[: full + 1]) == count - 1
    assert sum(finished) == count

    for row in range(count):
        k = int(start[row])
        points = targets.trajectory(
            x[row : row + 1],
            SCHEDULE.grid(N)[k:],
            getattr(solvers, name),
            lambda x, t: prediction(x, t, own[row : row + 1]),
            SCHEDULE,
        )[0]
        scale = 1e-6 * max(points.abs().max().item(), 1)
        torch.testing.assert_close(x_n[row], points[1], rtol=1e-6, atol=scale)
        torch.testing.assert_close(x_0[row], points[-1], rtol=1e-6, atol=scale)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_any_batch_size(batch_size):
    count = 23
    start, x, own = starts(count, 1), normal(0, "noise", range(count), (3,)), torch.linspace(0.5, 1.5, count)
    kept = x.clone()
    x_n, x_0, calls = packed(x, start, own, solvers.ddim, batch_size)
    assert max(map(len, calls)) == min(batch_size, count)
    expected = packed(x, start, own, solvers.ddim, 5)
    torch.testing.assert_close(x_n, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x_0, expected[1], rtol=1e-6, atol=1e-5)
    assert torch.equal(x, kept)  # what was given is left as it is


def test_calls_filled_up_as_on_a_gpu(monkeypatch):
    """The last calls have few sizes; what fills them up is not kept."""
    start, x, own = starts(45, 2), normal(0, "noise", range(45), (3,)), torch.linspace(0.5, 1.5, 45)
    assert targets._unit(torch.device("cuda"), 2048) == 256
    assert targets._unit(torch.device("cuda"), 4) == 1
    expected = packed(x, start, own, solvers.heun, 16)
    monkeypatch.setattr(targets, "_unit", lambda device, batch_size: 4)
    odd = packed(x, start, own, solvers.heun, 10)[2]
    assert {len(rows) for rows in odd} <= {4, 8, 10}  # never more than were asked for
    finished = []
    *ends, calls = packed(x, start, own, solvers.heun, 16, finished.append)
    assert {len(rows) for rows in calls} <= {4, 8, 12, 16}
    assert len(calls) == len(expected[2])
    assert sum(finished) == 45
    for one, other in zip(ends, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_sample_one_step_from_the_end_costs_one_call():
    x, own = normal(0, "noise", range(3), (3,)), torch.ones(3)
    x_n, x_0, calls = packed(x, torch.full((3,), N - 1), own, solvers.ddim, 2)
    assert calls == [[0, 1], [2]]
    assert torch.equal(x_n, x_0)


@pytest.mark.parametrize(("name", "expected"), CALLS.items())
def test_calls_of_a_solver_step(name, expected):
    assert targets.calls_of(getattr(solvers, name), SCHEDULE) == expected


@pytest.fixture
def pool(digits):
    tensors, _ = load_tensors(digits)
    return tensors["train_images"], tensors["train_labels"]


def watched(teacher):
    """The sizes of the network's batches."""
    sizes = []
    teacher.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("name", CALLS)
def test_a_shard_costs_the_minimum(tmp_path, teacher, teacher_folder, pool, name, w):
    count, batch_size = 96, 16
    sizes, path, branches = watched(teacher), tmp_path / "shard-0.safetensors", 1 if w == 1 else 2
    targets.solve_shard(path, teacher, *pool, range(count), "paper", name, N, w, 5, batch_size)
    tensors, metadata = load_tensors(path)
    needed = int((N - tensors["k"]).sum()) * CALLS[name] * branches
    assert 0 < len(set(tensors["k"].tolist())) <= N
    assert sum(sizes) == needed == metadata["teacher_calls"] == metadata["teacher_calls_minimum"]
    assert max(sizes) == batch_size * branches
    partial = [size for size in sizes if size < batch_size * branches]
    assert len(partial) <= 2 * CALLS[name]
    assert sizes[len(sizes) - len(partial) :] == partial  # all at the end

    chosen = {"mode": "paper", "solver": name, "n_steps": N, "guidance": w, "seed": 5, "count": count}
    manifests.gather(tmp_path / "manifest.json", [path], chosen, weights_sha256(teacher_folder))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["teacher_calls"] == manifest["teacher_calls_minimum"] == needed


@pytest.mark.parametrize(("name", "w"), [("ddim", 1.0), ("heun", 4.0)])
def test_whole_solves_cost_the_minimum_too(tmp_path, teacher, pool, name, w):
    sizes, path = watched(teacher), tmp_path / "shard-0.safetensors"
    targets.solve_shard(path, teacher, *pool, range(20), "trajectory", name, N, w, 5, 8)
    needed = 20 * N * CALLS[name] * (1 if w == 1 else 2)
    _, metadata = load_tensors(path)
    assert sum(sizes) == needed == metadata["teacher_calls"] == metadata["teacher_calls_minimum"]


def test_the_manifest_adds_the_shards_up(tmp_path, teacher, teacher_folder, pool):
    """Shards solved by one teacher, one after the other, each count their own calls."""
    sizes, paths = watched(teacher), [tmp_path / f"shard-{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        targets.solve_shard(path, teacher, *pool, shard_range(40, 3, i), "paper", "heun", N, 4.0, 5, 8)
    chosen = {"mode": "paper", "solver": "heun", "n_steps": N, "guidance": 4.0, "seed": 5, "count": 40}
    manifests.gather(tmp_path / "manifest.json", paths, chosen, weights_sha256(teacher_folder))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["teacher_calls_minimum"] == sum(sizes)
    assert manifest["teacher_calls"] == sum(sizes)
