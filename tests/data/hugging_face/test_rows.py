"""Batches of a data set of Hugging Face, which are those of tfds; its bad records."""

import numpy as np
import pytest

from jaxsplit import data
from jaxsplit.data import eval_batches, load, train_feed
from tests.support import hugging_face as hf
from tests.support.data import data_config, message_of, take, tiny
from tests.support.tfds import encode, picture, write_image_dataset

JPEG = [(encode(picture(i, 40, 30 + i), "JPEG"), i % 5) for i in range(24)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of several sizes, by both libraries."""
    folder = tmp_path_factory.mktemp("photos")
    splits = {"train": JPEG, "test": JPEG[:7]}
    write_image_dataset(folder, "photos", splits, num_classes=5)
    hf.save(folder / "photos_hf", splits)
    return folder


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    """PNG and JPEG of one size."""
    folder = tmp_path_factory.mktemp("icons")
    mixed = [(encode(image, "JPEG"), i) if i % 2 else (image, i) for image, i in tiny(30)]
    hf.save(folder / "icons", {"train": mixed, "test": tiny(7, first=50)})
    return folder


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_batches_are_those_of_tfds(photos, validation):
    fields = dict(image_size=24, validation=validation)
    own, other = (load(data_config(name, photos, **fields)) for name in ("hf:photos_hf", "photos"))
    feeds = [train_feed(d, batch_size=6, num_views=2, seed=3) for d in (own, other)]
    for a, b in zip(*(take(feed, 2, 5) for feed in feeds), strict=True):
        same(a, b)
    for part in ("test", "validation") if validation else ("test",):
        both = (
            eval_batches(getattr(d, part), batch_size=4, image_shape=d.image_shape)
            for d in (own, other)
        )
        for a, b in zip(*both, strict=True):
            same(a, b)


def test_a_held_out_test_part_is_that_of_tfds(tmp_path):
    write_image_dataset(tmp_path, "photos", {"train": JPEG}, num_classes=5)
    hf.save(tmp_path / "photos_hf", {"train": JPEG})
    own, other = (
        load(data_config(name, tmp_path, image_size=24, test_share=0.3))
        for name in ("hf:photos_hf", "photos")
    )
    np.testing.assert_array_equal(own.test.indices, other.test.indices)
    np.testing.assert_array_equal(own.train.indices, other.train.indices)


def test_streaming_gives_the_batches_of_the_device(icons):
    made = {
        where: load(data_config("hf:icons", icons, resident=where, validation=0.2))
        for where in ("device", "stream")
    }
    feeds = [train_feed(d, batch_size=6, num_views=2, seed=1) for d in made.values()]
    whole = feeds[0].resident
    for a, b in zip(*(take(feed, 1, 9) for feed in feeds), strict=True):
        np.testing.assert_array_equal(whole.images[a["index"]], b["images"])
        np.testing.assert_array_equal(whole.labels[a["index"]], b["labels"])
    for part in ("test", "validation"):
        both = (
            eval_batches(getattr(d, part), batch_size=4, image_shape=(20, 20, 3))
            for d in made.values()
        )
        for a, b in zip(*both, strict=True):
            same(a, b)


@pytest.mark.parametrize("name", ["hf:icons", "hf:photos_hf"])
def test_resume_and_processes_are_exact(icons, photos, name):
    folder = icons if name == "hf:icons" else photos
    size = dict(image_size=24) if folder is photos else {}
    made = load(data_config(name, folder, resident="stream", **size))

    def batches(start, count, threads=2, **part):
        feed = train_feed(made, batch_size=8, num_views=2, seed=4, threads=threads, **part)
        return take(feed, start, count)

    whole = batches(0, 8)
    for a, b in zip(batches(5, 3, threads=1), whole[5:], strict=True):
        same(a, b)
    parts = [batches(0, 8, process_index=p, process_count=4) for p in range(4)]
    axis = 1 if folder is photos else 0  # of the examples
    for k, batch in enumerate(whole):
        rows = [part[k] for part in parts]
        np.testing.assert_array_equal(
            np.concatenate([r["images"] for r in rows], axis), batch["images"]
        )
        np.testing.assert_array_equal(np.concatenate([r["labels"] for r in rows]), batch["labels"])


def test_an_epoch_has_every_example_once(tmp_path):
    splits = {"train": tiny(24, classes=24), "test": tiny(1)}
    hf.save(tmp_path / "d", splits, hf.features(map(str, range(24))))
    every = load(data_config("hf:d", tmp_path, resident="stream"))
    parts = [
        take(
            train_feed(every, batch_size=4, num_views=1, seed=0, process_index=p, process_count=2),
            0,
            6,
        )
        for p in range(2)
    ]
    seen = np.concatenate([batch["labels"] for part in parts for batch in part])
    assert sorted(seen.tolist()) == list(range(24))


# ---- Labels


def test_labels_are_read_without_images(photos):
    made = load(data_config("hf:photos_hf", photos, image_size=24))

    class Watched:
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitems__(self, records):
            raise AssertionError("images were read")

        __getitem__ = __getitems__

        def labels(self, records):
            return self.rows.labels(records)

    import dataclasses

    stream = dataclasses.replace(made.train.part(np.array([3, 9, 4])))
    stream = dataclasses.replace(stream, source=Watched(stream.source))
    assert stream.labels().tolist() == [JPEG[i][1] for i in (3, 9, 4)]


# ---- Bad records


def test_bad_records_are_named(tmp_path):
    good = JPEG[0][0]
    cases = {
        "cannot be decoded (": (good[:300], 1),
        "has no label that can be read (": (good, None),
        "cannot be read (it has no image); must be an example with an image": (None, 1),
    }
    for i, (said, bad) in enumerate(cases.items()):
        splits = {"train": [(good, 0), (good, 1), bad], "test": JPEG[:2]}
        folder = hf.save(tmp_path / f"d{i}", splits, num_shards={"train": 2, "test": 1})
        made = load(data_config(f"hf:d{i}", tmp_path, image_size=24))
        feed = train_feed(made, batch_size=3, num_views=1, seed=0)
        file = folder / "train" / "data-00001-of-00002.arrow"
        message = message_of(lambda f=feed: take(f, 0, 1))
        assert message.startswith(f"data.name: record 2 (number 0 of {file}) {said}"), message


def test_a_label_without_a_class_is_named(tmp_path):
    splits = {"train": tiny(6), "test": [(image, -1) for image, _ in tiny(3)]}
    hf.save(tmp_path / "d", splits)
    message = message_of(lambda: load(data_config("hf:d", tmp_path)))
    assert message.endswith(") has the label -1, must lie in 0..4")
    assert message.startswith("data.name: record 0 (number 0 of ")


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_bad_records_are_skipped_and_counted(tmp_path, resident, capsys):
    train = tiny(12)
    train[3] = (encode(train[3][0], "PNG")[:60], 3)
    train[7] = (train[7][0], None)
    test = tiny(4) + [(encode(picture(0, 20, 20), "PNG")[:-40], 1)]
    hf.save(tmp_path / "d", {"train": train, "test": test})
    given = data_config("hf:d", tmp_path, resident=resident, on_bad_record="skip")
    made = load(given)
    assert made.image_shape == (20, 20, 3)
    feed = train_feed(made, batch_size=6, num_views=1, seed=0)
    take(feed, 0, 4)  # two epochs
    assert feed.bad_records == 4
    masks = [b["mask"] for b in eval_batches(made.test, batch_size=5, image_shape=(20, 20, 3))]
    np.testing.assert_array_equal(masks, [[1, 1, 1, 1, 0]])
    assert made.test.skipped.count == 1
    assert "warning: data.name: record " in capsys.readouterr().out


# ---- Images in files of their own


def test_images_may_lie_in_files(tmp_path, monkeypatch):
    """As the cache of an image folder has them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = []
    for i, (image, _) in enumerate(JPEG[:6]):
        paths.append(tmp_path / f"{i}.jpg")
        paths[i].write_bytes(image)
    examples = [(str(path), label) for path, (_, label) in zip(paths, JPEG, strict=False)]
    hf.cache(tmp_path / "cache", {"train": examples, "test": examples[:2]})
    made = load(data_config("hf:someone/InsectPhotos", image_size=24))
    other = data.Stream([dict(image=image, label=label) for image, label in JPEG])
    for i in range(6):
        for a, b in zip(made.train.read(i, 3), other.read(i, 3), strict=True):
            np.testing.assert_array_equal(a, b)
    paths[4].unlink()
    message = message_of(lambda: made.train.read(4, 3))
    assert message.startswith(f"data.name: record 4 (number 4 of {tmp_path / 'cache'}")
    assert f"cannot be read ([Errno 2] No such file or directory: '{paths[4]}')" in message
    paths[4].mkdir()
    assert f"cannot be read ({paths[4]} is not a file)" in message_of(lambda: made.train.read(4, 3))


def test_images_elsewhere_are_not_fetched(tmp_path):
    away = "https://example.com/cat.jpg"
    splits = {"train": [*JPEG[:5], ({"path": away, "bytes": None}, 1)], "test": JPEG[:2]}
    datasets_of = {name: hf.dataset(examples) for name, examples in splits.items()}
    # save_to_disk would fetch it, so the file is written by hand.
    import datasets

    for name, made in datasets_of.items():
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        with datasets.arrow_writer.ArrowWriter(
            path=str(folder / "data.arrow"), features=made.features
        ) as writer:
            writer.write_table(made.data.table)
            writer.finalize()
        made.info.write_to_directory(str(folder))
        (folder / "state.json").write_text(
            '{"_split": null, "_data_files": [{"filename": "data.arrow"}]}'
        )
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    made = load(data_config("hf:d", tmp_path, image_size=24))
    assert f"cannot be read (its image is at {away}, which is not on this machine)" in message_of(
        lambda: made.train.read(5, 3)
    )
