"""Several processes for one training, a GPU each: `accelerate launch` runs a job's script again in each of them.

The job itself, the parent, neither trains nor writes results. It passes signals on to the processes and says the first
one's error, once. What the processes print goes to the job's log.

`python -m consistency.runtime.parallel …` is `accelerate launch …` that outlives the signals and not its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError
from ..files.filesystems import no_link
from .preemption import SIGNALS, StopRequest, parent_follower

WORKER = "CONSISTENCY_WORKER"  # set in the processes: the file that the first one to fail writes its error to
CPU_FOR_GPU = "CONSISTENCY_CPU_FOR_GPU"


def processes_for(gpus: int) -> int:
    """Processes of a training that was given so many GPUs: one on each.

    Without CUDA it is one on the CPU; or, with CONSISTENCY_CPU_FOR_GPU=1 in the environment, one for each of the GPUs
    that are not there, which is how tests run several.

    Raises:
        ConfigError: fewer GPUs than were asked for.
    """
    if gpus < 2:
        return 1
    import torch

    if not torch.cuda.is_available():
        return gpus if os.environ.get(CPU_FOR_GPU) == "1" else 1
    if torch.cuda.device_count() < gpus:
        raise ConfigError(f"gpu: {gpus} asked for, but torch sees {torch.cuda.device_count()} here")
    return gpus


def is_worker() -> bool:
    """Whether this is one of the processes."""
    return WORKER in os.environ


def is_first() -> bool:
    """Whether this is the first of the processes."""
    return os.environ.get("RANK") == "0"


def count() -> int:
    """Number of processes, 1 outside of them."""
    return int(os.environ["WORLD_SIZE"]) if is_worker() else 1


def launch(script: str | Path, processes: int, log: str | Path) -> str | None:
    """Run a Python file in so many processes and wait for them.

    Args:
        log: the file that what they print is appended to.

    Returns:
        None, or what went wrong: the line given to `report`, or that there is none.
    """
    with tempfile.TemporaryDirectory() as folder, open(log, "ab", opener=no_link) as output, StopRequest() as stop:
        error = Path(folder) / "error"
        command = [sys.executable, "-m", __name__, "--multi_gpu", "--num_machines", "1", "--gpu_ids", "all"]
        command += ["--num_processes", str(processes), "--main_process_port", "0"]  # 0: any free port
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
        environment = os.environ | {WORKER: str(error), "PET_SIGNALS_TO_HANDLE": "SIGQUIT"}  # torchrun: not SIGTERM
        paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        launcher = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        while launcher.poll() is None:
            if stop.signal:
                _pass_on(launcher.pid, stop.signal)
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(timeout=0.5)
        if launcher.returncode == 0:
            return None
        return (
            error.read_text(encoding="utf-8") if error.exists() else f"one of {processes} processes failed, see {log}"
        )


def report(line: str) -> None:
    """Tell the parent why this process fails. Only the first to do so is heard: others fail because of it."""
    with suppress(FileExistsError), open(os.environ[WORKER], "x", encoding="utf-8") as file:
        file.write(line)


def _pass_on(launcher: int, number: int) -> None:
    """Send a signal to the processes; to be repeated, as one that is not training yet ignores it."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher).children():
            child.send_signal(number)


if __name__ == "__main__":
    for ignored in SIGNALS:  # here, and in the processes until they train; else nobody would wait for the checkpoint
        signal.signal(ignored, signal.SIG_IGN)
    parent_follower()()
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        main()
    except ChildFailedError:  # which process it was is in the log, with what it said
        sys.exit(1)
