"""What tests need beyond Python and the packages of requirements-test.lock, in one place.

A test says `@pytest.mark.needs("rsync", "git")`; one that uses a fixture of `BY_FIXTURE` has that fixture's needs by
itself. `conftest.py` skips a test whose need is missing and gives the reason; with CI=true it is an error, before any
fixture is made.

    .venv/bin/python tests/needs.py    what is missing here; exit status 1 where CI must have it
    python3 tests/needs.py --packages  the Debian packages that would provide it

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SLURM_TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "setpriv")
# Clients that a SLURM job starts know no other place: the plug-in takes SLURM's variables out of a job's environment.
SLURM_FOLDER = Path("/etc/slurm")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Need:
    """One thing that a test needs.

    Args:
        hindrance: gives the reason why it cannot be had here, or None.
        packages: Debian packages that provide it.
        in_ci: whether it is an error that CI lacks it.
    """

    hindrance: Callable[[], str | None]
    packages: tuple[str, ...] = ()
    in_ci: bool = True


def program(*names: str) -> Callable[[], str | None]:
    """The hindrance of programs: beside this Python, or on the PATH."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def hindrance() -> str | None:
        absent = [name for name in names if shutil.which(name, path=places) is None]
        return f"{', '.join(absent)}: not installed" if absent else None

    return hindrance


def linux() -> str | None:
    """Processes are looked at through /proc, and jobs start from a process that only Linux allows."""
    return None if sys.platform == "linux" else "for Linux only"


def glibc() -> str | None:
    """The memory allocator that the workflow configures."""
    return None if hasattr(ctypes.CDLL(None), "gnu_get_libc_version") else "the C library is not glibc"


def small_disk() -> str | None:
    """The right to mount a file system of a given size."""
    if absent := program("mount", "umount")():
        return absent
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            return f"a small file system cannot be mounted here: {mounted.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return None


def slurm() -> str | None:
    """A SLURM of one node on loopback, which cluster/slurm.py starts."""
    if absent := program(*SLURM_TOOLS)():
        return absent
    if os.geteuid():
        return "a SLURM on loopback needs root"
    file = SLURM_FOLDER / "slurm.conf"
    if file.exists() and "ClusterName=loopback" not in file.read_text():
        return f"{file}: this machine has a SLURM of its own"
    return None


def conda() -> str | None:
    """A conda client, or Linux, for which conda/client.py is a stand-in."""
    return (
        None if shutil.which("conda") or linux() is None else "there is no conda client, and the stand-in is for Linux"
    )


def fashion_mnist() -> str | None:
    """The data set as Debian's package has it."""
    return None if FASHION_MNIST.is_dir() else f"{FASHION_MNIST} does not exist (Debian's dataset-fashion-mnist)"


def root() -> str | None:
    """The right to give files to another user, and to become one."""
    return "only root may" if os.geteuid() else program("setpriv")()


def gpu() -> str | None:
    """A GPU that torch can use."""
    import torch

    return None if torch.cuda.is_available() else "there is no GPU"


def no_gpu() -> str | None:
    """The lack of one: how its absence is told."""
    return "this machine has a GPU" if gpu() is None else None


NEEDS = {
    "bash": Need(program("bash", "sha256sum"), ("bash", "coreutils")),
    "chromium": Need(program("chromium"), ("chromium",)),
    "conda": Need(conda),
    "fashion-mnist": Need(fashion_mnist, ("dataset-fashion-mnist",)),
    "git": Need(program("git"), ("git",)),
    "glibc": Need(glibc),
    "gpu": Need(gpu, in_ci=False),
    "hadolint": Need(program("hadolint")),
    "linux": Need(linux),
    "make": Need(program("make"), ("make",)),
    "no gpu": Need(no_gpu, in_ci=False),
    "root": Need(root, ("util-linux",)),
    "rsync": Need(program("rsync"), ("rsync",)),
    "slurm": Need(slurm, ("slurm-wlm", "munge", "util-linux")),
    "small disk": Need(small_disk, ("mount",)),
    "snakedeploy": Need(program("snakedeploy")),
}

# Fixture → what every test that uses it needs.
BY_FIXTURE = {
    "away": ("root",),
    "browser": ("chromium",),
    "cluster": ("slurm",),
    "conda": ("conda",),
    "deployed": ("git", "snakedeploy"),
    "kubernetes": ("git", "rsync"),
    "repository": ("git",),
    "small_disk": ("small disk",),
}


@functools.cache
def missing(name: str) -> str | None:
    """Why a test that needs this cannot run here, in one line; None where it can.

    Raises:
        KeyError: no such need.
    """
    reason = NEEDS[name].hindrance()
    return reason and f"needs {name}: {reason}"


def main(arguments: list[str]) -> int:
    """Print what is missing; the exit status."""
    absent = [name for name in NEEDS if name not in ("gpu", "no gpu") and missing(name)]
    if arguments == ["--packages"]:
        print(*sorted({package for name in absent for package in NEEDS[name].packages}))
        return 0
    for name in absent:
        print(missing(name))
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
