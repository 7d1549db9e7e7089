"""Training metrics: their sums on the devices, and the files that they are written to."""

import json
import math
import os
import pathlib
import struct
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.workdir import files

if TYPE_CHECKING:
    from clu import metric_writers

JSONL = "metrics.jsonl"


class Totals(NamedTuple):
    """The metrics since the last log point."""

    sums: dict[str, Array]  # over the steps
    count: Array  # int32[], number of steps
    bad_step: Array  # int32[], the first step with a loss that is not finite; -1: none


def empty() -> Totals:
    """Totals without metrics; the first `add` determines which there are."""
    return Totals({}, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))


def add(totals: Totals, values: Mapping[str, Array], finite: Array, step: Array) -> Totals:
    """Adds the metrics of one step. `finite`: bool[], whether its loss and update are finite."""
    first_bad = (totals.bad_step < 0) & ~finite
    return Totals(
        {name: totals.sums.get(name, 0) + value for name, value in values.items()},
        totals.count + 1,
        jnp.where(first_bad, step, totals.bad_step),
    )


def zeros(shapes: Totals) -> Totals:
    """Totals of no steps, with metrics of these shapes."""
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.sums)
    return empty()._replace(sums=sums)


def to_json(totals: Totals) -> dict:
    """{'count', 'sums'} as numbers and lists; nothing is rounded."""
    sums, count, _ = jax.device_get(totals)
    return {"count": int(count), "sums": {name: value.tolist() for name, value in sums.items()}}


def from_json(saved: dict | None, like: Totals) -> Totals:
    """The totals that `to_json` saved; `like`, which has no steps, if they have other metrics."""
    if saved is None or saved["sums"].keys() != like.sums.keys():
        return like
    sums = {
        name: jnp.asarray(saved["sums"][name], x.dtype).reshape(x.shape)
        for name, x in like.sums.items()
    }
    return empty()._replace(sums=sums, count=jnp.asarray(saved["count"], jnp.int32))


def means(totals: Totals) -> dict[str, float]:
    """Means over the steps; a metric with a value per network becomes net0/<name>, net1/<name>."""
    sums, count, _ = jax.device_get(totals)
    out = {}
    for name, value in sums.items():
        mean = value / max(int(count), 1)
        if mean.ndim:
            out |= {f"net{i}/{name}": float(v) for i, v in enumerate(mean)}
        else:
            out[name] = float(mean)
    return out


class _Board(NamedTuple):
    """The writer of TensorBoard files."""

    writer: "metric_writers.MetricWriter"
    events: Any  # the TensorFlow writer that it wraps


class Writer:
    """Writes scalars to `metrics.jsonl` and, if TensorFlow is installed, to TensorBoard files.

    Args:
      workdir: the folder of the files.
      start: the step that the run starts or resumes from. Later steps, which an interrupted run
        wrote, are dropped from both.
      active: whether this process writes; only one may.
      say: gets a line if a damaged file is moved to `metrics.jsonl.damaged`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int = 0,
        active: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self._file: TextIO | None = None
        self._board: _Board | None = None
        self._active, self._path, self._start = active, workdir / JSONL, start
        self._lines: list[str] = []
        self._known: set[str] = set()  # the metrics that the file has for step `start`
        if not active:
            return
        kept = _kept(self._path, start, say)
        self._known = {name for _, line in kept if line["step"] == start for name in line}
        self._lines = [f"{text}\n" for text, _ in kept]
        files.write_text(self._path, "".join(self._lines))
        if not files.is_remote(workdir):
            self._file = files.open_to_append(self._path)
        self._board = open_tensorboard(workdir)
        if self._board is not None:
            drop_later_events(workdir, self._board, start)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of one step; a number that is not finite becomes null in the file."""
        if not self._active:
            return
        line = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        text = json.dumps({"step": step, **line}) + "\n"
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
        else:  # an object in a bucket cannot be appended to
            self._lines.append(text)
            files.write_text(self._path, "".join(self._lines))
        if self._board is not None:
            self._board.writer.write_scalars(step, dict(scalars))

    def has(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the file had all of these metrics of `step` when the run started or resumed."""
        return step == self._start and self._known.issuperset(scalars)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.writer.flush()
            self._board.writer.close()


def _kept(path: pathlib.Path, step: int, say: Callable[[str], None]) -> list[tuple[str, dict]]:
    """The lines up to `step`, as (text, parsed). A file with other content is moved aside."""
    lines, reason = [], ""
    try:
        *whole, cut = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        whole, cut, reason = [], b"", str(error)
    start = b'{"step": '
    if not (cut[: len(start)] == start[: len(cut)] and not _parsed(cut)):
        whole.append(
            cut
        )  # the start of a line that a kill cut short is dropped; anything else is kept
    for text in whole:
        if parsed := _parsed(text):
            lines.append((text.decode(), parsed))
        elif text:
            reason = reason or f"such as {text[:40]!r}"
    if reason:
        to, number = path.with_name(f"{JSONL}.damaged"), 1
        while to.exists():
            number += 1
            to = path.with_name(f"{JSONL}.damaged{number}")
        path.rename(to)
        say(
            f"{path} is damaged ({reason}); moved to {to.name}, and the {len(lines)} lines "
            "that can be read are kept"
        )
    return [line for line in lines if line[1]["step"] <= step]


def _parsed(text: bytes) -> dict | None:
    """The content of a line of the file; None: it is no line of metrics."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) else None


def drop_later_events(workdir: pathlib.Path, board: _Board, step: int) -> None:
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


def open_tensorboard(workdir: pathlib.Path) -> _Board | None:
    """The writer of TensorBoard files; None, after a printed line, if TensorFlow is missing."""
    # Must be set before the import, which prints notices otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError as error:
        print(f"no TensorBoard files ({error}); metrics go to {workdir / JSONL}", flush=True)
        return None
    tf.config.set_visible_devices([], "GPU")  # else TensorFlow takes the memory that jax needs
    summaries = metric_writers.SummaryWriter(str(workdir))
    return _Board(metric_writers.AsyncWriter(summaries), summaries._summary_writer)


def write_board(workdir: pathlib.Path, step: int, scalars: Mapping[str, float]) -> bool:
    """Writes the values of one step to TensorBoard alone; whether TensorFlow is there to do so."""
    board = open_tensorboard(workdir)
    if board is None:
        return False
    board.writer.write_scalars(step, dict(scalars))
    board.writer.flush()
    board.writer.close()
    return True
