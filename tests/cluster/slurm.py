"""A real SLURM of one node on loopback, with two GPUs in name only: daemons, configuration, clean end.

As root, with Debian's slurm-wlm and munge; no systemd, no cgroups, no accounting. To look around in one by hand:
`PYTHONPATH=tests python -m cluster.slurm FOLDER`; it lives until Ctrl-C.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import wait_for
from needs import SLURM_FOLDER, missing

# MinJobAge: how long squeue shows ended jobs. cred_expire: how long a job that was put back into the queue waits there.
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
OverTimeLimit=0
MinJobAge=3600
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES PriorityTier=1 State=UP
PartitionName=gpu Nodes={host} PriorityTier=1 State=UP
PartitionName=urgent Nodes={host} PriorityTier=2 State=UP
"""
GPUS = "AutoDetect=off\nNodeName={host} Name=gpu File=/dev/null\nNodeName={host} Name=gpu File=/dev/zero\n"


def ask(*command: str) -> str:
    """What a SLURM client answers; it is asked again while the controller doesn't."""
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            return done.stdout.strip()
        time.sleep(1)
    raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")


class Cluster:
    """`with Cluster(folder): …`; nothing of it is left afterwards but the folder."""

    def __init__(self, folder: Path, cpus: int = 4):
        self.folder, self.cpus = Path(folder), cpus
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        SLURM_FOLDER.mkdir(exist_ok=True)
        self.lock = open(Path(tempfile.gettempdir()) / "loopback-slurm.lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # one at a time
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if len(self.daemons) == 3:
                subprocess.run(["scancel", "--user=root"], capture_output=True)
                wait_for(
                    lambda: not ask("squeue", "--noheader"),
                    "the end of all SLURM jobs",
                    seen=lambda: ask("squeue", "--noheader"),
                    every=0.2,
                )
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
                try:
                    daemon.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            self.daemons.clear()
            for name in ("slurm.conf", "gres.conf"):
                (SLURM_FOLDER / name).unlink(missing_ok=True)
            self.lock.close()

    def _start(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        place = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "cpus": self.cpus}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**place, ports=free_ports(2)).lstrip())
        (self.folder / "gres.conf").write_text(GPUS.format(**place))
        key, munge = self.folder / "munge/key", self.folder / "munge"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for name in ("slurm.conf", "gres.conf"):
            (SLURM_FOLDER / name).unlink(missing_ok=True)  # of a cluster whose test was killed
            (SLURM_FOLDER / name).symlink_to(self.folder / name)
        self._daemon(
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}"]
            + [f"--pid-file={munge / 'pid'}", f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"]
        )
        wait_for((munge / "socket").exists, "munged's socket", 30, seen=self._logs)
        self._daemon(["slurmctld", "-D"])
        self._daemon(["slurmd", "-D"])
        wait_for(self._idle, "an idle node", 60, seen=self._logs, every=0.2)

    def _daemon(self, command: list[str]) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as output:
            # They die with this process, but Ctrl-C is not for them: they are ended in order.
            options = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL, "start_new_session": True}
            self.daemons.append(subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], **options))

    def _logs(self) -> str:
        """The ends of what the daemons have said."""
        files = [path for kind in ("*.out", "*.log") for path in sorted(self.folder.glob(kind))]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-500:]}" for path in files)

    def _idle(self) -> bool:
        for daemon in self.daemons:
            if daemon.poll() is not None:
                said = (self.folder / f"{daemon.args[3]}.out").read_text(errors="replace")
                raise AssertionError(f"{daemon.args[3]} ended: {said[-500:]}")
        state = subprocess.run(["sinfo", "-h", "-o", "%T", "-p", "cpu"], capture_output=True, text=True)
        return state.stdout.strip() == "idle"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


if __name__ == "__main__":
    if reason := missing("slurm"):
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    with Cluster(Path(sys.argv[1]).resolve()):
        print(ask("sinfo"), flush=True)
        signal.pause()
