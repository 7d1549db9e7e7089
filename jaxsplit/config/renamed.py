"""Translates old names of fields and values, so old configs and workdirs keep working."""

import functools
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from ml_collections import ConfigDict

from jaxsplit.config.derived import PAPER

# field -> old value -> the value that now means the same
VALUES: dict[str, dict[str | float, str]] = {
    "views": {"": PAPER},
    "trunk": {"": PAPER},
    "distill.temperature": {0.0: PAPER},
}

# (old group, old name) -> the field now; only old config.json files have them
MOVED = {("cotrain", "views"): "views"}


def move(fields: dict[str, Any]) -> None:
    """Renames old fields of a config.json, in place."""
    for (group, name), today in MOVED.items():
        if isinstance(old := fields.get(group), dict) and name in old:
            fields[today] = old.pop(name)


def translate(fields: Any) -> None:
    """Replaces old values in place, and prints a line that names them.

    Args:
      fields: a ConfigDict, or a dict that is nested or has dotted names.
    """
    if lines := list(_translated(fields)):
        say_once(f"note: {', '.join(lines)}")


def _translated(fields: Any) -> Iterator[str]:
    for field, today in VALUES.items():
        holder, name = fields, field
        if "." in field and field not in fields:  # `fields` is not flat
            group, _, name = field.rpartition(".")
            holder = fields.get(group)
        if not isinstance(holder, dict | ConfigDict):
            continue  # another check refuses it
        old = holder.get(name)
        if isinstance(old, str | int | float) and old is not False and old in today:
            # A ConfigDict of a program may still have the type of the old value.
            free = holder.ignore_type() if isinstance(holder, ConfigDict) else nullcontext()
            with free:
                holder[name] = today[old]
            yield f"{field}={old!r} is called {today[old]!r} now"


@functools.cache  # a config is checked more than once in a run
def say_once(line: str) -> None:
    """Prints a line to stderr, unless it was printed before."""
    print(line, file=sys.stderr, flush=True)
