"""What a number was made with: versions, device, commit, code."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import bounds

_LIBRARY = Path(__file__).parents[1]
_PACKAGES = ("torch", "diffusers", "accelerate", "peft", "safetensors", "numpy", "scipy", "scikit-learn", "clean-fid")


def git_commit() -> str | None:
    """The commit of the repository that tracks this file, with `-dirty` where tracked files changed; None without one.

    A repository above that does not track it (of a home's dotfiles) says nothing of this code. A checkout of another
    user counts: git refuses it because its configuration may name programs to run, but this code is that user's too.

    CONSISTENCY_COMMIT names the commit where these files are copies: in a container, in a pod, of a hosted repository.
    """
    if commit := os.environ.get("CONSISTENCY_COMMIT"):
        return commit
    here = Path(__file__).resolve()
    top = next((folder for folder in here.parents if (folder / ".git").exists()), None)
    if top is None:
        return None
    git = ["git", "-C", str(here.parent)]
    if top.stat().st_uid == (top / ".git").stat().st_uid == here.stat().st_uid:
        git += ["-c", f"safe.directory={top}"]
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}  # git sets them for what it calls, of another repository
    without = {name: value for name, value in os.environ.items() if name not in elsewhere}
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "env": without}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, **options)
        command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, check=True, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Package → version, of those that make results."""
    installed = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def environment(device: str = "cpu") -> dict[str, Any]:
    """Package versions, Python, platform, device and git commit."""
    return {
        "packages": versions(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "git_commit": git_commit(),
    }


@cache
def code_sha256(script: Path) -> str:
    """One sha256 over a script and every file of this library that it imports, directly or through others."""
    digest, waiting, seen = hashlib.sha256(), [script], {script}
    while waiting:
        new = sorted(set(_imports(waiting.pop())) - seen)
        seen.update(new)
        waiting += new
    for path in sorted(seen, key=lambda path: path.relative_to(script.parents[1])):
        digest.update(f"{path.relative_to(script.parents[1])}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _imports(path: Path) -> Iterator[Path]:
    """The library's files, and those beside a script, that a file's import statements name, wherever they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = path.parents[node.level - 1].relative_to(_LIBRARY.parent).parts if node.level else ()
            module = ".".join([*parent, *filter(None, [node.module])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            folder = _LIBRARY.parent if parts[0] == _LIBRARY.name else path.parent
            for depth in range(1, len(parts) + 1):
                module = folder.joinpath(*parts[:depth])
                yield from (file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file())


def check_shared() -> None:
    """Whether the folder SNAKEMAKE_OUTPUT_CACHE can keep results for other checkouts, before a job runs for one.

    Raises:
        ConfigError: none is named, it is relative (links into it would lead nowhere), or it cannot be written.
    """
    name, folder = "SNAKEMAKE_OUTPUT_CACHE", os.environ.get("SNAKEMAKE_OUTPUT_CACHE", "")
    if "://" in folder:
        return  # of a storage plug-in
    if not Path(folder).is_absolute():
        raise ConfigError(f"{name}: {folder!r} is not allowed; set it to a folder's absolute path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: {folder} is no folder that can be written; make it")


def own_files(source: str | Path) -> list[Path]:
    """A user's file, or the files in a folder or of a pattern, sorted. Follows links; leaves hidden files out.

    Raises:
        StorageError: more folders are reached through links than `bounds.LINKED`.
    """
    path = Path(source).expanduser()
    paths = [path] if path.exists() else map(Path, sorted(glob(str(path), recursive=True)))
    return [file for path in paths for file in (sorted(_below(path)) if path.is_dir() else [path])]


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder and those below it; a link to a folder around it is not entered again."""
    around: dict[str, set[str]] = {}
    linked: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        inside = around.get(parent, set()) | {os.path.realpath(parent)}
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in inside]
        paths = [os.path.join(parent, name) for name in folders]
        linked.update(path for path in paths if parent in linked or os.path.islink(path))
        bounds.check_linked(folder, len(linked))
        around |= dict.fromkeys(paths, inside)
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def files_sha256(source: str | Path) -> str:
    """One sha256 over names, sizes and times of change (ns) of `own_files`: another one where a file was replaced.

    Raises:
        StorageError: as `own_files` does.
    """
    digest = hashlib.sha256()
    for file in own_files(source):
        try:
            stat = file.stat()
        except OSError:  # a link that leads nowhere, or to itself
            continue
        digest.update(
            f"{os.path.relpath(file, source)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    return digest.hexdigest()
