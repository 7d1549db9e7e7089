"""The package says that it has types: all that is public has them, and `py.typed` is installed."""

import ast
import pathlib
import tomllib
from collections.abc import Iterator

import jaxsplit
from tests.support.paths import ROOT

PACKAGE = pathlib.Path(jaxsplit.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function, bool]]:
    """(name, function, whether it is a method) of those whose names have no leading underscore."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            yield from public(inner, prefix)
        if not isinstance(node, ast.ClassDef | Function):
            continue
        if node.name.startswith("_") and not node.name.startswith("__"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{prefix}{node.name}.")
        else:
            yield f"{prefix}{node.name}", node, bool(prefix)


def missing(function: Function, method: bool) -> list[str]:
    """Names of the arguments without a type, and `return`."""
    a = function.args
    static = any(
        isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list
    )
    first = 1 if method and not static else 0  # self or cls
    args = [*(a.posonlyargs + a.args)[first:], *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    out = [arg.arg for arg in args if arg.annotation is None]
    if function.returns is None and function.name != "__init__":
        out.append("return")
    return out


def test_public_functions_are_annotated():
    without = [
        f"{path.relative_to(PACKAGE)}:{function.lineno} {name}: {', '.join(names)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, function, method in public(ast.parse(path.read_text()).body)
        if (names := missing(function, method))
    ]
    assert not without, "\n".join(without)


def test_the_check_finds_what_is_missing():
    text = """
def fine(a: int, *, b: str = "") -> None: ...
def wrong(a, *b, c: int = 0, **d): ...
def _private(a): ...
class Public:
    def __init__(self, a: int): ...
    def __exit__(self, *_) -> None: ...
    @staticmethod
    def of(a) -> int: ...
class _Private:
    def f(self, a): ...
"""
    found = {name: missing(node, method) for name, node, method in public(ast.parse(text).body)}
    assert found == {
        "fine": [],
        "wrong": ["a", "b", "d", "return"],
        "Public.__init__": [],
        "Public.__exit__": ["_"],
        "Public.of": ["a"],
    }


def test_py_typed_is_packaged():
    assert (PACKAGE / "py.typed").is_file()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "py.typed" in tools["setuptools"]["package-data"]["jaxsplit"]
