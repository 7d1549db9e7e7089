"""Training metrics: their sums on the devices, and metrics.jsonl."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TextIO

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.workdir import files

if TYPE_CHECKING:
    from jaxsplit.trackers.base import Tracker

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


class Writer:
    """Writes scalars to `metrics.jsonl`, and gives them to the trackers beside it.

    Args:
      workdir: the folder of the files.
      start: the step that the run starts or resumes from. Later steps, which an interrupted run
        wrote, are dropped.
      active: whether this process writes; only one may.
      say: gets a line if a damaged file is moved to `metrics.jsonl.damaged`.
      beside: gets the same values and is closed with the file; `trackers.Group`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int = 0,
        active: bool = True,
        say: Callable[[str], None] = print,
        beside: "Tracker | None" = None,
    ) -> None:
        self._file: TextIO | None = None
        self._beside = beside
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
        if self._beside is not None:
            self._beside.write(step, scalars)

    def has(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether the file had all of these metrics of `step` when the run started or resumed."""
        return step == self._start and self._known.issuperset(scalars)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._beside is not None:
            self._beside.close()


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
        to = files.aside(path)
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
