"""Held-out parts of the training set: each class keeps an image; classes without one are named."""

import numpy as np
import pytest

from jaxsplit.data import load
from tests.support.data import data_config, message_of, tiny
from tests.support.tfds import picture, write_image_dataset, write_imagenet


def write(folder, counts, size=20, **fields):
    """`leaves` with this number of training images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    train = [(picture(i, size, size), int(label)) for i, label in enumerate(labels)]
    shape = fields.pop("shape", (size, size, 3))
    return write_image_dataset(
        folder, "leaves", {"train": train, **fields}, num_classes=len(counts), shape=shape
    )


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_each_class_keeps_a_training_image(tmp_path, capsys, resident):
    write(tmp_path, [1, 2, 20], test=tiny(4, classes=3))
    capsys.readouterr()
    made = load(data_config("leaves", tmp_path, resident=resident, validation=0.9))
    labels = made.train.labels
    assert set(labels if resident == "device" else labels()) == {0, 1, 2}
    assert len(made.train) + len(made.validation) == 23
    out = capsys.readouterr().out
    assert out == "data.validation=0.9: 1 of 3 classes have no held-out image: 0\n"


def test_the_names_of_classes_are_told(tmp_path, capsys):
    path = write(tmp_path, [20, 2, 1, 1, 1])
    (path / "label.labels.txt").write_text("gull\nowl\nrook\nstar\nwren\n")
    capsys.readouterr()
    load(data_config("leaves", tmp_path, test_share=0.2))
    assert capsys.readouterr().out.splitlines()[1] == (
        "data.test_share=0.2: 3 of 5 classes have no held-out image: rook, star, wren"
    )


def test_a_random_part_of_cropped_images_keeps_each_class(tmp_path, capsys):
    write(tmp_path, [1, 2, 37], test=tiny(4, classes=3), shape=(None, None, 3))
    capsys.readouterr()
    taken = 0
    for seed in range(12):
        config = data_config("leaves", tmp_path, image_size=16, validation=0.5)
        made = load(config, seed_split=seed)
        kept, held = made.train.indices, made.validation.indices
        # The random draw, except for the images that were given back.
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        drawn = np.sort(rng.permutation(40)[:20])
        want = [i for i in drawn if i != 0 and not (i == 1 and {1, 2} <= set(drawn))]
        np.testing.assert_array_equal(held, want)
        assert sorted([*kept, *held]) == list(range(40)) and set(made.train.labels()) == {0, 1, 2}
        taken += len(want) < 20
    assert 0 < taken < 12
    assert "data.validation=0.5: 1 of 3 classes have no held-out image: 0\n" in (
        capsys.readouterr().out
    )


def test_of_imagenet_no_labels_are_read(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    monkeypatch.setattr("jaxsplit.data.stream.Stream.labels", lambda self: pytest.fail("read"))
    made = load(data_config("imagenet2012", tmp_path, image_size=32, validation=0.25))
    assert len(made.validation) == 4


def test_where_no_class_can_give_one(tmp_path):
    write(tmp_path, [1] * 8, test=tiny(4, classes=3))
    message = message_of(lambda: load(data_config("leaves", tmp_path, validation=0.5)))
    assert message == (
        "data.validation=0.5: holds out 0 of 8 training examples, must leave some on both sides"
    )
