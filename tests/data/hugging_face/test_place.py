"""Where a data set of Hugging Face is looked for: folders, the cache, and never the network."""

import json
import os
import shutil
import socket
import sys

import datasets
import numpy as np
import pytest

from jaxsplit import data
from jaxsplit.data import hugging_face, load
from tests.support import hugging_face as hf
from tests.support.data import data_config, message_of, tiny

SPLITS = {"train": tiny(12), "test": tiny(6, first=50)}
NAME = "hf:someone/InsectPhotos"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "cache"


def labels_of(made):
    return made.train.labels.tolist(), made.test.labels.tolist()


WANTED = [label for _, label in SPLITS["train"]], [label for _, label in SPLITS["test"]]


def test_a_folder_by_its_path_or_in_data_dir(tmp_path, monkeypatch):
    folder = hf.save(tmp_path / "sets" / "insects", SPLITS)
    monkeypatch.chdir(tmp_path)
    for name, where in (
        (f"hf:{folder}", "unused"),
        ("hf:sets/insects", "unused"),
        ("hf:./sets/insects", "unused"),
        ("hf:insects", folder.parent),
    ):
        made = load(data_config(name, where))
        assert (made.name, made.class_names) == (name, hf.CLASSES)
        assert labels_of(made) == WANTED


def test_a_folder_of_several_files_is_one_split(tmp_path):
    hf.save(tmp_path / "d", SPLITS, num_shards={"train": 3, "test": 1})
    made = load(data_config("hf:d", tmp_path, resident="stream"))
    for i, (image, label) in enumerate(SPLITS["train"]):
        found = made.train.read(i, 3)
        np.testing.assert_array_equal(found[0], image)
        assert found[1] == label
    assert [count for _, count in made.train.files] == [4, 4, 4]


def test_a_data_set_without_splits_is_the_training_part(tmp_path, capsys):
    hf.dataset(tiny(50)).save_to_disk(tmp_path / "d")
    made = load(data_config("hf:d", tmp_path))
    assert (len(made.train), len(made.test)) == (45, 5)
    assert "hf:d has no test split: 5 of its 50 training images" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train[:50%]", "train+test", "other"])
def test_one_data_set_is_the_training_part_whatever_it_is_called(tmp_path, split):
    made = hf.dataset(tiny(50))
    datasets.Dataset(made.data, made.info, datasets.NamedSplit(split)).save_to_disk(tmp_path / "d")
    made = load(data_config("hf:d", tmp_path))
    assert (len(made.train), len(made.test)) == (45, 5)


def test_two_sets_saved_in_one_folder_are_refused(tmp_path):
    folder = hf.save(tmp_path / "d", SPLITS)
    hf.dataset(tiny(8)).save_to_disk(folder)
    assert "dataset_dict.json and state.json, of two data sets" in message_of(
        lambda: load(data_config("hf:d", tmp_path))
    )


def test_a_set_that_was_saved_with_a_format_of_another_library(tmp_path):
    folder = hf.save(tmp_path / "d", SPLITS)
    for split in SPLITS:
        state = json.loads((folder / split / "state.json").read_text())
        state["_format_type"] = "torch"  # load_from_disk would need PyTorch
        (folder / split / "state.json").write_text(json.dumps(state))
    assert labels_of(load(data_config("hf:d", tmp_path))) == WANTED


def test_the_cache_of_the_library(tmp_path, own_cache):
    place = hf.cache(own_cache, SPLITS)
    before = sorted(own_cache.rglob("*"))
    made = load(data_config(NAME))
    assert (made.class_names, made.image_shape) == (hf.CLASSES, (20, 20, 3))
    assert labels_of(made) == WANTED
    np.testing.assert_array_equal(made.test.images[3], SPLITS["test"][3][0])
    assert hugging_face.find(data_config(NAME)).folder == str(place)
    assert sorted(own_cache.rglob("*")) == before  # nothing is written there
    # A preparation that was broken off does not count.
    shutil.copytree(place, place.with_name("fedcba.incomplete"))
    assert hugging_face.find(data_config(NAME)).folder == str(place)


def test_the_newest_version_in_the_cache(own_cache):
    """By when it was completed; datasets writes files of its own into older ones, too."""
    newer = hf.cache(own_cache, SPLITS)
    older = newer.with_name("fedcba9876543210")
    shutil.copytree(newer, older)
    for folder, seconds in ((older, 1_000), (newer, 2_000)):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (seconds, seconds))
    (older / "cache-1234.arrow").touch()
    assert older.stat().st_mtime > newer.stat().st_mtime
    assert hugging_face.find(data_config(NAME)).folder == str(newer)


def test_a_user_that_there_is_not(own_cache):
    must = "must be a folder that save_to_disk of datasets wrote"
    for name, where in (("hf:~nosuchuser/x", "data"), ("hf:x", "~nosuchuser")):
        message = message_of(lambda n=name, w=where: load(data_config(n, w)))
        assert message.startswith(f"data.name={name!r}: {must} (")


def test_files_of_the_cache_are_in_order(own_cache):
    place = hf.cache(own_cache, SPLITS, max_shard_size=4000)
    files = sorted(place.glob("insect_photos-train-*.arrow"))
    made = load(data_config(NAME, resident="stream"))
    assert len(files) > 2 and [path for path, _ in made.train.files] == list(map(str, files))
    assert made.train.labels().tolist() == WANTED[0]
    np.testing.assert_array_equal(made.train.read(11, 3)[0], SPLITS["train"][11][0])


def test_configurations_in_the_cache(own_cache):
    hf.cache(own_cache, SPLITS, subset="small")
    assert hugging_face.find(data_config(NAME)).folder.endswith("0123456789abcdef")
    hf.cache(own_cache, {"train": tiny(20), "test": tiny(5)}, subset="large")
    root = own_cache / "someone___insect_photos"
    for subset in ("", "huge"):
        message = message_of(lambda s=subset: load(data_config(NAME, subset=s)))
        assert message == (
            f"data.subset={subset!r}: must be one of large, small, which {root} holds"
        )
    assert len(load(data_config(NAME, subset="large")).train) == 20
    assert len(load(data_config(NAME, subset="small")).train) == 12


def test_a_folder_has_no_configurations(tmp_path):
    folder = hf.save(tmp_path / "d", SPLITS)
    message = message_of(lambda: load(data_config("hf:d", tmp_path, subset="large")))
    assert message == f"data.subset='large': must be '', as {folder} holds one data set"


def test_names_that_are_nowhere(tmp_path, own_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    must = "must be a folder that save_to_disk of datasets wrote"
    cached = f"or a set that load_dataset has put into its cache ({own_cache})"
    download = "with --config.data.download=True datasets may download it"
    for name, end in (
        ("hf:", f"{must}, {cached}"),
        ("hf:birds", f"{must} (data/birds or birds), {cached}; {download}"),
        ("hf:a/b", f"{must} (data/a/b or a/b), {cached}; {download}"),
        ("hf:a/b/c", f"{must} (data/a/b/c or a/b/c)"),
        ("hf:/no/such", f"{must} (/no/such)"),
        ("hf:a\0b", f"{must} (data/a\0b or a\0b)"),
    ):
        message = message_of(lambda n=name: load(data_config(n, "data")))
        assert message == f"data.name={name!r}: {end}"
    (tmp_path / "photos" / "owl").mkdir(parents=True)
    message = message_of(lambda: load(data_config("hf:photos", "data", download=True)))
    assert message == (
        f"data.name='hf:photos': {must}, as datasets.load_dataset('photos').save_to_disk('DIR') "
        "does; this one lacks state.json"
    )


def test_download_only_if_asked_and_missing(own_cache, monkeypatch, capsys):
    asked = []

    class Builder:
        def download_and_prepare(self):
            hf.cache(own_cache, SPLITS, subset="small")

    def builder(name, subset):
        asked.append((name, subset))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    message_of(lambda: load(data_config(NAME)))
    assert asked == []
    hf.cache(own_cache, {"train": tiny(9)}, subset="large")  # another one is there
    for _ in range(2):  # the second time it is there, too
        given = data_config(NAME, download=True, subset="small")
        assert labels_of(load(given)) == WANTED
    assert asked == [("someone/InsectPhotos", "small")]
    said = capsys.readouterr().out
    assert said.count(f"downloading '{NAME}' into {own_cache}") == 1
    assert labels_of(load(data_config(NAME, subset="small"))) == WANTED


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    message = message_of(lambda: load(data_config(NAME, download=True)))
    assert message == (
        f"data.download=True: '{NAME}' cannot be downloaded (ConnectionError: no route to host)"
    )


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = message_of(lambda: data.source(data_config("hf:birds")))
    assert message.startswith("data.name='hf:birds': needs the package datasets (")
    assert message.endswith("); pip install -e '.[hf]'")


@pytest.mark.parametrize("damage", ["cut", "gone", "no json", "no list", "no info"])
def test_damaged_files(tmp_path, damage):
    folder = hf.save(tmp_path / "d", SPLITS)
    arrow, state = folder / "train/data-00000-of-00001.arrow", folder / "train/state.json"
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:300])
    elif damage == "gone":
        arrow.unlink()
    elif damage == "no json":
        state.write_text("{")
    elif damage == "no list":
        state.write_text('{"_split": null, "_data_files": [1]}')
    else:
        (folder / "train" / "dataset_info.json").unlink()
    message = message_of(lambda: load(data_config("hf:d", tmp_path)))
    assert message.startswith(f"data.name: {folder}") and " is incomplete or damaged (" in message
