"""The dotted names of config fields, and the flags that override them."""

import difflib
import re
from typing import Any

from jaxsplit import defaults
from jaxsplit.errors import ConfigError, short
from jaxsplit.section import flat

__all__ = ["check_field", "check_overrides", "flags_given", "flat"]


def check_field(field: str, value: Any) -> None:
    """Checks that a field, or a group of fields, of this dotted name exists.

    Raises:
      ConfigError: it does not; suggests similar names, else lists the fields of its group.
    """
    known = dict(flat(defaults.get_config()))
    if field in known or any(k.startswith(field + ".") for k in known):
        return
    group, _, name = field.rpartition(".")
    near = [k for k in known if k.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(field, known, n=3, cutoff=0.5)
    near = near or [k for k in known if k.rpartition(".")[0] == group] or list(known)
    raise ConfigError(
        f"{field}={short(value)}: no such field in jaxsplit/defaults.py; "
        f"there are {', '.join(near)}"
    )


def flags_given(argv: list[str]) -> dict[str, str]:
    """Reads name -> value of the flags on a command line, before they are parsed."""
    given = {}
    for flag, after in zip(argv[1:], [*argv[2:], "-"], strict=False):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-"):
            given[name] = value if equals or not may_be_a_value(after) else after
    return given


def may_be_a_value(argument: str) -> bool:
    """Whether an argument may be the value of the flag before it: no flag, or a negative number."""
    return not argument.startswith("-") or bool(re.match(r"-(\d|\.\d|inf\b)", argument))


def check_overrides(given: dict[str, str]) -> None:
    """Raises ConfigError for the first --config.FIELD in `given` that does not exist."""
    for name, value in given.items():
        if name.startswith(("config.", "noconfig.")):
            check_field(name.partition(".")[2], value)
