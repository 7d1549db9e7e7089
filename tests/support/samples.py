"""Samples of a parametrised test: a few in `make test`, the others in `make test-all` only."""

from collections.abc import Collection, Iterable
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


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """The values of one argument, all but every `step`-th marked as slow."""
    return [
        pytest.param(value, marks=[] if place % step == 0 else pytest.mark.slow)
        for place, value in enumerate(values)
    ]


def sampled(values: Iterable[Any], sample: Collection[Any]) -> list[Any]:
    """The values of one argument, all that are not in the sample marked as slow."""
    values = list(values)
    assert set(sample) <= set(values)
    return [pytest.param(v, marks=[] if v in sample else pytest.mark.slow) for v in values]
