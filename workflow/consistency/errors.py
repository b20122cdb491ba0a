"""Errors meant for the user: one line that says what, where, and what is allowed."""


class ConsistencyError(Exception):
    """Base of all errors that are the input's fault, not the program's. Its message is one line, whatever is named."""

    def __init__(self, message: object = ""):
        super().__init__(" ".join(str(message).splitlines()))


class ConfigError(ConsistencyError):
    """A configuration key or value that is not allowed."""


class StorageError(ConsistencyError):
    """A file that is missing, damaged, or cannot be written."""


class MismatchError(ConsistencyError):
    """Two inputs that do not belong together (shapes, lengths, settings)."""


class TrainingError(ConsistencyError):
    """Training that cannot go on (a loss that is not finite)."""
