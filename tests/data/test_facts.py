"""`dataset.json`: what a workdir says about its data set, and which files are refused."""

import json

import numpy as np
import pytest

from configs import common
from jaxsplit import data
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from tests.support.tfds import picture, write_imagenet, write_small


def data_config(name: str, folder="", **fields):
    config = common.get_config().data
    config.name, config.dir = name, str(folder)
    config.update(fields)
    return config


def both(config) -> facts.Facts:
    """The facts of the loaded data set; those of its config must be equal."""
    loaded = facts.of_dataset(data.load(config))
    assert loaded == facts.of_config(config)
    return loaded


def test_of_data_sets(tmp_path):
    found = both(data_config("digits"))
    assert found == facts.Facts(
        "digits", 10, (8, 8, 1), (0.3054,), (0.3760,), tuple("0123456789"), 0
    )
    assert both(data_config("synthetic", image_size=16)).image_shape == (16, 16, 3)
    write_small(tmp_path, "cifar10", 4, 4)
    assert both(data_config("cifar10", tmp_path)).class_names[3] == "cat"
    write_imagenet(tmp_path, 4, 4)
    found = both(data_config("imagenet2012", tmp_path, image_size=160))
    assert (found.image_shape, found.shorter_side) == ((160, 160, 3), 184)
    assert found.class_names == () and found.labels[999] == "999"


def test_names_in_an_npz(tmp_path):
    arrays = {
        "train_images": np.zeros((4, 5, 6, 3), np.uint8),
        "train_labels": np.array([0, 1, 2, 0]),
        "test_images": np.zeros((3, 5, 6, 3), np.uint8),
        "test_labels": np.array([0, 1, 2]),
    }
    config = data_config("mine", tmp_path)
    np.savez(tmp_path / "mine.npz", **arrays)
    assert both(config).class_names == ()
    np.savez(tmp_path / "mine.npz", **arrays, class_names=["owl", "wren", "Zaunkönig"])
    assert both(config).class_names == ("owl", "wren", "Zaunkönig")
    for wrong, told in ((["owl"], "<U3[1]"), (np.arange(3), "int64[3]")):
        np.savez(tmp_path / "mine.npz", **arrays, class_names=wrong)
        with pytest.raises(ConfigError) as caught:
            data.load(config)
        assert str(caught.value).endswith(f"class_names: {told}, must be 3 texts")


SOME = facts.Facts("birds", 2, (4, 6, 3), (0.1, 0.2, 0.3), (1.0, 1.0, 0.5), ("owl", "Käuze"), 5)


def test_written_and_read(tmp_path):
    assert facts.read(tmp_path) is None
    facts.write(tmp_path, SOME)
    assert facts.read(tmp_path) == SOME
    assert json.loads((tmp_path / facts.NAME).read_text())["resize_shorter_side"] == 5
    assert SOME.blank_dataset().image_shape == (4, 6, 3)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"format": 2}, "format=2: must be 1"),
        ({"image_shape": [4, 6]}, "ValueError: not enough values"),
        ({"image_shape": [4, 6, 2]}, "image_shape=[4, 6, 2]: must be [H, W, 1 or 3]"),
        ({"num_classes": 1}, "num_classes=1: must be at least 2"),
        ({"num_classes": None}, "TypeError: "),
        ({"class_names": ["owl"]}, "class_names: 1 of them, must be none or 2"),
        ({"mean": [0.1]}, "mean=[0.1]: must be a number for each channel"),
        ({"std": [1, 1, 0]}, "std=[1.0, 1.0, 0.0]: must be a positive number for each channel"),
        ({"resize_shorter_side": -1}, "resize_shorter_side=-1: must be at least 0"),
    ],
)
def test_wrong_files(tmp_path, change, told):
    facts.write(tmp_path, SOME)
    path = tmp_path / facts.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        facts.read(tmp_path)
    assert str(caught.value).startswith(f"{path}: {told}")


@pytest.mark.parametrize("text", ["", "[1]", "{", "{}"])
def test_no_such_file(tmp_path, text):
    (tmp_path / facts.NAME).write_text(text)
    with pytest.raises(ConfigError, match="dataset.json: (cannot be read|format=None)"):
        facts.read(tmp_path)


def test_old_workdirs_of_unknown_data(tmp_path):
    """Without the file and the data, the facts come from the config and the networks."""
    said = []
    config = data_config("my_birds", tmp_path, image_size=64)
    shapes = {"params/stack/head/bias": (2, 7), "params/stack/stem_conv/kernel": (2, 3, 3, 1, 16)}
    found = facts.of_workdir(tmp_path, config, shapes, said.append)
    assert (found.num_classes, found.image_shape) == (7, (64, 64, 1))
    assert (found.mean, found.std, found.shorter_side) == ((0.5,), (0.5,), 73)
    assert found.labels == tuple("0123456")
    (line,) = said
    assert line.endswith("are those of the config, and the classes are called by their numbers")
    config.image_size = 0
    with pytest.raises(ConfigError, match="has no dataset.json, which tells the image size; then"):
        facts.of_workdir(tmp_path, config, shapes)


def test_fit():
    whole = facts.Facts("any", 2, (4, 6, 1), (0.5,), (0.5,))
    image = picture(0, 4, 6, 1)
    assert whole.fit(image) is image
    # The mean of 2x2 blocks, but for the border: a filter that did not widen would drop pixels.
    fine = image.repeat(8, 0).repeat(8, 1)
    assert np.abs(whole.fit(fine).astype(int) - image).mean() < 12
    assert whole.fit(picture(1, 3, 50, 1)).shape == (4, 6, 1)
    cropped = facts.Facts("any", 2, (32, 32, 3), (0.5,) * 3, (0.5,) * 3, (), 40)
    photo = picture(2, 80, 120)
    from PIL import Image

    resized = Image.fromarray(photo).resize((60, 40), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(cropped.fit(photo), np.asarray(resized)[4:36, 14:46])
