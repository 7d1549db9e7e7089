"""Stand-ins of data sets, against the sets themselves once they are read."""

import dataclasses

import numpy as np
import pytest

from jaxsplit.data import load, stand_in, train_feed
from tests.support.data import data_config, tiny
from tests.support.tfds import write_image_dataset, write_small


def agree(given) -> int:
    """The number of training images, after a comparison of the stand-in with the set."""
    made, real = stand_in.dataset(given), load(given)
    for field in dataclasses.fields(real):
        if field.name not in ("train", "validation", "test"):
            assert getattr(made, field.name) == getattr(real, field.name), field.name
    assert len(made.train) == len(real.train) == stand_in.train_examples(given)
    feeds = [train_feed(d, batch_size=2, num_views=2, seed=0) for d in (made, real)]
    assert feeds[0].crops_on == feeds[1].crops_on
    assert (feeds[0].resident is None) == (feeds[1].resident is None)
    return len(real.train)


@pytest.mark.parametrize("fields", [{}, {"validation": 0.2}, {"resident": "stream"}])
def test_sets_that_need_no_files(fields):
    assert agree(data_config("digits", **fields)) == (1150 if "validation" in fields else 1437)
    assert agree(data_config("synthetic", image_size=8, **fields)) > 1600


def test_an_npz(tmp_path):
    labels = np.array([0, 1, 2, 1, 0, 2])
    images = np.zeros((6, 12, 10, 3), np.uint8)
    arrays = dict(train_images=images, train_labels=labels)
    np.savez(tmp_path / "leaves.npz", test_images=images, test_labels=labels, **arrays)
    assert agree(data_config("leaves", tmp_path)) == 6


def test_prepared_sets(tmp_path):
    """Whole, cropped, and with a test part that is held out."""
    write_small(tmp_path, "cifar10", 12, 4)
    assert agree(data_config("cifar10", tmp_path)) == 12
    splits = {"train": tiny(12), "test": tiny(6)}
    write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    assert agree(data_config("leaves", tmp_path)) == 12
    assert agree(data_config("leaves", tmp_path, image_size=16)) == 12
    assert agree(data_config("leaves", tmp_path, validation=0.25)) == 9
    splits = {"train": tiny(20, 40, 30)}
    write_image_dataset(tmp_path, "birds", splits, num_classes=5)
    assert agree(data_config("birds", tmp_path, image_size=24, test_share=0.3)) == 14


def test_known_sets_that_are_not_there(tmp_path):
    for name, count in stand_in.TRAIN_EXAMPLES.items():
        made = stand_in.dataset(data_config(name, tmp_path))
        assert len(made.train) == count
        if name not in ("svhn_cropped", "imagenet2012"):
            assert made.resident
    # Nothing that it holds takes memory.
    made = stand_in.dataset(data_config("svhn_cropped", tmp_path))
    assert made.train.images.nbytes > 2**30 and made.train.images.strides == (0, 0, 0, 0)


def test_a_set_of_unknown_size(tmp_path, monkeypatch):
    monkeypatch.setitem(stand_in.TRAIN_EXAMPLES, "cifar10", None)
    given = data_config("cifar10", tmp_path)
    assert stand_in.train_examples(given) is None
    made = stand_in.dataset(given, at_least=64)
    assert len(made.train) == 64 and not made.resident
    assert stand_in.dataset(data_config("cifar10", tmp_path, resident="device")).resident


def test_where_images_lie_does_not_depend_on_those_held_out(tmp_path):
    """A run decides it of the images that validation ones are taken from: here 146.5 MiB."""
    for limit, resident in ((146, False), (147, True)):
        fields = dict(validation=0.1, resident_limit=limit)
        assert stand_in.dataset(data_config("cifar10", tmp_path, **fields)).resident is resident
