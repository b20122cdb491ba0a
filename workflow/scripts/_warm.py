"""A process that has torch and the library imported already, and forks itself for every job: importing them takes a job
1.5 s, which in a run of many short jobs is a third of the time.

`start` begins it beside a snakemake that runs its jobs on this machine and returns a command, `_start.py`, that is to
come before each job's own. It stays as what Snakemake, `ps` and signals see: it passes signals on and ends as the fork
does. The fork dies with it, even of kill −9, and the server with its snakemake. Linux alone; elsewhere, and for jobs
with several threads or GPUs, which are to begin with a fresh process, nothing of this happens.

The server's address has no permissions, and another container of the same user may share the network that it belongs
to. So the server forks only for a process of its own user that first sends a secret, which is in the environment of
this snakemake's jobs alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import hmac
import importlib
import os
import runpy
import secrets
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from _start import ADDRESS, SECRET, open_streams, user_of

SECRET_OF = "CONSISTENCY_WARM_SECRET"  # in the server's environment; its arguments every user can read
STRANGERS = 32  # most connections that have not sent the secret yet; a further one replaces the oldest
FORKED = "CONSISTENCY_FORKED"  # in a fork's
AFRESH = 86  # a fork ends so where its job shall start afresh
OWN = b"\nfrom _job import "  # in scripts that know of this
# What jobs import, in the order of need.
MODULES = (
    "snakemake.script",
    "_job",
    "torch",
    "consistency.data.prepare",
    "consistency.students.sampling",
    "consistency.evaluate.measure",
    "consistency.networks.classifier",
    "consistency.training.recipes",
    "consistency.training.optimizers",
    "accelerate",
    "scipy.optimize",
    "pandas",
    "consistency.report.figures.style",
)


def start(*more: str) -> str | None:
    """Start the server, which imports `MODULES` and more and ends when this process does.

    Args:
        more: modules, or module:function for a call without arguments.

    Returns:
        What is to come before `python script.py` in a shell's command; None where there can be no server.
    """
    if ADDRESS in os.environ or not _possible():
        return None
    ours, theirs = os.pipe()  # its other end closes when this process ends
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract address, of the kernel's choice: no file that could be left over
        listener.listen(128)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        environment[SECRET_OF] = secret = secrets.token_hex(SECRET)
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        descriptors = listener.fileno(), ours
        command = [sys.executable, __file__, *map(str, descriptors), *MODULES, *more]
        options = {"stdin": subprocess.DEVNULL, "pass_fds": descriptors, "process_group": 0, "env": environment}
        _kept.extend([theirs, subprocess.Popen(command, **options)])
        os.environ[ADDRESS] = f"{listener.getsockname()[1:].decode()} {secret} {sys.executable}"
    os.close(ours)
    return shlex.join([sys.executable, "-IS", str(Path(__file__).with_name("_start.py"))])  # -IS: a third less to load


_kept: list[object] = []  # as long as this process lives


def _possible() -> bool:
    """Whether this kernel can do what `_serve` and `_become_job` ask of it: Linux from 5.3 on."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        one, other = socket.socketpair()
        with one, other:
            _signal_end(one)  # to nobody: it has no owner
        return True
    except (AttributeError, OSError):
        return False


def _signal_end(connection: socket.socket) -> None:
    """Have the kernel kill the connection's owner when the other end closes."""
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)


def _serve(listener: socket.socket, lifeline: int, secret: bytes, modules: Iterator[str]) -> None:
    """Fork for every connection that knows the secret, until the lifeline's other end closes and no fork is left;
    import what is to be imported as soon as no connection waits."""
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(lifeline, selectors.EVENT_READ)
    strangers: list[socket.socket] = []
    forks: dict[int, tuple[int, socket.socket]] = {}
    while forks or lifeline in waiting.get_map():
        if module := next(modules, ""):
            name, _, function = module.partition(":")
            with suppress(Exception):  # a job that needs it will say what is wrong
                imported = importlib.import_module(name)
                if function:
                    getattr(imported, function)()
            gc.freeze()
        for key, _ in waiting.select(0 if module else None):
            if key.fileobj is listener:
                if (connection := _accept(listener)) is not None:
                    strangers.append(connection)
                    waiting.register(connection, selectors.EVENT_READ)
            elif key.fileobj in strangers:
                connection = key.fileobj
                strangers.remove(connection)
                waiting.unregister(connection)
                if not _knows(connection, secret) or (pid := _fork()) is None:
                    connection.close()  # a job's process then starts its job afresh
                elif pid:
                    forks[ended := os.pidfd_open(pid)] = pid, connection
                    waiting.register(ended, selectors.EVENT_READ)
                else:
                    for end in (waiting, listener, *strangers, *(other for _, other in forks.values())):
                        end.close()
                    _become_job(connection)
            elif key.fileobj == lifeline:
                waiting.unregister(lifeline)
                waiting.unregister(listener)
                listener.close()
                break  # the listener may be among what was ready
            elif key.fileobj in forks:
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                pid, connection = forks.pop(key.fileobj)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError), connection:  # the job's process may be gone
                    connection.sendall(b"afresh\n" if code == AFRESH else b"end %d\n" % code)
        while len(strangers) > STRANGERS:
            waiting.unregister(strangers[0])
            strangers.pop(0).close()


def _accept(listener: socket.socket) -> socket.socket | None:
    """The next connection of this user, or None."""
    try:
        connection, _ = listener.accept()
    except OSError:  # no descriptors left, say: a fork that ends gives some back
        time.sleep(0.1)
        return None
    if user_of(connection) != os.getuid():
        connection.close()
        return None
    return connection


def _knows(connection: socket.socket, secret: bytes) -> bool:
    """Whether a connection that can be read begins with the secret."""
    try:
        return hmac.compare_digest(connection.recv(SECRET, socket.MSG_DONTWAIT), secret)
    except OSError:
        return False


def _fork() -> int | None:
    """As os.fork; None where the machine has no process left, or this one no descriptor to watch the fork by."""
    try:
        os.close(os.dup(0))
        return os.fork()
    except OSError:
        return None


def _become_job(connection: socket.socket) -> None:
    """In a fork: take over a job's surroundings and run its script; does not return."""
    code = 1
    try:
        text, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while len(text) < 4 or len(text) - 4 < struct.unpack("I", text[:4])[0]:
            if not (more := connection.recv(1 << 16)):
                os._exit(1)
            text += more
        script, folder, mask, *variables = (os.fsdecode(part) for part in text[4:].split(b"\0"))
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        _signal_end(connection)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
        os.chdir(folder)
        os.umask(int(mask))
        os.environ.clear()
        os.environ.update(variable.split("=", 1) for variable in (*variables, f"{FORKED}=yes"))
        signal.signal(signal.SIGINT, _INTERRUPT)
        if OWN not in Path(script).read_bytes():
            os._exit(AFRESH)
        ctypes.CDLL(None).prctl(15, Path(script).stem.rpartition(".")[2].encode())  # PR_SET_NAME, for `top`
        sys.argv, sys.path[0] = [script], str(Path(script).parent)
        connection.sendall(b"fork %d\n" % os.getpid())
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            with suppress(OSError):
                print(end.code, file=sys.stderr)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody may read it any more
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    open_streams()
    _INTERRUPT = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is passed on by the job's process
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    secret = bytes.fromhex(os.environ.pop(SECRET_OF))
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), secret, iter(sys.argv[3:]))
