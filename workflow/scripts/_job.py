"""What every script shares: the library's path, threads, the log file, one-line errors, several processes."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from _surroundings import open_streams, say

open_streams()

FORMAT = "%(asctime)s %(message)s"
NO_SETTINGS = {"identity"}  # params that say what a cached result depends on, not what the job is to do
# In the path of an input that is one of the workflow's own files: Snakemake's copy for this run.
CODE = "snakemake-runtime-cache"


def shared(path: str) -> str:
    """A file's path on the shared volume. On Kubernetes a job has a copy of its own, at …/fs/ and that path."""
    return path.rpartition(f"/fs{Path.cwd()}/")[2]


def checkpoints(snakemake: Any) -> Path:
    """Where a training's checkpoints are: outside its outputs, which Snakemake deletes when the job fails.

    Not a param: the key of a cached result shall not hold where it was made.
    """
    stats = Path(shared(snakemake.output.stats))
    return stats.parents[1] / "checkpoints" / stats.stem


def record(snakemake: Any) -> Any:
    """The record of a job's outputs, around its body."""
    from consistency.files.records import recorded

    settings = {name: value for name, value in snakemake.params.items() if name not in NO_SETTINGS}
    return recorded(
        [shared(path) for path in snakemake.output],
        snakemake.rule,
        settings,
        [shared(path) for path in snakemake.input if CODE not in path],
        cached=snakemake.params.get("identity") is not None,
    )


def inputs(snakemake: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A job's named inputs; those that its rule leaves empty, and those `without`, are not there."""
    return {name: value for name, value in snakemake.input.items() if value and name not in without}


def decoded(params: Any) -> dict[str, Any]:
    """The params of a job by name; NAME of one that the rule hands over as JSON, NAME_json."""
    return {
        name.removesuffix("_json"): json.loads(value) if name.endswith("_json") else value
        for name, value in params.items()
    }


def _log_to(stream: IO[str], rule: str) -> None:
    """Have what is logged go to a file, and the library's warnings to the terminal too; neither shows the logins and
    queries of addresses, which other libraries may log."""
    from consistency.addresses import public

    class Public(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return public(super().format(record))

    file, terminal = logging.StreamHandler(stream), logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    file.setFormatter(Public(FORMAT))
    terminal.setFormatter(Public(f"{rule}: %(message)s"))
    logging.basicConfig(handlers=[file], level=logging.INFO)
    logging.getLogger("consistency").addHandler(terminal)


def leave(code: int) -> None:
    """End this process. Everything is written: taking torch apart, object by object, would cost another half second."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may read it any more
            stream.flush()
    os._exit(code)


@contextmanager
def job(snakemake: Any, network: bool = False, training: bool = False) -> Iterator[None]:
    """Run a script's body: progress goes to the rule's log, an error to log and terminal as one line.

    Threads are set through the environment, so that torch and NumPy, imported in the body, see them. No job but
    those with `network` asks the Hugging Face hub for anything. A `training` with several GPUs runs its script again
    in a process for each, and the body in those alone.
    """
    gc.set_threshold(100_000, 20, 20)  # importing torch makes objects, not garbage
    if not network:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from consistency.addresses import public
    from consistency.errors import ConsistencyError
    from consistency.files.filesystems import no_link
    from consistency.files.locks import hold, release
    from consistency.files.storage import explained, remove_unfinished
    from consistency.runtime import parallel
    from consistency.runtime.preemption import SIGNALS, name_of, parent_follower

    mine = os.getpid()

    def stop(number: int, frame: object) -> None:
        # Without an exception: where it hits an import, Python's import lock or torch's C++ swallow it or die of it.
        try:
            if os.getpid() == mine:  # not of a fork
                remove_unfinished()
            os.write(2, f"\n{snakemake.rule}: stopped by {name_of(number)}\n".encode())
        finally:
            os._exit(1)

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(max(1, snakemake.threads // parallel.count()))
    log = snakemake.log[0]
    if parallel.is_worker():
        parent_follower()()
        logging.basicConfig(level=logging.INFO if parallel.is_first() else logging.WARNING, format=FORMAT)
    else:
        # A job of an earlier snakemake, killed since, may still write the same files: it is waited for.
        try:
            with explained(f"{log}.lock"):
                lock = hold(f"{log}.lock", wait=True)
            with explained(log):  # "a": several processes append to it
                output = open(log, "a", encoding="utf-8", errors="backslashreplace", opener=no_link)  # noqa: SIM115
                output.truncate(0)
        except ConsistencyError as error:
            sys.exit(f"\n{snakemake.rule}: {error}")
        _log_to(output, snakemake.rule)
        for number in SIGNALS:  # while it trains they mean something else
            signal.signal(number, stop)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written must not hide why the job stops

    def fail(line: str) -> None:
        if not parallel.is_worker():
            logging.error(line)
            say(f"\n{snakemake.rule}: {line}", sys.stderr)
            leave(1)
        parallel.report(line)
        os._exit(1)

    try:
        processes = 1 if parallel.is_worker() or not training else parallel.processes_for(snakemake.resources.gpu)
        with nullcontext() if parallel.is_worker() else record(snakemake):
            if processes == 1:
                yield
            elif failed := parallel.launch(sys.argv[0], processes, log):
                fail(failed)
    except (ConsistencyError, OSError, MemoryError) as error:
        fail(" ".join(str(error).split()) or type(error).__name__)
    except Exception:
        logging.error(trace := public(traceback.format_exc()))
        if parallel.is_worker():
            os._exit(1)  # the parent says where to look
        say(trace, sys.stderr)
        fail(f"unexpected error, see {log}")
    if not parallel.is_worker():
        release(lock)
    leave(0)
