"""The house's rules for code: sizes of files, functions and calls, and names that say what a thing is."""

import ast
import io
import tokenize
from collections import Counter
from functools import cache

from helpers import ROOT

LONGEST_FILE, LONGEST_FUNCTION, MOST_POSITIONAL = 400, 80, 6
VAGUE = {"found", "given", "made", "told", "place", "known"}

CODE = [path for folder in ("workflow", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
RULES = sorted((ROOT / "workflow").rglob("*.smk"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def long_file(text):
    """How many lines a text has, where they are too many."""
    lines = len(text.splitlines())
    return [f"{lines} lines"] if lines > LONGEST_FILE else []


def long_functions(tree):
    """Name and length of the functions that are too long."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, node.end_lineno - node.lineno + 1) for node in functions]
    return [f"{name} has {length} lines" for name, length in lengths if length > LONGEST_FUNCTION]


def positional(call):
    """How many positional arguments a call has; of a starred one, those that are written there."""
    values = [getattr(argument, "value", None) if isinstance(argument, ast.Starred) else None for argument in call.args]
    return sum(len(value.elts) if isinstance(value, ast.Tuple | ast.List) else 1 for value in values)


def long_calls(tree):
    """The calls with too many positional arguments."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {call.lineno}: {positional(call)} in a call" for call in calls if positional(call) > MOST_POSITIONAL]


def vague_names(tree):
    """The vague names of variables, arguments, attributes and functions, with how often each stands there."""
    parts = [getattr(node, part, None) for node in ast.walk(tree) for part in ("id", "arg", "attr", "name", "asname")]
    return [f"{name} {count}×" for name, count in sorted(Counter(part for part in parts if part in VAGUE).items())]


def vague_names_of_rules(text):
    """The same of a .smk file, which is not Python: its words outside of strings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    words = Counter(token.string for token in tokens if token.type == tokenize.NAME and token.string in VAGUE)
    return [f"{name} {count}×" for name, count in sorted(words.items())]


def check(problems, allowed):
    """That no file has a problem."""
    lines = [f"{name}: {', '.join(texts)}" for name, texts in problems.items() if texts]
    assert lines == [], f"allowed: {allowed}"


def test_no_file_is_long():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in CODE + RULES}
    check({name: long_file(text) for name, text in texts.items()}, f"{LONGEST_FILE} lines a file")


def test_no_function_is_long():
    problems = {name_of(path): long_functions(tree_of(path)) for path in CODE}
    check(problems, f"{LONGEST_FUNCTION} lines a function")


def test_calls_name_what_they_pass():
    problems = {name_of(path): long_calls(tree_of(path)) for path in CODE}
    check(problems, f"{MOST_POSITIONAL} positional arguments a call, the others by keyword")


def test_names_say_what_a_thing_is():
    problems = {name_of(path): vague_names(tree_of(path)) for path in CODE if "workflow" in path.parts}
    problems |= {name_of(path): vague_names_of_rules(path.read_text(encoding="utf-8")) for path in RULES}
    check(problems, "names that say what a thing is")


def test_the_rules_see_what_they_are_about():
    """Each fault, beside code that only just keeps the rules."""
    assert long_file("\n" * 401) == ["401 lines"] and long_file("\n" * 400) == []
    lines = ["    pass"] * LONGEST_FUNCTION
    assert long_functions(ast.parse("\n".join(["def f():", *lines]))) == ["f has 81 lines"]
    assert long_functions(ast.parse("\n".join(["class A:", "  async def g(self):", *lines]))) == ["g has 81 lines"]
    assert long_functions(ast.parse("\n".join(["def f():", *lines[1:]]))) == []
    assert long_calls(ast.parse("f(1, 2, 3, 4, 5, 6, 7)")) == ["line 1: 7 in a call"]
    assert long_calls(ast.parse("\nf(1, 2, 3, *(4, 5, 6), 7)")) == ["line 2: 7 in a call"]
    assert long_calls(ast.parse("f(1, 2, 3, 4, 5, *rest, a=7, **more)")) == []
    code = "def given(made, *, told=1):\n    found, x.place = f(known=2)\n    import a as known, b\n    y = 'found'"
    assert vague_names(ast.parse(code)) == ["found 1×", "given 1×", "known 2×", "made 1×", "place 1×", "told 1×"]
    rule = 'rule placed:\n    input:\n        made=f"{found}",\n    params:\n        x=lambda w: known[w],  # told\n'
    assert vague_names_of_rules(rule) == ["known 1×", "made 1×"]
