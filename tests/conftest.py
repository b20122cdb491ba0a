"""Shared fixtures: a tiny teacher and data set, made once; what to do where a tool is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

ROOT = Path(__file__).parents[1]


def require(tool: str) -> str:
    """The tool's path; without it the test is skipped, in CI it fails."""
    path = shutil.which(tool)
    if path is None:
        message = f"{tool} is not installed"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits file."""
    from consistency import data

    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    data.prepare(path, "digits", 0.2, 0)
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, digits):
    """A small teacher, trained a little so that its prediction depends on time, label and input."""
    from consistency import fitting
    from consistency.settings import Training

    folder = tmp_path_factory.mktemp("teacher")
    settings = Training(steps=60, batch_size=64, learning_rate=3e-3, warmup_steps=5).model_dump()
    network = {"kind": "mlp", "width": 32, "depth": 1}
    fitting.fit_teacher(
        folder / "model", folder / "stats.jsonl", folder / "side", digits, network, {"steps": 1000}, 0.1, settings, 0
    )
    return folder / "model"


@pytest.fixture
def teacher(teacher_folder):
    """That teacher, loaded."""
    from consistency.schedules import VPSchedule
    from consistency.teachers import Teacher

    return Teacher.load(teacher_folder, VPSchedule())
