"""Data sets as uint8 batches, per process, resumable at any step.

`load(config.data)` gives a `Dataset`; `train_feed` and `eval_batches` turn its splits into batches.
A split lies in memory (`Arrays`) or on disk as encoded images (`Stream`). Prepared data is looked
for in `config.data.dir`; nothing is ever downloaded.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxsplit.data import prepared
from jaxsplit.data.arrays import (
    Arrays,
    read_digits,
    read_npz,
    read_synthetic,
    stratified_holdout,
)
from jaxsplit.data.feed import (
    TrainFeed,
    epoch_order,
    eval_batches,
    num_eval_batches,
    train_feed,
)
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "Source",
    "Stream",
    "TrainFeed",
    "epoch_order",
    "eval_batches",
    "load",
    "num_eval_batches",
    "train_feed",
]

_Splits = tuple[Arrays | Stream, Arrays | Stream]  # training and test part


@dataclass(frozen=True)
class Dataset:
    """A data set as the networks see it.

    image_shape: (H, W, C). mean, std: of the training pixels in 0..1, one for each channel.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Arrays | Stream
    validation: Arrays | Stream | None
    test: Arrays | Stream


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read; calling it with config.data reads it.

    image_shape: (H, W, C), H and W those of data.image_size = 0.
    read: (source, config.data, image_shape) -> (train, test).
    min_size: smallest data.image_size of a data set that comes in any size; None: only its own.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[..., _Splits]
    min_size: int | None = None

    def __call__(self, data_config: Any) -> Dataset:
        """The data set, nothing held out. <data.dir>/<name>.npz is used first where it exists."""
        npz = pathlib.Path(data_config.dir).expanduser() / f"{self.name}.npz"
        if npz.exists():
            train, test = read_npz(npz, self.num_classes)
            shape = train.images.shape[1:]
            own = self.image_shape[0] if self.min_size is None else shape[0]
            if shape != (own, own, self.image_shape[2]):
                raise ConfigError(
                    f"data.dir: {npz}: train_images: shape {train.images.shape}, must be "
                    f"[N, {own}, {own}, {self.image_shape[2]}]"
                )
            _check_size(data_config.image_size, own, None)
        else:
            _check_size(data_config.image_size, self.image_shape[0], self.min_size)
            size = data_config.image_size or self.image_shape[0]
            shape = (size, size, self.image_shape[2])
            train, test = self.read(self, data_config, shape)
        return Dataset(
            name=self.name,
            num_classes=self.num_classes,
            image_shape=shape,
            mean=self.mean,
            std=self.std,
            train=train,
            validation=None,
            test=test,
        )


def _read_digits(source: Source, data_config: Any, shape: tuple[int, int, int]) -> _Splits:
    return read_digits()


def _read_synthetic(source: Source, data_config: Any, shape: tuple[int, int, int]) -> _Splits:
    return read_synthetic(shape[0])


def _read_small(source: Source, data_config: Any, shape: tuple[int, int, int]) -> _Splits:
    """Prepared small images, decoded into memory; an `extra` split joins the training part."""
    streams = prepared.open_splits(
        source.name,
        data_config.dir,
        ("train", "test"),
        num_classes=source.num_classes,
        optional=("extra",),
    )
    parts = {
        "train": [streams[split] for split in ("train", "extra") if split in streams],
        "test": [streams["test"]],
    }
    return tuple(
        prepared.read_all(
            part, shape, source.num_classes, f"data.dir={data_config.dir}: {source.name} {split}"
        )
        for split, part in parts.items()
    )


def _read_imagenet(source: Source, data_config: Any, shape: tuple[int, int, int]) -> _Splits:
    """Prepared JPEG images, left on disk; tested on the split `validation`, as everyone does."""
    splits = ("train", "validation")
    streams = prepared.open_splits(
        source.name, data_config.dir, splits, num_classes=source.num_classes
    )
    return tuple(streams[split] for split in splits)


# Means and standard deviations: those of the reference (arXiv 2011.14660); digits: measured on the
# 1437 training images; fashion_mnist: the customary ones; synthetic: of its construction.
DATASETS: dict[str, Callable[[Any], Dataset]] = {
    source.name: source
    for source in (
        Source("digits", 10, (8, 8, 1), (0.3054,), (0.3760,), _read_digits),
        Source(
            "synthetic",
            10,
            (32, 32, 3),
            (0.5, 0.5, 0.5),
            (0.2, 0.2, 0.2),
            _read_synthetic,
            min_size=4,
        ),
        Source(
            "cifar10",
            10,
            (32, 32, 3),
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
            _read_small,
        ),
        Source(
            "cifar100",
            100,
            (32, 32, 3),
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            _read_small,
        ),
        Source("fashion_mnist", 10, (28, 28, 1), (0.2860,), (0.3530,), _read_small),
        Source(
            "svhn_cropped",
            10,
            (32, 32, 3),
            (0.4309, 0.4302, 0.4463),
            (0.1965, 0.1983, 0.1994),
            _read_small,
        ),
        Source(
            "imagenet2012",
            1000,
            (224, 224, 3),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            _read_imagenet,
            min_size=16,
        ),
    )
}


def load(data_config: Any, *, seed_split: int = 0) -> Dataset:
    """The data set `data_config.name`, with `data_config.validation` of its training part held out.

    Args:
      data_config: config.data (fields name, dir, image_size, validation).
      seed_split: of the hold-out only, so that runs with different config.seed share it. In memory
        the hold-out is stratified by class; of a stream it is a random subset.

    Raises:
      ConfigError: unknown name; nothing prepared in data.dir, or something damaged; image_size
        or validation out of range.
    """
    name, share = data_config.name, data_config.validation
    if name not in DATASETS:
        raise ConfigError(f"data.name={name!r}: must be one of {', '.join(DATASETS)}")
    if not 0 <= share < 1:
        raise ConfigError(f"data.validation={share}: must be in [0, 1)")
    dataset = DATASETS[name](data_config)
    if share == 0:
        return dataset
    train = dataset.train
    count = round(share * len(train))
    if not 0 < count < len(train):
        raise ConfigError(
            f"data.validation={share}: holds out {count} of {len(train)} training examples, must "
            "leave some on both sides"
        )
    if isinstance(train, Arrays):
        kept, held = stratified_holdout(train.labels, share, seed_split)
        return replace(dataset, train=train.take(kept), validation=train.take(held))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed_split)))
    order = rng.permutation(len(train))
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return replace(
        dataset,
        train=replace(train, indices=kept),
        validation=replace(train, indices=held),
    )


def _check_size(image_size: int, own: int, min_size: int | None) -> None:
    """Raise ConfigError unless image_size is 0, own, or at least min_size where there is one."""
    if image_size in (0, own) or (min_size is not None and image_size >= min_size):
        return
    allowed = f"0 or {own}" if min_size is None else f"0 (for {own}) or at least {min_size}"
    raise ConfigError(f"data.image_size={image_size}: must be {allowed}")
