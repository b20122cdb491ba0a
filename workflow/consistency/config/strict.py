"""YAML in which no key stands twice in one mapping; plain loaders take the last one and say nothing.

A key that a merge (`<<`) brings and that the mapping gives itself is no repetition: YAML says which one counts. Anchors
and aliases are allowed, but neither loops nor documents that a few of them make huge.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

LARGEST_FILE = 200_000  # bytes, which take a second to parse
LARGEST_DOCUMENT = 100_000  # values, with each alias counted as what it stands for


def read(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not valid YAML, or has a key twice; names the key and its lines.
    """
    return parse(_text(path), str(path))


def parse(text: str, where: str) -> Any:
    """The content of a YAML text that comes from `where`; raises as `read`."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check(node, where)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date without such a day, say
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())[:300]})") from error


def check(path: str | Path) -> None:
    """Check a file of YAML or JSON that another reader has taken already.

    Raises:
        ConfigError: it has a key twice; names the key and its lines.
    """
    path = Path(path)
    where = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
    text = _text(path)
    try:
        _check(yaml.compose(text, yaml.SafeLoader), where)
    except RecursionError as error:
        raise ConfigError(f"{where}: is nested too deeply") from error
    except yaml.YAMLError:  # JSON may hold tabs, YAML may not
        with contextlib.suppress(ValueError):  # of neither, which the other reader has said
            json.loads(text, object_pairs_hook=lambda pairs: _once(where, [key for key, _ in pairs]))


def _text(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > LARGEST_FILE or not path.is_file():
            raise ConfigError(f"{path}: {size} bytes; allowed: a file of at most {LARGEST_FILE}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def _once(where: str, keys: Sequence[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{where}: {key}: given twice; keep one")


def _check(root: yaml.Node | None, where: str) -> None:
    """Look through all mappings of a document, each once, for a key that one of them has twice."""
    waiting: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(root, ())]
    seen: set[int] = set()
    while waiting:
        node, path = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(value, (*path, str(number))) for number, value in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], list[int]] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    lines.setdefault((key.tag, key.value), []).append(key.start_mark.line + 1)
                    waiting.append((value, (*path, key.value)))
            for (_, name), numbers in lines.items():
                if len(numbers) > 1:
                    count = {2: "twice"}.get(len(numbers), f"{len(numbers)} times")
                    raise ConfigError(
                        f"{where}: {'.'.join((*path, name))}: given {count} ({_lines(numbers)}); keep one"
                    )
    if root is not None and _size(root, where) > LARGEST_DOCUMENT:
        raise ConfigError(f"{where}: more than {LARGEST_DOCUMENT} values, aliases counted as what they stand for")


def _size(root: yaml.Node, where: str) -> int:
    """How many values a document has when each alias is written out.

    Raises:
        ConfigError: an alias inside what it stands for.
    """
    sizes: dict[int, int] = {}
    above: set[int] = set()  # nodes whose parts are being counted
    waiting = [root]
    while waiting:
        node = waiting[-1]
        children = [part for part in _parts(node) if id(part) not in sizes]
        if id(node) in sizes or not children:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in _parts(node))
            above.discard(id(waiting.pop()))
        elif id(node) in above:
            raise ConfigError(f"{where}: line {node.start_mark.line + 1}: holds an alias of itself")
        else:
            above.add(id(node))
            waiting += children
    return sizes[id(root)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    """The nodes right below a node."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _lines(numbers: Iterable[int]) -> str:
    """'line 3', or 'lines 3, 5 and 9'."""
    *first, last = sorted(set(numbers))
    return f"lines {', '.join(map(str, first))} and {last}" if first else f"line {last}"
