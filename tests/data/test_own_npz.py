"""<data.dir>/<name>.npz of any name: the file gives classes and shape."""

import numpy as np
import pytest

from configs.common import get_config
from jaxsplit import config, data
from jaxsplit.data import load, train_feed
from jaxsplit.data.prepare import prepare
from jaxsplit.errors import ConfigError
from tests.support.data import data_config, message_of, take, tiny
from tests.support.tfds import write_image_dataset


def arrays(shape=(12, 10, 3), labels=(0, 1, 2, 1, 0, 2), **change):
    images = np.random.default_rng(0).integers(0, 256, (len(labels) + 2, *shape), dtype=np.uint8)
    made = dict(
        train_images=images[2:],
        train_labels=np.array(labels),
        test_images=images[:2],
        test_labels=np.array([2, 1]),
    )
    return made | change


def test_any_name(tmp_path, capsys):
    made = arrays()
    np.savez_compressed(tmp_path / "my-birds.npz", **made)
    given = data_config("my-birds", tmp_path)
    source = data.source(given)
    assert (source.num_classes, source.image_shape) == (3, (12, 10, 3))
    dataset = load(given)
    assert (dataset.num_classes, dataset.image_shape) == (3, (12, 10, 3))
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.resident
    np.testing.assert_array_equal(dataset.train.images, made["train_images"])
    np.testing.assert_array_equal(dataset.test.labels, [2, 1])
    assert capsys.readouterr().out == ""
    batch = take(train_feed(dataset, batch_size=6, num_views=1, seed=0), 0, 1)[0]
    assert sorted(batch["index"]) == list(range(6))
    dataset = load(data_config("my-birds", tmp_path, validation=0.5))
    assert (len(dataset.train), len(dataset.validation)) == (3, 3)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_gray(tmp_path, shape):
    np.savez(tmp_path / "letters.npz", **arrays(shape))
    made = load(data_config("letters", tmp_path, mean=(0.25,)))
    assert made.image_shape == (8, 8, 1) and (made.mean, made.std) == ((0.25,), (0.5,))


def test_a_config_of_it_is_checked(tmp_path):
    np.savez(tmp_path / "letters.npz", **arrays((8, 8)))
    made = get_config()
    made.arch, made.split, made.method = "wide_resnet10_1", 1, "single"
    made.data.name, made.data.dir = "letters", str(tmp_path)
    config.check(made)
    made.data.image_size = 9
    assert message_of(lambda: (config.check(made), load(made.data))).startswith(
        "data.image_size=9: must be 0 or 8"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train_labels=None), "no array train_labels; must hold train_images, train_labels, "),
        (dict(train_images=np.zeros((6, 8, 8))), "train_images: dtype float64, must be uint8"),
        (
            dict(train_images=np.zeros((6, 8, 8, 4), np.uint8)),
            "train_images: shape (6, 8, 8, 4), must be [N, H, W, 1 or 3]",
        ),
        (
            dict(train_images=np.zeros((6, 0, 8, 3), np.uint8)),
            "train_images: shape (6, 0, 8, 3), must be [N, H, W, 1 or 3]",
        ),
        (dict(train_labels=np.zeros(6)), "train_labels: dtype float64, must be an integer type"),
        (
            dict(train_labels=np.arange(5)),
            "train_labels: shape (5,), must be [N] or [N, 1] with N = 6 > 0",
        ),
        (
            dict(train_labels=np.zeros(6, int)),
            "train_labels: values 0..0, must be at least two classes, numbered from 0",
        ),
        (
            dict(train_labels=np.array([0, 1, 3, 4, 6, 6])),
            "train_labels: no example of class 2, must have some of each class from 0 to the "
            "largest, 6",
        ),
        (
            dict(train_labels=np.array([1, 2, 1, 2, 1, 2])),
            "train_labels: no example of class 0, must have some of each class from 0 to the "
            "largest, 2",
        ),
        (
            dict(train_labels=np.array([0, 1, -1, 1, 0, 1]), test_labels=np.array([0, 1])),
            "train_labels: values -1..1, must lie in 0..1 (example 2 has -1)",
        ),
        (
            dict(test_labels=np.array([0, 3])),
            "test_labels: values 0..3, must lie in 0..2 (example 1 has 3)",
        ),
        (
            dict(test_images=np.zeros((2, 12, 12, 3), np.uint8)),
            "test_images: shape (2, 12, 12, 3), must be [N, 12, 10, 3] as train_images",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    path = tmp_path / "birds.npz"
    np.savez(path, **{k: v for k, v in arrays(**change).items() if v is not None})
    assert message_of(lambda: load(data_config("birds", tmp_path))).startswith(
        f"data.dir: {path}: {message}"
    )


def test_labels_in_a_column(tmp_path):
    """As Keras has those of CIFAR."""
    made = arrays()
    columns = {key: made[key][:, None] for key in ("train_labels", "test_labels")}
    np.savez(tmp_path / "birds.npz", **made | columns)
    np.testing.assert_array_equal(
        load(data_config("birds", tmp_path)).train.labels, made["train_labels"]
    )


def test_images_that_are_not_square_have_no_other_size(tmp_path):
    np.savez(tmp_path / "birds.npz", **arrays())  # 12x10
    message = message_of(lambda: load(data_config("birds", tmp_path, image_size=12)))
    assert message == "data.image_size=12: must be 0, for 12x10"


def test_a_prepared_set_of_that_name(tmp_path):
    np.savez(tmp_path / "leaves.npz", **arrays())
    splits = {"train": tiny(12), "test": tiny(6)}
    write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    message = message_of(lambda: load(data_config("leaves", tmp_path)))
    assert "leaves.npz and " in message and "are two data sets of that name" in message
    with pytest.raises(ConfigError, match=r"leaves\.npz is a data set of that name"):
        prepare("leaves", tmp_path, tmp_path)


def test_of_a_known_name_nothing_is_read(tmp_path):
    """Not even what is prepared there, which here would be refused."""
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")  # of tfrecord files
    assert data.source(data_config("cifar10", tmp_path)).num_classes == 10


@pytest.mark.parametrize(
    ("field", "values", "allowed"),
    [
        ("mean", (123.675, 116.28, 103.53), "from 0 to 1"),
        ("std", (58.395, 57.12, 57.375), "above 0 and at most 1"),
        ("std", (0.2, 0.0, 0.2), "above 0 and at most 1"),
        ("mean", (0.5,), "from 0 to 1"),
    ],
)
def test_statistics_of_pixels_that_are_not_scaled(tmp_path, field, values, allowed):
    np.savez(tmp_path / "birds.npz", **arrays())
    message = message_of(lambda: load(data_config("birds", tmp_path, **{field: values})))
    assert message.startswith(f"data.{field}={values}: must be 3 numbers {allowed}, one for each")


def test_what_is_no_npz_is_named(tmp_path):
    for junk in (b"", b"junk", b"PK\x03\x04junk"):
        (tmp_path / "birds.npz").write_bytes(junk)
        message = message_of(lambda: data.source(data_config("birds", tmp_path)))
        assert message.startswith(f"data.dir: {tmp_path / 'birds.npz'}: cannot be read, must be an")


def test_without_it_the_error_mentions_it(tmp_path):
    message = message_of(lambda: load(data_config("birds", tmp_path)))
    assert message.startswith("data.name='birds': must be one of digits, ")
    assert message.endswith(
        ", or put a birds.npz with the arrays train_images, train_labels, test_images, test_labels "
        "there"
    )


def test_names_lead_to_no_other_folder(tmp_path):
    np.savez(tmp_path / "birds.npz", **arrays())
    (tmp_path / "d").mkdir()
    for name in ("../birds", str(tmp_path / "birds"), "./../birds"):
        message = message_of(lambda name=name: load(data_config(name, tmp_path / "d")))
        assert message.startswith(f"data.name={name!r}: must be one of digits, ")


def test_test_images_among_the_training_images_are_told(tmp_path, capsys):
    made = arrays()
    made["test_images"] = np.stack([made["test_images"][0], made["train_images"][3]])
    np.savez(tmp_path / "birds.npz", **made)
    load(data_config("birds", tmp_path))
    assert capsys.readouterr().out == (
        f"note: {tmp_path / 'birds.npz'}: 1 of 2 test images are training images too; the first is "
        "number 1\n"
    )
