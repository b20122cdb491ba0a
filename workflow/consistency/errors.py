"""Errors meant for the user: one line that says what, where, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .addresses import public

LONGEST = 3000


def printable(text: object) -> str:
    """One line that every terminal and log takes, whatever a name in it holds: control characters are written out."""
    line = " ".join(str(text).splitlines())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)


class ConsistencyError(Exception):
    """Base of all errors that are the input's fault, not the program's.

    Its message is one line, whatever is named in it, of at most `LONGEST` characters, and holds no login or query of an
    address.
    """

    def __init__(self, message: object = ""):
        line = printable(public(str(message)))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 1000]} … {line[-900:]}")


class ConfigError(ConsistencyError):
    """A configuration key or value that is not allowed."""


class StorageError(ConsistencyError):
    """A file that is missing, damaged, or cannot be written."""


class MismatchError(ConsistencyError):
    """Two inputs that do not belong together (shapes, lengths, settings)."""


class TrainingError(ConsistencyError):
    """Training that cannot go on (a loss that is not finite)."""


class PluginError(ConsistencyError):
    """A user's own function that fails, or whose result is not what was asked for."""


class LockedError(ConsistencyError):
    """A file or folder that another process is working on."""


class Preempted(ConsistencyError):
    """Training that was asked by a signal to stop; its checkpoint is written."""


class MemoryShortage(ConsistencyError):
    """More memory asked for than the GPU or the machine has."""


@contextmanager
def memory_advice(advice: str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn an out-of-memory error of torch or NumPy inside into one line; also a decorator.

    Args:
        advice: what the user can change, at the line's end.
        where: gives the line's beginning, when there is something to say.

    Raises:
        MemoryShortage: there was no memory.
    """
    try:
        yield
    except Exception as error:
        if not is_memory_shortage(error):
            raise
        said = str(error).split("\n", maxsplit=1)[0].strip()[:200] or type(error).__name__
        raise MemoryShortage(f"{where()}out of memory ({said}); {advice}") from error


def is_memory_shortage(error: Exception) -> bool:
    """Whether an error says that there is no memory; torch says it on the CPU, and sometimes of CUDA, by text alone."""
    typed = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return typed or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
