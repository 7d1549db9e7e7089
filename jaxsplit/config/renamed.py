"""Fields and values that have another name today: old configs and workdirs keep working."""

import functools
import sys
from collections.abc import Iterator
from typing import Any

from jaxsplit.config.derived import PAPER

# field -> old value -> the value that means the same today
VALUES: dict[str, dict[str, str]] = {"views": {"": PAPER}, "trunk": {"": PAPER}}

# group, field -> the field today; only config.json has them
MOVED = {("cotrain", "views"): "views"}


def move(fields: dict[str, Any]) -> None:
    """Gives fields of a config.json the names that they have today."""
    for (group, name), today in MOVED.items():
        if isinstance(old := fields.get(group), dict) and name in old:
            fields[today] = old.pop(name)


def translate(fields: Any) -> None:
    """Replaces the old values in a ConfigDict or dict of fields, and prints one line of them."""
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
    print(line, file=sys.stderr, flush=True)
