"""No file of the package is too long to read at once, and no function."""

import ast

import pytest

from tests.support.paths import ROOT

MOST_LINES = 400  # of a file
MOST_FUNCTION_LINES = 60  # of a function with its docstring, without its decorators
PARTS = ("jaxsplit", "configs")


def too_long(path: str, text: str) -> set[tuple[str, str]]:
    """(path, name) of each function over the limit; (path, '') if the file is."""
    found = {(path, "")} if len(text.splitlines()) > MOST_LINES else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES:
                found.add((path, node.name))
    return found


def test_files_and_functions_are_short():
    found = set()
    for part in PARTS:
        for file in sorted((ROOT / part).rglob("*.py")):
            found |= too_long(file.relative_to(ROOT).as_posix(), file.read_text())
    assert sorted(found) == []


@pytest.mark.parametrize(("lines", "found"), [(60, set()), (61, {("a.py", "f")})])
def test_lines_of_a_function(lines, found):
    body = "\n".join(["    x = 1"] * (lines - 1))
    assert too_long("a.py", f"@d\ndef f():\n{body}\n") == found


@pytest.mark.parametrize(("lines", "found"), [(400, set()), (401, {("a.py", "")})])
def test_lines_of_a_file(lines, found):
    assert too_long("a.py", "x = 1\n" * lines) == found
