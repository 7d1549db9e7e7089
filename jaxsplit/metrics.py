"""Metrics: sums on the device between two log points, and the files they are written to."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
        name: np.asarray(saved["sums"][name], x.dtype).reshape(x.shape)
        for name, x in like.sums.items()
    }
    return Totals(sums, np.int32(saved["count"]), np.int32(-1))


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


class Writer:
    """Scalars to `metrics.jsonl` and, where TensorFlow is installed, to TensorBoard.

    Only one process writes (`active`). `start` is the step that the run (re)starts from: lines of
    later steps, of a run that was interrupted, are dropped.
    """

    def __init__(self, workdir: pathlib.Path, *, start: int = 0, active: bool = True):
        self._file = self._board = None
        self._start, self._known = start, set()  # the names that the file holds for that step
        if not active:
            return
        path = workdir / JSONL
        if path.exists():
            lines = _drop_after(path, start)
            self._known = {name for line in lines if line["step"] == start for name in line}
        self._file = path.open("a")
        self._board = _tensorboard(workdir)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of one step; numbers that are not finite become null in the file."""
        if self._file is None:
            return
        line = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, dict(scalars))

    def has(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the file held all of these when the run (re)started."""
        return step == self._start and self._known.issuperset(scalars)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.flush()
            self._board.close()


def _drop_after(path: pathlib.Path, step: int) -> list[dict]:
    """Returns the lines that stay."""
    kept, lines = [], []
    for line in path.read_text().splitlines():
        try:
            if (parsed := json.loads(line))["step"] <= step:
                kept.append(line + "\n")
                lines.append(parsed)
        except (ValueError, KeyError):
            continue  # a line cut short by a kill
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    return lines


def _tensorboard(workdir: pathlib.Path):
    """A clu writer; None, with one line that says so, where TensorFlow is not installed."""
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
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))
