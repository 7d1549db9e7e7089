"""A reader of the output that goes away, such as `head` or a `tee` that was killed."""

import os
import signal
import sys
from collections.abc import Callable

_STATUS = 128 + signal.SIGPIPE  # as shells say it of other programs


def quietly(command: Callable[[], int]) -> int:
    """The exit status of a command; if its reader has gone away it ends without a word."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Else the flush at exit fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _STATUS
