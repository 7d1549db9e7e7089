"""Samples of a parametrised test: the first few in `make test`, the others in `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """The values, all but the first `count` marked as slow."""
    marked = []
    for place, value in enumerate(values):
        if place < count:
            marked.append(value)
        elif isinstance(value, type(pytest.param())):
            marked.append(pytest.param(*value.values, id=value.id, marks=pytest.mark.slow))
        else:
            several = value if isinstance(value, tuple) else (value,)
            marked.append(pytest.param(*several, marks=pytest.mark.slow))
    return marked
