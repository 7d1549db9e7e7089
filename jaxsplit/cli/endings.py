"""How a mode ends: the path of what it wrote, and the command that comes next."""

import os
import pathlib
import shlex


def next_command(verb: str, *arguments: str, **flags: str | os.PathLike) -> str:
    """'next: jaxsplit VERB ...', quoted for a shell.

    Args:
      verb: of `jaxsplit`.
      *arguments: as they are.
      **flags: name -> value, behind the arguments.
    """
    given = [f"--{name}={os.fspath(value)}" for name, value in flags.items()]
    return "next: " + shlex.join(["jaxsplit", verb, *arguments, *given])


def wrote(what: str, path: str | pathlib.Path, following: str) -> str:
    """Two lines: what lies where, and `next_command`."""
    return f"{what}: {os.fspath(path)}\n{following}"
