"""A job's own process: `_start.py python script.py` has the script run in a fork of the server of `_warm.py`, and ends
as it does. Where there is no server for it, it becomes that command.

It stands alone and imports little, as each job waits for it.
"""

import os
import signal
import socket
import struct
import sys
from contextlib import suppress

# In the environment: where the server listens, its secret, and for which interpreter; "no": no server.
ADDRESS = "CONSISTENCY_WARM"
SECRET = 32  # bytes that a job's process sends first
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCONT)


def open_streams() -> None:
    """Put /dev/null where standard input, output or error is closed (`>&-`). Else the next file that is opened takes
    that number, and what is printed is written there."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def user_of(connection: socket.socket) -> int:
    """Who is at the other end: an abstract address has no permissions."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]


def run_there(python: str, script: str) -> None:
    """Run a Python file in a fork of the server, and end as it ends. Returns where the file is to be run afresh."""
    name, secret, known = (*os.environ.pop(ADDRESS, "no").split(" ", 2), "", "")[:3]
    if python != known:
        return
    with socket.socket(socket.AF_UNIX) as connection:
        mask = os.umask(0)
        os.umask(mask)
        variables = [b"%s=%s" % pair for pair in os.environb.items()]
        request = b"\0".join([os.fsencode(script), os.getcwdb(), b"%d" % mask, *variables])
        answers = connection.makefile("r")
        try:
            connection.connect(f"\0{name}")
            if user_of(connection) != os.getuid():
                return
            connection.sendall(bytes.fromhex(secret))
            socket.send_fds(connection, [struct.pack("I", len(request)) + request], [0, 1, 2])
            fork = int(answers.readline().removeprefix("fork "))
        except (OSError, ValueError):  # it ended or could not fork, before it took the job
            return

        def pass_on(number: int, frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(fork, number)

        before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
        answer = answers.readline()
        if answer == "afresh\n":
            for number, handler in before.items():
                signal.signal(number, handler)
            return
        if not answer:
            sys.exit("the process that jobs start from (_warm.py) was killed; run again")
        code = int(answer.removeprefix("end "))
    if code < 0:  # it died of a signal, and so does this
        with suppress(OSError):  # SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    open_streams()
    if len(sys.argv) == 3:
        run_there(*sys.argv[1:])
    os.execvp(sys.argv[1], sys.argv[1:])
