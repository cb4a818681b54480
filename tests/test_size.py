"""Size is a feature: one idea a file, one thought a function, few knobs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 45
MAX_PARAMETERS = 7

# "path" or "path::function" → why it may be larger.
ALLOWED: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for folder in ("edgellm", "export")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def parameters(function: Function) -> int:
    """How many values a caller passes. A command has one per option: click calls it, not we."""
    if any("option" in ast.dump(decorator) for decorator in function.decorator_list):
        return 0
    spec = function.args
    names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def too_large(path: str, text: str) -> list[str]:
    found = []
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES and path not in ALLOWED:
        found.append(f"{path} has {lines} lines (at most {MAX_FILE_LINES}): it holds two ideas")
    for function in functions(text):
        name = f"{path}::{function.name}"
        if name in ALLOWED:
            continue
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            found.append(f"{name} has {length} lines (at most {MAX_FUNCTION_LINES})")
        if parameters(function) > MAX_PARAMETERS:
            found.append(f"{name} takes {parameters(function)} values (at most {MAX_PARAMETERS})")
    return found


@pytest.mark.parametrize("path", sources())
def test_small(path: str) -> None:
    problems = too_large(path, (ROOT / path).read_text())
    assert not problems, "\n".join(problems)


def test_what_is_too_large_is_found() -> None:
    long_file = "x = 1\n" * (MAX_FILE_LINES + 1)
    long_function = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    many_values = "def f(self, a, b, c, d, *, e, g, h, i): pass"
    for text in (long_file, long_function, many_values):
        assert len(too_large("some.py", text)) == 1


def test_exceptions_name_what_exists() -> None:
    names = set(sources())
    for path in sources():
        names |= {f"{path}::{f.name}" for f in functions((ROOT / path).read_text())}
    assert set(ALLOWED) <= names, f"no longer there: {sorted(set(ALLOWED) - names)}"
