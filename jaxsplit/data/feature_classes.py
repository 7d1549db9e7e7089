"""Which Python classes a prepared data set names: tensorflow_datasets would import any of them."""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jaxsplit.errors import ConfigError

_OWN = re.compile(r"tensorflow_datasets\.core\.features\.(\w+\.)*\w+", re.ASCII)


def check(folder: pathlib.Path, data_dir: str) -> None:
    """Raise unless the features of the set in `folder` are all of tensorflow_datasets' own classes.

    Raises:
      ConfigError: one is of another class, whose module would be imported, so run.
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
    """All that tfds takes for names of classes in a feature as JSON, of this and older versions."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, each in value.items():
                if isinstance(each, dict | list):  # a feature may be called as any of these keys
                    waiting.append(each)
                elif key in ("pythonClassName", "python_class_name", "type"):
                    yield each
                elif key == "json" and isinstance(each, str):
                    waiting.append(json.loads(each))
