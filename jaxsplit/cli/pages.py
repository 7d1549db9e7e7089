"""The pages that `--help` prints, and the runner of verbs that have flags of their own."""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from absl import flags

from jaxsplit.cli import pipes
from jaxsplit.errors import ConfigError

_WIDTH = 96
_COLUMN = 28  # at which the description of a flag begins


@dataclass(frozen=True)
class Page:
    """What `--help` prints for a verb.

    `flags`: name of a flag -> the placeholder of its value; '' for a flag without a value.
    """

    usage: str
    about: str
    flags: Mapping[str, str]
    examples: Sequence[str]
    more: Callable[[], str] | None = None  # makes the text after the flags

    def text(self, defined: flags.FlagValues) -> str:
        """The page; `defined` holds the flags with their defaults."""
        listed = [_described(name, value, defined) for name, value in self.flags.items()]
        parts = [f"usage: {self.usage}", self.about]
        if listed:
            parts.append("\n".join(["flags:", *listed]))
        if self.more is not None:
            parts.append(self.more())
        parts.append("\n".join(["examples:", *(f"  {example}" for example in self.examples)]))
        return "\n\n".join(parts)


def _described(name: str, value: str, defined: flags.FlagValues) -> str:
    flag = defined[name]
    default = "" if flag.default in (None, False, "") else f" (default: {flag.default})"
    begin = f"  --{name}{'=' * bool(value)}{value}"
    # absl appends a line to the help of a flag that can be repeated; it is left out.
    lines = textwrap.wrap(flag.help.partition(";\n")[0] + default, _WIDTH - _COLUMN)
    if len(begin) > _COLUMN - 2:
        lines = ["", *lines]
    lines[0] = begin.ljust(_COLUMN) + lines[0]
    return "\n".join([lines[0].rstrip(), *(" " * _COLUMN + line for line in lines[1:])])


def asked_for(argv: Sequence[str]) -> bool:
    """Whether these arguments ask for the page. `argv`: without the program's name."""
    until = list(argv).index("--") if "--" in argv else len(argv)
    return bool({"--help", "-help", "-h", "--h", "--helpshort"} & set(argv[:until]))


def run(
    page: Page,
    argv: Sequence[str],
    defined: flags.FlagValues,
    command: Callable[[list[str]], int],
) -> int:
    """Runs a verb that has flags of its own; returns the exit status.

    Args:
      page: the page of the verb.
      argv: its arguments, without the names of program and verb.
      defined: its flags; they get their values here.
      command: does the work; takes the arguments that are not flags, returns the exit status.
    """

    def work() -> int:
        if asked_for(argv):
            print(page.text(defined))
            return 0
        return command(defined(["jaxsplit", *argv])[1:])

    try:
        return pipes.quietly(work)
    except (flags.Error, ConfigError) as error:
        print("error:", str(error).strip(), file=sys.stderr, flush=True)
        return 2
