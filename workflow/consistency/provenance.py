"""What a number was made with: versions, device, commit, time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "diffusers", "accelerate", "peft", "safetensors", "numpy", "scipy", "scikit-learn", "clean-fid")


def git_commit() -> str | None:
    """The commit of the checkout that this file is in, with `-dirty` where tracked files changed.

    Outside git (in a container, in a pod) it is the one that CONSISTENCY_COMMIT names; without that None.
    """
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CONSISTENCY_COMMIT") or None


def environment(device: str = "cpu") -> dict[str, Any]:
    """Package versions, Python, platform, device and git commit."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "git_commit": git_commit(),
    }
