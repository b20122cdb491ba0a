"""A process that has imported torch and the library, and forks itself for every job. README.md says why and how.

`start` begins it beside a snakemake that runs its jobs on this machine, and returns a command, `warm_client.py`, that
is to come before each job's own.
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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from warm_client import SECRET, SERVER, user_of

SECRET_OF = "CONSISTENCY_WARM_SECRET"  # in the server's environment; its arguments every user can read
STRANGERS = 32  # most connections that have not sent the secret yet; a further one replaces the oldest
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


def start(scripts: Iterable[str], *more: str) -> str | None:
    """Start the server, which imports `MODULES` and more and ends when this process does.

    Args:
        scripts: names, NAME.py, of the scripts whose jobs of one thread may run in a fork.
        more: modules, or module:function for a call without arguments.

    Returns:
        What is to come before `python script.py` in a shell's command; None where there can be no server.
    """
    if SERVER in os.environ or not _possible():
        return None
    ours, theirs = os.pipe()  # its other end closes when this process ends
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract address, of the kernel's choice: no file that could be left over
        listener.listen(128)
        secret = secrets.token_hex(SECRET)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", SECRET_OF: secret}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        descriptors = listener.fileno(), ours
        command = [sys.executable, __file__, *map(str, descriptors), *MODULES, *more]
        options = {"stdin": subprocess.DEVNULL, "pass_fds": descriptors, "process_group": 0, "env": environment}
        _kept.extend([theirs, subprocess.Popen(command, **options)])
        address = listener.getsockname()[1:].decode()
        os.environ[SERVER] = f"{address} {secret} {','.join(scripts)} {sys.executable}"
    os.close(ours)
    client = Path(__file__).with_name("warm_client.py")
    return shlex.join([sys.executable, "-IS", str(client)])  # -IS: a third less to load


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
    """Fork for every connection that sends the secret, until the lifeline's other end closes and no fork is left.
    The next module is imported whenever no connection waits."""
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
                if not _sends(connection, secret) or (pid := _fork()) is None:
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
                    connection.sendall(b"end %d\n" % code)
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


def _sends(connection: socket.socket, secret: bytes) -> bool:
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
        os.environ.update(variable.split("=", 1) for variable in variables)
        signal.signal(signal.SIGINT, _INTERRUPT)
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
    _INTERRUPT = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is passed on by the job's process
    workflow = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(workflow))
    sys.path.append(str(workflow / "scripts"))
    importlib.import_module("_surroundings").open_streams()
    secret = bytes.fromhex(os.environ.pop(SECRET_OF))
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), secret, iter(sys.argv[3:]))
