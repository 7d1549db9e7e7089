"""Holds out a part of a training set: as test split if the data set has none, or for validation.

Each class keeps a training example. A line names the classes without a held-out example.
"""

from collections.abc import Sequence

import numpy as np

from jaxsplit.data.arrays import Arrays, not_held_out, stratified_holdout
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

_TEST_SEED = 1907  # all runs hold out the same test part, so their figures can be compared


def test_part(
    train: Stream, share: float, name: str, class_names: Sequence[str]
) -> tuple[Stream, Stream]:
    """(training, test) parts of a data set without a test split; the same in every run.

    Raises:
      ConfigError: one of the parts is empty.
    """
    labels = train.labels()
    kept, held = stratified_holdout(labels, share, _TEST_SEED)
    if not len(kept) or not len(held):
        raise ConfigError(
            f"data.test_share={share}: holds out {len(held)} of {len(train)} examples of "
            f"{name!r}, must leave some on both sides"
        )
    print(
        f"{name} has no test split: {len(held):,} of its {len(train):,} training images, "
        f"the same in every run, are held out as one (data.test_share={share})",
        flush=True,
    )
    if line := not_held_out(labels, held, class_names):
        print(f"data.test_share={share}: {line}", flush=True)
    return train.part(kept), train.part(held)


def validation_part(
    train: Arrays | Stream, share: float, seed: int, class_names: Sequence[str]
) -> tuple[Arrays | Stream, Arrays | Stream]:
    """(training, validation) parts, stratified by class.

    If the images are cropped, the validation part is a random subset that leaves each class a
    training image.

    Raises:
      ConfigError: one of the parts is empty.
    """
    labels = train.labels() if isinstance(train, Stream) else train.labels
    if isinstance(train, Stream) and train.shape is None:
        kept, held = _give_back(labels, *_random(len(train), share, seed))
    else:
        kept, held = stratified_holdout(labels, share, seed)
    parts = _cut(train, share, kept, held)
    if line := not_held_out(labels, held, class_names):
        print(f"data.validation={share}: {line}", flush=True)
    return parts


def random_validation_part(
    train: Arrays | Stream, share: float, seed: int
) -> tuple[Arrays | Stream, Arrays | Stream]:
    """(training, validation) parts; the validation part is a random subset. Reads no labels.

    Raises:
      ConfigError: one of the parts is empty.
    """
    return _cut(train, share, *_random(len(train), share, seed))


def _cut(
    train: Arrays | Stream, share: float, kept: np.ndarray, held: np.ndarray
) -> tuple[Arrays | Stream, Arrays | Stream]:
    if not len(kept) or not len(held):
        raise ConfigError(
            f"data.validation={share}: holds out {len(held)} of {len(train)} training examples, "
            "must leave some on both sides"
        )
    part = train.take if isinstance(train, Arrays) else train.part
    return part(kept), part(held)


def _random(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): a random cut of 0..count-1, both ascending."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    order = rng.permutation(count)
    at = round(share * count)
    return np.sort(order[at:]), np.sort(order[:at])


def _give_back(
    labels: np.ndarray, kept: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves the first held-out example of each class that keeps none back to the kept ones."""
    without = np.setdiff1d(labels[held], labels[kept])
    back = [held[labels[held] == label][0] for label in without if label >= 0]
    return np.union1d(kept, np.array(back, kept.dtype)), np.setdiff1d(held, back)
