"""Drops warnings of orbax about which a user can do nothing."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

# Messages as orbax passes them to its logger, before it fills in values.
_KNOWN = (
    "Requested `tracked_metric`; did not provide metrics.",  # some checkpoints are not evaluated
    "Given directory is read only=%s",
    "Metadata file does not exist: %s",  # items of a checkpoint have no metadata file
    "Global object size logging disabled for `primary_host=None`.",
    # About a damaged checkpoint, for which jaxsplit raises its own error.
    "Failed to get item metadata from directory %s. Either it was not present in the checkpoint, "
    "or the handler does not support it.",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops these warnings, and no others, while the block runs."""

    def keep(
        record: logging.LogRecord,
    ) -> bool:  # a new function each time, as several blocks may run at once
        return record.msg not in _KNOWN

    _drop_ends_of_loops()
    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class _Hook:
    """A `sys.unraisablehook` that drops errors of ended event loops and passes on all others.

    If orbax cannot read or write one array of a checkpoint, it closes its event loop. Every other
    array then finds the loop closed when it finishes, and Python prints a traceback. This may
    happen after orbax's call has returned, so the hook stays installed.
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
