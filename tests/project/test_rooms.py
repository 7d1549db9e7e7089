"""Imports point downwards: what the rooms of the package, and its core, may import.

The imports are read from the source, those inside functions too; those for type checkers are not.
"""

import ast
import graphlib
import pathlib
import sys
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "jaxsplit"
# The upper part of the root. A room that imports it would stand above what uses the room.
STORY = ("loop", "experiment", "rating", "evaluate", "early_stop", "cli")
MAY_IMPORT_STORY = {
    "cli": "the command line starts everything",
    "data.prepare.__main__": "a program, which nothing imports; its command line is in cli",
}
# Rooms that import each other, inside functions only.
CIRCLES = {
    frozenset(("config", "data")): "an .npz is read within the limits that config checks, and "
    "config asks data for names and sizes",
}
CORE = ("conv", "stack", "losses", "models", "methods", "augment", "optim", "step", "sharding")
OUTSIDE = ("jax", "jaxlib", "flax", "optax", "numpy", *sys.stdlib_module_names)
BELOW_CORE = {
    "errors": "what is raised at bad input",
    "compiler": "how XLA compiles where the core must know it",
    "schedules": "rates and weights by step, of optim",
    "averaging": "the average of weights that step keeps",
    "metrics": "sums of metrics, of step; writers of files are imported inside functions",
    "state": "the value that step takes and returns",
    "workdir.files": "whole files, which metrics writes",
    "features": "maps with names, which a stack returns",
    "layer_decay": "learning rates by layer, of optim",
    "scale_by": "what optim divides gradients by",
    "section": "the checks of a method's fields",
    "costs": "parameters and multiply-adds, which methods tell of their modules",
}


class Import(NamedTuple):
    module: str
    line: int
    at_import: bool  # not inside a function


def modules() -> dict[str, pathlib.Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(text: str) -> list[Import]:
    """Every import of a module's text; `from a import b` is one of a.b where that is a module."""
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"line {child.lineno}: a relative import"
                full = [f"{child.module}.{alias.name}" for alias in child.names]
                names = [name if name in MODULES else child.module for name in full]
            found.extend(Import(name, child.lineno, at_import) for name in names)
            if not is_for_type_checkers(child):
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                visit(child, at_import and not function)

    visit(ast.parse(text), True)
    return found


IMPORTS = {name: imports_of(path.read_text("utf-8")) for name, path in MODULES.items()}


def inside(name: str) -> str:
    """The name within the package: 'models.resnet' of 'jaxsplit.models.resnet'."""
    return name.partition(".")[2]


def room(name: str) -> str:
    """'models' of 'jaxsplit.models' and 'jaxsplit.models.resnet'; '' of a module of the root."""
    top = inside(name).partition(".")[0]
    return top if (PACKAGE / top).is_dir() and top else ""


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "jaxsplit"


def told(name: str, found: Import) -> str:
    return f"{MODULES[name].relative_to(ROOT)}:{found.line} imports {found.module}"


def test_the_reader_of_imports():
    text = (
        "import a.b, c\nfrom jaxsplit import conv\nfrom jaxsplit.conv import Conv\n"
        "if TYPE_CHECKING:\n    import d\nif x:\n    import e\n"
        "class A:\n    import f\n    def g(self):\n        from h import i\n"
    )
    found = [(i.module, i.line, i.at_import) for i in imports_of(text)]
    assert found == [
        ("a.b", 1, True),
        ("c", 1, True),
        ("jaxsplit.conv", 2, True),
        ("jaxsplit.conv", 3, True),
        ("e", 7, True),
        ("f", 9, True),
        ("h", 11, False),
    ]
    assert len(MODULES) > 100 and room("jaxsplit.models.resnet") == "models"
    assert room("jaxsplit") == room("jaxsplit.loop") == ""


def test_the_package_imports_nothing_of_the_clone():
    clone = ("configs", "bench", "tests", "main")
    wrong = [
        told(name, i)
        for name, found in IMPORTS.items()
        for i in found
        if i.module.partition(".")[0] in clone
    ]
    assert not wrong, "\n".join(wrong)


def test_no_room_imports_the_story():
    wrong = [
        told(name, i)
        for name, found in IMPORTS.items()
        for i in found
        if room(name) and not {room(name), inside(name)} & set(MAY_IMPORT_STORY)
        if is_ours(i.module) and inside(i.module).partition(".")[0] in STORY
    ]
    assert not wrong, "\n".join(wrong)
    for name in MAY_IMPORT_STORY:
        assert f"jaxsplit.{name}" in MODULES


def test_no_circles_of_modules():
    """When modules are imported; an import inside a function comes later."""
    graph = {
        name: {i.module for i in found if i.at_import and i.module in MODULES} - {name}
        for name, found in IMPORTS.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises, and shows the circle


def test_no_circles_of_rooms():
    """Imports inside functions count. The root lies between rooms, so it is left out."""
    graph: dict[str, set[str]] = {}
    for name, found in IMPORTS.items():
        if room(name) and inside(name) not in MAY_IMPORT_STORY:
            graph.setdefault(room(name), set()).update(
                room(i.module) for i in found if is_ours(i.module)
            )
    for one, others in graph.items():
        others -= {one, ""}
    for circle in CIRCLES:
        one, other = sorted(circle)
        assert other in graph[one] and one in graph[other], f"no circle any more: {one}, {other}"
        later = {
            (room(name), room(i.module))
            for name, found in IMPORTS.items()
            for i in found
            if not i.at_import
        }
        (away,) = [(a, b) for a, b in ((one, other), (other, one)) if (a, b) in later]
        graph[away[0]].remove(away[1])
    list(graphlib.TopologicalSorter(graph).static_order())


def fits_the_core(found: Import) -> bool:
    """Whether the core, and what it stands on, may import this."""
    if not is_ours(found.module):
        return found.module.partition(".")[0] in OUTSIDE
    name = inside(found.module)
    return name in BELOW_CORE or name.partition(".")[0] in CORE


@pytest.mark.parametrize("part", CORE)
def test_the_core_imports_only_arrays_and_itself(part):
    wrong = [
        told(name, i)
        for name, found in IMPORTS.items()
        for i in found
        if inside(name).partition(".")[0] == part and not fits_the_core(i)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", BELOW_CORE)
def test_what_the_core_uses_imports_as_little(name):
    """When it is imported; inside a function more may be."""
    name = f"jaxsplit.{name}"
    wrong = [told(name, i) for i in IMPORTS[name] if i.at_import and not fits_the_core(i)]
    assert not wrong, "\n".join(wrong)
