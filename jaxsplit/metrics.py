"""Metrics: sums on the device between two log points, and the files they are written to."""

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
    """Since the last log point: sums of metrics, their number, the first step that went wrong."""

    sums: dict[str, Array]
    count: Array  # int32[]
    bad_step: Array  # int32[]; -1: none


def empty() -> Totals:
    """Totals that know no metric yet; `add` gives their shape."""
    return Totals({}, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))


def add(totals: Totals, values: Mapping[str, Array], finite: Array, step: Array) -> Totals:
    """Adds the metrics of one step; `finite` is False where it went wrong."""
    first_bad = (totals.bad_step < 0) & ~finite
    return Totals(
        {name: totals.sums.get(name, 0) + value for name, value in values.items()},
        totals.count + 1,
        jnp.where(first_bad, step, totals.bad_step),
    )


def zeros(shapes: Totals) -> Totals:
    """Empty totals of these shapes."""
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.sums)
    return empty()._replace(sums=sums)


def to_json(totals: Totals) -> dict:
    """{'count', 'sums'} in numbers and lists, exactly."""
    sums, count, _ = jax.device_get(totals)
    return {"count": int(count), "sums": {name: value.tolist() for name, value in sums.items()}}


def from_json(saved: dict | None, like: Totals) -> Totals:
    """What `to_json` was given, of the shapes of `like`, which are empty totals; None: those."""
    if saved is None or saved["sums"].keys() != like.sums.keys():
        return like
    sums = {
        name: jnp.asarray(saved["sums"][name], x.dtype).reshape(x.shape)
        for name, x in like.sums.items()
    }
    return empty()._replace(sums=sums, count=jnp.asarray(saved["count"], jnp.int32))


def means(totals: Totals) -> dict[str, float]:
    """Means as numbers; a metric with one value a network becomes net0/<name>, net1/<name> ..."""
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
    """TensorBoard's files."""

    writer: "metric_writers.MetricWriter"
    events: Any  # TensorFlow's writer below it


class Writer:
    """Scalars to `metrics.jsonl` and, where TensorFlow is installed, to TensorBoard.

    Only one process writes (`active`). `start` is the step that the run (re)starts from: lines of
    later steps, of a run that was interrupted, are dropped, and TensorBoard is told to. A file that
    is no such log is set aside as `metrics.jsonl.damaged`; `say` gets a line then.
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
        self._known: set[str] = set()  # the names that the file holds for that step
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
        """Writes the values of one step; numbers that are not finite become null in the file."""
        if not self._active:
            return
        line = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        text = json.dumps({"step": step, **line}) + "\n"
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
        else:  # nothing can be appended to an object of a bucket
            self._lines.append(text)
            files.write_text(self._path, "".join(self._lines))
        if self._board is not None:
            self._board.writer.write_scalars(step, dict(scalars))

    def has(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the file held all of these when the run (re)started."""
        return step == self._start and self._known.issuperset(scalars)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.writer.flush()
            self._board.writer.close()


def _kept(path: pathlib.Path, step: int, say: Callable[[str], None]) -> list[tuple[str, dict]]:
    """Lines up to a step, each as text and as what it says; a file with others is set aside."""
    lines, reason = [], ""
    try:
        *whole, cut = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        whole, cut, reason = [], b"", str(error)
    start = b'{"step": '
    if not (cut[: len(start)] == start[: len(cut)] and not _parsed(cut)):
        whole.append(cut)  # no line that was cut short, as by a kill
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
            f"{path} holds what is no metrics ({reason}); set aside as {to.name}, the {len(lines)} "
            "lines that can be read stay"
        )
    return [line for line in lines if line[1]["step"] <= step]


def _parsed(text: bytes) -> dict | None:
    """A line of the file; None: it is none."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) else None


def drop_later_events(workdir: pathlib.Path, board: _Board, step: int) -> None:
    """Removes what the event files of earlier starts hold of steps after this one.

    A TensorBoard that has read them is told so, too.
    """
    import tensorflow as tf

    event_type = tf.compat.v1.Event
    for path in workdir.glob("events.out.tfevents.*"):
        try:
            data = path.read_bytes()
            if kept := _up_to(step, data, event_type):
                files.write_bytes(path, kept)
        except (OSError, ValueError, struct.error):
            continue  # a log blocks nothing
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = event_type(wall_time=time.time(), step=step + 1, session_log=log)
    for _ in range(2):  # the first that TensorBoard sees is that of a new run, and drops nothing
        # Nothing public writes an event of this kind.
        tf.raw_ops.ImportEvent(writer=board.events._resource, event=event.SerializeToString())


def _up_to(step: int, data: bytes, event_type: Any) -> bytes | None:
    """The records of an event file but those of later steps; None: there are none of these."""
    kept, at = [], 0
    while at + 12 <= len(data):  # length, its checksum, an event, its checksum
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
    """clu's writer; None, with one line that says so, where TensorFlow is not installed."""
    # TensorFlow prints notices at import unless told not to before.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError as error:
        print(f"no TensorBoard files ({error}); metrics go to {workdir / JSONL}", flush=True)
        return None
    tf.config.set_visible_devices([], "GPU")  # it would take the memory that jax needs
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
