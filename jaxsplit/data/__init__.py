"""Data sets as uint8 batches for each process, resumable at any step.

`load(config.data)` gives a `Dataset`; `train_feed` and `eval_batches` turn its splits into batches.
A split lies in memory (`Arrays`) or on disk as encoded images (`Stream`). `load` looks for prepared
data in `config.data.dir`. It downloads nothing unless `config.data.download` is set.

`config.data.name` may be any image classification set of tensorflow_datasets, or 'hf:' and the name
or path of one of Hugging Face. If it is not in `DATASETS`, its classes and image size are read from
what lies on disk. If all images have the size of the networks' input, they are used whole: in
memory and on the device up to `config.data.resident_limit`, otherwise streamed, with the same
batches. Images of other sizes are streamed, and the host cuts S random-resized crops from each.
"""

from collections.abc import Callable
from dataclasses import replace

from ml_collections import ConfigDict

from jaxsplit.data import holdout, hugging_face, prepared
from jaxsplit.data.arrays import NPZ_KEYS, Arrays, describe_npz, find_npz
from jaxsplit.data.dataset import Dataset
from jaxsplit.data.eval_feed import eval_batches, num_eval_batches
from jaxsplit.data.feed import TrainFeed, epoch_order, first_images, train_feed
from jaxsplit.data.sources import (
    DATASETS,
    MIN_CROP,
    Source,
    from_digits,
    from_hugging_face,
    from_prepared,
    from_synthetic,
    lies_on_device,
)
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
    `validation`, else a held-out part of `train`. Of a set of Hugging Face it reads the headers of
    images, up to all of them if they have one size; with data.download it downloads the set.

    Raises:
      ConfigError: the name is unknown; image_size is 0 although the images vary in size; mean, std,
        or the name of a split or column does not fit.
    """
    name = data_config.name
    if hugging_face.is_named(name):
        known = _hugging_face_source(data_config)
    else:
        known = DATASETS[name] if name in DATASETS else _other_source(data_config)
        for field in ("subset", "image_column", "label_column"):
            if data_config[field]:
                raise ConfigError(
                    f"data.{field}={data_config[field]!r}: must be '', as only sets of Hugging "
                    f"Face ('hf:...') have it, and data.name={name!r}"
                )
        known = _with_named_splits(known, data_config)
        npz = find_npz(name, data_config.dir)
        if npz and (folder := prepared.find(name, data_config.dir)):
            raise ConfigError(
                f"data.name={name!r}: {npz} and {folder} are two data sets of that name; rename or "
                "move one of them"
            )
    given: dict[str, tuple[float, ...]] = {}
    for field in ("mean", "std"):
        if values := tuple(data_config[field]):
            channels = known.image_shape[2]
            numbers = [isinstance(v, int | float) and 0 <= v <= 1 for v in values]
            fine = all(numbers) and len(values) == channels
            if not fine or (field == "std" and min(values) <= 0):
                where = "above 0 and at most 1" if field == "std" else "from 0 to 1"
                raise ConfigError(
                    f"data.{field}={values}: must be {channels} numbers {where}, one for each "
                    f"channel of {name!r}, for pixels scaled to 0..1; or empty"
                )
            given[field] = tuple(map(float, values))
    return replace(known, mean=given.get("mean", known.mean), std=given.get("std", known.std))


def _with_named_splits(known: Source, data_config: ConfigDict) -> Source:
    """The source with the splits that data.train_split and data.test_split name."""
    train, test = data_config.train_split, data_config.test_split
    if not (train or test):
        return known
    npz = find_npz(known.name, data_config.dir)
    if npz is not None or known.read in (from_digits, from_synthetic):
        field = "train_split" if train else "test_split"
        raise ConfigError(
            f"data.{field}={train or test!r}: must be '', as the splits of "
            f"{str(npz) if npz else known.name!r} have no other names"
        )
    if train == test:
        raise ConfigError(f"data.test_split={test!r}: must be another split than data.train_split")
    return replace(
        known,
        train_splits=(train,) if train else known.train_splits,
        test_splits=(test,) if test else known.test_splits,
        may_lack_test=known.may_lack_test and not test,
    )


def _other_source(data_config: ConfigDict) -> Source:
    name = data_config.name
    npz = find_npz(name, data_config.dir)
    if npz is not None:
        num_classes, shape = describe_npz(npz)
        mean, std = _OTHER_MEAN[shape[2]], _OTHER_STD[shape[2]]
        return Source(name, num_classes, shape, mean, std, from_prepared)
    builder = prepared.find_builder(name, data_config)
    if builder is None:
        raise ConfigError(
            f"data.name={name!r}: must be one of {', '.join(DATASETS)}, or what is prepared in "
            f"data.dir={data_config.dir}; {prepared.how_to_prepare(name, data_config.dir)}, or put "
            f"a {name}.npz with the arrays {', '.join(NPZ_KEYS)} there"
        )
    return _described(
        _stranger(name, from_prepared), data_config, *prepared.describe(builder, name)
    )


def _hugging_face_source(data_config: ConfigDict) -> Source:
    found = hugging_face.find(data_config)
    draft = _with_named_splits(_stranger(found.name, from_hugging_face), data_config)
    trains, tests = draft.splits(found.splits, f"data.name: {found.folder}")
    num_classes, class_names, shape = hugging_face.describe(found, data_config, trains + tests)
    return replace(_described(draft, data_config, num_classes, shape), own_names=class_names)


def _stranger(name: str, read: Callable) -> Source:
    """A data set of encoded images of which only the name is known."""
    return Source(
        name,
        0,
        (0, 0, 3),
        (),
        (),
        read,
        min_size=MIN_CROP,
        test_splits=("test", "validation"),
        may_lack_test=True,
    )


def _described(
    stranger: Source,
    data_config: ConfigDict,
    num_classes: int,
    shape: tuple[int | None, int | None, int],
) -> Source:
    """The source with classes and image size; H and W of its shape are None if they vary."""
    size, (height, width, channels) = data_config.image_size, shape
    one_size = height is not None and width is not None
    if not one_size and size < MIN_CROP:
        raise ConfigError(
            f"data.image_size={size}: must be at least {MIN_CROP}, as the images of "
            f"{stranger.name!r} vary in size"
        )
    return replace(
        stranger,
        num_classes=num_classes,
        image_shape=(height, width, channels) if one_size else (size, size, channels),
        mean=_OTHER_MEAN[channels],
        std=_OTHER_STD[channels],
        one_size=one_size,
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
        kept, held = holdout.validation_part(train, share, seed_split, dataset.class_names)
    return replace(dataset, train=kept, validation=held)
