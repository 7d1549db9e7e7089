"""Warnings of orbax about how it is used here, which a user can do nothing about."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

# What orbax gives to its logger, before any value is filled in.
_KNOWN = (
    "Requested `tracked_metric`; did not provide metrics.",  # not every checkpoint is evaluated
    "Given directory is read only=%s",
    "Metadata file does not exist: %s",  # of an item of a checkpoint, which has none of its own
    "Global object size logging disabled for `primary_host=None`.",
    # Of a damaged one, which an error of ours names.
    "Failed to get item metadata from directory %s. Either it was not present in the checkpoint, "
    "or the handler does not support it.",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops those warnings, and no others, while orbax is called; logging stays as it was."""

    def keep(record: logging.LogRecord) -> bool:  # another each time, as several may be under way
        return record.msg not in _KNOWN

    _drop_ends_of_loops()
    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class _Hook:
    """As `sys.unraisablehook`: what was there before, but for a loop that has ended.

    Where one array of a checkpoint cannot be read or written, orbax ends its event loop; each of
    the others, when it is done, then finds it closed, and Python prints a traceback. That can be
    later than orbax's call, so that this hook stays.
    """

    def __init__(self, before: Any):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        trace, names = unraisable.exc_traceback, []
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        closed = names[-2:] == ["call_soon_threadsafe", "_check_closed"]
        if not closed or unraisable.exc_type is not RuntimeError:
            self._before(unraisable)


def _drop_ends_of_loops() -> None:
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
