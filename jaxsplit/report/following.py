"""The last line of a command: the command that comes next."""

import os
import shlex
from collections.abc import Sequence


def line(*commands: Sequence[str]) -> str:
    """'next: jaxsplit VERB ...', quoted for the shell; several are joined by '&&'.

    Args:
      *commands: the verb and its arguments, for example ['eval', '--workdir=runs/a'].
    """
    quoted = (shlex.join(["jaxsplit", *command]) for command in commands)
    return f"next: {' && '.join(quoted)}"


def of_workdir(workdir: str | os.PathLike, *verbs: str) -> str:
    """`line` of verbs that take nothing but the workdir, one after another."""
    where = f"--workdir={os.fspath(workdir)}"
    return line(*([verb, where] for verb in verbs))
