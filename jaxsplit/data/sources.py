"""What is known of a data set before it is read, and how each kind of source is read."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ml_collections import ConfigDict

from jaxsplit.data import holdout, hugging_face, names, prepared
from jaxsplit.data.arrays import (
    Arrays,
    find_npz,
    in_both,
    npz_class_names,
    read_digits,
    read_npz,
    read_synthetic,
)
from jaxsplit.data.dataset import Dataset
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

MIN_CROP = 16  # pixels: the smallest image_size of cropped images

_Splits = tuple[Arrays | Stream, Arrays | Stream]  # training and test part


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read; calling it with config.data reads it.

    image_shape: (H, W, C); H and W are used if data.image_size is 0.
    read: function of (source, config.data, image_shape) that returns (train, test).
    min_size: smallest allowed data.image_size; None: images keep their own size.
    one_size: whether all images have image_shape.
    train_splits: names of splits. The first must exist; the others are added if they exist.
    test_splits: names of splits, of which the first that exists is the test split.
    may_lack_test: if no test split exists, `data.test_share` of the training part is held out.
    own_names: the class names, if they were read with the rest.
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
    own_names: tuple[str, ...] = ()

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
            _check_size(data_config.image_size, own, None)
        else:
            _check_size(data_config.image_size, self.image_shape, self.min_size)
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
        own = size == 0 or size == height == width
        return (height, width, channels) if own else (size, size, channels)

    def cropped(self, data_config: ConfigDict) -> bool:
        """`Dataset.cropped`, known before the data set is read."""
        encoded = self.read in (from_prepared, from_hugging_face)
        if find_npz(self.name, data_config.dir) or not encoded:
            return False
        return not self.one_size or self.shape(data_config) != self.image_shape

    def class_names(self, data_config: ConfigDict) -> tuple[str, ...]:
        """The class names in data.dir, else the well-known ones of the data set, else ()."""
        if self.own_names:
            return self.own_names
        npz = find_npz(self.name, data_config.dir)
        if npz is not None:
            found = npz_class_names(npz, self.num_classes)
        else:
            found = prepared.class_names(self.name, data_config.dir, self.num_classes)
        known = names.KNOWN.get(self.name, ())
        return found or (known if len(known) == self.num_classes else ())

    def splits(self, has: Iterable[str], where: str) -> tuple[list[str], list[str]]:
        """(training splits, the test split or none) of those that a data set has.

        where: the beginning of an error.

        Raises:
          ConfigError: a split is missing.
        """
        trains = [split for split in self.train_splits if split in has]
        tests = [split for split in self.test_splits if split in has and split not in trains][:1]
        missing = ""
        if self.train_splits[0] not in has:
            missing = f"no split {self.train_splits[0]!r}"
        elif not tests and not self.may_lack_test:
            wanted = " or ".join(map(repr, self.test_splits))
            other = " that it is not trained on" if set(self.test_splits) & set(trains) else ""
            missing = f"no split {wanted}{other}"
        if missing:
            raise ConfigError(
                f"{where}: {self.name!r} has {missing} (has: {', '.join(has)}); data.train_split "
                "and data.test_split name others"
            )
        return trains, tests


def from_digits(source: Source, data_config: ConfigDict, shape: tuple[int, int, int]) -> _Splits:
    """scikit-learn's digits."""
    return read_digits()


def from_synthetic(source: Source, data_config: ConfigDict, shape: tuple[int, int, int]) -> _Splits:
    """Patterns of `shape`."""
    return read_synthetic(shape[0])


def from_prepared(source: Source, data_config: ConfigDict, shape: tuple[int, int, int]) -> _Splits:
    """Opens a data set that tfds prepared."""
    builder = prepared.open_builder(source.name, data_config)
    trains, tests = source.splits(list(builder.info.splits), f"data.dir={data_config.dir}")

    def open_split(splits: list[str], whole: tuple[int, int, int] | None) -> Stream:
        return prepared.open_split(
            builder,
            source.name,
            data_config,
            tuple(splits),
            num_classes=source.num_classes,
            shape=whole,
        )

    return _encoded(source, data_config, shape, (trains, tests), open_split)


def from_hugging_face(
    source: Source, data_config: ConfigDict, shape: tuple[int, int, int]
) -> _Splits:
    """Opens a data set of Hugging Face."""
    found = hugging_face.find(data_config)
    splits = source.splits(found.splits, f"data.name: {found.folder}")

    def open_split(splits: list[str], whole: tuple[int, int, int] | None) -> Stream:
        return hugging_face.open_split(found, data_config, splits[0], source.num_classes, whole)

    return _encoded(source, data_config, shape, splits, open_split)


def _encoded(
    source: Source,
    data_config: ConfigDict,
    shape: tuple[int, int, int],
    splits: tuple[list[str], list[str]],
    open_split: Callable[[list[str], tuple[int, int, int] | None], Stream],
) -> _Splits:
    """Opens splits of encoded images; decodes them into memory if they fit on the device."""
    name = source.name
    whole = shape if source.one_size and shape == source.image_shape else None
    if whole is None and data_config.resident == "device":
        raise ConfigError(
            f"data.resident='device': must be auto or stream, as the images of '{name}' are "
            f"cropped to {shape[0]} pixels"
        )
    train, *test = (open_split(some, whole) for some in splits if some)
    if test:
        (test,) = test
    else:
        known = source.class_names(data_config)
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


def _check_size(image_size: int, own: tuple[int, int, int], min_size: int | None) -> None:
    """Raises ConfigError unless image_size is 0, that of square images of the shape `own`, or at
    least `min_size` (None: no other)."""
    height, width, _ = own
    square = height == width
    if image_size == 0 or (square and image_size == height):
        return
    if min_size is not None and image_size >= min_size:
        return
    shown = str(height) if square else f"{height}x{width}"
    if min_size is not None:
        allowed = f"0 (for {shown}) or at least {min_size}"
    else:
        allowed = f"0 or {shown}" if square else f"0, for {shown}"
    raise ConfigError(f"data.image_size={image_size}: must be {allowed}")


# Means and standard deviations are those of the reference (arXiv 2011.14660). Those of digits were
# measured on its 1437 training images, those of fashion_mnist are the customary ones, and those of
# synthetic follow from its construction.
DATASETS: dict[str, Source] = {
    known.name: known
    for known in (
        Source("digits", 10, (8, 8, 1), (0.3054,), (0.3760,), from_digits),
        Source(
            "synthetic",
            10,
            (32, 32, 3),
            (0.5, 0.5, 0.5),
            (0.2, 0.2, 0.2),
            from_synthetic,
            min_size=4,
        ),
        Source(
            "cifar10",
            10,
            (32, 32, 3),
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
            from_prepared,
        ),
        Source(
            "cifar100",
            100,
            (32, 32, 3),
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            from_prepared,
        ),
        Source("fashion_mnist", 10, (28, 28, 1), (0.2860,), (0.3530,), from_prepared),
        Source(
            "svhn_cropped",
            10,
            (32, 32, 3),
            (0.4309, 0.4302, 0.4463),
            (0.1965, 0.1983, 0.1994),
            from_prepared,
            train_splits=("train", "extra"),
        ),
        Source(
            "imagenet2012",
            1000,
            (224, 224, 3),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            from_prepared,
            min_size=MIN_CROP,
            one_size=False,
            test_splits=("validation",),  # the customary test split, because `test` has no labels
        ),
    )
}
