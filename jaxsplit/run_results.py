"""What `train_and_evaluate` returns: final metrics, and the history of the run."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxsplit import metrics


class RunResults(dict[str, float]):
    """The final metrics of a run, a dict by name, and its `history`."""

    def __init__(self, values: Mapping[str, float], workdir: pathlib.Path):
        super().__init__(values)
        self.workdir = workdir

    @functools.cached_property
    def history(self) -> dict[str, list[Any]]:
        """Everything that was logged, of resumed runs from their first step on.

        Name -> one value for each logged step, None where a step has no value of that name; the
        first is 'step'. `pandas.DataFrame(results.history)` makes a table of it. It is read from
        metrics.jsonl when it is first asked for.
        """
        return columns((self.workdir / metrics.JSONL).read_text().splitlines())


def columns(lines: list[str]) -> dict[str, list[Any]]:
    """The lines of metrics.jsonl as columns; lines of the same step become one row."""
    rows: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, lines):
        rows.setdefault(line["step"], {}).update(line)
    names = dict.fromkeys(["step", *(name for row in rows.values() for name in row)])
    return {name: [rows[step].get(name) for step in sorted(rows)] for name in names}
