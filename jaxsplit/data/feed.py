"""Batches for training: shuffled by (seed, epoch), cut by process, resumable.

Batch k of a run is a function of (seed, k) alone. So a run resumes at any step without saving the
state of an iterator, with any number of decoding threads. Process p of P gets rows p*B/P to
(p+1)*B/P of the global batch: the parts of all processes, put together in order, are the batch of a
single process.

Where bad records are skipped, the next good record in the order of the epoch replaces a bad one. So
batches still depend on (seed, k) alone: no other example moves or is lost, and the replacing record
is seen once more. Splits in memory and streams give the same batches.

With repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335) an image takes R rows, one after
another, and each copy gets views of its own. As in timm an epoch keeps its number of steps and so
visits an R-th of the images, and R need not divide the batch: the image at its end may have copies
in the next one. A stream decodes the copies among a process's rows of a batch once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxsplit.data.arrays import Arrays
from jaxsplit.data.batches import Batches, Made, check_threads, in_threads, local_rows
from jaxsplit.data.stream import BadRecordError, Skipped, Stream, random_crops
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from jaxsplit.data import Dataset

_ORDER, _CROPS = 0, 1  # what a random generator draws
_FOREVER = 2**62  # steps
_BAD_IN_A_ROW = 100  # so many bad records in a row mean that the whole data set is bad


@dataclass(frozen=True)
class TrainFeed:
    """The training batches of one process; `train_feed` makes it.

    steps_per_epoch: full batches in the split. An epoch leaves the remaining examples out, other
      ones each time.
    resident: the whole split if it lies on the device, so that batches are indices into it; else
      None.
    crops_on: 'host': batches hold S random-resized crops of each image; 'device': they hold whole
      images, which the device crops.
    """

    steps_per_epoch: int
    resident: Arrays | None
    crops_on: Literal["device", "host"]
    _make: Callable[[int], Batches] = field(repr=False)
    _skipped: Skipped = field(repr=False)

    @property
    def bad_records(self) -> int:
        """How often a bad record was replaced in the batches taken so far, on this process.

        The processes' numbers add up to the number of the global batches.
        """
        return self._skipped.count

    def batches(self, start_step: int) -> Batches:
        """Yields batches start_step, start_step + 1, ... without end (b = batch_size / P).

        Resident: {"index": int32[b]}. Cropped on the host: {"images": uint8[S, b, H, W, C],
        "labels": int32[b]}, S independent crops of each image. Otherwise {"images":
        uint8[b, H, W, C], "labels": int32[b]}, the images as they are. Closing the iterator ends
        its threads.
        """
        return self._make(start_step)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """int32[n]: the permutation of 0..n-1 in which an epoch visits the examples."""
    return _generator(seed, _ORDER, epoch).permutation(np.arange(n, dtype=np.int32))


class _Plan:
    """Which examples of a split each step visits, in one process.

    rows: this process's rows of a batch.
    repeats: R, how many rows in a row are one example.
    """

    def __init__(
        self, examples: int, batch_size: int, rows: range, seed: int, repeats: int
    ) -> None:
        self.steps_per_epoch = examples // batch_size
        self.seed = seed
        self._batch_size, self._rows, self._repeats = batch_size, rows, repeats
        draw = functools.partial(epoch_order, examples, seed)
        # Threads may work on both sides of an epoch's end.
        self.order: Callable[[int], np.ndarray] = functools.lru_cache(maxsize=2)(draw)

    def positions(self, step: int) -> tuple[int, list[tuple[int, int]]]:
        """(epoch, (position in the order of that epoch, number of the copy) of each row)."""
        epoch, k = divmod(step, self.steps_per_epoch)
        first = k * self._batch_size
        return epoch, [divmod(first + row, self._repeats) for row in self._rows]


def train_feed(
    dataset: Dataset,
    *,
    batch_size: int,
    num_views: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    scale_min: float = 0.1,
    repeats: int = 1,
) -> TrainFeed:
    """The feed of `dataset.train`.

    Args:
      dataset: what `load` returned.
      batch_size: images of a step, over all processes.
      num_views: number S of crops of each image, if the feed crops.
      seed: at least 0; fixes the order and the crops.
      process_index, process_count: which part of each batch this process gets.
      threads: threads that decode a streamed split. Each makes a whole batch, so up to `threads`
        batches of S * batch_size / process_count images wait in memory.
      scale_min: smallest share of the area that a random-resized crop takes, in (0, 1].
      repeats: rows of each image, in 1 ... batch_size; above 1 is repeated augmentation.

    Raises:
      ConfigError: batch_size exceeds the split or is not divisible by process_count, or another
        value is out of its range.
    """
    split = dataset.train
    rows = local_rows(batch_size, process_index, process_count)
    if batch_size > len(split):
        raise ConfigError(
            f"batch_size={batch_size}: must be at most {len(split)}, the size of the training set"
        )
    _check_ranges(num_views, seed, threads, scale_min)
    if not 1 <= repeats <= batch_size:
        raise ConfigError(f"augment.repeats={repeats}: must be in 1 ... batch_size={batch_size}")
    plan, skipped = _Plan(len(split), batch_size, rows, seed, repeats), Skipped()
    if isinstance(split, Arrays):
        resident = split if dataset.resident else None
        kind = _array_batches if resident is None else _index_batches
        make = functools.partial(kind, split, plan, skipped)
        return TrainFeed(plan.steps_per_epoch, resident, "device", make, skipped)
    crops_on: Literal["device", "host"] = "host" if split.shape is None else "device"
    if crops_on == "host":
        one = functools.partial(
            _cropped_batch, split, plan, dataset.image_shape, num_views, scale_min
        )
    else:
        one = functools.partial(_whole_batch, split, plan, dataset.image_shape)
    return TrainFeed(
        plan.steps_per_epoch,
        None,
        crops_on,
        lambda start: in_threads(one, skipped, start, _FOREVER, threads),
        skipped,
    )


def _check_ranges(num_views: int, seed: int, threads: int, scale_min: float) -> None:
    if num_views < 1:
        raise ConfigError(f"num_views={num_views}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be at least 0")
    check_threads(threads)
    if not 0 < scale_min <= 1:
        raise ConfigError(f"data.scale_min={scale_min}: must be in (0, 1]")


# ---- Batches of a split in memory


def _index_batches(split: Arrays, plan: _Plan, skipped: Skipped, start_step: int) -> Batches:
    """{"index": int32[b]} of each step; the device holds the split."""
    for index in _indices(split, plan, skipped, start_step):
        yield {"index": index}


def _array_batches(split: Arrays, plan: _Plan, skipped: Skipped, start_step: int) -> Batches:
    """{"images": uint8[b, H, W, C], "labels": int32[b]} of each step."""
    for index in _indices(split, plan, skipped, start_step):
        yield {"images": split.images[index], "labels": split.labels[index]}


def _indices(split: Arrays, plan: _Plan, skipped: Skipped, start_step: int) -> Iterator[np.ndarray]:
    """int32[b] of each step: the examples that it visits, bad ones replaced."""
    for step in itertools.count(start_step):
        epoch, rows = plan.positions(step)
        order = plan.order(epoch)
        index = order[[position for position, _ in rows]]
        bad: list[str] = []
        for b in [b for b, i in enumerate(index.tolist()) if i in split.bad]:
            index[b], _ = _next_good(split, order, rows[b][0], split.read, bad)
        skipped.add(bad)
        yield index


# ---- Batches of a stream; threads make each of them whole


def _whole_batch(split: Stream, plan: _Plan, image_shape: tuple[int, int, int], step: int) -> Made:
    """The batch of `step`, with the images as they are: uint8[b, H, W, C]."""
    epoch, rows = plan.positions(step)
    images = np.empty((len(rows), *image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    bad: list[str] = []
    decoded = _decoded(split, plan.order(epoch), rows, image_shape[2], bad)
    for b, (image, label) in enumerate(decoded):
        images[b], labels[b] = image, label
    return {"images": images, "labels": labels}, bad


def _cropped_batch(
    split: Stream,
    plan: _Plan,
    image_shape: tuple[int, int, int],
    num_views: int,
    scale_min: float,
    step: int,
) -> Made:
    """The batch of `step`, with S random-resized crops of each image: uint8[S, b, H, W, C]."""
    epoch, rows = plan.positions(step)
    images = np.empty((num_views, len(rows), *image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    bad: list[str] = []
    decoded = _decoded(split, plan.order(epoch), rows, image_shape[2], bad)
    for b, (image, labels[b]) in enumerate(decoded):
        position, copy = rows[b]
        rng = _generator(plan.seed, _CROPS, epoch, position, *([copy] if copy else []))
        random_crops(image, images[:, b], rng, scale_min)
    return {"images": images, "labels": labels}, bad


def _decoded(
    split: Stream, order: np.ndarray, rows: list[tuple[int, int]], channels: int, bad: list[str]
) -> Iterator[tuple[np.ndarray, int]]:
    """(image, label) of each row of a batch; copies in a row are decoded once.

    The error of a bad example is appended to `bad` once for each of its rows.
    """
    read = functools.partial(split.read, channels=channels)
    for position, copies in itertools.groupby(position for position, _ in rows):
        errors: list[str] = []
        _, example = _next_good(split, order, position, read, errors)
        for _ in copies:
            bad += errors
            yield example


def first_images(dataset: Dataset, *, seed: int, count: int, repeats: int = 1) -> np.ndarray:
    """uint8[count, H, W, C]: the images of the first batch of `count`, as evaluation sees them."""
    split, out, bad = dataset.train, [], []
    order = epoch_order(len(split), seed, 0)

    def read(i: int) -> tuple[np.ndarray, int]:
        if isinstance(split, Arrays):
            return split.read(i)
        return split.read_eval(i, dataset.image_shape)

    for position in range(count):
        _, (image, _) = _next_good(split, order, position // repeats, read, bad)
        out.append(image)
    return np.stack(out)


def _next_good(
    split: Arrays | Stream,
    order: np.ndarray,
    position: int,
    read: Callable[[int], Any],
    bad: list[str],
) -> tuple[int, Any]:
    """(i, read(i)) of the first good example at `position` of the order or after it.

    If the example at `position` is bad, its error is appended to `bad`.

    Raises:
      BadRecordError: an example is bad and the split does not skip bad records.
      ConfigError: `_BAD_IN_A_ROW` examples in a row are bad.
    """
    for k in range(min(_BAD_IN_A_ROW, len(order))):
        i = int(order[(position + k) % len(order)])
        try:
            return i, read(i)
        except BadRecordError as error:
            if split.skipped is None:
                raise
            if k == 0:
                bad.append(str(error))
    raise ConfigError(f"{bad[-1]}; {k + 1} records in a row are bad")


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
