"""Folders of images as users have them: what is accepted, what is refused, what counts once."""

import gzip
import os
import socket
import tarfile
import threading
import unicodedata

import numpy as np
import pytest

from jaxsplit.data import load, prepare
from jaxsplit.data.arrays import not_held_out, stratified_holdout
from jaxsplit.data.prepare import image_files, readers, shards
from jaxsplit.data.prepare.image_folder import image_folder, role
from tests.support.data import data_config, message_of
from tests.support.sources import add, idx_bytes, make_idx, make_imagenet_tars, make_tree
from tests.support.tfds import encode, picture

BOTH = {"a": 2, "b": 2}


def found(source, holdout=0.0):
    """({split: [(path within source, class), ...]}, notes)."""
    made = image_folder(source, holdout)
    read = {
        split: [
            (os.path.relpath(each.where, source), made.names[each.label]) for each in examples()
        ]
        for split, examples in made.splits.items()
    }
    assert made.totals == {split: len(part) for split, part in read.items()}
    return read, list(made.notes)


def where(source, holdout=0.0):
    """({split: paths of its images}, notes)."""
    read, notes = found(source, holdout)
    return {split: [path for path, _ in part] for split, part in read.items()}, notes


def refused(tmp_path, source, **options):
    """The one-line error of `prepare`; it is the same each time, and nothing is written."""
    lines = {
        message_of(lambda: prepare.prepare("birds", source, tmp_path / "d", **options))
        for _ in range(2)
    }
    assert not (tmp_path / "d").exists()
    (line,) = lines
    return line


# What is no data set


def test_images_that_lie_flat_in_a_split(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "train", BOTH)
    make_tree(tmp_path / "t", {"x": 3})
    (tmp_path / "t" / "x").rename(s / "test")
    assert refused(tmp_path, s) == (
        f"source={s}: 3 images lie directly in {s / 'test'}; must lie in a folder for each class, "
        "test/<class>/<image>"
    )
    (s / "test" / "a").mkdir()  # with an empty class beside them
    assert "3 images lie directly in" in refused(tmp_path, s)


def test_a_split_whose_classes_are_empty(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "train", BOTH)
    (s / "test" / "a").mkdir(parents=True)
    assert f"looked for images in {s / 'test'}/<class>/ (.avif, .bmp, " in refused(tmp_path, s)
    (s / "test" / "a").rmdir()
    assert f"looked for images in {s / 'test'}/<class>/ (.avif, .bmp, " in refused(tmp_path, s)


def test_images_in_no_folder_at_all(tmp_path):
    make_tree(tmp_path, {"s": 2})
    assert refused(tmp_path, tmp_path / "s", holdout=0.5).endswith(
        f"2 images lie directly in {tmp_path / 's'}; must lie in a folder for each class, "
        "<class>/<image>"
    )


def test_a_part_without_records_is_not_done(tmp_path):
    with shards.Unfinished(tmp_path / "x" / "1.0.0", [], 2) as work:
        work.write("test", [], 1 << 20)
        assert not work.splits["test"].done
        assert not shards.Unfinished(tmp_path / "x" / "1.0.0", [], 2).splits
    # All of them broken: refused each time.
    s = tmp_path / "s"
    make_tree(s / "train", BOTH)
    (s / "test" / "a").mkdir(parents=True)
    (s / "test" / "a" / "x.jpg").write_text("no image")
    for _ in range(2):
        line = message_of(lambda: prepare.prepare("birds", s, tmp_path / "d", incomplete="accept"))
        assert line == "source: no image for the split test"


def test_an_archive_that_unpacked_one_level_deeper(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "pets", {"cat": 2, "dog": 2})
    assert refused(tmp_path, s, holdout=0.5) == (
        f"source={s}: one class, 'pets', must be at least two; its folders cat, dog hold images: "
        f"if these are the classes, give --source={s / 'pets'}"
    )
    assert len(found(s / "pets", 0.5)[0]["train"]) == 2
    s = tmp_path / "t"
    make_tree(s / "train" / "pets", {"cat": 2, "dog": 2})
    make_tree(s / "test" / "pets", {"cat": 2, "dog": 2})
    assert refused(tmp_path, s).endswith(f"if these are the classes, move them into {s / 'train'}")
    make_tree(tmp_path / "u", {"cat": 2})
    line = refused(tmp_path, tmp_path / "u", holdout=0.5)
    assert line == f"source={tmp_path / 'u'}: one class, 'cat', must be at least two"


def test_one_class_of_idx_files(tmp_path):
    make_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\x1e" + bytes(30))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\x0a" + bytes(10))
    assert refused(tmp_path, tmp_path) == (
        f"source={tmp_path}: 1 class ('0'), must be at least two"
    )


def test_a_class_without_training_images_is_refused_before_anything_is_written(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "train", {**BOTH, "c": 0})
    make_tree(s / "test", BOTH)
    assert "1 of 3 classes have no training image (first: 'c')" in refused(tmp_path, s)


# Names of splits


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "Train", "TRAINING", "training_set", "train set", "trainset"), "train"),
        (("test", "Testing", "test-set", "TestSet", "testing_set"), "test"),
        (("val", "valid", "Validation", "val_set", "dev", "Eval", "evaluation-set"), "validation"),
        (("set", "trains", "asset", "value", "testament", "pretrain", ""), None),
    ],
)
def test_names_of_splits(names, split):
    assert {role(name) for name in names} == {split}


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [("Train", "Test", "test"), ("training_set", "test-set", "test"), ("train", "VALID", "val")],
)
def test_splits_under_other_names(tmp_path, train, test, split):
    make_tree(tmp_path / train, BOTH)
    make_tree(tmp_path / test, {"a": 1})
    read, notes = found(tmp_path)
    assert list(read) == ["train", "validation" if split == "val" else "test"]
    assert [label for _, label in read["train"]] == ["a", "a", "b", "b"] and not notes


def test_classes_that_hold_no_image_themselves_are_told(tmp_path):
    """Such as splits of other names: jaxsplit takes their folders for the classes."""
    for fold in ("fold1", "fold2"):
        make_tree(tmp_path / "s" / fold, BOTH)
    read, notes = found(tmp_path / "s", holdout=0.25)
    assert {label for _, label in read["train"]} == {"fold1", "fold2"}
    assert notes == [
        "the classes are fold1, fold2, and all their images lie in folders within them (a, b); if "
        f"those are the classes, {tmp_path / 's'} must hold them directly"
    ]
    make_tree(tmp_path / "t", {"a": 2})
    make_tree(tmp_path / "t" / "b", BOTH)
    assert found(tmp_path / "t", holdout=0.25)[1] == []


@pytest.mark.parametrize("name", ["می\u200cخواهم", "日\u3000本", "a\u00a0b"])
def test_names_need_joiners_and_wide_blanks(tmp_path, name):
    make_tree(tmp_path / "s" / "train", {"a": 2, name: 2})
    make_tree(tmp_path / "s" / "test", {"a": 2})
    prepare.prepare("words", tmp_path / "s", tmp_path / "d")
    made = load(data_config("words", tmp_path / "d"))
    assert set(made.class_names) == {"a", name}


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\x1db"])
def test_names_of_several_lines(tmp_path, name):
    make_tree(tmp_path / "s" / "train", {"a": 2, name: 2})
    make_tree(tmp_path / "s" / "test", {"a": 2})
    assert "must be text without line breaks" in refused(tmp_path, tmp_path / "s")


def test_two_folders_of_one_split(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "train", BOTH)
    make_tree(s / "val", BOTH)
    make_tree(s / "Valid", BOTH)
    assert refused(tmp_path, s) == (
        f"source={s}: has Valid and val, both the split validation; must be one folder"
    )


@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_test_folder_without_a_training_folder(tmp_path, name):
    """The same error for a flat source with a class of that name."""
    s = tmp_path / "s"
    make_tree(s, {name: 2, "car": 2})
    assert refused(tmp_path, s, holdout=0.5) == (
        f"source={s}: has the folder {name} and no folder train; put the training images into "
        f"train/<class>/, or, if {name} is a class, rename it (my_{name}, say)"
    )


def test_a_split_in_itself(tmp_path):
    make_tree(tmp_path / "train" / "train", BOTH)
    make_tree(tmp_path / "test" / "test", BOTH)
    read, notes = where(tmp_path)
    assert read["train"] == [f"train/train/{name}/00{i}.JPEG" for name in "ab" for i in (0, 1)]
    assert notes == [
        f"the split {name} is read from {tmp_path / name / name}" for name in ("train", "test")
    ]


@pytest.mark.parametrize("inner", ["train", "Test"])
def test_a_class_that_is_called_like_a_split(tmp_path, inner):
    s = tmp_path / "s"
    make_tree(s / "train", {"bus": 1, "car": 1, inner: 1})
    make_tree(s / "test", {"bus": 1, "car": 1, "taxi": 1})
    assert refused(tmp_path, s) == (
        f"source={s}: {s / 'train'} has the folder {inner}, named as a split is; if it is a class, "
        f"rename it (my_{inner}, say), otherwise give --source={s / 'train'} or move it"
    )


def test_a_flat_source_with_a_class_called_train(tmp_path):
    s = tmp_path / "s"
    make_tree(s, {"bus": 2, "car": 2, "train": 2})
    line = refused(tmp_path, s, holdout=0.5)
    assert line.startswith(f"source={s}: 2 images lie directly in {s / 'train'}; must lie in a ")


def test_other_folders_beside_the_splits_are_told(tmp_path):
    make_tree(tmp_path / "train", BOTH)
    make_tree(tmp_path / "test", BOTH)
    make_tree(tmp_path, {"extra": 1, "sheets": 1})
    assert found(tmp_path)[1] == ["2 folders beside train left out: extra, sheets"]


# Each image once


def test_a_link_to_a_parent_folder_changes_nothing(tmp_path):
    make_tree(tmp_path / "s" / "train", {"a": 3, "b": 3})
    make_tree(tmp_path / "s" / "test", {"a": 2, "b": 2})
    want, _ = where(tmp_path / "s")
    links = {
        "train/a/up": "..",
        "train/a/all": "../..",
        "train/b/beyond": "../../..",
        "test/a/train": "../../train",
        "test/b/other": "../a",
    }
    for name, target in links.items():
        (tmp_path / "s" / name).symlink_to(target)
    read, notes = where(tmp_path / "s")
    assert read == want
    (note,) = notes
    assert note.startswith(f"5 links in {tmp_path / 's'} left out, what they lead to is counted ")


def test_links_to_what_lies_elsewhere_count(tmp_path):
    """A split made of links, as users often make it; also a class or split that is a link."""
    raw = tmp_path / "raw"
    make_tree(raw, {"a": 4, "b": 4, "deep": 2})
    s = tmp_path / "s"
    (s / "train" / "a").mkdir(parents=True)
    for i in range(3):
        (s / "train" / "a" / f"{i}.jpg").symlink_to(raw / "a" / f"00{i}.JPEG")
    (s / "train" / "b").symlink_to(raw / "b")
    (s / "train" / "a" / "more").symlink_to(raw / "deep")
    (tmp_path / "elsewhere" / "a").mkdir(parents=True)
    (tmp_path / "elsewhere" / "a" / "x.jpg").symlink_to(raw / "a" / "003.JPEG")
    (s / "test").symlink_to(tmp_path / "elsewhere")
    read, notes = where(s)
    assert read == {
        "train": [f"train/a/{i}.jpg" for i in range(3)]
        + [f"train/a/more/00{i}.JPEG" for i in (0, 1)]
        + [f"train/b/00{i}.JPEG" for i in range(4)],
        "test": ["test/a/x.jpg"],
    }
    assert notes == []


def test_a_file_counts_once_and_where_it_lies(tmp_path):
    make_tree(tmp_path / "train", BOTH)
    make_tree(tmp_path / "test", {"a": 1})
    raw = tmp_path / "raw.jpg"  # in no class: the first link to it counts
    raw.write_bytes(encode(picture(9, 8, 8), "JPEG"))
    (tmp_path / "train" / "a" / "x.jpg").symlink_to("../../test/a/000.JPEG")
    (tmp_path / "train" / "b" / "y.jpg").symlink_to(raw)
    (tmp_path / "test" / "a" / "z.jpg").symlink_to(raw)
    os.link(tmp_path / "train" / "a" / "000.JPEG", tmp_path / "train" / "a" / "twin.jpg")
    read, notes = where(tmp_path)
    assert read["test"] == ["test/a/000.JPEG"]
    assert "train/b/y.jpg" in read["train"] and "train/a/x.jpg" not in read["train"]
    assert "train/a/twin.jpg" in read["train"]  # hard links are files of their own
    assert [note.split(" left out")[0] for note in notes] == [f"2 links in {tmp_path}"]


def test_a_split_that_is_a_link_to_another(tmp_path):
    s = tmp_path / "s"
    make_tree(s / "train", BOTH)
    (s / "test").symlink_to("train")
    assert refused(tmp_path, s) == (
        f"source={s}: {s / 'test'} is a link to {s / 'train'}, which is read already; must be "
        "images of its own"
    )


def test_links_that_lead_nowhere_are_named(tmp_path):
    make_tree(tmp_path / "train", BOTH)
    make_tree(tmp_path / "test", BOTH)
    (tmp_path / "train" / "a" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "train" / "a" / "loop.png").symlink_to("loop.png")
    read, _ = where(tmp_path)
    assert {"train/a/gone.jpg", "train/a/loop.png"} < set(read["train"])
    line = message_of(lambda: prepare.prepare("birds", tmp_path, tmp_path / "d"))
    assert line.startswith(f"source: {tmp_path / 'train' / 'a' / 'gone.jpg'}: broken image")


# What is neither class nor image


def test_what_systems_leave_behind(tmp_path):
    for split in ("train", "test"):
        make_tree(tmp_path / split, {**BOTH, "__MACOSX": 1, ".ipynb_checkpoints": 1, "@eaDir": 1})
        for name in ("a/._000.JPEG", "a/Thumbs.db", "a/desktop.ini", "Thumbs.db", ".x.jpg"):
            (tmp_path / split / name).write_text("junk")
        make_tree(tmp_path / split / "a", {"__macosx": 1, ".git": 1, "$RECYCLE.BIN": 1})
    make_tree(tmp_path, {"__MACOSX": 1, "lost+found": 1, ".cache": 1})
    read, notes = where(tmp_path)
    assert read["train"] == [f"train/{name}/00{i}.JPEG" for name in "ab" for i in (0, 1)]
    assert len(read["test"]) == 4 and notes == []


def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch):
    make_tree(tmp_path / "train", BOTH)
    make_tree(tmp_path / "test", BOTH)
    want, _ = where(tmp_path)
    os.mkfifo(tmp_path / "train" / "a" / "pipe.jpg")
    os.mkfifo(tmp_path / "train" / "pipe.png")
    (tmp_path / "train" / "b" / "link.jpg").symlink_to("../a/pipe.jpg")
    monkeypatch.chdir(tmp_path / "train" / "b")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        read, notes = [], []
        thread = threading.Thread(target=lambda: read.append(where(tmp_path)), daemon=True)
        thread.start()
        thread.join(10)
        assert read, "a FIFO was opened"
    read, notes = read[0]
    assert read == want
    (note,) = notes
    assert note.startswith(f"4 entries of {tmp_path / 'train'} left out, no regular files: ")


def test_images_beside_the_folders_of_classes_are_told(tmp_path):
    make_tree(tmp_path / "train", BOTH)
    make_tree(tmp_path / "test", BOTH)
    (tmp_path / "test" / "lost.jpg").write_bytes(b"")
    (tmp_path / "test" / "readme.txt").write_text("")
    assert found(tmp_path)[1] == [
        f"1 images left out, directly in {tmp_path / 'test'}, in no class's folder: "
        f"{tmp_path / 'test' / 'lost.jpg'}"
    ]


# Names of classes

NFC, NFD = (unicodedata.normalize(form, "Grünspecht") for form in ("NFC", "NFD"))


def test_classes_are_compared_in_one_unicode_form(tmp_path):
    make_tree(tmp_path / "train", {NFD: 1, "Star": 1})
    make_tree(tmp_path / "test", {NFC: 1, "Star": 1})
    made = image_folder(tmp_path)
    assert made.names == (NFC, "Star")
    assert [each.label for each in made.splits["test"]()] == [0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((NFC, NFD), r"has the classes 'Gru\u0308nspecht' and 'Gr\xfcnspecht', the same but for"),
        (("owl", "owl "), "has the classes 'owl' and 'owl ', the same but for blanks or the "),
        (("gull", " owl"), "class ' owl': must not begin or end with a blank; rename it to 'owl'"),
        (("gull", "owl\u00a0"), r"class 'owl\xa0': must not begin or end with a blank; rename it"),
    ],
)
def test_classes_that_look_alike(tmp_path, names, message):
    s = tmp_path / "s"
    make_tree(s / "train", dict.fromkeys(names, 1))
    make_tree(s / "test", {"gull": 1})
    assert message in refused(tmp_path, s)


# Hold-outs


def test_each_class_keeps_an_image(tmp_path):
    labels = np.repeat(np.arange(4), [1, 2, 3, 30])
    for share in (0.1, 0.5, 0.75, 0.9, 0.97):
        kept, held = stratified_holdout(labels, share, seed=0)
        assert set(labels[kept]) == {0, 1, 2, 3} and len(kept) + len(held) == 36
    # The eight shares of 0.5 of eight single images round up to four: none may be taken.
    assert len(stratified_holdout(np.arange(8), 0.5, seed=0)[1]) == 0


def test_classes_without_a_held_out_image_are_told(tmp_path):
    make_tree(tmp_path, {"a": 20, "b": 1, "c": 2})
    read, notes = found(tmp_path, 0.1)
    assert notes == ["holdout=0.1: 2 of 3 classes have no held-out image: b, c"]
    assert {label for _, label in read["train"]} == {"a", "b", "c"}
    labels = np.array([0, 0, 1, 2, 3, 4, -1])
    held = np.array([0])
    assert not_held_out(labels, held) == "4 of 5 classes have no held-out image: 1, 2, 3 ..."
    assert not_held_out(labels, np.arange(6)) is None


# The same images on both sides


def test_images_of_train_in_test_are_told(tmp_path, capsys, monkeypatch):
    s = tmp_path / "s"
    make_tree(s / "train", {"a": 6, "b": 6})
    made = make_tree(s / "test", {"a": 3, "b": 1}, size=(50, 50))
    for name, other in (("a/001", "b/004"), ("b/000", "a/000")):
        (s / "test" / f"{name}.JPEG").write_bytes((s / "train" / f"{other}.JPEG").read_bytes())
    size = 3 * len(made[0])
    finish = shards.Unfinished.finish
    for _ in range(2):  # the second run resumes from what the first has written
        with monkeypatch.context() as patch:
            patch.setattr(shards.Unfinished, "finish", lambda *_: (_ for _ in ()).throw(OSError()))
            message_of(lambda: prepare.prepare("birds", s, tmp_path / "d", shard_bytes=size))
    assert shards.Unfinished.finish is finish
    capsys.readouterr()
    folder = prepare.prepare("birds", s, tmp_path / "d", shard_bytes=size)
    out = capsys.readouterr().out
    assert "train: done before, 12 images" in out
    assert (
        "note: 2 of 4 images of test are images of the training part too, byte by byte; the first "
        "is number 1\n"
    ) in out
    assert not list(folder.glob("*.digests"))


def test_arrays_in_both_parts_are_told(tmp_path, capsys):
    images = make_idx(tmp_path)
    test = tmp_path / "t10k-images-idx3-ubyte"
    content = test.read_bytes()
    test.write_bytes(content[:-784] + images[7].tobytes())
    prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert "note: 1 of 10 images of test are images of the training" in capsys.readouterr().out


def test_work_without_digests_begins_anew(tmp_path, monkeypatch, capsys):
    make_idx(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shards.Unfinished, "finish", lambda *_: (_ for _ in ()).throw(OSError()))
        message_of(lambda: prepare.prepare("my_digits", tmp_path, tmp_path / "d"))
    (tmp_path / "d" / "my_digits" / "incomplete.1.0.0" / "train.00000.digests").unlink()
    capsys.readouterr()
    prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    out = capsys.readouterr().out
    assert "test: done before" in out and "train: done before" not in out


def test_junk_beside_idx_files_and_in_tars(tmp_path):
    images = make_idx(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"._{path.name}").write_bytes(b"junk")
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert folder.is_dir() and len(images) == 40
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "._train-images-idx3-ubyte").write_bytes(b"junk")
    assert not readers.has_idx(tmp_path / "only")
    (tmp_path / "tars").mkdir()
    made = make_imagenet_tars(tmp_path / "tars")
    train, val = (tmp_path / "tars" / f"ILSVRC2012_img_{part}.tar" for part in ("train", "val"))
    with tarfile.open(train, "a") as tar:
        add(tar, "._n01440764.tar", b"junk")
    with tarfile.open(val, "a") as tar:
        add(tar, "__MACOSX/._ILSVRC2012_val_00000001.JPEG", b"junk")
    found = image_files.imagenet(tmp_path / "tars")
    assert len(list(found.splits["train"]())) == len(made)
    assert len(list(found.splits["validation"]())) == 3


def test_idx_files_that_lack_a_class_are_refused_before_anything_is_written(tmp_path):
    make_idx(tmp_path, 8, 2)
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx_bytes(np.array([0, 1, 3, 0, 1, 3, 0, 1], np.uint8)))
    line = refused(tmp_path, tmp_path)
    assert "1 of 4 classes have no training image (first: '2'); number the labels from 0" in line


def test_unfinished_work_follows_no_links(tmp_path):
    """Links that lie in the folder are replaced; nothing is written through them."""
    make_idx(tmp_path)
    left = tmp_path / "d" / "my_digits" / "incomplete.1.0.0"
    left.mkdir(parents=True)
    kept = tmp_path / "kept"
    kept.write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.Unfinished, "clear", lambda self: None)
        patch.setattr(shards.Unfinished, "restart", _without_deleting)
        for name in ("progress.new", "progress.json", "train.00000.digests", "train.00000"):
            (left / name).symlink_to(kept)
        prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert kept.read_text() == "mine"


def _without_deleting(self, split):
    self.splits[split] = shards.SplitState(per_class=[0] * self.num_classes)
    return self.splits[split]
