"""Translates old names of fields and values, so old configs and workdirs keep working."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

from jaxsplit.config.derived import PAPER

# field -> old value -> the value that now means the same
VALUES: dict[str, dict[str, str]] = {"views": {"": PAPER}, "trunk": {"": PAPER}}

# (old group, old name) -> the field now; only old config.json files have them
MOVED = {("cotrain", "views"): "views"}


def move(fields: dict[str, Any]) -> None:
    """Renames old fields of a config.json, in place."""
    for (group, name), today in MOVED.items():
        if isinstance(old := fields.get(group), dict) and name in old:
            fields[today] = old.pop(name)


def translate(fields: Any) -> None:
    """Replaces old values in a ConfigDict or dict, in place, and prints a line that names them."""
    if lines := list(_translated(fields)):
        say_once(f"note: {', '.join(lines)}")


def _translated(fields: Any) -> Iterator[str]:
    for field, today in VALUES.items():
        old = fields.get(field)
        if isinstance(old, str) and old in today:
            fields[field] = today[old]
            yield f"{field}={old!r} is called {today[old]!r} now"


@functools.cache  # a config is checked more than once in a run
def say_once(line: str) -> None:
    """Prints a line to stderr, unless it was printed before."""
    print(line, file=sys.stderr, flush=True)
