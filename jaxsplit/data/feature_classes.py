"""Checks the Python classes that a prepared data set names; tensorflow_datasets imports any."""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jaxsplit.errors import ConfigError

_OWN = re.compile(r"tensorflow_datasets\.core\.features\.(\w+\.)*\w+", re.ASCII)


def check(folder: pathlib.Path, data_dir: str) -> None:
    """Checks that all features of the set in `folder` are classes of tensorflow_datasets itself.

    Raises:
      ConfigError: a feature has another class. tensorflow_datasets would import, and so run, its
        module.
      OSError, ValueError: a file cannot be read.
    """
    for file, inside in (("features.json", None), ("dataset_info.json", "features")):
        path = folder / file
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        for name in _classes(content if inside is None else content.get(inside)):
            if not (isinstance(name, str) and _OWN.fullmatch(name)):
                raise ConfigError(
                    f"data.dir={data_dir}: {path} names the feature class {ascii(name)}, must be "
                    "one of tensorflow_datasets.core.features (any other is a program that would "
                    "be run)"
                )


def _classes(content: Any) -> Iterator[Any]:
    """Everything in a feature's JSON that tfds, or an older version, takes for a class name."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, each in value.items():
                if isinstance(
                    each, dict | list
                ):  # a feature may have one of these keys as its name
                    waiting.append(each)
                elif key in ("pythonClassName", "python_class_name", "type"):
                    yield each
                elif key == "json" and isinstance(each, str):
                    waiting.append(json.loads(each))
