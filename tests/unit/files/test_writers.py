"""Files written row by row: the same as those written whole, and never half of one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from consistency.errors import MismatchError, StorageError
from consistency.files.storage import check_tensors, load_tensors
from consistency.files.writers import tensor_file
from helpers import ROOT
from safetensors.torch import load_file

SHAPES = {
    "small": (torch.uint8, (3,)),
    "x": (torch.float32, (5, 2)),
    "k": (torch.int64, (5,)),
    "none": (torch.float64, (0, 4)),
}


def fill(path, rows=5):
    with tensor_file(path, SHAPES) as file:
        file["small"][:] = torch.tensor([1, 2, 255])
        for row in range(rows):
            file["x"][row] = torch.tensor([row, -row / 3])
            file["k"][row] = row**9
        file.metadata |= {"count": rows, "name": "a name"}


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "sub" / "x.safetensors"
    fill(path)
    check_tensors(path)
    found, metadata = load_tensors(path)
    assert metadata == {"count": 5, "name": "a name"}
    assert {name: (v.dtype, tuple(v.shape)) for name, v in found.items()} == SHAPES
    assert torch.equal(found["x"], torch.tensor([[row, -row / 3] for row in range(5)]))
    assert found["k"].tolist() == [row**9 for row in range(5)]
    plain = load_file(path)  # by safetensors alone, which checks the layout
    assert all(torch.equal(plain[name], value) for name, value in found.items())
    assert np.array_equal(load_tensors(path, framework="np")[0]["small"], [1, 2, 255])
    again = tmp_path / "again.safetensors"
    fill(again)
    assert again.read_bytes() == path.read_bytes()


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "x.safetensors"
    fill(path)
    before = path.read_bytes()
    with pytest.raises(KeyError), tensor_file(path, SHAPES) as file:
        file["y"][0] = 1
    with (
        pytest.raises(
            MismatchError, match=r"x\.safetensors: not written: x is not finite in 1 of 5 rows, first in row 3"
        ),
        tensor_file(path, SHAPES) as file,
    ):
        file["x"][3, 1] = torch.nan
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_full_disk_is_told_before_anything_is_computed(small_disk):
    shapes = {"x": (torch.uint8, (2_000_000,))}
    with pytest.raises(StorageError, match="disk full while"), tensor_file(small_disk / "x.safetensors", shapes):
        pytest.fail("the disk is full")
    assert not os.listdir(small_disk)


@pytest.mark.needs("linux")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Of what a process holds for itself; the mapped file's pages are the system's to take back."""
    code = """if True:
        import sys, torch
        from consistency.files.writers import tensor_file
        rows = int(sys.argv[2])
        with tensor_file(sys.argv[1], {"x": (torch.float32, (rows, 1000))}) as file:
            for first in range(0, rows, 1000):
                file["x"][first : first + 1000] = torch.randn(1000, 1000)
        print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
    """
    held = []
    for rows in (10_000, 50_000):  # 40 MB, 200 MB
        command = [sys.executable, "-c", code, str(tmp_path / f"{rows}.safetensors"), str(rows)]
        environment = {"PYTHONPATH": str(ROOT / "workflow")}
        held.append(int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout) / 1024)
    assert held[1] - held[0] < 80, held  # MB; half of what the larger file has more
