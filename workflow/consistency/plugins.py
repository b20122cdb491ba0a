"""The decorators that mark a user's own functions, and how a job loads a function by its name.

A file that `plugins` in config.yaml lists holds such functions; presets name them like built-in ones:

    from consistency.plugins import metric

    @metric(direction="higher")
    def brightness(samples, pixels, context, *, gain=1.0):
        return gain * pixels.mean()

Keyword-only parameters are the function's params, which a preset may change.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from .errors import ConfigError, ConsistencyError, PluginError, is_memory_shortage

# Kind → the positional arguments of a user's function.
ARGUMENTS = {
    "objective": ("student", "batch", "context"),
    "coupling": ("x", "z", "sigma", "cond", "generate"),
    "sampler": ("student", "x", "times", "cond", "noise"),
    "metric": ("samples", "pixels", "context"),
    "figure": ("metrics", "runs", "style"),
}
# Kind → the options of its decorator, each with the values that are allowed.
OPTIONS: dict[str, dict[str, Any]] = {
    "objective": {"draws": ("targets", "pairs"), "capturable": (True, False)},
    "coupling": {"per_sample": (True, False)},
    "sampler": {"least_steps": range(1, 1000)},
    "metric": {"direction": ("lower", "higher")},
    "figure": {},
}
# Kind → the modules whose public functions are built in. Presets name all but the metrics, which are always measured.
BUILT_IN = {
    "objective": ("students.objectives",),
    "coupling": ("students.couplings",),
    "sampler": ("students.samplers",),
    "solver": ("flow.solvers",),
    "metric": ("evaluate.distances", "evaluate.modes", "flow.transport"),
    "figure": (),
}


def check_options(kind: str, options: dict[str, Any]) -> None:
    """Check the options of a decorator.

    Raises:
        ConfigError: the decorator has no such option, or the option no such value.
    """
    for name, value in options.items():
        if name not in (allowed := OPTIONS[kind]):
            raise ConfigError(f"@{kind}: unknown option {name!r}; allowed: {', '.join(allowed) or 'none'}")
        values = allowed[name]
        if value not in values or type(value) is not type(values[0]):
            shown = f"{values[0]} to {values[-1]}" if isinstance(values, range) else ", ".join(map(repr, values))
            raise ConfigError(f"@{kind}: {name}={value!r} is not allowed; allowed: {shown}")


def _decorator(kind: str) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Mark a function with its `kind` and its `options`; with or without brackets."""
        check_options(kind, options)

        def mark(function: Any) -> Any:
            function.kind, function.options = kind, options
            return function

        return mark if function is None else mark(function)

    return decorate


objective = _decorator("objective")
coupling = _decorator("coupling")
sampler = _decorator("sampler")
metric = _decorator("metric")
figure = _decorator("figure")


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function's decorator; none where it has none."""
    return getattr(function, "options", {})


def load(kind: str, name: str, file: str | Path | None = None) -> Callable[..., Any]:
    """A function by its name: a built-in one, or that of a user's file, which is run once in a process.

    Raises:
        PluginError: the file fails, or has no such function; names file and line.
    """
    if file is not None:
        function = getattr(_module(Path(file)), name, None)
        if getattr(function, "kind", None) == kind:
            return function
    for module in BUILT_IN[kind] if file is None else ():
        if function := getattr(importlib.import_module(f".{module}", __package__), name, None):
            return function
    raise PluginError(f"{file or 'built in'}: no {kind} {name!r}")


@cache
def _module(file: Path) -> Any:
    """A user's file as a module. It is compiled here, because Python's cache of compiled files takes a file that was
    edited within the same second for the old one."""
    path = file.resolve()
    spec = spec_from_file_location(f"_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    with blaming(file):
        exec(spec.loader.source_to_code(path.read_bytes(), str(path)), vars(module))
    return module


@contextmanager
def blaming(file: str | Path, name: str = "") -> Iterator[None]:
    """Turn an exception inside into one line with the line of the user's file; the log gets the whole traceback.

    Args:
        name: of the function that is called, for the message.

    Raises:
        PluginError: there was an exception, other than the library's own and a shortage of memory.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ConsistencyError) or (isinstance(error, Exception) and is_memory_shortage(error)):
            raise
        logging.getLogger(__name__).info("%s: %s fails", file, name or "import", exc_info=True)
        path = str(Path(file).resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = ":".join(str(part) for part in (file, line) if part is not None)
        raise PluginError(f"{where}: {f'{name}: ' * bool(name)}{type(error).__name__}: {error}") from error
