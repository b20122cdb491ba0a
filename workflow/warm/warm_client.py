"""A job's own process: `warm_client.py python script.py` has the script run in a fork of the server of
`warm_server.py`, and ends as the fork does. Where the script may not run there, it becomes that command.

It stands alone and imports little, because every job waits for it.
"""

import os
import signal
import socket
import struct
import sys
from contextlib import suppress

# In the environment: the server's address, its secret, the scripts that may run in a fork, separated by commas, and
# the server's interpreter. "no" says that no server is to start.
SERVER = "CONSISTENCY_WARM"
SECRET = 32  # bytes that a job's process sends first
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCONT)


def user_of(connection: socket.socket) -> int:
    """The user at the other end: an abstract address has no permissions."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]


def run_in_fork(python: str, script: str) -> None:
    """Run a script in a fork of the server, and end as it ends. Returns where the script is to start afresh.

    Args:
        script: the copy that Snakemake runs, tmp….NAME.py.
    """
    address, secret, scripts, interpreter = (*os.environ.pop(SERVER, "no").split(" ", 3), "", "", "")[:4]
    name = os.path.basename(script).partition(".")[2]
    one_thread = os.environ.get("OMP_NUM_THREADS") == "1"  # Snakemake sets it to the job's threads
    streams_open = None not in (sys.stdin, sys.stdout, sys.stderr)
    if python != interpreter or name not in scripts.split(",") or not one_thread or not streams_open:
        return
    with socket.socket(socket.AF_UNIX) as connection:
        mask = os.umask(0)
        os.umask(mask)
        variables = [b"%s=%s" % pair for pair in os.environb.items()]
        request = b"\0".join([os.fsencode(script), os.getcwdb(), b"%d" % mask, *variables])
        answers = connection.makefile("r")
        try:
            connection.connect(f"\0{address}")
            if user_of(connection) != os.getuid():
                return
            connection.sendall(bytes.fromhex(secret))
            socket.send_fds(connection, [struct.pack("I", len(request)) + request], [0, 1, 2])
            fork = int(answers.readline().removeprefix("fork "))
        except (OSError, ValueError):  # the server ended or could not fork, before it took the job
            return

        def pass_on(number: int, frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        answer = answers.readline()
        if not answer:
            sys.exit("the process that jobs start from (warm_server.py) was killed; run again")
        code = int(answer.removeprefix("end "))
    if code < 0:  # a signal ended the fork, and ends this process too
        with suppress(OSError):  # SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_in_fork(*sys.argv[1:])
    os.execvp(sys.argv[1], sys.argv[1:])
