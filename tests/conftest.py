"""Shared fixtures, made once: data, a tiny teacher, a small experiment run through the real workflow."""

from __future__ import annotations

import os
import subprocess
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CONSISTENCY_CACHE", tempfile.mkdtemp(prefix="consistency-cache-"))

import pytest
import torch
from helpers import SMALL_EXACT, Project, missing


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits file."""
    from consistency import data

    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    data.prepare(path, {"kind": "digits", "test_share": 0.2, "seed": 0})
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The small experiment, run once from nothing; tests restore what they change."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.first = project.snakemake()
    return project


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """A small experiment on two modes with both papers' methods, run once; tests restore what they change."""
    project = Project(tmp_path_factory.mktemp("exact"))
    project.small = SMALL_EXACT
    project.configure_exact({})
    project.snakemake()
    return project


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        missing(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
