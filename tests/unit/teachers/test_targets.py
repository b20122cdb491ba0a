"""Noise and targets: independent of batching, equal to the online solve, checked when read."""

import json
import subprocess
import sys

import pytest
import torch
from consistency.config.shards import shard_range
from consistency.data import prepare
from consistency.errors import ConfigError, ConsistencyError, MismatchError, StorageError
from consistency.files import storage
from consistency.files.storage import load_tensors
from consistency.flow.noise import draw_noise, normal
from consistency.flow.schedules import VPSchedule
from consistency.teachers import manifest as manifests
from consistency.teachers import targets
from students import fit, job_of_targets


@pytest.fixture
def images(digits):
    tensors, _ = prepare.load(digits)
    return tensors["train_images"], tensors["train_labels"]


def solve(folder, teacher, images, count=96, shards=1, batch=96, mode="paper", solver="ddim", n_steps=10, w=4.0):
    paths = [folder / f"shard-{i}.safetensors" for i in range(shards)]
    for i, path in enumerate(paths):
        teacher.calls = 0
        numbers = shard_range(count, shards, i)
        targets.solve_shard(path, teacher, *images, numbers, mode, solver, n_steps, w, 5, batch)
    return paths


def manifest(folder, paths, teacher_folder, count=96, mode="paper", solver="ddim", n_steps=10, w=4.0):
    settings = {"mode": mode, "solver": solver, "n_steps": n_steps, "guidance": w, "seed": 5, "count": count}
    manifests.gather(folder / "manifest.json", paths, settings, storage.weights_sha256(teacher_folder))
    return folder / "manifest.json"


def joined(paths):
    parts = [load_tensors(path)[0] for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_noise_does_not_depend_on_batch_or_order():
    whole = normal(3, "noise", range(10), (1, 4, 4))
    parts = torch.cat([normal(3, "noise", range(7, 10), (1, 4, 4)), normal(3, "noise", range(7), (1, 4, 4))])
    assert torch.equal(whole, torch.cat([parts[3:], parts[:3]]))
    assert torch.equal(torch.from_numpy(draw_noise(10, (1, 4, 4), 10, 3)["noise"]), whole)
    assert torch.equal(torch.from_numpy(draw_noise(25, (1, 4, 4), 10, 3)["noise"][:10]), whole)
    assert not torch.equal(whole, normal(4, "noise", range(10), (1, 4, 4)))
    assert not torch.equal(whole, normal(3, "renoise", range(10), (1, 4, 4)))


def test_noise_is_standard_normal():
    x = normal(0, "noise", range(2000), (8, 8)).double()
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert x.var().item() == pytest.approx(1, abs=0.02)
    neighbours = (x[:-1] * x[1:]).mean().item()
    assert abs(neighbours) < 4 / x.numel() ** 0.5  # streams of neighbouring samples are uncorrelated


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun"])
def test_paper_targets_equal_the_online_solve(tmp_path, teacher, images, solver):
    """What a student gets equals solving inside the training step, sample by sample."""
    solved = joined(solve(tmp_path, teacher, images, solver=solver))
    drawn = targets.draw(*images, range(96), 10, 5)
    schedule, grid = teacher.schedule, teacher.schedule.grid(10)
    assert torch.equal(solved["k"], drawn["k"])
    assert torch.equal(solved["cond"], drawn["cond"])
    step = targets.solver_named(solver)
    for row in range(0, 96, 7):
        k = int(drawn["k"][row])
        x = schedule.add_noise(drawn["x"][row : row + 1], drawn["noise"][row : row + 1], grid[k])
        eps = teacher.eps(drawn["cond"][row : row + 1], 4.0)
        points = targets.trajectory(x, grid[k:], step, eps, schedule)
        torch.testing.assert_close(solved["x_s"][row], x[0], rtol=0, atol=0)
        torch.testing.assert_close(solved["x_n"][row], points[0, 1], rtol=1e-5, atol=1e-6)
        scale = points.abs().max().item()
        torch.testing.assert_close(solved["x_0"][row], points[0, -1], rtol=1e-5, atol=1e-6 * max(scale, 1))


def test_trajectory_targets_equal_the_online_solve_bit_for_bit(tmp_path, teacher, images):
    """At the same batch shape the arithmetic is the same, so the bits are."""
    solved = joined(solve(tmp_path, teacher, images, mode="trajectory"))
    drawn = targets.draw(*images, range(96), 10, 5)
    grid = teacher.schedule.grid(10)
    x = teacher.schedule.add_noise(drawn["x"], drawn["noise"], grid[0])
    points = targets.trajectory(
        x, grid, targets.solver_named("ddim"), teacher.eps(drawn["cond"], 4.0), teacher.schedule
    )
    assert torch.equal(solved["points"], points)


def test_paper_targets_equal_the_online_solve_bit_for_bit_at_the_same_shape(tmp_path, teacher, images):
    """All samples of a batch at one start: the packed solve and the plain one do the same calls."""
    drawn = targets.draw(*images, range(32), 10, 5)
    grid, schedule = teacher.schedule.grid(10), teacher.schedule
    x, eps = schedule.add_noise(drawn["x"], drawn["noise"], grid[3]), teacher.eps(drawn["cond"], 4.0)
    step = targets.solver_named("heun")
    x_n, x_0 = targets.solve(x, torch.full((32,), 3), grid, step, lambda rows: eps, schedule, 32)
    points = targets.trajectory(x, grid[3:], step, eps, schedule)
    assert torch.equal(x_n, points[:, 1])
    assert torch.equal(x_0, points[:, -1])


@pytest.mark.parametrize("mode", ["paper", "trajectory"])
def test_targets_do_not_depend_on_shards_or_batch(tmp_path, teacher, images, mode):
    folders = [tmp_path / name for name in "abc"]
    whole = joined(solve(folders[0], teacher, images, mode=mode))
    sharded = joined(solve(folders[1], teacher, images, mode=mode, shards=5))
    batched = joined(solve(folders[2], teacher, images, mode=mode, batch=17))
    for name, value in whole.items():
        scale = value.abs().max().item() if value.is_floating_point() else 0
        for other in (sharded[name], batched[name]):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6 * max(scale, 1))


def test_no_teacher_call_is_wasted(tmp_path, teacher, teacher_folder, images, monkeypatch):
    """Guided: two evaluations a step, and only the N − k steps that a draw needs. (A GPU's calls are filled up.)"""
    monkeypatch.setattr(targets, "pick_device", lambda: torch.device("cpu"))
    paths = solve(tmp_path, teacher, images, shards=3)
    path = manifest(tmp_path, paths, teacher_folder)
    k = joined(paths)["k"]
    assert json.loads(path.read_text())["teacher_calls"] == 2 * int((10 - k).sum())


@pytest.mark.parametrize(("mode", "pairs"), [("paper", 96), ("trajectory", 960)])
def test_every_pair_is_read_once_an_epoch(tmp_path, teacher, teacher_folder, images, mode, pairs):
    paths = solve(tmp_path, teacher, images, shards=4, mode=mode)
    path = manifest(tmp_path, paths, teacher_folder, mode=mode)
    reader = targets.TargetReader(path, VPSchedule(), 12, seed=0)
    steps = pairs // 12
    epochs = [torch.cat([reader(step)["x_t"] for step in range(e * steps, (e + 1) * steps)]) for e in (0, 1)]
    rows = [sorted(map(tuple, epoch.flatten(1).tolist())) for epoch in epochs]
    assert len(set(rows[0])) == pairs
    assert rows[0] == rows[1]
    assert not torch.equal(*epochs)
    again = targets.TargetReader(path, VPSchedule(), 12, seed=0)
    assert torch.equal(again(steps + 1)["x_0"], reader(steps + 1)["x_0"])  # a function of the step alone


def test_trajectory_pairs_belong_together(tmp_path, teacher, teacher_folder, images):
    paths = solve(tmp_path, teacher, images, mode="trajectory")
    reader = targets.TargetReader(
        manifest(tmp_path, paths, teacher_folder, mode="trajectory"), VPSchedule(), 32, seed=0
    )
    batch = reader(0)
    stepped = torch.cat(
        [
            targets.solver_named("ddim")(
                batch["x_t"][i : i + 1],
                int(batch["t"][i]),
                int(batch["r"][i]),
                teacher.eps(batch["cond"][i : i + 1], 4.0),
                teacher.schedule,
            )
            for i in range(32)
        ]
    )
    torch.testing.assert_close(batch["x_r"], stepped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_shard(tmp_path, teacher, teacher_folder, images, damage):
    paths = solve(tmp_path, teacher, images, shards=2)
    path = manifest(tmp_path, paths, teacher_folder)
    content = bytearray(paths[1].read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        paths[1].write_bytes(content)
    elif damage == "truncate":
        paths[1].write_bytes(content[: len(content) // 2])
    else:
        paths[1].unlink()
    reader = targets.TargetReader(path, VPSchedule(), 12, seed=0)
    with pytest.raises(StorageError, match="shard-1") as caught:
        for step in range(8):
            reader(step)
    assert "\n" not in str(caught.value)
    if damage != "flip":
        with pytest.raises(ConsistencyError, match="shard-1"):
            manifest(tmp_path, paths, teacher_folder)


def test_wrong_number_or_order_of_shards(tmp_path, teacher, teacher_folder, images):
    paths = solve(tmp_path, teacher, images, shards=2)
    with pytest.raises(MismatchError, match="expected 0"):
        manifest(tmp_path, paths[::-1], teacher_folder)
    with pytest.raises(MismatchError, match="hold 96 draws, the configuration says 200"):
        manifest(tmp_path, paths, teacher_folder, count=200)


def test_batch_larger_than_a_shard(tmp_path, teacher, teacher_folder, images):
    path = manifest(tmp_path, solve(tmp_path, teacher, images, shards=4), teacher_folder)
    with pytest.raises(ConfigError, match="batch_size 32"):
        targets.TargetReader(path, VPSchedule(), 32, seed=0)


def test_targets_of_another_teacher(tmp_path, teacher, teacher_folder, images):
    paths = solve(tmp_path, teacher, images)
    path = manifest(tmp_path, paths, teacher_folder)
    storage.write_json(path, storage.read_json(path) | {"teacher_sha256": "0" * 64})
    with pytest.raises(MismatchError, match="targets of teacher 000000000000"):
        fit(job_of_targets(training={"steps": 2, "batch_size": 8}), tmp_path, teacher=teacher_folder, manifest=path)


@pytest.mark.needs("linux")
def test_readers_memory_does_not_grow_with_the_number_of_targets(tmp_path):
    """Four times the shards, the same peak: one is open at a time, and its pages are mapped."""
    from consistency.files.storage import save_tensors, sha256, write_json

    def build(folder, shards):
        entries = []
        for i in range(shards):
            tensors = {name: torch.randn(20_000, 1, 8, 8) for name in ("x_s", "x_n", "x_0")}
            tensors |= {"k": torch.zeros(20_000, dtype=torch.int64), "cond": torch.zeros(20_000, dtype=torch.int64)}
            path = folder / f"shard-{i}.safetensors"
            save_tensors(path, tensors, {"first": i * 20_000, "count": 20_000})
            entries.append({"file": path.name, "count": 20_000, "sha256": sha256(path)})
        settings = {"mode": "paper", "n_steps": 10, "teacher_sha256": "0" * 64, "shards": entries}
        write_json(folder / "manifest.json", settings)
        return folder / "manifest.json"

    code = (
        "import sys; from consistency.teachers.targets import TargetReader; from consistency.flow.schedules import VPSchedule\n"
        "reader = TargetReader(sys.argv[1], VPSchedule(), 128, 0)\n"
        "for step in range(int(sys.argv[2])): reader(step)\n"
        # ru_maxrss would be the peak of the process that started this one, where that was larger
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for shards in (3, 12):
        (tmp_path / str(shards)).mkdir()
        path = build(tmp_path / str(shards), shards)
        command = [sys.executable, "-c", code, str(path), str(156 * shards)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": "workflow"})
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 15, f"peak memory in MB: {peaks}; nine more shards are 138 MB"


def test_the_teachers_other_samples_are_those_of_their_noises(tmp_path, teacher):
    from consistency.students.sampling import sample_teacher

    drawn = {name: torch.from_numpy(array) for name, array in draw_noise(6, (1, 8, 8), 10, 3, other=True).items()}
    noise, other, labels = (drawn[name] for name in ("noise", "other_noise", "labels"))
    assert torch.equal(noise, torch.from_numpy(draw_noise(6, (1, 8, 8), 10, 3)["noise"]))
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.2
    options = {"solver": "ddim", "n_steps": 5, "guidance": 4.0, "starts": 2, "batch_size": 4}
    for name, more in (("both", {"other_noise": other}), ("first", {}), ("second", {})):
        start = other if name == "second" else noise
        sample_teacher(tmp_path / name, teacher, start, labels, **options, **more)
    both, first, second = (load_tensors(tmp_path / name)[0] for name in ("both", "first", "second"))
    assert torch.equal(both.pop("other_samples"), second["samples"])
    assert both.keys() == first.keys()
    assert all(torch.equal(both[name], first[name]) for name in first)
