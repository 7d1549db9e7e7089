"""Batches for training and evaluation: shuffled by (seed, epoch), cut by process, resumable.

Batch k of a run is a function of (seed, k) alone. So a run resumes at any step without an iterator
state, with any number of decoding threads. Process p of P gets rows p*B/P to (p+1)*B/P of
the global batch: the processes' parts, put together in order, are the batch of a single process.

A bad record that is skipped is replaced by the next good one in the order of the epoch, so that
this still holds: no other example moves or is lost, and that one is seen once more. In memory as in
a stream: both give the same batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsplit.data.arrays import Arrays
from jaxsplit.data.stream import BadRecordError, Skipped, Stream, random_crops
from jaxsplit.errors import ConfigError

if TYPE_CHECKING:
    from jaxsplit.data import Dataset

_ORDER, _CROPS = 0, 1  # what a random generator is for
# A batch as a thread makes it, and a line for each bad record.
_Made = tuple[dict[str, np.ndarray], list[str]]
Batches = Generator[dict[str, np.ndarray], None, None]
_FOREVER = 2**62  # steps
_BAD_IN_A_ROW = 100  # records; then it is not a record that is bad but the data


@dataclass(frozen=True)
class TrainFeed:
    """Training batches of one process; made by `train_feed`.

    steps_per_epoch: full batches in the split; what remains is left out, other examples each epoch.
    resident: the whole split where it lies on the device, batches being indices into it; else None.
    cropped: batches hold S random-resized crops of every image; else views are cut on the device.
    """

    steps_per_epoch: int
    resident: Arrays | None
    cropped: bool
    _make: Callable[[int], Batches] = field(repr=False)
    _skipped: Skipped = field(repr=False)

    @property
    def bad_records(self) -> int:
        """How often a bad record was replaced in the batches that were taken so far.

        The sum over the processes is that of the whole batches.
        """
        return self._skipped.count

    def batches(self, start_step: int) -> Batches:
        """Batches start_step, start_step + 1, ... without end (b = batch_size / process_count).

        Resident: {"index": int32[b]}. Cropped: {"images": uint8[S, b, H, W, C], "labels":
        int32[b]}, S independent crops of every image. Otherwise {"images": uint8[b, H, W, C],
        "labels": int32[b]}, the images as they are. Close the iterator to end its threads.
        """
        return self._make(start_step)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """int32[n]: the permutation of 0..n-1 in which an epoch visits the examples."""
    return _generator(seed, _ORDER, epoch).permutation(np.arange(n, dtype=np.int32))


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
) -> TrainFeed:
    """The feed of `dataset.train`.

    Args:
      dataset: what `load` returned.
      batch_size: images a step over all processes.
      num_views: crops S of each image, where the feed crops.
      seed: >= 0; of the order and of the crops.
      process_index, process_count: this process's part of every batch.
      threads: decode a streamed split; each makes a whole batch, so that up to `threads` batches
        of S * B / P images wait in memory.
      scale_min: smallest share of the area that a random-resized crop takes, in (0, 1].

    Raises:
      ConfigError: batch_size is more than the split or not divisible by process_count, or another
        value is out of its range.
    """
    split = dataset.train
    rows = _local_rows(batch_size, process_index, process_count)
    if batch_size > len(split):
        raise ConfigError(
            f"batch_size={batch_size}: must be at most {len(split)}, the size of the training set"
        )
    if num_views < 1:
        raise ConfigError(f"num_views={num_views}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be at least 0")
    _check_threads(threads)
    if not 0 < scale_min <= 1:
        raise ConfigError(f"data.scale_min={scale_min}: must be in (0, 1]")
    steps_per_epoch = len(split) // batch_size
    cropped = isinstance(split, Stream) and split.shape is None
    skipped = Skipped()

    @functools.lru_cache(maxsize=2)  # threads may work on both sides of an epoch's end
    def order(epoch: int) -> np.ndarray:
        return epoch_order(len(split), seed, epoch)

    def positions(step: int) -> tuple[int, range]:
        epoch, k = divmod(step, steps_per_epoch)
        return epoch, range(k * batch_size + rows.start, k * batch_size + rows.stop)

    def array_batches(split: Arrays, start_step: int) -> Batches:
        step = start_step
        while True:
            epoch, where = positions(step)
            index = order(epoch)[where.start : where.stop].copy()
            bad: list[str] = []
            for b in [b for b, i in enumerate(index.tolist()) if i in split.bad]:
                index[b], _ = _next_good(split, order(epoch), where[b], split.read, bad)
            skipped.add(bad)
            if dataset.resident:
                yield {"index": index}
            else:
                yield {"images": split.images[index], "labels": split.labels[index]}
            step += 1

    def image_batch(split: Stream, step: int) -> _Made:
        height, width, channels = dataset.image_shape
        read = functools.partial(split.read, channels=channels)
        epoch, where = positions(step)
        views = (num_views,) if cropped else ()
        images = np.empty((*views, len(where), height, width, channels), np.uint8)
        labels = np.empty(len(where), np.int32)
        bad: list[str] = []
        for b, position in enumerate(where):
            _, (image, labels[b]) = _next_good(split, order(epoch), position, read, bad)
            if cropped:
                rng = _generator(seed, _CROPS, epoch, position)
                random_crops(image, images[:, b], rng, scale_min)
            else:
                images[b] = image
        return {"images": images, "labels": labels}, bad

    if isinstance(split, Arrays):
        resident = split if dataset.resident else None
        batches = functools.partial(array_batches, split)
        return TrainFeed(steps_per_epoch, resident, False, batches, skipped)
    make = functools.partial(image_batch, split)
    return TrainFeed(
        steps_per_epoch,
        None,
        cropped,
        lambda start: _in_threads(make, skipped, start, _FOREVER, threads),
        skipped,
    )


def first_images(dataset: Dataset, *, seed: int, count: int) -> np.ndarray:
    """uint8[count, H, W, C]: the images of the first batch of `count`, as evaluation sees them."""
    split, out, bad = dataset.train, [], []
    order = epoch_order(len(split), seed, 0)

    def read(i: int) -> tuple[np.ndarray, int]:
        if isinstance(split, Arrays):
            return split.read(i)
        return split.read_eval(i, dataset.image_shape)

    for position in range(count):
        _, (image, _) = _next_good(split, order, position, read, bad)
        out.append(image)
    return np.stack(out)


def _next_good(
    split: Arrays | Stream,
    order: np.ndarray,
    position: int,
    read: Callable[[int], Any],
    bad: list[str],
) -> tuple[int, Any]:
    """(i, read(i)) of the example i at `position` of the order, or of the next good one.

    `bad` gets why the one at `position` is not good.
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


def num_eval_batches(split: Arrays | Stream, *, batch_size: int) -> int:
    """How many batches `eval_batches` yields, in every process."""
    return -(-len(split) // batch_size)


def eval_batches(
    split: Arrays | Stream,
    *,
    batch_size: int,
    image_shape: tuple[int, int, int],
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example of `split` exactly once, in order, the last batch padded (b = local rows).

    Args:
      split: what is evaluated.
      batch_size: images a batch over all processes.
      image_shape: (H, W, C) of the batches; of an in-memory split: its own.
      process_index, process_count: this process's part of every batch.
      threads: decode a streamed split.

    Returns:
      Iterator of {"images": uint8[b, H, W, C], "labels": int32[b], "mask": float32[b]}; padding and
      bad records that are skipped have mask 0, label 0 and black images. All processes get the same
      number of batches.

    Raises:
      ConfigError: batch_size is not divisible by process_count, or image_shape is not the split's.
    """
    rows = _local_rows(batch_size, process_index, process_count)
    _check_threads(threads)
    own = split.images.shape[1:] if isinstance(split, Arrays) else split.shape
    if own is not None and own != tuple(image_shape):
        raise ConfigError(f"image_shape={image_shape}: must be {own}")
    height, width, channels = image_shape

    def empty(k: int) -> tuple[dict[str, np.ndarray], int, int]:
        """(batch k of padding only, its first example here, its examples here)."""
        first = k * batch_size + rows.start
        batch = {
            "images": np.zeros((len(rows), height, width, channels), np.uint8),
            "labels": np.zeros(len(rows), np.int32),
            "mask": np.zeros(len(rows), np.float32),
        }
        return batch, first, max(0, min(len(rows), len(split) - first))

    def of_arrays(split: Arrays, k: int) -> dict[str, np.ndarray]:
        batch, first, count = empty(k)
        batch["images"][:count] = split.images[first : first + count]
        batch["labels"][:count] = split.labels[first : first + count]
        batch["mask"][:count] = 1
        bad_rows = [b for b in range(count) if first + b in split.bad] if split.bad else []
        for array in batch.values():
            array[bad_rows] = 0
        if bad_rows and split.skipped is not None:
            split.skipped.add([split.bad[first + b] for b in bad_rows])
        return batch

    def of_stream(split: Stream, k: int) -> _Made:
        batch, first, count = empty(k)
        bad: list[str] = []
        for b in range(count):
            try:
                image, label = split.read_eval(first + b, image_shape)
                batch["images"][b], batch["labels"][b], batch["mask"][b] = image, label, 1
            except BadRecordError as error:
                if split.skipped is None:
                    raise
                bad.append(str(error))
        return batch, bad

    total = num_eval_batches(split, batch_size=batch_size)
    if isinstance(split, Arrays):
        return map(functools.partial(of_arrays, split), range(total))
    make = functools.partial(of_stream, split)
    return _in_threads(make, split.skipped, 0, total, threads)


def _in_threads(
    make: Callable[[int], _Made],
    skipped: Skipped | None,
    start: int,
    stop: int,
    threads: int,
) -> Batches:
    """make(start), ..., make(stop - 1) in order, made ahead by threads of Grain.

    `skipped` counts the bad records of a batch when it is taken, so that how far the threads are
    ahead changes no number.
    """
    import grain

    def attempt(k: int) -> _Made | ConfigError:
        try:
            return make(k)
        except ConfigError as error:
            return error  # Grain would add lines of its own to a message of one line

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    made = iter(grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(options))
    try:
        for result in made:
            if isinstance(result, ConfigError):
                raise result
            batch, bad = result
            if bad and skipped is not None:
                skipped.add(bad)
            yield batch
    finally:
        made.close()


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _local_rows(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size={batch_size}: must be a positive multiple of {process_count}, the number "
            "of processes"
        )
    local = batch_size // process_count
    return range(process_index * local, (process_index + 1) * local)


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ConfigError(f"data.threads={threads}: must be at least 1")
