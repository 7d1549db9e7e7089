"""Columns, classes, splits and image sizes of a data set of Hugging Face."""

import datasets
import numpy as np
import pytest
from PIL import Image

from jaxsplit import data
from jaxsplit.data import load, stand_in
from jaxsplit.data.decoding import decode
from tests.support import hugging_face as hf
from tests.support.data import data_config, message_of, tiny
from tests.support.tfds import encode, picture

NUMBER = datasets.Value("int64")


def save(folder, columns, kinds):
    """A training split with these columns, of 10 rows; returns a config that reads it."""
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict(train=made, test=made).save_to_disk(folder / "d")
    return lambda **fields: data_config("hf:d", folder, **fields)


PICTURES = [image for image, _ in tiny(10)]
LABELS = [label for _, label in tiny(10)]


# ---- Columns


def test_columns_of_any_name_are_found_by_their_types(tmp_path):
    given = save(
        tmp_path,
        {"species": LABELS, "id": list(range(10)), "photo": PICTURES, "note": ["x"] * 10},
        {
            "species": datasets.ClassLabel(names=list(hf.CLASSES)),
            "id": NUMBER,
            "photo": datasets.Image(),
            "note": datasets.Value("string"),
        },
    )
    made = load(given())
    np.testing.assert_array_equal(made.train.images, PICTURES)
    assert (made.train.labels.tolist(), made.class_names) == (LABELS, hf.CLASSES)


def test_ambiguous_columns_must_be_named(tmp_path):
    two = datasets.ClassLabel(names=["a", "b"])
    given = save(
        tmp_path,
        {"im": PICTURES, "mask": PICTURES[::-1], "fine": LABELS, "coarse": [0, 1] * 5},
        {
            "im": datasets.Image(),
            "mask": datasets.Image(),
            "fine": datasets.ClassLabel(names=list(hf.CLASSES)),
            "coarse": two,
        },
    )
    has = "'hf:d' has im: Image, mask: Image, fine: ClassLabel, coarse: ClassLabel"
    assert message_of(lambda: load(given())) == (
        f"data.image_column='': must be one of im, mask, of the feature type Image; {has}"
    )
    kinds = "of the feature type ClassLabel, or a named one of integers"
    assert message_of(lambda: load(given(image_column="im"))) == (
        f"data.label_column='': must be one of fine, coarse, {kinds}; {has}"
    )
    made = load(given(image_column="mask", label_column="coarse"))
    np.testing.assert_array_equal(made.train.images, PICTURES[::-1])
    assert (made.num_classes, made.class_names) == (2, ("a", "b"))


def test_columns_that_are_no_images_or_labels(tmp_path):
    given = save(
        tmp_path,
        {"image": PICTURES, "label": LABELS, "note": ["x"] * 10, "weight": [0.5] * 10},
        {
            **hf.features(),
            "note": datasets.Value("string"),
            "weight": datasets.Value("float32"),
        },
    )
    for column in ("label", "note", "nothing"):
        message = message_of(lambda c=column: load(given(image_column=c)))
        assert message.startswith(f"data.image_column={column!r}: must be one of image, of the ")
        assert message.endswith("note: Value(string), weight: Value(float32)")
    for column in ("image", "note", "weight", "nothing"):
        message = message_of(lambda c=column: load(given(label_column=c)))
        assert message.startswith(f"data.label_column={column!r}: must be one of label, of the ")


def test_sets_without_images_or_classes(tmp_path):
    given = save(tmp_path / "a", {"label": LABELS}, {"label": hf.features()["label"]})
    assert message_of(lambda: load(given())) == (
        "data.image_column='': must be a column, of the feature type Image; 'hf:d' has label: "
        "ClassLabel"
    )
    given = save(
        tmp_path / "b",
        {"image": PICTURES, "name": ["x"] * 10},
        {"image": datasets.Image(), "name": datasets.Value("string")},
    )
    assert message_of(lambda: load(given())).startswith("data.label_column='': must be a column, ")


def test_integers_are_labels_where_they_are_named(tmp_path):
    kinds = {"image": datasets.Image(), "kind": datasets.Value("uint8"), "n": NUMBER}
    columns = {"image": PICTURES, "kind": LABELS, "n": [1, 3] * 5}
    given = save(tmp_path, columns, kinds)
    assert message_of(lambda: load(given())).startswith(
        "data.label_column='': must be one of kind, n, of the feature type ClassLabel, or a named "
    )
    made = load(given(label_column="kind"))
    assert (made.num_classes, made.class_names) == (5, ("0", "1", "2", "3", "4"))
    assert made.train.labels.tolist() == LABELS
    assert message_of(lambda: load(given(label_column="n"))) == (
        "data.name='hf:d': column 'n': no training example of class 0, must have some of each "
        "class from 0 to the largest, 3"
    )


def test_one_class_is_refused(tmp_path):
    hf.save(tmp_path / "d", {"train": tiny(4, classes=1)}, hf.features(["only"]))
    assert message_of(lambda: load(data_config("hf:d", tmp_path))) == (
        "data.name='hf:d': column 'label': must have at least two classes, has 1"
    )


def test_fields_of_hugging_face_are_refused_for_others():
    for field in ("subset", "image_column", "label_column"):
        message = message_of(lambda f=field: load(data_config("digits", **{f: "x"})))
        assert message == (
            f"data.{field}='x': must be '', as only sets of Hugging Face ('hf:...') have it, and "
            "data.name='digits'"
        )


# ---- Splits


def test_splits_are_found_or_named(tmp_path):
    splits = {
        "train": tiny(6),
        "validation": tiny(5, first=20),
        "test": tiny(4, first=40),
        "unsupervised": tiny(3),
    }
    hf.save(tmp_path / "d", splits)

    def sizes(**fields):
        made = load(data_config("hf:d", tmp_path, **fields))
        return len(made.train), len(made.test)

    assert sizes() == (6, 4)
    assert sizes(test_split="validation") == (6, 5)
    assert sizes(train_split="test") == (4, 5)  # not the same examples on both sides
    assert sizes(train_split="validation", test_split="train") == (5, 6)
    assert message_of(lambda: sizes(test_split="dev")) == (
        f"data.name: {tmp_path / 'd'}: 'hf:d' has no split 'dev' (has: train, validation, test, "
        "unsupervised); data.train_split and data.test_split name others"
    )
    assert message_of(lambda: sizes(train_split="test", test_split="test")) == (
        "data.test_split='test': must be another split than data.train_split"
    )
    given = data_config("hf:d", tmp_path, test_split="validation")
    assert stand_in.train_examples(given) == 6
    hf.save(tmp_path / "e", {"test": tiny(50)})
    given = data_config("hf:e", tmp_path, train_split="test")
    assert stand_in.train_examples(given) == len(load(given).train) == 45


def test_counts_without_a_test_split(tmp_path):
    hf.save(tmp_path / "d", {"train": tiny(50), "validation": tiny(5)})
    assert stand_in.train_examples(data_config("hf:d", tmp_path)) == 50
    hf.save(tmp_path / "e", {"train": tiny(50)})
    given = data_config("hf:e", tmp_path)
    assert stand_in.train_examples(given) == len(load(given).train) == 45


def test_splits_that_differ_are_refused(tmp_path):
    other = hf.features([*hf.CLASSES[:-1], "fly"])
    datasets.DatasetDict(train=hf.dataset(tiny(6)), test=hf.dataset(tiny(6), other)).save_to_disk(
        tmp_path / "d"
    )
    message = message_of(lambda: load(data_config("hf:d", tmp_path)))
    assert message.startswith("data.name='hf:d': column 'label' of split 'test' is ClassLabel(")
    assert message.endswith(" as in split 'train'")
    empty = hf.dataset(tiny(6)).select([])
    datasets.DatasetDict(train=hf.dataset(tiny(6)), test=empty).save_to_disk(tmp_path / "e")
    assert message_of(lambda: load(data_config("hf:e", tmp_path))) == (
        "data.name='hf:e': split 'test' has no examples"
    )


# ---- Sizes and channels


def test_sizes_decide_whether_images_are_cropped(tmp_path):
    hf.save(tmp_path / "one", {"train": tiny(6), "test": tiny(2)})
    made = load(data_config("hf:one", tmp_path))
    assert (made.image_shape, made.resident, made.cropped) == ((20, 20, 3), True, False)
    assert load(data_config("hf:one", tmp_path, image_size=16)).cropped
    # One test image of another size is enough.
    hf.save(tmp_path / "two", {"train": tiny(6), "test": tiny(2) + tiny(1, 20, 21)})
    for size in (0, 8):
        given = data_config("hf:two", tmp_path, image_size=size)
        assert message_of(lambda g=given: load(g)) == (
            f"data.image_size={size}: must be at least 16, as the images of 'hf:two' vary in size"
        )
    made = load(data_config("hf:two", tmp_path, image_size=20))
    assert made.cropped and not made.resident and made.train.shape is None
    assert "'hf:two' are cropped to 20" in message_of(
        lambda: load(data_config("hf:two", tmp_path, image_size=20, resident="device"))
    )


def test_statistics_and_gray(tmp_path):
    hf.save(tmp_path / "gray", {"train": tiny(6, channels=1), "test": tiny(2, channels=1)})
    made = load(data_config("hf:gray", tmp_path))
    assert (made.image_shape, made.mean, made.std) == ((20, 20, 1), (0.5,), (0.5,))
    given = data_config("hf:gray", tmp_path, mean=(0.1, 0.2, 0.3))
    assert message_of(lambda: load(given)).startswith("data.mean=(0.1, 0.2, 0.3): must be 1 ")


def test_one_colour_image_makes_the_set_colour(tmp_path):
    gray = [(encode(picture(i, 20, 20, 1), "JPEG"), i % 5) for i in range(6)]
    hf.save(tmp_path / "d", {"train": gray, "test": tiny(1)})
    made = load(data_config("hf:d", tmp_path))
    assert made.image_shape == (20, 20, 3)
    np.testing.assert_array_equal(made.train.images[2], decode(gray[2][0], 3))
    hf.save(tmp_path / "g", {"train": gray, "test": gray[:2]})
    assert load(data_config("hf:g", tmp_path)).image_shape == (20, 20, 1)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_mode_of_the_feature_decides_the_channels(tmp_path, mode, channels):
    kinds = hf.features() | {"image": datasets.Image(mode=mode)}
    images = tiny(3) + [(encode(picture(5, 20, 20, 1), "PNG"), 0)]
    hf.save(tmp_path / "d", {"train": images, "test": images}, datasets.Features(kinds))
    made = load(data_config("hf:d", tmp_path))
    assert made.image_shape == (20, 20, channels)
    np.testing.assert_array_equal(made.train.images[3, ..., :1], decode(images[3][0], 1))


def test_files_of_every_mode_decode_as_in_other_sources(tmp_path):
    """PNG of 16 bits, with a palette or transparency, JPEG, and what the library itself encodes."""
    photo = Image.fromarray(picture(0, 20, 20))
    wide = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    turned = Image.Exif()
    turned[274] = 6
    pictures = {
        "RGBA": photo.convert("RGBA"),
        "palette": photo.convert("P"),
        "gray": photo.convert("L"),
        "gray, transparent": photo.convert("LA"),
        "16 bits": Image.fromarray(wide),
        "array of 16 bits": wide,
        "1 bit": photo.convert("1"),
        "array": picture(3, 20, 20),
    }
    examples = [(image, i % 5) for i, image in enumerate(pictures.values())]
    examples += [(encode(picture(1, 20, 20), "JPEG"), 0), (encode(picture(1, 20, 20), "PNG"), 1)]
    hf.save(tmp_path / "d", {"train": examples, "test": examples})
    made, streamed = (load(data_config("hf:d", tmp_path, resident=r)) for r in ("device", "stream"))
    encoded = [row["bytes"] for row in hf_bytes(tmp_path / "d" / "train")]
    assert {data[:4] for data in encoded} >= {b"\x89PNG", b"II*\0"}  # the library wrote both
    for i, file in enumerate(encoded):
        np.testing.assert_array_equal(made.train.images[i], decode(file, 3))
        np.testing.assert_array_equal(streamed.train.read(i, 3)[0], decode(file, 3))
    for i in (4, 5):
        np.testing.assert_array_equal(made.train.images[i, ..., 1], wide >> 8)


def hf_bytes(folder):
    table = datasets.load_from_disk(folder).cast_column("image", datasets.Image(decode=False))
    return table["image"]


def test_exif_may_make_sizes_differ(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture(0, 20, 30)).save(buffer, "JPEG", exif=exif.tobytes())
    plain = encode(picture(1, 20, 30), "JPEG")
    hf.save(tmp_path / "d", {"train": [(plain, 0), (plain, 1)], "test": [(buffer.getvalue(), 0)]})
    assert "vary in size" in message_of(lambda: load(data_config("hf:d", tmp_path)))


def test_no_image_can_be_read(tmp_path):
    hf.save(tmp_path / "d", {"train": [(b"none", 0), (b"none", 1)], "test": [(b"none", 0)]})
    assert message_of(lambda: data.source(data_config("hf:d", tmp_path))) == (
        "data.name='hf:d': none of its 3 images can be read (ValueError: no known image format)"
    )
