"""jaxsplit.data: sources, the order of batches, resuming, processes, crops, every message."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from configs.common import get_config
from jaxsplit.data import (
    DATASETS,
    Arrays,
    Dataset,
    Stream,
    eval_batches,
    load,
    num_eval_batches,
    train_feed,
)
from jaxsplit.data.arrays import stratified_holdout
from jaxsplit.data.stream import centre_crop, decode, random_box, random_crops
from jaxsplit.errors import ConfigError
from tests.support.tfds import (
    SMALL,
    encode,
    picture,
    small_arrays,
    write_image_dataset,
    write_imagenet,
    write_small,
)


def data_config(name, folder="unused", **fields):
    config = get_config().data
    config.update(name=name, dir=str(folder), **fields)
    return config


def counted(n, size=4):
    """n black images with distinct labels, which identify them in any batch."""
    return Arrays(np.zeros((n, size, size, 3), np.uint8), np.arange(n, dtype=np.int32))


def dataset_of(train, shape=(4, 4, 3)):
    return Dataset("any", 10, shape, (0.5,) * 3, (0.2,) * 3, train, None, train)


def take(feed, start, count):
    return list(itertools.islice(feed.batches(start), count))


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    write_imagenet(folder)
    return folder


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    write_small(folder, "cifar10", 30, 12)
    return folder


# ---- Sources in memory


def test_digits():
    data = load(data_config("digits"))
    assert data.num_classes == 10 and data.image_shape == (8, 8, 1) and data.validation is None
    assert data.train.images.shape == (1437, 8, 8, 1) and data.test.images.shape == (360, 8, 8, 1)
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32
    assert set(np.unique(data.train.images)) == {round(v * 255 / 16) for v in range(17)}
    train, test = np.bincount(data.train.labels), np.bincount(data.test.labels)
    np.testing.assert_array_equal(test, [36, 36, 35, 37, 36, 37, 36, 36, 35, 36])
    np.testing.assert_array_equal(train + test, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    # All 1797 images are different, so none may appear on both sides.
    both = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797
    pixels = data.train.images / 255
    np.testing.assert_allclose(data.mean, pixels.mean(), atol=5e-5)
    np.testing.assert_allclose(data.std, pixels.std(), atol=5e-5)
    np.testing.assert_array_equal(load(data_config("digits")).train.images, data.train.images)


@pytest.mark.parametrize(("asked", "size"), [(0, 32), (12, 12)])
def test_synthetic_is_fixed_and_learnable(asked, size):
    data = load(data_config("synthetic", image_size=asked))
    assert data.image_shape == (size, size, 3) and data.num_classes == 10
    assert data.train.images.shape == (2048, size, size, 3) and len(data.test) == 512
    assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int32
    again = load(data_config("synthetic", image_size=asked))
    np.testing.assert_array_equal(data.test.images, again.test.images)
    pixels = data.train.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=0.05)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=0.05)
    flat, test = (s.images.reshape(len(s), -1).astype(float) for s in (data.train, data.test))
    centres = np.stack([flat[data.train.labels == k].mean(0) for k in range(10)])
    guess = np.argmin(((test[:, None] - centres) ** 2).sum(-1), axis=1)
    assert np.mean(guess == data.test.labels) > 0.95


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_prepared_small_sets_are_read_exactly(tmp_path, name):
    write_small(tmp_path, name, 110, 20)
    data = load(data_config(name, tmp_path))
    for split, n, seed in ((data.train, 110, 0), (data.test, 20, 1)):
        images, labels = small_arrays(name, n, seed)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert split.labels.dtype == np.int32
    assert (data.image_shape, data.num_classes) == SMALL[name][1:]
    assert len(data.mean) == len(data.std) == images.shape[-1]


def test_svhn_extra_joins_training(tmp_path):
    images, labels = small_arrays("svhn_cropped", 9, 3)
    examples = list(zip(images, labels, strict=True))
    splits = {"train": examples[:4], "test": examples[:2], "extra": examples[4:]}
    write_image_dataset(tmp_path, "svhn_cropped", splits, num_classes=10, shape=(32, 32, 3))
    data = load(data_config("svhn_cropped", tmp_path))
    np.testing.assert_array_equal(data.train.images, images)
    assert len(data.test) == 2


def test_newest_array_record_version_wins(tmp_path):
    for version, level in (("2.0.0", 10), ("10.0.0", 20)):
        image = np.full((32, 32, 3), level, np.uint8)
        splits = {"train": [(image, 1)], "test": [(image, 1)]}
        write_image_dataset(
            tmp_path, "cifar10", splits, num_classes=10, version=version, shape=(32, 32, 3)
        )
    for left_over, form in (("incomplete.ABC_11.0.0", "array_record"), ("12.0.0", "tfrecord")):
        (tmp_path / "cifar10" / left_over).mkdir()
        info = tmp_path / "cifar10" / left_over / "dataset_info.json"
        info.write_text(json.dumps({"fileFormat": form}))
    assert load(data_config("cifar10", tmp_path)).train.images.max() == 20
    (tmp_path / "cifar10" / "default").mkdir()  # a config level, as some tfds data sets have
    for version in ("2.0.0", "10.0.0"):
        shutil.move(tmp_path / "cifar10" / version, tmp_path / "cifar10" / "default" / version)
    assert load(data_config("cifar10", tmp_path)).train.images.max() == 20


def npz_arrays(shape=(8, 8, 1), n=6):
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % 10
    return dict(
        train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2]
    )


@pytest.mark.parametrize("name", list(DATASETS))
def test_npz_for_every_name(tmp_path, name):
    shape = DATASETS[name].image_shape
    arrays = npz_arrays(shape)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    data = load(data_config(name, tmp_path))
    assert data.image_shape == shape and data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.images, arrays["train_images"])
    np.testing.assert_array_equal(data.test.labels, arrays["test_labels"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_npz_with_labels_of_any_integer_type(tmp_path, dtype):
    arrays = npz_arrays()
    labels = {key: arrays[key].astype(dtype) for key in ("train_labels", "test_labels")}
    np.savez(tmp_path / "mine.npz", **{**arrays, **labels})
    data = load(data_config("mine", tmp_path))
    assert data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.labels, arrays["train_labels"])


def test_npz_sizes(tmp_path):
    np.savez(tmp_path / "imagenet2012.npz", **npz_arrays((48, 48, 3)))
    for size in (0, 48):
        data = load(data_config("imagenet2012", tmp_path, image_size=size))
        assert data.image_shape == (48, 48, 3)
    with pytest.raises(ConfigError, match=r"data\.image_size=224: must be 0 or 48"):
        load(data_config("imagenet2012", tmp_path, image_size=224))
    np.savez(tmp_path / "fashion_mnist.npz", **npz_arrays((28, 28)))  # without a channel axis
    assert load(data_config("fashion_mnist", tmp_path)).train.images.shape == (6, 28, 28, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(train_images=np.zeros((6, 8, 8, 1))), "train_images: dtype float64, must be uint8"),
        (dict(train_images=np.zeros((6, 8), np.uint8)), r"train_images: shape \(6, 8\), must be"),
        (dict(train_images=np.zeros((6, 9, 9, 1), np.uint8)), "test_images: shape"),
        (dict(test_labels=np.zeros(2)), "test_labels: dtype float64, must be an integer"),
        (dict(test_labels=np.zeros(3, int)), r"test_labels: shape \(3,\), must be \[N\]"),
        (dict(test_labels=np.array([0, 10])), r"test_labels: values 0\.\.10, must lie in 0\.\.9"),
        (dict(test_labels=np.array([0, -1])), r"test_labels: values -1\.\.0, must lie in"),
        (dict(test_labels=None), "no array test_labels; must hold train_images, train_labels"),
        (dict(test_labels=np.array([0, "a"], object)), r"cannot be read, must be an \.npz"),
    ],
)
def test_bad_npz(tmp_path, change, message):
    arrays = {k: v for k, v in {**npz_arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "digits.npz", **arrays)
    with pytest.raises(ConfigError, match=rf"^data\.dir: \S*digits\.npz: .*{message}[^\n]*$"):
        load(data_config("digits", tmp_path))


def test_npz_of_another_size_or_no_npz_at_all(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **npz_arrays((8, 8, 3)))
    with pytest.raises(ConfigError, match=r"\(6, 8, 8, 3\), must be \[N, 32, 32, 3\]"):
        load(data_config("cifar10", tmp_path))
    for junk in (b"", b"junk", b"PK\x03\x04junk"):
        (tmp_path / "digits.npz").write_bytes(junk)
        with pytest.raises(ConfigError, match=r"digits\.npz: cannot be read, must be an \.npz"):
            load(data_config("digits", tmp_path))


# ---- Hold-out


def test_stratified_holdout():
    labels = np.repeat(np.arange(3), [100, 50, 7])[np.random.default_rng(1).permutation(157)]
    kept, held = stratified_holdout(labels, 0.1, seed=0)
    assert len(held) == 16 and sorted([*kept, *held]) == list(range(157))
    np.testing.assert_array_equal(np.bincount(labels[held]), [10, 5, 1])
    np.testing.assert_array_equal(held, stratified_holdout(labels, 0.1, seed=0)[1])
    assert not np.array_equal(held, stratified_holdout(labels, 0.1, seed=1)[1])


def test_validation_of_arrays_is_disjoint_and_stratified():
    whole = load(data_config("digits")).train
    data = load(data_config("digits", validation=0.2))
    assert len(data.validation) == round(0.2 * 1437) and len(data.test) == 360
    images = np.concatenate([data.train.images, data.validation.images]).reshape(1437, -1)
    assert len(np.unique(images, axis=0)) == 1437
    exact = np.bincount(whole.labels) * 0.2
    assert np.all(np.abs(np.bincount(data.validation.labels) - exact) < 1)
    other = load(data_config("digits", validation=0.2), seed_split=1)
    assert not np.array_equal(other.validation.images, data.validation.images)


def test_validation_of_a_stream(imagenet):
    data = load(data_config("imagenet2012", imagenet, validation=0.25))
    assert len(data.train) == 12 and len(data.validation) == 4 and len(data.test) == 8
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(16))
    again = load(data_config("imagenet2012", imagenet, validation=0.25))
    np.testing.assert_array_equal(again.validation.indices, data.validation.indices)
    batches = list(eval_batches(data.validation, batch_size=4, image_shape=data.image_shape))
    np.testing.assert_array_equal(batches[0]["labels"], 7 * data.validation.indices)


# ---- Feeds of arrays


def test_each_epoch_visits_each_example_once():
    feed = train_feed(dataset_of(counted(24)), batch_size=4, num_views=2, seed=5)
    assert feed.steps_per_epoch == 6 and len(feed.resident) == 24
    batches = take(feed, 0, 12)
    assert all(b["index"].shape == (4,) and b["index"].dtype == np.int32 for b in batches)
    first, second = (np.concatenate([b["index"] for b in batches[i : i + 6]]) for i in (0, 6))
    assert sorted(first) == sorted(second) == list(range(24))
    assert not np.array_equal(first, second) and not np.array_equal(first, np.arange(24))


def test_the_remainder_is_dropped_but_not_forgotten():
    feed = train_feed(dataset_of(counted(10)), batch_size=4, num_views=1, seed=0)
    assert feed.steps_per_epoch == 2
    epochs = np.stack([b["index"] for b in take(feed, 0, 40)]).reshape(20, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(10))


def test_seeds_are_unrelated():
    """The epochs of seed 1 are not the shifted epochs of seed 0."""
    orders = [
        tuple(
            take(train_feed(dataset_of(counted(32)), batch_size=32, num_views=1, seed=s), e, 1)[0][
                "index"
            ]
        )
        for s in range(4)
        for e in range(4)
    ]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 13])
def test_resume_of_arrays(start):
    feed = train_feed(dataset_of(counted(26)), batch_size=4, num_views=1, seed=3)
    assert_same(take(feed, start, 8), take(feed, 0, start + 8)[start:])


def test_processes_share_a_batch_of_arrays():
    def feed(**kwargs):
        return train_feed(dataset_of(counted(26)), batch_size=6, num_views=1, seed=3, **kwargs)

    whole = take(feed(), 2, 9)
    parts = [take(feed(process_index=p, process_count=3), 2, 9) for p in range(3)]
    for k, batch in enumerate(whole):
        rows = [part[k]["index"] for part in parts]
        assert all(len(row) == 2 for row in rows)
        np.testing.assert_array_equal(np.concatenate(rows), batch["index"])


@pytest.mark.parametrize(("n", "size", "processes"), [(10, 4, 1), (10, 4, 2), (9, 8, 4), (8, 4, 2)])
def test_eval_batches_of_arrays(n, size, processes):
    images = np.random.default_rng(0).integers(1, 256, (n, 4, 4, 3), dtype=np.uint8)
    split = Arrays(images, np.arange(1, n + 1, dtype=np.int32))
    parts = [
        list(
            eval_batches(
                split,
                batch_size=size,
                image_shape=(4, 4, 3),
                process_index=p,
                process_count=processes,
            )
        )
        for p in range(processes)
    ]
    assert {len(part) for part in parts} == {num_eval_batches(split, batch_size=size)}
    whole = {
        key: np.concatenate([part[k][key] for k in range(len(parts[0])) for part in parts])
        for key in ("images", "labels", "mask")
    }
    assert whole["images"].dtype == np.uint8 and whole["labels"].dtype == np.int32
    assert whole["mask"].dtype == np.float32
    pad = -n % size
    np.testing.assert_array_equal(whole["mask"], [1.0] * n + [0.0] * pad)
    np.testing.assert_array_equal(whole["labels"], [*range(1, n + 1), *[0] * pad])
    np.testing.assert_array_equal(whole["images"][:n], images)
    assert not whole["images"][n:].any()


# ---- Streams


def test_stream_batches(imagenet):
    data = load(data_config("imagenet2012", imagenet, image_size=64))
    assert data.image_shape == (64, 64, 3) and data.num_classes == 1000
    feed = train_feed(data, batch_size=4, num_views=3, seed=0, threads=2)
    assert feed.steps_per_epoch == 4 and feed.resident is None
    batches = take(feed, 0, 8)
    for batch in batches:
        assert batch["images"].shape == (3, 4, 64, 64, 3) and batch["images"].dtype == np.uint8
        assert batch["labels"].shape == (4,) and batch["labels"].dtype == np.int32
        assert batch["images"].std(axis=(2, 3)).min() > 0
        for a, b in itertools.combinations(batch["images"], 2):
            assert all(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    epochs = [np.concatenate([b["labels"] for b in batches[i : i + 4]]) for i in (0, 4)]
    for epoch in epochs:
        assert sorted(epoch) == [7 * i for i in range(16)]
    # The same image gets other crops in the next epoch.
    at = {label: i for i, label in enumerate(epochs[1])}
    views = np.concatenate([b["images"][0] for b in batches])
    for i, label in enumerate(epochs[0]):
        assert not np.array_equal(views[i], views[16 + at[label]])


def test_resume_and_threads_of_a_stream_are_bit_exact(imagenet):
    data = load(data_config("imagenet2012", imagenet, image_size=32))
    one, many = (
        train_feed(data, batch_size=5, num_views=2, seed=9, threads=threads) for threads in (1, 4)
    )
    whole = take(one, 0, 8)
    for start in (0, 2, 3, 5):
        assert_same(take(many, start, 8 - start), whole[start:])
    # More views leave the first ones as they were.
    single = take(train_feed(data, batch_size=5, num_views=1, seed=9), 0, 2)
    np.testing.assert_array_equal(single[1]["images"][0], whole[1]["images"][0])


def test_processes_share_a_batch_of_a_stream(imagenet):
    data = load(data_config("imagenet2012", imagenet, image_size=32))

    def batches(**kwargs):
        return take(train_feed(data, batch_size=6, num_views=2, seed=1, **kwargs), 1, 4)

    whole = batches()
    parts = [batches(process_index=p, process_count=2) for p in range(2)]
    for k, batch in enumerate(whole):
        a, b = (part[k] for part in parts)
        assert a["images"].shape == (2, 3, 32, 32, 3)
        assert not set(a["labels"]) & set(b["labels"])
        joined = {
            "images": np.concatenate([a["images"], b["images"]], axis=1),
            "labels": np.concatenate([a["labels"], b["labels"]]),
        }
        assert_same([joined], [batch])


@pytest.mark.parametrize("processes", [1, 2])
def test_eval_batches_of_a_stream(imagenet, processes):
    data = load(data_config("imagenet2012", imagenet, image_size=48))
    split = Stream(data.test.source, np.arange(5))
    parts = [
        list(
            eval_batches(
                split,
                batch_size=2,
                image_shape=data.image_shape,
                process_index=p,
                process_count=processes,
                threads=2,
            )
        )
        for p in range(processes)
    ]
    assert all(len(part) == num_eval_batches(split, batch_size=2) == 3 for part in parts)
    whole = {
        key: np.concatenate([part[k][key] for k in range(3) for part in parts])
        for key in ("images", "labels", "mask")
    }
    np.testing.assert_array_equal(whole["labels"], [0, 7, 14, 21, 28, 0])
    np.testing.assert_array_equal(whole["mask"], [1, 1, 1, 1, 1, 0])
    for i in range(5):
        image, _ = split.read(i, 3)
        np.testing.assert_array_equal(whole["images"][i], centre_crop(image, 48, 48))


def test_a_stopped_stream_ends_its_threads(imagenet):
    import threading

    data = load(data_config("imagenet2012", imagenet, image_size=32))
    batches = train_feed(data, batch_size=2, num_views=1, seed=0, threads=3).batches(0)
    next(batches)
    started = [t for t in threading.enumerate() if "grain" in t.name]
    batches.close()
    for thread in started:
        thread.join(timeout=20)
    assert started and not any(thread.is_alive() for thread in started)


def test_random_boxes_have_the_documented_area_and_aspect():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 375, 500, 0.1) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= 375).all() and (left + w <= 500).all()
    area = h * w / (375 * 500)
    assert 0.098 < area.min() < 0.11 and 0.95 < area.max() <= 1
    # Uniform in [0.1, 1] but for the large ones that do not fit; the lower half is untouched.
    small = area[area < 0.5]
    assert abs(np.mean(small) - 0.3) < 0.01 and abs(np.mean(small < 0.3) - 0.5) < 0.04
    aspect = w / h
    assert 0.74 < aspect.min() < 0.78 and 1.3 < aspect.max() < 1.345
    assert abs(np.median(np.log(aspect[area < 0.5]))) < 0.03
    assert left.max() > 200 and np.unique(top).size > 100


@pytest.mark.parametrize(
    ("size", "box"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10)), ((30, 32), (0, 0, 30, 32))],
)
def test_random_box_falls_back_to_the_centre(size, box):
    class Refusing:  # every try asks for the whole area with the most extreme aspect
        def uniform(self, low, high):
            return high

    assert random_box(Refusing(), *size, 0.1) == box


@pytest.mark.parametrize("size", [48, 66, 90, 110])
def test_random_crops_are_cut_where_the_box_says(size):
    """Compares with Pillow's antialiased resize; one size for each filter of random_crops."""
    from PIL import Image

    image = picture(2, 120, 120)
    out = np.empty((2, size, size, 3), np.uint8)
    boxes, draws = np.random.default_rng(7), np.random.default_rng(7)
    random_crops(image, out, draws, 0.9)
    for view in out:
        top, left, h, w = random_box(boxes, 120, 120, 0.9)
        crop = Image.fromarray(image[top : top + h, left : left + w])
        want = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC), float)
        assert np.sqrt(np.mean((view - want) ** 2)) < 2.5


@pytest.mark.parametrize("size", [48, 76, 96, 120])
def test_strong_shrinking_averages(size):
    """A checkerboard of single pixels becomes gray; interpolation would keep black and white."""
    checks = (np.indices((192, 192)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    out = np.empty((2, size, size, 3), np.uint8)
    random_crops(checks, out, np.random.default_rng(7), 0.9)
    assert out.std() < 20 and abs(out.mean() - 127.5) < 2


def test_centre_crop_of_a_known_image():
    """A white square in the middle of black: its place and size follow the resize and the cut."""
    image = np.zeros((230, 460, 3), np.uint8)
    image[92:138, 207:253] = 255  # a fifth of the height
    out = centre_crop(image, 100, 100)  # shorter side 230 -> 114 (int(1.15 * 100)), longer 228
    assert out.shape == (100, 100, 3) and out.dtype == np.uint8
    bright = out[..., 0] > 127
    side = 114 / 5
    assert abs(bright.any(0).sum() - side) <= 1 and abs(bright.any(1).sum() - side) <= 1
    rows = np.flatnonzero(bright.any(1))
    assert abs(rows.mean() - 49.5) <= 0.5
    assert centre_crop(picture(0, 60, 90), 224, 224).shape == (224, 224, 3)  # enlarged
    assert centre_crop(picture(0, 90, 60, 1), 32, 32).shape == (32, 32, 1)
    from PIL import Image

    tall = picture(1, 300, 200)
    want = Image.fromarray(tall).resize((57, 85), Image.Resampling.BICUBIC).crop((4, 18, 54, 68))
    np.testing.assert_array_equal(centre_crop(tall, 50, 50), np.asarray(want))


@pytest.mark.parametrize("mode", [None, "L", "CMYK"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_decode_agrees_with_pillow(form, mode):
    import io

    from PIL import Image

    if mode == "CMYK" and form != "JPEG":
        mode = "P"  # the other formats have palettes instead
    data = encode(picture(4, 40, 56), form, mode)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data, 3), want)
    if mode == "L":
        gray = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        np.testing.assert_array_equal(decode(data, 1)[..., 0], gray)


def test_sources_may_hold_arrays():
    source = [dict(image=picture(i, 20, 30), label=i) for i in range(6)]
    feed = train_feed(dataset_of(Stream(source), (16, 16, 3)), batch_size=3, num_views=2, seed=0)
    assert take(feed, 0, 1)[0]["images"].shape == (2, 3, 16, 16, 3)


@pytest.mark.parametrize("image", [b"", b"\xff\xd8junk", b"\x89PNG\r\n\x1a\njunk", "half"])
def test_a_damaged_image_is_named(image):
    if image == "half":
        jpeg = encode(picture(0, 40, 50), "JPEG")
        image = jpeg[: len(jpeg) // 2]
    source = [dict(image=picture(0, 20, 20), label=0)] * 2 + [dict(image=image, label=0)]
    with pytest.raises(ConfigError, match=r"record 2 cannot be decoded [^\n]*$"):
        list(eval_batches(Stream(source), batch_size=1, image_shape=(16, 16, 3)))


def test_a_damaged_record_is_named():
    class Source(list):
        def __getitem__(self, i):
            if i == 4:
                raise RuntimeError("Invalid Riegeli/records file\nmore")
            return super().__getitem__(i)

    source = Source([dict(image=picture(0, 20, 20), label=0)] * 6)
    stream = Stream(source, np.array([1, 4, 5]))
    with pytest.raises(ConfigError, match=r"record 4 cannot be read \(Invalid [^\n]*$"):
        list(eval_batches(stream, batch_size=1, image_shape=(16, 16, 3)))


# ---- Messages


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mnist", {}, "data.name='mnist': must be one of digits, synthetic, cifar10, cifar100,"),
        ("digits", dict(image_size=32), "data.image_size=32: must be 0 or 8"),
        ("cifar10", dict(image_size=224), "data.image_size=224: must be 0 or 32"),
        ("synthetic", dict(image_size=-1), "data.image_size=-1: must be 0 (for 32) or at least 4"),
        ("imagenet2012", dict(image_size=8), "data.image_size=8: must be 0 (for 224) or at least"),
        ("digits", dict(validation=1.0), "data.validation=1.0: must be in [0, 1)"),
        ("digits", dict(validation=-0.1), "data.validation=-0.1: must be in [0, 1)"),
        ("digits", dict(validation=float("nan")), "data.validation=nan: must be in [0, 1)"),
        ("digits", dict(validation=1e-4), "data.validation=0.0001: holds out 0 of 1437"),
    ],
)
def test_bad_fields(name, fields, message):
    with pytest.raises(ConfigError) as caught:
        load(data_config(name, **fields))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped", "imagenet2012"])
def test_nothing_prepared(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        load(data_config(name, tmp_path))
    assert str(caught.value) == (
        f"data.dir={tmp_path}: no prepared '{name}' there; prepare it with: "
        f"python -m jaxsplit.data.prepare {name} --source=FILES --data_dir={tmp_path}, or let tfds "
        f"download it with --config.data.download=True (or put a {name}.npz with the arrays "
        "train_images, train_labels, test_images, test_labels there)"
    )


def test_tfrecord_is_refused(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for info in ({"fileFormat": "tfrecord"}, {}):
        (folder / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(ConfigError, match="has file format 'tfrecord', must be 'array_record'"):
            load(data_config("cifar10", tmp_path))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset_info\.json is not a JSON object"):
        load(data_config("cifar10", tmp_path))


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_damaged_files(tmp_path, cifar10, damage):
    shutil.copytree(cifar10 / "cifar10", tmp_path / "cifar10")
    (shard,) = tmp_path.glob("cifar10/*/*train.array_record*")
    data = shard.read_bytes()
    shard.unlink()
    if damage == "half":
        shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"cifar10/3\.0\.2 is incomplete or damaged [^\n]*$"):
        load(data_config("cifar10", tmp_path))


def test_prepared_data_of_another_kind(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    splits = {"train": [(image, 0)], "test": [(image, 0)]}
    write_image_dataset(tmp_path / "a", "cifar100", splits, num_classes=20)
    with pytest.raises(ConfigError, match="and 20 classes, must have image, label and 100"):
        load(data_config("cifar100", tmp_path / "a"))
    write_image_dataset(tmp_path / "b", "cifar10", splits, num_classes=10)
    with pytest.raises(ConfigError, match=r"record 0 \(.*\) has the shape \(16, 16, 3\), must be"):
        load(data_config("cifar10", tmp_path / "b"))
    write_image_dataset(tmp_path / "c", "cifar10", {"train": splits["train"]}, num_classes=10)
    with pytest.raises(ConfigError, match=r"c: 'cifar10' has no split 'test' \(has: train\)"):
        load(data_config("cifar10", tmp_path / "c"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(batch_size=11), "batch_size=11: must be at most 10, the size of the training set"),
        (dict(batch_size=0), "batch_size=0: must be a positive multiple of 1"),
        (dict(process_count=3), "batch_size=4: must be a positive multiple of 3, the number of"),
        (dict(num_views=0), "num_views=0: must be at least 1"),
        (dict(seed=-1), "seed=-1: must be at least 0"),
        (dict(threads=0), "data.threads=0: must be at least 1"),
        (dict(scale_min=0.0), "data.scale_min=0.0: must be in (0, 1]"),
        (dict(scale_min=1.5), "data.scale_min=1.5: must be in (0, 1]"),
    ],
)
def test_bad_feeds(fields, message):
    with pytest.raises(ConfigError) as caught:
        train_feed(dataset_of(counted(10)), **{**dict(batch_size=4, num_views=1, seed=0), **fields})
    assert str(caught.value).startswith(message)


def test_bad_eval_batches():
    with pytest.raises(ConfigError, match="batch_size=5: must be a positive multiple of 2"):
        eval_batches(counted(10), batch_size=5, image_shape=(4, 4, 3), process_count=2)
    with pytest.raises(ConfigError, match=r"image_shape=\(8, 8, 3\): must be \(4, 4, 3\)"):
        eval_batches(counted(10), batch_size=5, image_shape=(8, 8, 3))


def test_without_tensorflow_or_tfds(imagenet):
    """Reading prepared data never imports TensorFlow; arrays never import tfds, grain or cv2."""
    script = """
import sys
from jaxsplit.data import eval_batches, load, train_feed
from jaxsplit.defaults import get_config
config = get_config().data
config.name = "synthetic"
config.image_size = 8
data = load(config)
next(train_feed(data, batch_size=8, num_views=1, seed=0).batches(0))
next(eval_batches(data.test, batch_size=8, image_shape=(8, 8, 3)))
heavy = {"tensorflow", "tensorflow_datasets", "grain", "cv2", "PIL", "sklearn", "simplejpeg"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
config.name, config.dir, config.image_size = "imagenet2012", sys.argv[1], 32
data = load(config)
batches = train_feed(data, batch_size=8, num_views=1, seed=0).batches(0)
next(batches)
batches.close()
list(eval_batches(data.test, batch_size=8, image_shape=(32, 32, 3)))
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(imagenet)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("digits", "sklearn.datasets", "data.name='digits': needs scikit-learn, or a digits.npz"),
        ("cifar10", "tensorflow_datasets", "needs the packages tensorflow-datasets and array_"),
    ],
)
def test_missing_packages(monkeypatch, cifar10, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        load(data_config(name, cifar10))
    assert message in str(caught.value)
