"""What Snakemake and the libraries take for granted of the machine, made good where it is missing: open standard
streams, an interpreter that a shell can call, a user's name, a place for caches."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts, which begin with this module: the library

CACHES = ".snakemake/caches"
# glibc reads them when a process starts. Blocks of up to 32 MB, its own limit, then come from its heap, and up to 1 GB
# of that stays with the process when it is freed.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def prepare() -> None:
    """Do all of it, for this process and those that it starts."""
    open_streams()
    make_python_callable()
    give_name()
    give_caches()
    keep_freed_memory()


def open_streams() -> None:
    """Put /dev/null where standard input, output or error is closed (`>&-`). Else the next file that is opened takes
    that number, and what is printed is written there."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def make_python_callable() -> None:
    """Let a shell find this interpreter where it is told `sys.executable` without quotes, as Snakemake does. A path
    with a space or another character that a shell reads becomes the name alone, its folder the first in PATH."""
    if shlex.quote(sys.executable) != sys.executable:
        folder, sys.executable = os.path.split(sys.executable)
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])


def give_name() -> None:
    """A name for a user whom the machine knows by number only (in a container): Snakemake and torch ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"


def give_caches() -> None:
    """A place for the caches of Snakemake and the libraries where there is no home, or none that can be written."""
    home, caches = os.path.expanduser("~"), os.path.abspath(CACHES)
    used = [os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache", os.environ.get("MPLCONFIGDIR") or f"{home}/.config"]
    if os.path.isabs(home) and all(map(_writable, used)):
        return
    folders = {"XDG_CACHE_HOME": caches, "MPLCONFIGDIR": f"{caches}/matplotlib", "TRITON_CACHE_DIR": f"{caches}/triton"}
    folders = {name: folder for name, folder in folders.items() if not _writable(os.environ.get(name, ""))}
    if not os.path.isabs(home):
        folders["HOME"] = caches
    try:
        os.makedirs(caches, exist_ok=True)
    except OSError as error:
        sys.exit(f"{caches}: cannot be made ({error.strerror}), nor can the home {home} be written; set XDG_CACHE_HOME")
    os.environ.update(folders)
    say(f"the home {home} cannot be written: caches of libraries go to {caches}", sys.stderr)


def keep_freed_memory() -> None:
    """Have glibc keep the memory that processes free, for what they ask for next; what the user has set stays.

    By default arrays of more than some hundred kilobytes go back to the system at once, and the next array is new
    pages, which the system clears one by one.
    """
    os.environ |= KEEP_FREED | os.environ


def _writable(folder: str) -> bool:
    """Whether a folder can be written, or made; an empty name is none."""
    while folder and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return bool(folder) and os.access(folder, os.W_OK | os.X_OK)


def unusable(path: str | os.PathLike) -> str:
    """What in a path would be a wildcard or a variable to Snakemake, or would end the script that its report writes the
    path into; there is no other way to write it."""
    sign = re.search(r"[{}]|<[a-z][a-z0-9_]*>|(?i:</?script|<!--)", str(path))
    return sign[0] if sign else ""


def say(text: object, file: IO[str] | None = None) -> None:
    """Print a line. Where nobody reads any more (`| head -1`), what is said goes nowhere; another error of standard
    output (a full disk) ends this process with one line."""
    file = file or sys.stdout
    try:
        print(text, file=file, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # for what is in the buffer still
        if file is sys.stdout and not isinstance(error, BrokenPipeError):
            sys.exit(f"standard output cannot be written ({error.strerror})")
