"""Samples of a parametrised test: the first few in `make test`, the others in `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """The values of one argument, all but the first `count` marked as slow."""
    return first_rows(count, ((value,) for value in values))


def first_rows(count: int, rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The values of several arguments, all but the first `count` rows marked as slow."""
    return [
        pytest.param(*row, marks=[] if place < count else pytest.mark.slow)
        for place, row in enumerate(rows)
    ]
