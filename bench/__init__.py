"""Benchmarks, one module each; `bench/results/` holds their figures."""

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxsplit.errors import ConfigError
from jaxsplit.hosts import allocator

allocator.keep_memory()  # as main.py does, before jax starts


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line and status 2 at a wrong value."""
    try:
        yield
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@functools.cache
def commit() -> str:
    """The commit that is measured, with `-dirty` if the working tree differs from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:  # no git
        found = ""
    return found or "unknown"


def made_by(*facts: str) -> str:
    """The line that says how a figure was made: `facts`, Python version, commit and date."""
    python = f"Python {platform.python_version()}"
    return ", ".join([*facts, python, f"commit {commit()}", str(datetime.date.today())])


def show(text: str, out: pathlib.Path | None) -> None:
    """Prints a table, and appends it to the Markdown file `out` if one is given."""
    print(text)
    if out:
        with out.open("a") as f:
            f.write(text + "\n")


class Results:
    """Writes figures as lines of JSON, one by one, so that an interrupted run keeps its figures.

    `path`: the JSON lines lie beside it as `.jsonl`; a Markdown file also gets the tables. None:
    nothing is written.
    """

    def __init__(self, path: pathlib.Path | None):
        self._table = path if path and path.suffix == ".md" else None
        self._lines = path.with_suffix(".jsonl") if path else None
        self.rows: list[dict[str, Any]] = []

    def add(self, part: str, **row: Any) -> None:
        """Writes the figures of one measurement; numbers that are not finite become null."""
        facts = {
            "part": part,
            "jax": importlib.metadata.version("jax"),
            "python": platform.python_version(),
            "commit": commit(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self.rows.append(facts | row)
        if self._lines:
            self._lines.parent.mkdir(parents=True, exist_ok=True)
            with self._lines.open("a") as f:
                f.write(json.dumps(_finite(self.rows[-1])) + "\n")

    def show(self, table: str, *facts: str) -> None:
        """Prints a table below the line of `made_by`; appends both to the Markdown file."""
        jax = f"jax {importlib.metadata.version('jax')}"
        show(f"{made_by(*facts, jax)}\n\n{table}\n", self._table)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
