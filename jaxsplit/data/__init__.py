"""Data sets as uint8 batches for each process, resumable at any step.

`load(config.data)` gives a `Dataset`; `train_feed` and `eval_batches` turn its splits into batches.
A split lies in memory (`Arrays`) or on disk as encoded images (`Stream`). `load` looks for prepared
data in `config.data.dir`. It downloads nothing unless `config.data.download` is set.

`config.data.name` may be any image classification set of tensorflow_datasets. If it is not in
`DATASETS`, its classes and image size are read from the prepared folder. If all images have the
size of the networks' input, they are used whole: in memory and on the device up to
`config.data.resident_limit`, otherwise streamed, with the same batches. Images of other sizes are
streamed, and the host cuts S random-resized crops from each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from jaxsplit.data import holdout, names, prepared
from jaxsplit.data.arrays import (
    NPZ_KEYS,
    Arrays,
    describe_npz,
    find_npz,
    in_both,
    npz_class_names,
    read_digits,
    read_npz,
    read_synthetic,
)
from jaxsplit.data.dataset import Dataset
from jaxsplit.data.eval_feed import eval_batches, num_eval_batches
from jaxsplit.data.feed import TrainFeed, epoch_order, first_images, train_feed
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

__all__ = [
    "DATASETS",
    "ON_BAD_RECORD",
    "RESIDENT",
    "Arrays",
    "Dataset",
    "Source",
    "Stream",
    "TrainFeed",
    "epoch_order",
    "eval_batches",
    "first_images",
    "lies_on_device",
    "load",
    "num_eval_batches",
    "source",
    "train_feed",
]

RESIDENT = ("auto", "device", "stream")
ON_BAD_RECORD = ("error", "skip")
_MIN_CROP = 16  # pixels: the smallest image_size of cropped images

_Splits = tuple[Arrays | Stream, Arrays | Stream]  # training and test part


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read; calling it with config.data reads it.

    image_shape: (H, W, C); H and W are used if data.image_size is 0.
    read: function of (source, config.data, image_shape) that returns (train, test).
    min_size: smallest allowed data.image_size; None: images keep their own size.
    one_size: whether all images have image_shape.
    train_splits: names in tfds. The first must exist; the others are added if they exist.
    test_splits: names in tfds, of which the first that exists is the test split.
    may_lack_test: if no test split exists, `data.test_share` of the training part is held out.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[..., _Splits]
    min_size: int | None = None
    one_size: bool = True
    train_splits: tuple[str, ...] = ("train",)
    test_splits: tuple[str, ...] = ("test",)
    may_lack_test: bool = False

    def __call__(self, data_config: ConfigDict) -> Dataset:
        """Reads the whole data set, from <data.dir>/<name>.npz if that file exists."""
        npz = find_npz(self.name, data_config.dir)
        if npz is not None:
            train, test = read_npz(npz, self.num_classes, data_config.on_bad_record)
            if self.name not in DATASETS and (line := in_both(train, test)):
                print(f"note: {npz}: {line}", flush=True)
            shape = train.images.shape[1:]
            own = self.image_shape
            if self.min_size is not None:
                own = (shape[0], shape[0], own[2])
            if shape != own:
                raise ConfigError(
                    f"data.dir: {npz}: train_images: shape {train.images.shape}, must be "
                    f"[N, {', '.join(map(str, own))}]"
                )
            _check_size(data_config.image_size, own[0], None)
        else:
            _check_size(data_config.image_size, self.image_shape[0], self.min_size)
            shape = self.shape(data_config)
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
            resident=isinstance(train, Arrays) and lies_on_device(data_config, len(train), shape),
            class_names=self.class_names(data_config),
        )

    def shape(self, data_config: ConfigDict) -> tuple[int, int, int]:
        """(H, W, C) of the networks' input; reads nothing."""
        size, (height, width, channels) = data_config.image_size, self.image_shape
        return (height, width, channels) if size in (0, height) else (size, size, channels)

    def cropped(self, data_config: ConfigDict) -> bool:
        """`Dataset.cropped`, known before the data set is read."""
        if find_npz(self.name, data_config.dir) or self.read is not _read_prepared:
            return False
        return not self.one_size or self.shape(data_config) != self.image_shape

    def class_names(self, data_config: ConfigDict) -> tuple[str, ...]:
        """The class names in data.dir, else the well-known ones of the data set, else ()."""
        npz = find_npz(self.name, data_config.dir)
        if npz is not None:
            found = npz_class_names(npz, self.num_classes)
        else:
            found = prepared.class_names(self.name, data_config.dir, self.num_classes)
        known = names.KNOWN.get(self.name, ())
        return found or (known if len(known) == self.num_classes else ())


def _read_digits(source: Source, data_config: ConfigDict, shape: tuple[int, int, int]) -> _Splits:
    return read_digits()


def _read_synthetic(
    source: Source, data_config: ConfigDict, shape: tuple[int, int, int]
) -> _Splits:
    return read_synthetic(shape[0])


def _read_prepared(source: Source, data_config: ConfigDict, shape: tuple[int, int, int]) -> _Splits:
    """Opens a data set that tfds prepared; decodes it into memory if it fits on the device."""
    name = source.name
    builder = prepared.open_builder(name, data_config)
    has = list(builder.info.splits)
    tests = [split for split in source.test_splits if split in has][:1]
    needed = [source.train_splits[:1]]
    if not source.may_lack_test:
        needed.append(source.test_splits)
    for wanted in needed:
        if not set(wanted) & set(has):
            raise ConfigError(
                f"data.dir={data_config.dir}: '{name}' has no split "
                f"{' or '.join(map(repr, wanted))} (has: {', '.join(has)})"
            )
    trains = [split for split in source.train_splits if split in has]
    whole = shape if source.one_size and shape == source.image_shape else None
    if whole is None and data_config.resident == "device":
        raise ConfigError(
            f"data.resident='device': must be auto or stream, as the images of '{name}' are "
            f"cropped to {shape[0]} pixels"
        )
    train, *test = (
        prepared.open_split(
            builder, name, data_config, tuple(splits), num_classes=source.num_classes, shape=whole
        )
        for splits in (trains, tests)
        if splits
    )
    if test:
        (test,) = test
    else:
        known = prepared.class_names(name, data_config.dir, source.num_classes)
        train, test = holdout.test_part(train, data_config.test_share, name, known)
    if whole is None or not lies_on_device(data_config, len(train), shape):
        return train, test
    return (
        prepared.read_all(train, data_config.threads),
        prepared.read_all(test, data_config.threads),
    )


def lies_on_device(data_config: ConfigDict, count: int, shape: tuple[int, int, int]) -> bool:
    """Whether the device holds all `count` images of `shape`."""
    if data_config.resident == "auto":
        return count * math.prod(shape) <= data_config.resident_limit * 2**20
    return data_config.resident == "device"


# Means and standard deviations are those of the reference (arXiv 2011.14660). Those of digits were
# measured on its 1437 training images, those of fashion_mnist are the customary ones, and those of
# synthetic follow from its construction.
DATASETS: dict[str, Source] = {
    known.name: known
    for known in (
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
            _read_prepared,
        ),
        Source(
            "cifar100",
            100,
            (32, 32, 3),
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            _read_prepared,
        ),
        Source("fashion_mnist", 10, (28, 28, 1), (0.2860,), (0.3530,), _read_prepared),
        Source(
            "svhn_cropped",
            10,
            (32, 32, 3),
            (0.4309, 0.4302, 0.4463),
            (0.1965, 0.1983, 0.1994),
            _read_prepared,
            train_splits=("train", "extra"),
        ),
        Source(
            "imagenet2012",
            1000,
            (224, 224, 3),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            _read_prepared,
            min_size=_MIN_CROP,
            one_size=False,
            test_splits=("validation",),  # the customary test split, because `test` has no labels
        ),
    )
}


# Mean and std of a data set that is not in DATASETS, if the config gives none: colour images take
# ImageNet's; gray images are scaled to -1..1.
_OTHER_MEAN = {3: (0.485, 0.456, 0.406), 1: (0.5,)}
_OTHER_STD = {3: (0.229, 0.224, 0.225), 1: (0.5,)}


def usual_mean_and_std(
    data_config: ConfigDict, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of `data_config`; an empty one is that of an unknown data set."""
    mean, std = tuple(data_config.mean), tuple(data_config.std)
    return mean or _OTHER_MEAN[channels], std or _OTHER_STD[channels]


def source(data_config: ConfigDict) -> Source:
    """What is known of the data set `data_config.name` before its examples are read.

    If the name is in DATASETS, this reads nothing. Otherwise it reads the labels and shapes of
    <data.dir>/<name>.npz, or the metadata of the data set prepared in data.dir, or with
    data.download that of tfds's data set of this name. The test split is then `test`, else
    `validation`, else a held-out part of `train`.

    Raises:
      ConfigError: the name is unknown; image_size is 0 although the images vary in size; mean or
        std does not fit.
    """
    name = data_config.name
    known = DATASETS[name] if name in DATASETS else _other_source(data_config)
    given: dict[str, tuple[float, ...]] = {}
    for field in ("mean", "std"):
        if values := tuple(data_config[field]):
            channels = known.image_shape[2]
            numbers = [isinstance(v, int | float) and math.isfinite(v) for v in values]
            fine = all(numbers) and len(values) == channels
            if not fine or (field == "std" and min(values) <= 0):
                kind = "positive numbers" if field == "std" else "numbers"
                raise ConfigError(
                    f"data.{field}={values}: must be {channels} {kind}, one for each channel of "
                    f"{name!r}, or empty"
                )
            given[field] = tuple(map(float, values))
    return replace(known, mean=given.get("mean", known.mean), std=given.get("std", known.std))


def _other_source(data_config: ConfigDict) -> Source:
    name, size = data_config.name, data_config.image_size
    npz = find_npz(name, data_config.dir)
    if npz is not None:
        num_classes, shape = describe_npz(npz)
        mean, std = _OTHER_MEAN[shape[2]], _OTHER_STD[shape[2]]
        return Source(name, num_classes, shape, mean, std, _read_prepared)
    builder = prepared.find_builder(name, data_config)
    if builder is None:
        raise ConfigError(
            f"data.name={name!r}: must be one of {', '.join(DATASETS)}, or what is prepared in "
            f"data.dir={data_config.dir}; {prepared.how_to_prepare(name, data_config.dir)}, or put "
            f"a {name}.npz with the arrays {', '.join(NPZ_KEYS)} there"
        )
    num_classes, (height, width, channels) = prepared.describe(builder, name)
    one_size = height is not None and width is not None
    if not one_size and size < _MIN_CROP:
        raise ConfigError(
            f"data.image_size={size}: must be at least {_MIN_CROP}, as the images of {name!r} vary "
            "in size"
        )
    return Source(
        name,
        num_classes,
        (height, width, channels) if one_size else (size, size, channels),
        _OTHER_MEAN[channels],
        _OTHER_STD[channels],
        _read_prepared,
        min_size=_MIN_CROP,
        one_size=one_size,
        test_splits=("test", "validation"),
        may_lack_test=True,
    )


def load(data_config: ConfigDict, *, seed_split: int = 0) -> Dataset:
    """Reads the data set `data_config.name`; holds out a share of the training part for validation.

    The share is `data_config.validation`. The held-out part is stratified by class, except that
    cropped images are drawn at random.

    Args:
      data_config: config.data; jaxsplit/defaults.py describes its fields.
      seed_split: seed of the held-out part. Runs with different config.seed share it.

    Raises:
      ConfigError: the name is unknown, data.dir holds no prepared data set of that name or a
        damaged one, or image_size or validation is out of range.
    """
    share = data_config.validation
    for field, allowed in (("resident", RESIDENT), ("on_bad_record", ON_BAD_RECORD)):
        if data_config[field] not in allowed:
            raise ConfigError(
                f"data.{field}={data_config[field]!r}: must be one of {', '.join(allowed)}"
            )
    if not 0 <= share < 1:
        raise ConfigError(f"data.validation={share}: must be in [0, 1)")
    if not 0 < data_config.test_share < 1:
        raise ConfigError(f"data.test_share={data_config.test_share}: must be in (0, 1)")
    dataset = source(data_config)(data_config)
    if share == 0:
        return dataset
    train = dataset.train
    count = round(share * len(train))
    if not 0 < count < len(train):
        raise ConfigError(
            f"data.validation={share}: holds out {count} of {len(train)} training examples, must "
            "leave some on both sides"
        )
    if dataset.name in DATASETS and isinstance(train, Stream) and train.shape is None:
        # Of these data sets only imagenet2012 is cropped. Its classes have at least 732 images, and
        # reading their labels would read all files.
        kept, held = holdout.random_validation_part(train, share, seed_split)
    else:
        kept, held = holdout.validation_part(
            train,
            share,
            seed_split,
            prepared.class_names(dataset.name, data_config.dir, dataset.num_classes),
        )
    return replace(dataset, train=kept, validation=held)


def _check_size(image_size: int, own: int, min_size: int | None) -> None:
    """Raises ConfigError unless image_size is 0, `own`, or at least `min_size` (None: no other)."""
    if image_size in (0, own) or (min_size is not None and image_size >= min_size):
        return
    allowed = f"0 or {own}" if min_size is None else f"0 (for {own}) or at least {min_size}"
    raise ConfigError(f"data.image_size={image_size}: must be {allowed}")
