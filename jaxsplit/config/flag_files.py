"""Expands --flagfile=FILE: a file with one flag per line; # and // begin comments.

absl would expand such files only when it parses. Here they are expanded first, so every check sees
their flags.
"""

import os
from collections.abc import Sequence

from jaxsplit.errors import ConfigError

_NAMES = ("--flagfile", "-flagfile")


def expanded(arguments: Sequence[str], within: tuple[str, ...] = ()) -> list[str]:
    """The arguments, with each --flagfile replaced by the flags in it; what follows `--` stays.

    Args:
      arguments: the arguments of a command line, without the program's name.
      within: the files that contain these arguments, the outermost first.

    Raises:
      ConfigError: a file is missing, cannot be read, or includes itself.
    """
    rest, made = list(arguments), []
    while rest:
        argument = rest.pop(0)
        name, equals, path = argument.partition("=")
        if argument == "--":
            return [*made, argument, *rest]
        if name not in _NAMES:
            made.append(argument)
            continue
        if not equals and rest:
            path = rest.pop(0)
        made += expanded(_lines(path.strip(), within), (*within, _real(path.strip())))
    return made


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _lines(path: str, within: tuple[str, ...]) -> list[str]:
    if not path:
        raise ConfigError("flagfile: must name a file")
    if _real(path) in within:
        raise ConfigError(f"flagfile={path!r}: must not include itself")
    try:
        with open(_real(path), encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(
            f"flagfile={path!r}: must be a file with one flag per line ({why})"
        ) from None
    lines = [line for line in lines if line and not line.startswith(("#", "//"))]
    for line in lines:
        if not line.startswith("-"):
            raise ConfigError(f"flagfile={path!r}: {line!r} must begin with '--'")
    return lines
