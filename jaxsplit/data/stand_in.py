"""A data set's size, and a stand-in of the same shape, before any of its examples is read."""

import json

import numpy as np
from ml_collections import ConfigDict

from jaxsplit import data
from jaxsplit.data import arrays, facts, hugging_face, prepared
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

# Number of training examples of each data set, as published; svhn_cropped with extra images.
TRAIN_EXAMPLES = {
    "digits": 1437,
    "synthetic": 2048,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn_cropped": 604_388,
    "imagenet2012": 1_281_167,
}


def train_examples(data_config: ConfigDict) -> int | None:
    """The number of examples to train on, without those held out; None: it is not known yet.

    It is counted in <data.dir>/<name>.npz, in the metadata of what is prepared in data.dir, or in
    the files of a set of Hugging Face; of a known set that is not there it is the published one.

    Raises:
      ConfigError: as `data.source`.
    """
    count = _all_examples(data_config)
    return None if count is None else _trained(data_config, count)


def dataset(data_config: ConfigDict, at_least: int = 1) -> data.Dataset:
    """A `Dataset` as the named one, to build and compile for; its images are black or unreadable.

    It takes no memory, needs nothing on disk, and has as many training examples; `at_least` of them
    if their number is not known, and then they do not lie on the device unless data.resident says
    so.

    Raises:
      ConfigError: as `data.source`.
    """
    known, count = facts.of_config(data_config), _all_examples(data_config)
    shape, length = known.image_shape, at_least if count is None else _trained(data_config, count)
    if known.shorter_side:
        split = Stream(range(length))
    else:
        images = np.broadcast_to(np.uint8(0), (length, *shape))
        split = data.Arrays(images, np.broadcast_to(np.int32(0), length))
    if count is None:
        resident = data_config.resident == "device"
    else:
        # Those are counted that the held-out ones are taken from.
        resident = data.lies_on_device(data_config, count, shape)
    return data.Dataset(
        name=known.name,
        num_classes=known.num_classes,
        image_shape=shape,
        mean=known.mean,
        std=known.std,
        train=split,
        validation=None,
        test=split,
        resident=resident and not known.shorter_side,
        class_names=known.class_names,
    )


def _trained(data_config: ConfigDict, count: int) -> int:
    """Of so many examples those that are not held out for validation."""
    return count - round(data_config.validation * count)


def _all_examples(data_config: ConfigDict) -> int | None:
    """The number of training examples, those included of which validation ones are taken."""
    name, source = data_config.name, data.source(data_config)
    if npz := arrays.find_npz(name, data_config.dir):
        return arrays.count_npz(npz)
    if hugging_face.is_named(name):
        splits = (*source.train_splits, *source.test_splits)
        counts = hugging_face.counts(data_config, splits)
    else:
        counts = _prepared_counts(name, data_config.dir)
    count = sum(counts.get(split, 0) for split in source.train_splits)
    if not count:
        return TRAIN_EXAMPLES.get(name)
    tests = set(source.test_splits) - set(source.train_splits)
    if source.may_lack_test and not tests & set(counts):
        count -= round(data_config.test_share * count)
    return count


def _prepared_counts(name: str, data_dir: str) -> dict[str, int]:
    """Split -> number of examples, of what tfds prepared; {} if there is none or it is damaged."""
    try:
        folder = prepared.find(name, data_dir)
        if folder is None:
            return {}
        info = json.loads((folder / "dataset_info.json").read_text())
        return {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    except (ConfigError, OSError, ValueError, KeyError, TypeError):  # loading it tells why
        return {}
