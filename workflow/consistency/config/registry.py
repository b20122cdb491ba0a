"""The functions that a configuration may name: built-in ones, and a user's own of the files in `plugins`.

They are read from the source, which is not run: Snakemake's own process neither imports torch nor runs a user's code.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ConsistencyError, PluginError
from ..files import bounds
from ..plugins import ARGUMENTS, BUILT_IN, OPTIONS, check_options, load
from .fingerprints import Source
from .names import nearest

LIBRARY = Path(__file__).parents[1]
REQUIRED = ...  # instead of a default, of a param that has none
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")  # of a user's function; columns and files are called after it
# Names of the pipeline's own: of rows in metrics.csv that no function here is called after, and of figures.
TAKEN = {
    "metric": {"ode_error", "precision", "recall", "recognised", "held_out_accuracy", "clip_score", "aesthetic_score"}
    | {"loss", "velocity_gap", "velocity_gap_tail", "velocity_variance", "gradient", "transport_cost"},
    "figure": {path.stem for path in (LIBRARY / "report" / "figures").glob("*.py")},
}
_TYPES = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


@dataclass(frozen=True)
class Function:
    """A function that a configuration may name.

    Attributes:
        kind: objective, coupling, sampler, solver, metric or figure.
        file: as `plugins` names it; None of a built-in function.
        line: of its definition.
        params: its keyword-only parameters with their defaults, `REQUIRED` where there is none.
        options: the keywords of its decorator.
    """

    kind: str
    name: str
    file: str | None
    line: int
    params: dict[str, Any]
    options: dict[str, Any]
    source: Source = field(repr=False, compare=False)

    @cached_property
    def code_sha256(self) -> str:
        """The hash of what it is made of (see `Source.sha256_of`)."""
        return self.source.sha256_of(self.name)

    def call(self, params: dict[str, Any]) -> dict[str, Any]:
        """What a job needs to call it, as plain data: kind, name, file, all params, the code's hash (see `loaded`).

        Raises:
            ConfigError: as `check_params`.
        """
        params = check_params(self, params)
        return {"kind": self.kind, "name": self.name, "file": self.file, "params": params, "code": self.code_sha256}


def loaded(call: dict[str, Any]) -> Callable[..., Any]:
    """The function of a `Function.call`; its params are still to be passed.

    Raises:
        ConsistencyError: the user's file was changed since the run began, fails, or has no such function.
    """
    kind, name, file = call["kind"], call["name"], call["file"]
    if file is not None and Registry.read([file]).get(kind, name).code_sha256 != call["code"]:
        raise PluginError(f"{file}: {name} was changed while this run went on; run again")
    return load(kind, name, file)


def check_params(function: Function, params: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The function's params, with its defaults where `params` has none.

    Args:
        where: the configuration's key, for messages.

    Raises:
        ConfigError: one that the function does not have, one that is missing, or a value of another type than the
            default's.
    """
    start, allowed = f"{where}: " if where else "", list(function.params)
    for name, value in params.items():
        if name not in allowed:
            raise ConfigError(
                f"{start}{name}: unknown param of {function.name}; allowed: {', '.join(allowed) or 'none'}"
                f"{nearest(str(name), allowed)}"
            )
        expected = _TYPES.get(type(function.params[name]))
        if expected and _TYPES.get(type(value)) != expected:
            raise ConfigError(f"{start}{name}: {value!r} is not allowed; allowed for {function.name}: {expected}")
    if missing := [name for name, default in function.params.items() if default is REQUIRED and name not in params]:
        raise ConfigError(f"{start}{missing[0]}: required param of {function.name} is missing")
    return function.params | params


class Registry:
    """Functions by kind and name.

    Raises:
        ConfigError: a user's function has the name of another one of its kind.
    """

    def __init__(self, functions: Iterable[Function]):
        self._functions: dict[tuple[str, str], Function] = {}
        for function in functions:
            if other := self._functions.get(key := (function.kind, function.name)):
                of = "a built-in function" if other.file is None else f"{other.file}:{other.line}"
                raise _error(function.file, function.line, f"{function.name} is also the name of {of}; rename it")
            self._functions[key] = function

    @classmethod
    def read(cls, plugins: Iterable[str | Path] = ()) -> Registry:
        """The built-in functions, and those that are decorated in the files, whose paths start at the working
        directory.

        Raises:
            ConfigError: a file, or a function in it, is not fit; one line that names file and line.
        """
        return cls([*_BUILT_IN, *(function for plugin in plugins for function in _Plugin(str(plugin)).functions())])

    def get(self, kind: str, name: str) -> Function:
        """A function by its name.

        Raises:
            ConfigError: there is none.
        """
        if (function := self._functions.get((kind, name))) is None:
            names = self.names(kind)
            raise ConfigError(f"unknown {kind} {name!r}; allowed: {', '.join(names) or 'none'}{nearest(name, names)}")
        return function

    def names(self, kind: str) -> list[str]:
        """The names that a preset may use for a kind. Built-in metrics are always measured, so presets name a user's
        own."""
        return [f.name for f in self._functions.values() if f.kind == kind and (f.file or kind != "metric")]

    def built_in_code(self, kind: str) -> dict[str, str]:
        """Name → hash, of all built-in functions of a kind."""
        return {f.name: f.code_sha256 for f in self._functions.values() if f.kind == kind and f.file is None}


def _error(file: str | None, line: int | None, text: str) -> ConfigError:
    return ConfigError(f"config.yaml: plugins: {file}{f':{line}' if line else ''}: {text}")


def _literal(node: ast.expr) -> Any:
    """The value of a constant; raises ValueError where it is not one of those that a preset can hold."""
    try:
        value = ast.literal_eval(node)
    except TypeError as error:
        raise ValueError from error
    if value is not None and type(value) not in _TYPES:
        raise ValueError
    return value


def _params(file: str | None, node: ast.FunctionDef) -> dict[str, Any]:
    """The keyword-only parameters of a function, with their defaults."""
    params = {}
    for parameter, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        try:
            params[parameter.arg] = REQUIRED if default is None else _literal(default)
        except ValueError:
            text = f"{node.name}: {parameter.arg}={ast.unparse(default)[:50]} is not allowed"
            raise _error(
                file, default.lineno, f"{text}; allowed as default: a number, a text, True or False, a list, None"
            ) from None
    return params


def _options(file: str | None, kind: str, decorator: ast.expr) -> dict[str, Any]:
    """The keywords of a decorator."""
    if not isinstance(decorator, ast.Call):
        return {}
    options, allowed = {}, ", ".join(f"{name}=…" for name in OPTIONS[kind]) or "nothing"
    for keyword in [*map(ast.keyword, [None] * len(decorator.args), decorator.args), *decorator.keywords]:
        try:
            options[keyword.arg or ast.unparse(keyword.value)] = _literal(keyword.value)
        except ValueError:
            text = ast.unparse(keyword.value)[:50]
            raise _error(file, decorator.lineno, f"@{kind}: {text} is no constant; allowed: {allowed}") from None
    try:
        check_options(kind, options)
    except ConfigError as error:
        raise _error(file, decorator.lineno, str(error)) from None
    return options


def _described(kind: str, node: ast.FunctionDef, file: str | None, options: dict[str, Any], source: Source) -> Function:
    params = _params(file, node)
    return Function(kind, node.name, file, line=node.lineno, params=params, options=options, source=source)


class _Plugin:
    """A user's file, read.

    Raises:
        ConfigError: it is missing, too large, or not Python.
    """

    def __init__(self, file: str):
        self.file = file
        if not file.endswith(".py"):
            raise _error(file, None, "no Python file; allowed: a path that ends in .py")
        try:
            self.source = Source(ast.parse(bounds.read(file, bounds.CONFIG)))
            self.names = set().union(*(statement.binds for statement in self.source.statements))
        except SyntaxError as error:
            raise _error(file, error.lineno, f"not valid Python ({error.msg})") from None
        except (ValueError, MemoryError, RecursionError):
            raise _error(file, None, "not valid Python (null bytes, or nested too deeply)") from None
        except ConsistencyError as error:
            raise ConfigError(f"config.yaml: plugins: {error}") from None

    def functions(self) -> list[Function]:
        """The functions that are decorated.

        Raises:
            ConfigError: there is none, or one is not fit.
        """
        kinds, modules = self._imported()
        functions, outer = [], self.source.tree.body
        for node in ast.walk(self.source.tree):
            marks = []
            for decorator in getattr(node, "decorator_list", ()):
                text = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
                base, _, last = text.rpartition(".")
                if text in kinds:
                    marks.append((kinds[text], decorator))
                elif base in modules or (node in outer and not (base or text in self.names or hasattr(builtins, text))):
                    raise self._unknown(decorator.lineno, last)
            if marks:
                functions.append(self._function(node, marks))
        if not functions:
            text = f"no function is decorated; allowed: functions with {', '.join(OPTIONS)} of consistency.plugins"
            raise _error(self.file, None, text)
        return functions

    def _imported(self) -> tuple[dict[str, str], set[str]]:
        """Each name by which the file calls a decorator → its kind, and the names by which it calls their module."""
        kinds, modules = {}, set()
        for node in self.source.tree.body:
            source = getattr(node, "module", None)
            for alias in getattr(node, "names", ()) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                name = alias.asname or alias.name
                if source == "consistency.plugins" and alias.name not in ("*", *OPTIONS):
                    raise self._unknown(node.lineno, alias.name)
                if source == "consistency.plugins":
                    kinds |= dict(zip(OPTIONS, OPTIONS, strict=True)) if name == "*" else {name: alias.name}
                elif (source, alias.name) in (("consistency", "plugins"), (None, "consistency.plugins")):
                    modules.add(name)
        return kinds | {f"{module}.{kind}": kind for module in modules for kind in OPTIONS}, modules

    def _unknown(self, line: int, name: str) -> ConfigError:
        hint = "; import it from consistency.plugins" if name in OPTIONS else nearest(name, list(OPTIONS))
        return _error(self.file, line, f"unknown decorator {name!r}; allowed: {', '.join(OPTIONS)}{hint}")

    def _function(self, node: Any, marks: list[tuple[str, ast.expr]]) -> Function:
        """A decorated function, checked."""
        (kind, decorator), name, problem = marks[0], node.name, ""
        if len(marks) > 1:
            problem = "several decorators; allowed: one"
        elif not isinstance(node, ast.FunctionDef):
            problem = f"{'a class' if isinstance(node, ast.ClassDef) else 'async'}; allowed: a function"
        elif node not in self.source.tree.body:
            problem = "nested; allowed: a function at the top level of the file"
        elif not NAME.fullmatch(name):
            problem = "not allowed as name; allowed: a letter a to z, then letters, digits and _, at most 100"
        elif name.casefold() in TAKEN.get(kind, ()):
            problem = "a name of the pipeline's own; rename it"
        elif len(self.source.binding(name)) > 1:
            problem = "stands twice at the top level of the file; rename one"
        elif node.args.vararg or node.args.kwarg:
            problem = "has *args or **kwargs; allowed: params by name, after *"
        elif kind in ARGUMENTS and (count := len(node.args.posonlyargs + node.args.args)) != len(ARGUMENTS[kind]):
            allowed = ", ".join(ARGUMENTS[kind])
            problem = f"has {count} positional arguments; allowed: {allowed}, and params after *"
        if problem:
            raise _error(self.file, node.lineno, f"@{kind}: {name}: {problem}")
        return _described(kind, node, self.file, _options(self.file, kind, decorator), self.source)


def _built_in(kind: str, module: str) -> list[Function]:
    """The public functions of one of the library's modules."""
    path, functions = LIBRARY / f"{module.replace('.', '/')}.py", []
    source = Source(ast.parse(path.read_bytes()))
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            marks = [d for d in node.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func) == kind]
            options = {name: value for mark in marks for name, value in _options(module, kind, mark).items()}
            functions.append(_described(kind, node, None, options, source))
    return functions


_BUILT_IN = [f for kind, modules in BUILT_IN.items() for module in modules for f in _built_in(kind, module)]
BUILT_INS = Registry.read()
