"""make status, and TensorBoard: what is shown of a training while it runs, and what is not touched."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from consistency.runtime import status
from consistency.students import losses
from consistency.training import loop
from helpers import ROOT, constant_rate

RECORD = {"step": 50, "loss": 0.25, "grad_norm": 1.5, "lr": 1e-3, "samples_per_s": 640.0, "seconds": 10.0}


def begin(results, experiment, run, lines, steps=1000, age=5.0, now=1_000_000.0):
    """A side folder as training leaves it, its files last written `age` seconds before `now`."""
    side = results / experiment / "checkpoints" / run
    side.mkdir(parents=True)
    (side / "training.json").write_text(json.dumps({"what": f"train {run}", "steps": steps}))
    if lines:
        (side / "stats.jsonl").write_text("".join(lines))
    for file in side.iterdir():
        os.utime(file, (now - age, now - age))
    return side


def line(**changes):
    return json.dumps(RECORD | changes) + "\n"


def test_a_training_is_its_last_records(tmp_path):
    begin(tmp_path, "digits", "teacher", [line(), line(step=100, seconds=30.0, loss=0.125)])
    (seen,) = status.trainings(tmp_path, now=1_000_000.0)
    assert (seen.experiment, seen.run, seen.step, seen.steps) == ("digits", "teacher", 100, 1000)
    assert (seen.loss, seen.grad_norm, seen.samples_per_s) == (0.125, 1.5, 640.0)
    assert seen.left == pytest.approx(900 * 20 / 50)  # 50 steps took 20 s
    assert seen.age == pytest.approx(5)
    assert not seen.stale


@pytest.mark.parametrize(
    ("lines", "age", "stale"),
    [
        ([line()], 59, False),
        ([line()], 61, True),
        ([line(seconds=100.0)], 299, False),  # slow steps: three records' time
        ([line(seconds=100.0)], 301, True),
        ([], 599, False),  # nothing recorded yet
        ([], 601, True),
    ],
)
def test_a_training_that_says_nothing_is_stale(tmp_path, monkeypatch, lines, age, stale):
    begin(tmp_path, "digits", "teacher", lines, age=age)
    (seen,) = status.trainings(tmp_path, now=1_000_000.0)
    assert seen.stale == stale
    monkeypatch.setattr("consistency.runtime.status.time.time", lambda: 1_000_000.0)
    assert (", stale" in status.table(tmp_path)) == stale


def test_half_a_line_is_left_out(tmp_path):
    side = begin(tmp_path, "digits", "teacher", [])
    for cut in range(1, len(line())):
        (side / "stats.jsonl").write_text(line() + line(step=75)[:cut])
        whole = cut == len(line()) - 1  # all but the line's end
        assert [seen.step for seen in status.trainings(tmp_path)] == [75 if whole else 50]
        (side / "stats.jsonl").write_bytes(b"\xff\x00" + line()[:cut].encode())
        assert [seen.step for seen in status.trainings(tmp_path)] == [0]


def test_only_the_end_of_a_long_file_is_read(tmp_path):
    begin(tmp_path, "digits", "teacher", [line(step=step, seconds=step / 5) for step in range(1, 900)])
    (seen,) = status.trainings(tmp_path, now=1_000_000.0)
    assert seen.step == 899
    assert seen.left == pytest.approx(101 / 5)


def test_what_is_no_training_is_passed_over(tmp_path):
    assert status.table(tmp_path) == status.table(tmp_path / "nothing") == "no training in progress"
    (tmp_path / "logs" / "checkpoints" / "empty").mkdir(parents=True)
    begin(tmp_path, "digits", "teacher", [])
    (tmp_path / "digits" / "checkpoints" / "teacher" / "training.json").write_text('{"what": "tr')
    assert status.trainings(tmp_path) == []


def test_finished_outputs_are_counted(tmp_path):
    for name in ("students/a/student.json", "students/b/student.json", "samples/a.safetensors", "metrics/data.json"):
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "figures").mkdir()
    expected = {"targets": 0, "students": 2, "samples": 1, "features": 0, "metrics": 1}
    assert status.finished(tmp_path) == {"digits": expected}
    assert "digits" in status.table(tmp_path)


def test_the_command(tmp_path):
    """`make status` runs this; it imports no torch, reads config.yaml for the folder, and repeats when watching."""
    begin(tmp_path / "out", "digits", "teacher", [line()])
    (tmp_path / "config.yaml").write_text("results: out\n")
    command = [sys.executable, "-X", "importtime", str(ROOT / "workflow/scripts/status.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (row,) = [text for text in done.stdout.splitlines() if "teacher" in text]
    assert row.split()[:7] == ["digits", "teacher", "50", "1000", "5", "0.25", "1.5"]
    assert "torch" not in done.stderr
    watching = subprocess.Popen(
        [*command, "--watch", "0.05"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=-3, text=True
    )
    try:
        shown = [watching.stdout.readline() for _ in range(12)]
    finally:
        watching.kill()
        watching.wait()
    assert sum("teacher" in text for text in shown) > 1


# --- TensorBoard


def fit(side, steps, stop=None):
    model = torch.nn.Linear(4, 4)

    def batch_at(step):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 4), dtype="float32"))
        return {"x": x, "y": x.flip(1)}

    settings = constant_rate(steps=steps, batch_size=8, checkpoint_every=10, log_every=2)
    task = loop.Task(lambda m, b: (m(b["x"]), b["y"]), batch_at, losses.mse)
    return loop.train(model, task, settings, seed=0, side_folder=side, fingerprint={})


def test_tensorboard_holds_the_records(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    side = tmp_path / "digits" / "checkpoints" / "teacher"
    fit(side, 4)
    assert not (tmp_path / "digits" / "tensorboard").exists()  # nobody asked
    loop.finish(side)
    monkeypatch.setenv("CONSISTENCY_TENSORBOARD", "1")
    fit(tmp_path / "digits" / "checkpoints" / "another", 4)
    fit(side, 6)
    loop.finish(side)  # a finished training; the next one with its name begins anew
    with pytest.raises(KeyboardInterrupt):
        fit(side, 30, stop=17)
    records = fit(side, 30)
    board = EventAccumulator(str(tmp_path / "digits" / "tensorboard" / "teacher")).Reload()
    assert set(board.Tags()["scalars"]) == set(RECORD) - {"step"}
    for name in ("loss", "grad_norm", "lr"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(record["step"], pytest.approx(record[name])) for record in records]
    assert (tmp_path / "digits" / "tensorboard" / "another").is_dir()


def test_without_tensorboard_there_is_a_line_and_no_logs(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CONSISTENCY_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert len(fit(tmp_path / "checkpoints" / "teacher", 4)) == 2
    assert "tensorboard: not installed" in caplog.text
    assert not (tmp_path / "tensorboard").exists()


ODD = [
    "[]", "null", "1", '"step"', "{}", '{"step": 5}', '{"step": "5", "seconds": 1}', '{"step": 5, "seconds": null}',
    '{"step": true, "seconds": 1}', '{"step": 5, "seconds": NaN}', '{"step": 5, "seconds": Infinity}',
    '{"step": -5, "seconds": 1}', '{"step": 5, "seconds": -1}', '{"step": 1e30, "seconds": 1}', "[" * 3000,
    '{"step": 5.5, "seconds": 1}', '{"step": ' + "9" * 3000 + ', "seconds": 1}',
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_records_and_plans_are_left_out(tmp_path, odd):
    side = begin(tmp_path, "digits", "teacher", [line(), odd + "\n"])
    (seen,) = status.trainings(tmp_path)
    assert (seen.step, seen.left is None) == (50, False), f"{odd[:40]}: {seen}"
    assert "50" in status.table(tmp_path)
    for plan in (odd, json.dumps({"steps": odd}), f'{{"steps": {odd}}}'):
        (side / "training.json").write_text(plan)
        assert status.table(tmp_path).startswith("no training" if plan != '{"steps": 1}' else "experiment"), plan[:40]


def test_odd_numbers_beside_step_and_seconds_are_not_shown(tmp_path):
    begin(tmp_path, "digits", "teacher", [line(loss="\x1b[2J", grad_norm=[1], samples_per_s=1e300)])
    (seen,) = status.trainings(tmp_path)
    assert (seen.loss, seen.grad_norm, seen.samples_per_s) == (None, None, None)


def test_time_that_runs_backwards_gives_no_rate(tmp_path):
    begin(tmp_path, "digits", "teacher", [line(step=100, seconds=50.0), line(step=90, seconds=40.0)])
    (seen,) = status.trainings(tmp_path)
    assert seen.left is None or seen.left > 0
    assert "-" not in status.table(tmp_path).splitlines()[2].replace("--", ""), status.table(tmp_path)


def test_names_cannot_command_the_terminal(tmp_path):
    side = begin(tmp_path, "dig\x1b[31mits", "teach\x1b]0;title\x07er\u202e", [line()])
    metrics = side.parents[1] / "metrics"
    metrics.mkdir()
    (metrics / "x.json").touch()
    command = [sys.executable, str(ROOT / "workflow/scripts/status.py"), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [letter for letter in said if not letter.isprintable() and letter != "\n"] == [], repr(said)
    assert said.count("dig\\x1b[31mits") == 2, said  # in progress, and finished


def test_pipes_are_not_waited_for(tmp_path):
    side = begin(tmp_path, "digits", "teacher", [line()])
    (side / "stats.jsonl").unlink()
    os.mkfifo(side / "stats.jsonl")
    assert [seen.step for seen in status.trainings(tmp_path)] == [0]
    (side / "training.json").unlink()
    os.mkfifo(side / "training.json")
    command = [sys.executable, str(ROOT / "workflow/scripts/status.py"), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.endswith("no training in progress\n"), said
