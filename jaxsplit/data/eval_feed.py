"""Batches for evaluation: every example once, in order, cut by process."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxsplit.data.arrays import Arrays
from jaxsplit.data.batches import Made, check_threads, in_threads, local_rows
from jaxsplit.data.stream import BadRecordError, Stream
from jaxsplit.errors import ConfigError


def num_eval_batches(split: Arrays | Stream, *, batch_size: int) -> int:
    """The number of batches that `eval_batches` yields, the same in every process."""
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
      split: the split to evaluate.
      batch_size: images of a batch, over all processes.
      image_shape: (H, W, C) of the batches; must be the split's own if all its images have one.
      process_index, process_count: which part of each batch this process gets.
      threads: threads that decode a streamed split.

    Returns:
      Iterator of {"images": uint8[b, H, W, C], "labels": int32[b], "mask": float32[b]}. Padding and
      skipped bad records have mask 0, label 0 and black images. All processes get the same number
      of batches.

    Raises:
      ConfigError: batch_size is not divisible by process_count, or image_shape is not the split's.
    """
    rows = local_rows(batch_size, process_index, process_count)
    check_threads(threads)
    own = split.images.shape[1:] if isinstance(split, Arrays) else split.shape
    if own is not None and own != tuple(image_shape):
        raise ConfigError(f"image_shape={image_shape}: must be {own}")
    part = _EvalPart(len(split), batch_size, rows, tuple(image_shape))
    total = num_eval_batches(split, batch_size=batch_size)
    if isinstance(split, Arrays):
        return map(functools.partial(_eval_arrays, split, part), range(total))
    make = functools.partial(_eval_stream, split, part)
    return in_threads(make, split.skipped, 0, total, threads)


@dataclass(frozen=True)
class _EvalPart:
    """The rows of each evaluation batch that this process gets."""

    examples: int
    batch_size: int
    rows: range
    image_shape: tuple[int, int, int]

    def padding(self, k: int) -> tuple[dict[str, np.ndarray], int, int]:
        """(batch k filled with padding, the first example of its rows, how many there are)."""
        first = k * self.batch_size + self.rows.start
        batch = {
            "images": np.zeros((len(self.rows), *self.image_shape), np.uint8),
            "labels": np.zeros(len(self.rows), np.int32),
            "mask": np.zeros(len(self.rows), np.float32),
        }
        return batch, first, max(0, min(len(self.rows), self.examples - first))


def _eval_arrays(split: Arrays, part: _EvalPart, k: int) -> dict[str, np.ndarray]:
    """Evaluation batch k of a split in memory."""
    batch, first, count = part.padding(k)
    batch["images"][:count] = split.images[first : first + count]
    batch["labels"][:count] = split.labels[first : first + count]
    batch["mask"][:count] = 1
    bad_rows = [b for b in range(count) if first + b in split.bad] if split.bad else []
    for array in batch.values():
        array[bad_rows] = 0
    if bad_rows and split.skipped is not None:
        split.skipped.add([split.bad[first + b] for b in bad_rows])
    return batch


def _eval_stream(split: Stream, part: _EvalPart, k: int) -> Made:
    """Evaluation batch k of a stream."""
    batch, first, count = part.padding(k)
    bad: list[str] = []
    for b in range(count):
        try:
            image, label = split.read_eval(first + b, part.image_shape)
            batch["images"][b], batch["labels"][b], batch["mask"][b] = image, label, 1
        except BadRecordError as error:
            if split.skipped is None:
                raise
            bad.append(str(error))
    return batch, bad
