"""Data sets of any name, on the device or streamed; bad records; which process sees what."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.common import get_config
from jaxsplit import augment, config, data, experiment, step
from jaxsplit.data import Arrays, Stream, eval_batches, load, train_feed
from jaxsplit.data.stream import centre_crop
from jaxsplit.report import summary
from tests.support.data import data_config, message_of, take, tiny
from tests.support.tfds import write_image_dataset, write_small

# ---- Names


def test_any_prepared_set_of_one_size(tmp_path):
    splits = {"train": tiny(12), "test": tiny(6, first=50), "validation": tiny(3)}
    write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))
    made = load(data_config("leaves", tmp_path))
    assert (made.num_classes, made.image_shape, made.resident) == (5, (20, 20, 3), True)
    assert made.mean == (0.485, 0.456, 0.406) and made.std == (0.229, 0.224, 0.225)
    for split, want in ((made.train, splits["train"]), (made.test, splits["test"])):
        np.testing.assert_array_equal(split.images, [image for image, _ in want])
        np.testing.assert_array_equal(split.labels, [label for _, label in want])
    # At another size than their own, crops are cut.
    made = load(data_config("leaves", tmp_path, image_size=16))
    assert made.image_shape == (16, 16, 3)
    batch = take(train_feed(made, batch_size=4, num_views=2, seed=0), 0, 1)[0]
    assert batch["images"].shape == (2, 4, 16, 16, 3)
    assert "'leaves' are cropped to 16" in message_of(
        lambda: load(data_config("leaves", tmp_path, image_size=16, resident="device"))
    )


@pytest.mark.parametrize(
    ("size", "shape"), [(0, (20, 30, 3)), (20, (20, 20, 3)), (30, (30, 30, 3))]
)
def test_a_size_asks_for_squares(tmp_path, size, shape):
    splits = {"train": tiny(8, 20, 30), "test": tiny(4, 20, 30)}
    write_image_dataset(tmp_path, "wide", splits, num_classes=5, shape=(20, 30, 3))
    made = load(data_config("wide", tmp_path, image_size=size))
    assert made.image_shape == shape and made.cropped == bool(size)


def test_a_strip_is_not_resized_as_a_whole(monkeypatch):
    image = np.zeros((1, 2000, 3), np.uint8)
    image[:, 998:1002] = 200
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a: sizes.append(size) or resize(self, size, *a)
    )
    crop = centre_crop(image, 64, 32)
    assert crop.shape == (64, 32, 3) and max(sizes[0]) < 10 * 64
    assert crop.min() == 200  # the middle
    for shape in ((40, 320), (320, 40)):  # up to 8 times as long, an image is taken whole
        whole = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        sizes.clear()
        centre_crop(whole, 32, 32)
        assert max(sizes[0]) == 8 * min(sizes[0])


def test_a_folder_of_a_user_that_there_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, start in (
        ("cifar10", "data.dir=~nosuchuser: no prepared 'cifar10' there; "),
        ("leaves", "data.name='leaves': must be one of digits, "),
    ):
        message = message_of(lambda n=name: load(data_config(n, "~nosuchuser")))
        assert message.startswith(start)


def test_any_prepared_set_of_many_sizes(tmp_path):
    splits = {"train": tiny(4, 40, 30) + tiny(4, 30, 50), "validation": tiny(4, 44, 33, first=9)}
    write_image_dataset(tmp_path, "birds", splits, num_classes=5)
    made = load(data_config("birds", tmp_path, image_size=24))  # without a split `test`
    assert (made.num_classes, made.image_shape, len(made.test)) == (5, (24, 24, 3), 4)
    for batch in eval_batches(made.test, batch_size=4, image_shape=made.image_shape):
        for image, (whole, _) in zip(batch["images"], splits["validation"], strict=True):
            np.testing.assert_array_equal(image, centre_crop(whole, 24, 24))
    for size in (0, 8):
        given = data_config("birds", tmp_path, image_size=size)
        message = message_of(lambda given=given: load(given))
        assert message == (
            f"data.image_size={size}: must be at least 16, as the images of 'birds' vary in size"
        )
    for name in ("birds", "imagenet2012"):
        write_image_dataset(tmp_path, "imagenet2012", splits, num_classes=1000)
        given = data_config(name, tmp_path, image_size=24, resident="device")
        message = message_of(lambda given=given: load(given))
        assert message.startswith("data.resident='device': must be auto or stream, as the images")


def test_gray_sets_and_statistics(tmp_path):
    splits = {"train": tiny(4, channels=1), "test": tiny(4, channels=1)}
    write_image_dataset(tmp_path, "letters", splits, num_classes=5, shape=(20, 20, 1))
    made = load(data_config("letters", tmp_path))
    assert (made.image_shape, made.mean, made.std) == ((20, 20, 1), (0.5,), (0.5,))
    made = load(data_config("letters", tmp_path, mean=(0.25,), std=(1,)))
    assert (made.mean, made.std) == ((0.25,), (1.0,))
    assert data.source(data_config("cifar10", std=(0.3, 0.3, 0.3))).std == (0.3, 0.3, 0.3)
    for fields in (dict(mean=(0.5, 0.5)), dict(mean=("a",)), dict(std=(0.0,)), dict(std=(-1.0,))):
        message = message_of(lambda f=fields: load(data_config("letters", tmp_path, **f)))
        assert message.startswith(f"data.{next(iter(fields))}=(") and "must be 1 " in message


def test_configurations_of_a_set(tmp_path):
    for part in ("noisy", "plain"):
        splits = {"train": tiny(3), "test": tiny(2)}
        path = write_image_dataset(tmp_path / "x", part, splits, num_classes=5, shape=(20, 20, 3))
        (tmp_path / "set" / part).mkdir(parents=True)
        path.rename(tmp_path / "set" / part / "1.0.0")
    message = message_of(lambda: load(data_config("set", tmp_path)))
    assert message == "data.name='set': is there as set/noisy, set/plain; must name one of them"
    assert len(load(data_config("set/plain", tmp_path)).train) == 3


def test_unknown_names(tmp_path):
    write_small(tmp_path, "cifar10", 4, 2)
    for name in ("mnist", "", ".", "../cifar10", "a/b/c"):
        message = message_of(lambda name=name: load(data_config(name, tmp_path)))
        assert message.startswith(f"data.name={name!r}: must be one of digits, synthetic, cifar10,")
        assert f"prepare it with: python -m jaxsplit.data.prepare {name} --source=" in message
        assert f"--data_dir={tmp_path}, or let tfds download it" in message


def test_sets_without_classes_are_refused(tmp_path):
    splits = {"train": tiny(3), "test": tiny(2)}
    path = write_image_dataset(tmp_path, "boxes", splits, num_classes=5)
    features = json.loads((path / "features.json").read_text())
    inner = features["featuresDict"]["features"]
    inner["digit"] = inner.pop("label")
    (path / "features.json").write_text(json.dumps(features))
    message = message_of(lambda: load(data_config("boxes", tmp_path, image_size=16)))
    assert message.startswith("data.name='boxes': has the features digit: ClassLabel(")
    assert "must have an image (uint8, 1 or 3 channels) and a label" in message


def test_a_set_of_one_class_is_refused(tmp_path):
    splits = {"train": tiny(3, classes=1), "test": tiny(2, classes=1)}
    write_image_dataset(tmp_path, "cats", splits, num_classes=1, shape=(20, 20, 3))
    message = message_of(lambda: data.source(data_config("cats", tmp_path)))
    assert message.startswith("data.name='cats': has one class, must have at least two; ")


def test_a_config_of_any_prepared_set_is_checked_and_summarised(tmp_path):
    splits = {"train": tiny(12), "test": tiny(6)}
    write_image_dataset(tmp_path, "leaves", splits, num_classes=7, shape=(20, 20, 3))
    made = get_config()
    made.arch, made.split, made.method = "wide_resnet10_1", 1, "single"
    made.data.name, made.data.dir = "leaves", str(tmp_path)
    config.check(made)
    width = 64  # of WRN-10-1
    assert f"{width * 7 + 7:,}" in summary.of_config(made)
    made.data.name = "flowers"
    assert "must be one of digits" in message_of(lambda: config.check(made))


# ---- Named splits


def test_splits_may_be_named(tmp_path):
    splits = {"train": tiny(12), "extra": tiny(9), "test": tiny(6), "validation": tiny(3)}
    write_image_dataset(tmp_path, "leaves", splits, num_classes=5, shape=(20, 20, 3))

    def sizes(**fields):
        made = load(data_config("leaves", tmp_path, **fields))
        return len(made.train), len(made.test)

    assert sizes(test_split="validation") == (12, 3)
    assert sizes(train_split="extra", test_split="train") == (9, 12)
    assert sizes(train_split="test") == (6, 3)
    assert message_of(lambda: sizes(test_split="dev")) == (
        f"data.dir={tmp_path}: 'leaves' has no split 'dev' (has: train, extra, test, validation); "
        "data.train_split and data.test_split name others"
    )
    assert message_of(lambda: sizes(test_split="train")) == (
        f"data.dir={tmp_path}: 'leaves' has no split 'train' that it is not trained on (has: "
        "train, extra, test, validation); data.train_split and data.test_split name others"
    )


def test_sets_without_named_splits(tmp_path):
    for field in ("train_split", "test_split"):
        message = message_of(lambda f=field: load(data_config("digits", **{f: "test"})))
        assert message == (
            f"data.{field}='test': must be '', as the splits of 'digits' have no other names"
        )
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    np.savez(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    message = message_of(lambda: load(data_config("own", tmp_path, test_split="dev")))
    assert message == (
        f"data.test_split='dev': must be '', as the splits of '{tmp_path / 'own.npz'}' have no "
        "other names"
    )


# ---- Without a test split


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_a_test_part_is_held_out_where_a_set_has_none(tmp_path, capsys, validation):
    """For sets such as eurosat: a stratified tenth, the same in memory and in a stream."""
    train = tiny(50) + tiny(20, first=100, classes=2)  # classes of 20, 20, 10, 10, 10
    path = write_image_dataset(
        tmp_path, "leaves", {"train": train}, num_classes=5, shape=(20, 20, 3)
    )
    assert path.is_dir()
    capsys.readouterr()
    whole = [image.tobytes() for image, _ in train]
    found = {}
    for where in ("device", "stream"):
        made = load(data_config("leaves", tmp_path, resident=where, validation=validation))
        assert capsys.readouterr().out == (
            "leaves has no test split: 7 of its 70 training images, the same in every run, are "
            "held out as one (data.test_share=0.1)\n"
        )
        parts = [made.train, made.test] + ([made.validation] if validation else [])
        numbers = []
        for part in parts:
            read = [
                (part.read(i, 3) if where == "stream" else part.read(i)) for i in range(len(part))
            ]
            numbers.append([whole.index(image.tobytes()) for image, _ in read])
            assert [label for _, label in read] == [train[i][1] for i in numbers[-1]]
        assert sorted(sum(numbers, [])) == list(range(70))  # none lost, none on two sides
        found[where] = numbers
    assert found["device"] == found["stream"]
    labels = [train[i][1] for i in found["device"][1]]
    np.testing.assert_array_equal(np.bincount(labels), [2, 2, 1, 1, 1])
    made = load(data_config("leaves", tmp_path, test_share=0.3))
    assert (len(made.train), len(made.test)) == (49, 21)


def test_a_test_part_of_images_that_are_cropped(tmp_path):
    train = tiny(30, 40, 30) + tiny(20, 30, 50)
    write_image_dataset(tmp_path, "flowers", {"train": train}, num_classes=5)
    made = load(data_config("flowers", tmp_path, image_size=24))
    np.testing.assert_array_equal(np.bincount(made.test.labels()), [1] * 5)
    assert sorted([*made.train.indices, *made.test.indices]) == list(range(50))
    again = load(data_config("flowers", tmp_path, image_size=16))
    np.testing.assert_array_equal(again.test.indices, made.test.indices)
    batch = take(train_feed(made, batch_size=4, num_views=2, seed=0), 0, 1)[0]
    assert batch["images"].shape == (2, 4, 24, 24, 3)


def test_bad_test_shares(tmp_path):
    write_image_dataset(tmp_path, "leaves", {"train": tiny(4)}, num_classes=5, shape=(20, 20, 3))
    for share in (0.0, 1.0, -0.5, float("nan")):
        message = message_of(lambda s=share: load(data_config("leaves", tmp_path, test_share=s)))
        assert message == f"data.test_share={share}: must be in (0, 1)"
    message = message_of(lambda: load(data_config("leaves", tmp_path)))
    assert message == (
        "data.test_share=0.1: holds out 0 of 4 examples of 'leaves', must leave some on both sides"
    )
    made = get_config()
    made.data.update(name="digits", test_share=1.5)
    assert message_of(lambda: config.check(made)) == "data.test_share=1.5: must be in (0, 1)"
    write_image_dataset(tmp_path, "nuts", {"test": tiny(4)}, num_classes=5, shape=(20, 20, 3))
    assert "'nuts' has no split 'train' (has: test)" in message_of(
        lambda: load(data_config("nuts", tmp_path))
    )


# ---- Download


@pytest.fixture
def on_the_network(monkeypatch):
    """A fake of tfds's builder of 'mnist' whose download brings four images; counts downloads."""
    calls = []
    own = tfds.builder("mnist")

    def download(self, *, download_config):
        calls.append(download_config.try_download_gcs)
        write_image_dataset(
            self.folder,
            "mnist",
            {"train": tiny(4, 28, 28, 1), "test": tiny(2, 28, 28, 1)},
            num_classes=10,
            shape=(28, 28, 1),
            version="3.0.1",
        )

    class Downloads:
        def __init__(self, folder):
            self.folder = folder
            self.data_path = folder / "mnist" / "3.0.1"

        info = property(
            lambda self: (
                tfds.builder_from_directory(self.data_path).info
                if self.data_path.exists()
                else own.info
            )
        )
        download_and_prepare = download

        def as_data_source(self, *args, **kwargs):
            return tfds.builder_from_directory(self.data_path).as_data_source(*args, **kwargs)

    def builder(name, *, data_dir, file_format):
        assert file_format == "array_record"
        if name != "mnist":
            raise tfds.core.DatasetNotFoundError("not found\nAvailable datasets:\n- mnist")
        import pathlib

        return Downloads(pathlib.Path(data_dir))

    monkeypatch.setattr(tfds, "builder", builder)
    return calls


def test_download_only_if_asked_and_missing(tmp_path, on_the_network, capsys):
    message_of(lambda: load(data_config("mnist", tmp_path)))
    given = data_config("mnist", tmp_path, download=True)
    assert data.source(given).num_classes == 10  # from tfds's code; nothing is downloaded yet
    assert on_the_network == []
    for _ in range(2):  # the second time it is there
        made = load(given)
        assert made.image_shape == (28, 28, 1) and len(made.train) == 4
    assert on_the_network == [False]
    assert capsys.readouterr().out.count(f"downloading 'mnist' into {tmp_path}") == 1
    message = message_of(lambda: load(data_config("birdies", tmp_path, download=True)))
    assert message.startswith("data.name='birdies': must be one of digits")


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    for name in ("mnist", "cifar10"):
        message = message_of(lambda n=name: load(data_config(n, tmp_path, download=True)))
        assert message == (
            f"data.download=True: '{name}' cannot be downloaded into {tmp_path} (OSError: no route "
            f"to host); prepare it from files with: python -m jaxsplit.data.prepare {name} "
            f"--source=FILES --data_dir={tmp_path}"
        )


# ---- On the device or streamed


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    write_small(folder, "cifar10", 40, 12)
    return folder


def test_the_size_decides(cifar10):
    for resident, limit, on_device in (
        ("auto", 1, True),  # 40 * 3072 bytes are less than one MiB
        ("auto", 0, False),
        ("device", 0, True),
        ("stream", 1, False),
    ):
        given = data_config("cifar10", cifar10, resident=resident, resident_limit=limit)
        made = load(given)
        feed = train_feed(made, batch_size=8, num_views=2, seed=0)
        assert (feed.resident is not None) == on_device and feed.crops_on == "device"
        assert isinstance(made.train, Arrays if on_device else Stream)
        assert isinstance(made.test, Arrays if on_device else Stream)
    digits = load(data_config("digits", resident="stream"))
    assert train_feed(digits, batch_size=8, num_views=2, seed=0).resident is None
    assert "data.resident='gpu': must be one of auto, device, stream" == message_of(
        lambda: load(data_config("digits", resident="gpu"))
    )


@pytest.mark.parametrize("validation", [0.0, 0.25])
@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_streaming_gives_the_batches_of_the_device(cifar10, name, validation):
    fields = dict(validation=validation)
    on_device, streamed = (
        load(data_config(name, cifar10, resident=where, **fields)) for where in ("device", "stream")
    )
    feeds = [train_feed(d, batch_size=6, num_views=4, seed=3) for d in (on_device, streamed)]
    whole = feeds[0].resident
    for a, b in zip(take(feeds[0], 2, 9), take(feeds[1], 2, 9), strict=True):
        assert b["images"].dtype == np.uint8 and b["labels"].dtype == np.int32
        np.testing.assert_array_equal(whole.images[a["index"]], b["images"])
        np.testing.assert_array_equal(whole.labels[a["index"]], b["labels"])
    for part in ("test", "validation") if validation else ("test",):
        both = (
            eval_batches(getattr(d, part), batch_size=5, image_shape=d.image_shape)
            for d in (on_device, streamed)
        )
        for a, b in zip(*both, strict=True):
            for key in ("images", "labels", "mask"):
                np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.slow
def test_views_are_those_of_the_device(cifar10):
    """The views that networks get on a mesh with two groups of networks, as in the loop."""
    made = get_config()
    made.arch, made.split, made.batch_size = "wide_resnet10_1", 2, 8
    made.divide_anyway = True
    made.data.name, made.data.dir = "cifar10", str(cifar10)
    made.duration, made.schedule.warmup = "2 epochs", "0 steps"
    made.mesh.data, made.mesh.net = 2, 2
    made.augment.erase_prob = 0.5
    built = experiment.build(made)
    for views, shape in (("different", (2, 8, 32, 32, 3)), ("same", (1, 8, 32, 32, 3))):
        made.views = views
        got = []
        for where in data.RESIDENT[1:]:
            made.data.resident = where
            feed = train_feed(load(made.data), batch_size=8, num_views=2, seed=0)
            assert (feed.resident is None) == (where == "stream")
            resolved = config.resolve(made)
            exp = dataclasses.replace(built, feed=feed, config=made, resolved=resolved)
            batch = experiment.put_batch(exp, take(feed, 1, 1)[0])
            resident = {}
            if feed.resident:
                arrays = dict(images=feed.resident.images, labels=feed.resident.labels)
                resident = exp.sharding.put(arrays, exp.sharding.replicated)
            ops = augment.pipeline(
                made.augment,
                exp.dataset.mean,
                exp.dataset.std,
                crops_on=feed.crops_on,
            )
            assert "random_crop" in dict(ops)
            inputs = step.make_inputs(
                exp.sharding,
                ops,
                num_networks=2,
                shared_view=views == "same",
                batch_of="images" if feed.resident is None else "indices",
                mixup=0.2,
            )
            got.append(jax.device_get(jax.jit(inputs)(resident, batch, jax.random.key(0))))
        assert got[0]["views"].shape == shape
        jax.tree.map(np.testing.assert_array_equal, *got)
