"""A program of jaxsplit in this process, as the shell would run it."""

import sys
from collections.abc import Callable

import pytest
from absl import flags
from absl.testing import flagsaver


def run(patch: pytest.MonkeyPatch, program: Callable[[list[str]], object], *argv: str) -> None:
    """Runs `program(argv)`, which parses absl's flags; afterwards they are as before."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        # The flags of a config's fields are made from sys.argv, by ml_collections.
        patch.setattr(sys, "argv", [*argv])
        before = set(flags.FLAGS)
        try:
            program(sys.argv)
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
    flags.FLAGS.mark_as_parsed()
