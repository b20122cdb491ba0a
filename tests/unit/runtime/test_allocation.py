"""Freed memory stays with the process that asked for it."""

import subprocess
import sys

import pytest
from consistency.runtime import allocation
from helpers import ROOT

TEXT = """
import resource, sys
import numpy as np
from consistency.runtime.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = [np.ones(1 << 20) for _ in range(4)]  # 8 MB each, as activations
del kept
before = faults()
for _ in range(50):
    a, b = np.ones(1 << 20), np.ones(1 << 20)
    del a, b
print(faults() - before)
"""


@pytest.mark.needs("linux", "glibc")
def test_arrays_are_not_made_of_new_pages_each_time():
    """Two arrays of 2,048 pages, fifty times."""
    found = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", TEXT, how],
                env={"PYTHONPATH": str(ROOT / "workflow")}, check=True, capture_output=True, text=True,
            ).stdout
        )
        for how in ("kept", "given back")
    }  # fmt: skip
    assert found["kept"] < 5_000
    assert found["given back"] > 10_000


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    assert allocation.keep_freed_memory() is False
