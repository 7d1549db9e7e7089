"""Errors that a user can act on: one line, without a traceback in the command line tool."""

import errno
from typing import Any


class ConfigError(ValueError):
    """A wrong value in a config, flag or workdir: names the field, the value, what is allowed."""


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite: names the step and the last good checkpoint."""


class DamagedError(ConfigError):
    """A checkpoint cannot be read, or is not what was saved: names it and what is wrong."""


class SaveError(RuntimeError):
    """A checkpoint could not be saved: names why, and the last good one."""


class Stopped(BaseException):
    """The run was asked to end, and did: names the signal, what is saved and how to go on.

    No Exception, as KeyboardInterrupt is none: what handles errors must not take it for one.
    `status`: what the program ends with. `together`: all processes of the run end now.
    """

    together = True

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the disk or a quota is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Of C++ libraries, as Exception or ValueError.
        if any(text in str(error) for text in ("No space left on device", "quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def short(value: Any) -> str:
    """`repr` on one line, of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
