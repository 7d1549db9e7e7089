"""The parts of a training set that are held out: for testing where a set has none, for validation.

Each class keeps a training example; one line says which classes have none that is held out.
"""

from collections.abc import Sequence

import numpy as np

from jaxsplit.data.arrays import Arrays, not_held_out, stratified_holdout
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

_TEST_SEED = 1907  # of a test part that is held out; one for all, so that figures can be compared


def test_part(
    train: Stream, share: float, name: str, class_names: Sequence[str]
) -> tuple[Stream, Stream]:
    """(training, test) parts of the set `name`, which has no test split: the same in every run.

    Raises:
      ConfigError: nothing is left on one side.
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
    train: Arrays | Stream, share: float, seed: int, class_names: Sequence[str], *, known: bool
) -> tuple[Arrays | Stream, Arrays | Stream]:
    """(training, validation) parts, stratified by class; a random subset where images are cropped.

    known: the set is one of jaxsplit.data.DATASETS. Of those only imagenet2012 is cropped, whose
      classes have 732 images and more: labels, for which all files would be read, are not asked.

    Raises:
      ConfigError: nothing is left on one side.
    """
    cropped = isinstance(train, Stream) and train.shape is None
    labels = None
    if cropped and known:
        kept, held = _random(len(train), share, seed)
    else:
        labels = train.labels() if isinstance(train, Stream) else train.labels
        if cropped:
            kept, held = _give_back(labels, *_random(len(train), share, seed))
        else:
            kept, held = stratified_holdout(labels, share, seed)
    if not len(kept) or not len(held):
        raise ConfigError(
            f"data.validation={share}: holds out {len(held)} of {len(train)} training examples, "
            "must leave some on both sides"
        )
    if labels is not None and (line := not_held_out(labels, held, class_names)):
        print(f"data.validation={share}: {line}", flush=True)
    part = train.take if isinstance(train, Arrays) else train.part
    return part(kept), part(held)


def _random(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) of 0..count-1, each ascending."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    order = rng.permutation(count)
    at = round(share * count)
    return np.sort(order[at:]), np.sort(order[:at])


def _give_back(
    labels: np.ndarray, kept: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out), where the first that is held of each class without a kept one is kept."""
    without = np.setdiff1d(labels[held], labels[kept])
    back = [held[labels[held] == label][0] for label in without if label >= 0]
    return np.union1d(kept, np.array(back, kept.dtype)), np.setdiff1d(held, back)
