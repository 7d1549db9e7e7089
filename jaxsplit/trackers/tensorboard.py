"""The tracker 'tensorboard': event files in the workdir, written through TensorFlow."""

import os
import pathlib
import struct
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from jaxsplit.metrics import JSONL
from jaxsplit.workdir import files

if TYPE_CHECKING:
    from clu import metric_writers

    from jaxsplit.trackers.base import Tracker


class Board:
    """Writes event files. `open_board` makes it."""

    def __init__(self, writer: "metric_writers.MetricWriter", events: Any) -> None:
        self.writer = writer
        self.events = events  # the TensorFlow writer that it wraps

    @staticmethod
    def of_run(
        workdir: pathlib.Path,
        *,
        start: int,
        config: ConfigDict,
        say: Callable[[str], None],
    ) -> "Tracker":
        """The board of a run without its steps after `start`; one that ignores everything, after
        a line, where TensorFlow is missing. Arguments as of `Make`.
        """
        board = open_board(workdir, say)
        if board is None:
            return Nothing()
        drop_later_events(workdir, board, start)
        return board

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of one step."""
        self.writer.write_scalars(step, dict(scalars))

    def close(self) -> None:
        """Writes what is left."""
        self.writer.flush()
        self.writer.close()


class Nothing:
    """A tracker that ignores everything."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def drop_later_events(workdir: pathlib.Path, board: Board, step: int) -> None:
    """Removes steps after `step` from the event files of earlier starts.

    It also writes an event that makes a running TensorBoard forget these steps.
    """
    import tensorflow as tf

    event_type = tf.compat.v1.Event
    for path in workdir.glob("events.out.tfevents.*"):
        try:
            data = path.read_bytes()
            if kept := _up_to(step, data, event_type):
                files.write_bytes(path, kept)
        except (OSError, ValueError, struct.error):
            continue  # a damaged log must not stop the run
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = event_type(wall_time=time.time(), step=step + 1, session_log=log)
    for _ in range(2):  # TensorBoard takes the first such event for a new run, and drops nothing
        # No public function writes an event of this kind.
        tf.raw_ops.ImportEvent(writer=board.events._resource, event=event.SerializeToString())


def _up_to(step: int, data: bytes, event_type: Any) -> bytes | None:
    """The records of an event file without those of later steps; None: there is nothing to drop."""
    kept, at = [], 0
    while at + 12 <= len(data):  # a record: length, its checksum, an event, its checksum
        end = at + 16 + struct.unpack_from("<Q", data, at)[0]
        if end > len(data):
            break  # cut short by a kill
        try:
            event = event_type.FromString(data[at + 12 : end - 4])
        except Exception as error:  # protobuf's own
            raise ValueError("no event file") from error
        if not (event.step > step and event.HasField("summary")):
            kept.append(data[at:end])
        at = end
    whole = b"".join(kept)
    return None if len(whole) == at else whole


def open_board(workdir: pathlib.Path, say: Callable[[str], None]) -> Board | None:
    """The writer of event files; None, after a line, if TensorFlow is missing."""
    # Must be set before the import, which prints notices otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError as error:
        say(f"no TensorBoard files ({error}); metrics go to {workdir / JSONL}")
        return None
    tf.config.set_visible_devices([], "GPU")  # else TensorFlow takes the memory that jax needs
    summaries = metric_writers.SummaryWriter(str(workdir))
    return Board(metric_writers.AsyncWriter(summaries), summaries._summary_writer)


def write_board(
    workdir: pathlib.Path,
    step: int,
    scalars: Mapping[str, float],
    say: Callable[[str], None] = print,
) -> bool:
    """Writes the values of one step to event files; whether TensorFlow is there to do so."""
    board = open_board(workdir, say)
    if board is None:
        return False
    board.write(step, scalars)
    board.close()
    return True
