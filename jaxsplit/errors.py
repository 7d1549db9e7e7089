"""Errors that a user can act on: one line, without a traceback in the command line tool."""

import errno
from typing import Any


class ConfigError(ValueError):
    """A wrong value in a config, flag or workdir; names field, value and what is allowed."""


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; names the step and the last good checkpoint."""


class DamagedError(ConfigError):
    """A checkpoint cannot be read, or differs from what was saved; names it and the damage."""


class SaveError(RuntimeError):
    """A checkpoint could not be saved; names the reason and the last good checkpoint."""


class Stopped(BaseException):
    """The run ended because it was asked to; names the signal, what is saved and how to resume.

    Like KeyboardInterrupt it is no Exception, so `except Exception` does not catch it.

    status: the exit status of the program.
    together: whether all processes of the run end now.
    """

    together = True

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the disk or a quota is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        # C++ libraries raise it as Exception or ValueError without an errno.
        if any(text in str(error) for text in ("No space left on device", "quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def short(value: Any) -> str:
    """`repr(value)` on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print integers of so many digits
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
