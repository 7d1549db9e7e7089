"""The built-in experiments: the files of configs/, found by name.

A clone has them in configs/; a wheel has them in jaxsplit/recipes/configs (see setup.py).
"""

import ast
import difflib
import importlib.util
import pathlib

from ml_collections import ConfigDict

from jaxsplit.errors import ConfigError

_HERE = pathlib.Path(__file__).resolve().parent
_NOT_EXPERIMENTS = ("__init__", "common")


def folder() -> pathlib.Path:
    """The folder that holds the experiment files."""
    installed = _HERE / "configs"
    return installed if installed.is_dir() else _HERE.parent.parent / "configs"


def names() -> list[str]:
    """The built-in experiments in alphabetical order: 'cifar10', 'cifar100', ..."""
    return sorted(p.stem for p in folder().glob("*.py") if p.stem not in _NOT_EXPERIMENTS)


def find(name: str) -> pathlib.Path | None:
    """The file of an experiment; None: there is no experiment of that name."""
    return folder() / f"{name}.py" if name in names() else None


def nearest(name: str) -> list[str]:
    """The three experiments whose names are most like `name`, the nearest first."""
    return difflib.get_close_matches(pathlib.PurePath(name).stem, names(), n=3, cutoff=0.0)


def title(name: str) -> str:
    """The first line of the docstring of an experiment file."""
    module = ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def get_config(name: str, arguments: str = "") -> ConfigDict:
    """The config of an experiment: `get_config("cifar100", "arch=resnet110,split=2")`.

    Raises:
      ConfigError: there is no experiment of that name, or its file refuses the arguments.
    """
    path = find(name)
    if path is None:
        raise ConfigError(
            f"experiment={name!r}: no built-in experiment; nearest are {', '.join(nearest(name))}"
        )
    spec = importlib.util.spec_from_file_location(f"jaxsplit_experiment_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arguments) if arguments else module.get_config()
