"""`python -m jaxsplit.data.prepare`: small sources of every format, damaged sources, resuming."""

import gzip
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from configs import common
from jaxsplit import data
from jaxsplit.cli import prepare as prepare_verb
from jaxsplit.data import prepare, stream
from jaxsplit.data.prepare import progress, readers, shards
from jaxsplit.errors import ConfigError
from tests.support.paths import ROOT
from tests.support.sources import (
    WNIDS,
    add,
    idx_bytes,
    make_cifar10,
    make_cifar100,
    make_devkit,
    make_idx,
    make_imagenet_tars,
    make_svhn,
    make_tree,
)
from tests.support.tfds import encode, picture


def contents(folder: pathlib.Path) -> dict[str, list[tuple[bytes, int]]]:
    """{split: [(encoded image, label), ...]} as tensorflow_datasets reads it."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        split: [(e["image"], int(e["label"])) for e in builder.as_data_source(split, decoders=skip)]
        for split in builder.info.splits
    }


def info(folder: pathlib.Path):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).info


def pixels(encoded: bytes, channels: int = 3) -> np.ndarray:
    return stream.decode(encoded, channels)


def run(*args: object, capsys=None) -> tuple[int, str, str]:
    """(status, standard output, standard error) of the command line."""
    status = prepare_verb.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return status, out, err


# Formats


def test_cifar10_from_the_tarball(tmp_path, capsys):
    images, labels = make_cifar10(tmp_path)
    status, out, _ = run(
        "cifar10", "--source", tmp_path, "--data_dir", tmp_path / "d", "--partial", capsys=capsys
    )
    folder = tmp_path / "d" / "cifar10" / "3.0.2"
    assert status == 0
    assert f"prepared {folder}: train 20, test 4 images, 10 classes, 32x32x3" in out
    found = contents(folder)
    assert list(found) == ["train", "test"]
    both = found["train"] + found["test"]
    np.testing.assert_array_equal([pixels(image) for image, _ in both], images)
    assert [label for _, label in both] == labels
    features = info(folder).features
    assert features["image"].shape == (32, 32, 3)
    assert features["label"].names == [f"class {i}" for i in range(10)]
    assert [path.name for path in folder.parent.iterdir()] == ["3.0.2"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "cifar10-test.array_record-00000-of-00001",
        "cifar10-train.array_record-00000-of-00001",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
    ]


def test_load_reads_what_was_prepared(tmp_path):
    images, labels = make_cifar10(tmp_path)
    prepare.prepare("cifar10", tmp_path, tmp_path / "d", incomplete="accept")
    config = common.get_config().data
    config.name, config.dir = "cifar10", str(tmp_path / "d")
    dataset = data.load(config)
    np.testing.assert_array_equal(dataset.train.images, images[:20])
    np.testing.assert_array_equal(dataset.test.labels, labels[20:])


@pytest.mark.parametrize("inside", [False, True])
def test_cifar100_from_the_folder(tmp_path, inside):
    images, labels = make_cifar100(tmp_path)
    source = tmp_path / "cifar-100-python" if inside else tmp_path
    folder = prepare.prepare("cifar100", source, tmp_path / "d", incomplete="accept")
    found = contents(folder)
    assert [label for _, label in found["train"]] == labels[:100]
    np.testing.assert_array_equal(pixels(found["test"][7][0]), images[107])
    assert len(info(folder).features["label"].names) == 100


def test_svhn(tmp_path):
    made = make_svhn(tmp_path)
    folder = prepare.prepare("svhn_cropped", tmp_path, tmp_path / "d", incomplete="accept")
    found = contents(folder)
    assert {split: len(part) for split, part in found.items()} == dict(train=12, test=12, extra=12)
    for split, images in made.items():
        assert [label for _, label in found[split]] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        np.testing.assert_array_equal(pixels(found[split][5][0]), images[..., 5])


def test_svhn_without_extra_is_partial(tmp_path):
    make_svhn(tmp_path, ("train", "test"))
    with pytest.raises(ConfigError, match="nothing for the split extra .* --partial"):
        prepare.prepare("svhn_cropped", tmp_path, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    folder = prepare.prepare("svhn_cropped", tmp_path, tmp_path / "d", incomplete="accept")
    assert list(contents(folder)) == ["train", "test"]


def test_idx(tmp_path):
    images = make_idx(tmp_path)
    folder = prepare.prepare("fashion_mnist", tmp_path, tmp_path / "d", incomplete="accept")
    found = contents(folder)
    both = found["train"] + found["test"]
    np.testing.assert_array_equal([pixels(image, 1)[..., 0] for image, _ in both], images)
    assert [label for _, label in found["train"]] == [i % 10 for i in range(30)]
    features = info(folder).features
    assert features["image"].shape == (28, 28, 1)
    assert features["label"].names[0] == "T-shirt/top" and len(features["label"].names) == 10


def test_idx_of_any_name_counts_its_classes(tmp_path):
    make_idx(tmp_path)
    colour = np.random.default_rng(2).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    (tmp_path / "train-images-idx4-ubyte").write_bytes(idx_bytes(colour))
    (tmp_path / "train-images-idx4-ubyte.gz").write_bytes(b"not read: there is a plain one")
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    found = contents(folder)
    np.testing.assert_array_equal([pixels(image) for image, _ in found["train"]], colour)
    assert folder.name == "1.0.0"
    assert info(folder).features["label"].names == list("0123456789")
    assert info(folder).features["image"].shape == (None, None, 3)  # the test images are 28x28


def test_image_folder_keeps_the_bytes(tmp_path):
    train = make_tree(tmp_path / "train", {"owl": 3, "gull": 2, "wren": 2})
    test = make_tree(tmp_path / "val", {"owl": 1, "wren": 1})
    (tmp_path / "train" / "owl" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "owl" / ".hidden.jpg").write_text("no image")
    folder = prepare.prepare("birds", tmp_path, tmp_path / "d")
    found = contents(folder)
    labels = [0, 0, 1, 1, 1, 2, 2]
    assert found["train"] == list(zip(train, labels, strict=True))
    assert found["validation"] == list(zip(test, [1, 2], strict=True))
    assert info(folder).features["label"].names == ["gull", "owl", "wren"]
    assert info(folder).features["image"].shape == (48, 64, 3)


def test_files_that_are_no_images_are_told(tmp_path, capsys):
    make_tree(tmp_path / "train", {"a": 1, "b": 1})
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    prepare.prepare("birds", tmp_path, tmp_path / "d")
    note = f"note: 1 files in {tmp_path / 'train'} left out, not named as images: "
    assert f"{note}{tmp_path / 'train' / 'a' / 'notes.txt'}" in capsys.readouterr().out


def test_one_level_and_holdout(tmp_path):
    made = make_tree(tmp_path / "s", {"a": 20, "b": 10}, form="PNG")
    with pytest.raises(ConfigError, match="no folder test or val .* --holdout=0.1"):
        prepare.prepare("birds", tmp_path / "s", tmp_path / "d")
    folder = prepare.prepare("birds", tmp_path / "s", tmp_path / "d", holdout=0.1)
    found = contents(folder)
    assert sorted(label for _, label in found["test"]) == [0, 0, 1]
    assert sorted(found["train"] + found["test"]) == sorted(
        zip(made, [0] * 20 + [1] * 10, strict=True)
    )


def test_gray_images_of_different_sizes(tmp_path):
    for i, split in enumerate(("train", "test")):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            gray = encode(picture(i, 20 + i, 30, 3), "PNG", "L")
            (tmp_path / split / name / "x.png").write_bytes(gray)
    folder = prepare.prepare("letters", tmp_path, tmp_path / "d", check="header")
    assert info(folder).features["image"].shape == (None, None, 1)


def test_imagenet_tars_with_the_list_of_tfds(tmp_path):
    made = make_imagenet_tars(tmp_path)
    folder = prepare.prepare("imagenet2012", tmp_path, tmp_path / "d", incomplete="accept")
    found = contents(folder)
    assert found["train"] == made
    # The first three lines of the published list of validation wnids, the second of them first.
    names = info(folder).features["label"].names
    assert [names[label] for _, label in found["validation"]] == [
        "n09193705",
        "n01751748",
        "n02105855",
    ]
    assert len(names) == 1000 and names == sorted(names)
    assert found["validation"][0][0] == encode(picture(2, 30, 50), "JPEG")


@pytest.mark.parametrize("packed", [False, True])
def test_imagenet_labels_of_the_development_kit(tmp_path, packed):
    make_imagenet_tars(tmp_path)
    if packed:
        with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
            for name, content in make_devkit().items():
                add(tar, f"ILSVRC2012_devkit_t12/data/{name}", content)
    else:
        kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
        kit.mkdir(parents=True)
        for name, content in make_devkit().items():
            (kit / name).write_bytes(content)
    found = contents(prepare.prepare("imagenet2012", tmp_path, tmp_path / "d", incomplete="accept"))
    assert [label for _, label in found["validation"]] == [999, 0, 1]  # images 2, 1, 3


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_trees(tmp_path, flat):
    train = make_tree(tmp_path / "train", dict.fromkeys(WNIDS, 2))
    if flat:
        (tmp_path / "val").mkdir()
        val = [encode(picture(i, 30, 50), "JPEG") for i in range(3)]
        for i, content in enumerate(val):
            (tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08}.JPEG").write_bytes(content)
        for name, content in make_devkit().items():
            (tmp_path / name).write_bytes(content)
        labels = [0, 999, 1]
    else:
        val, labels = make_tree(tmp_path / "val", dict.fromkeys(WNIDS, 1)), [0, 1, 999]
    found = contents(prepare.prepare("imagenet2012", tmp_path, tmp_path / "d", incomplete="accept"))
    assert found["train"] == list(zip(train, [0, 0, 1, 1, 999, 999], strict=True))
    assert found["validation"] == list(zip(val, labels, strict=True))


# Resuming


def test_an_interrupted_run_resumes(tmp_path, monkeypatch, capsys):
    """A run interrupted within the second shard gives the same result as an undisturbed one."""
    make_tree(tmp_path / "s" / "train", {"a": 12, "b": 12})
    make_tree(tmp_path / "s" / "test", {"a": 2, "b": 2})
    size = 5 * (tmp_path / "s" / "train" / "a" / "000.JPEG").stat().st_size
    kwargs = dict(shard_bytes=size)
    whole = prepare.prepare("birds", tmp_path / "s", tmp_path / "whole", **kwargs)
    seen = []
    encoded = prepare.encode_image

    def break_off(where, image, check):
        seen.append(where)
        if where.endswith("b/001.JPEG") and "train" in where:
            raise KeyboardInterrupt
        return encoded(where, image, check)

    monkeypatch.setattr(prepare, "encode_image", break_off)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("birds", tmp_path / "s", tmp_path / "d", **kwargs)
    root = tmp_path / "d" / "birds"
    assert [path.name for path in root.iterdir()] == ["incomplete.1.0.0"]
    config = common.get_config().data
    config.name, config.dir = "birds", str(tmp_path / "d")
    with pytest.raises(ConfigError):
        data.load(config)
    state = json.loads((root / "incomplete.1.0.0" / "progress.json").read_text())["splits"]["train"]
    done = state["consumed"]
    assert 5 <= done <= 13 and len(state["shards"]) >= 1 and not state["done"]

    again = []
    monkeypatch.setattr(
        prepare, "encode_image", lambda where, *rest: again.append(where) or encoded(where, *rest)
    )
    capsys.readouterr()
    folder = prepare.prepare("birds", tmp_path / "s", tmp_path / "d", **kwargs)
    assert f"train: resumes after {done} images" in capsys.readouterr().out
    assert len(again) == 24 - done + 4
    assert contents(folder) == contents(whole)
    assert [path.name for path in root.iterdir()] == ["1.0.0"]
    for path in whole.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_killed_run_goes_on_in_the_next_split(tmp_path, capsys):
    make_idx(tmp_path)
    script = (
        "import sys, os; sys.path.insert(0, sys.argv[1])\n"
        "from jaxsplit.data import prepare\n"
        "from jaxsplit.data.prepare import shards\n"
        "write = shards.Unfinished.write\n"
        "def only_train(self, split, *args):\n"
        "    if split == 'test':\n"
        "        (self.folder / 'test.00000').write_bytes(b'half a shard')\n"
        "        os._exit(9)\n"
        "    write(self, split, *args)\n"
        "shards.Unfinished.write = only_train\n"
        "prepare.prepare('my_digits', sys.argv[2], sys.argv[3])\n"
    )
    command = [sys.executable, "-c", script, str(ROOT), str(tmp_path), str(tmp_path / "d")]
    assert subprocess.run(command, check=False).returncode == 9
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert "train: done before, 30 images" in capsys.readouterr().out
    assert {split: len(part) for split, part in contents(folder).items()} == dict(train=30, test=10)


@pytest.mark.parametrize("how", ["source", "shard", "progress"])
def test_what_no_longer_fits_is_made_anew(tmp_path, how, monkeypatch):
    make_idx(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shards.Unfinished, "finish", lambda *_: (_ for _ in ()).throw(OSError("x")))
        with pytest.raises(ConfigError, match="cannot be written"):
            prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    left = tmp_path / "d" / "my_digits" / "incomplete.1.0.0"
    if how == "source":
        make_idx(tmp_path, 50, 20)
    elif how == "shard":
        (left / "train.00000").write_bytes(b"short")
    else:
        (left / "progress.json").write_text("{")
    found = contents(prepare.prepare("my_digits", tmp_path, tmp_path / "d"))
    sizes = {split: len(part) for split, part in found.items()}
    assert sizes == (dict(train=50, test=20) if how == "source" else dict(train=30, test=10))


def test_broken_off_between_renaming_and_the_end(tmp_path, monkeypatch, capsys):
    make_idx(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            shards, "_write_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert len(contents(prepare.prepare("my_digits", tmp_path, tmp_path / "d"))["train"]) == 30
    assert "train: done before, 30 images" in capsys.readouterr().out


def test_files_of_a_split_that_is_begun_anew_are_deleted(tmp_path, monkeypatch):
    make_idx(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            shards, "_write_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        patch.setattr(shards, "SHARD_RECORDS", 8)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    left = tmp_path / "d" / "my_digits" / "incomplete.1.0.0"
    cut(left / "my_digits-train.array_record-00001-of-00004")
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert sorted(path.name for path in folder.glob("*train*")) == [
        "my_digits-train.array_record-00000-of-00001"
    ]
    assert len(contents(folder)["train"]) == 30


def test_a_run_with_partial_does_not_count_without_it(tmp_path, monkeypatch, capsys):
    made = make_tree(tmp_path / "train", {"a": 2, "b": 2})
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    cut(tmp_path / "train" / "a" / "000.JPEG")
    with monkeypatch.context() as patch:
        patch.setattr(shards.Unfinished, "finish", lambda *_: (_ for _ in ()).throw(OSError("x")))
        with pytest.raises(ConfigError, match="cannot be written"):
            prepare.prepare("birds", tmp_path, tmp_path / "d", incomplete="accept")
    with pytest.raises(ConfigError, match="a/000.JPEG: broken image"):
        prepare.prepare("birds", tmp_path, tmp_path / "d")
    (tmp_path / "train" / "a" / "000.JPEG").write_bytes(made[0])  # mended
    capsys.readouterr()
    found = contents(prepare.prepare("birds", tmp_path, tmp_path / "d"))
    assert [image for image, _ in found["train"]] == made


def broken_off(monkeypatch, *args, **kwargs):
    """Runs `prepare` and stops it before its last step."""
    with monkeypatch.context() as patch:
        patch.setattr(shards.Unfinished, "finish", lambda *_: (_ for _ in ()).throw(OSError("x")))
        with pytest.raises(ConfigError, match="cannot be written"):
            prepare.prepare(*args, **kwargs)


@pytest.mark.parametrize("flat", [False, True])
def test_an_image_that_was_mended_is_taken(tmp_path, monkeypatch, capsys, flat):
    """Names stay the same; size and modification time show the change."""
    if flat:
        make_tree(tmp_path / "train", dict.fromkeys(WNIDS, 2))
        (tmp_path / "val").mkdir()
        made = [encode(picture(i, 30, 50), "JPEG") for i in range(3)]
        for i, content in enumerate(made):
            (tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08}.JPEG").write_bytes(content)
        broken, split = tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", "validation"
        args = ("imagenet2012", tmp_path, tmp_path / "d")
    else:
        made = make_tree(tmp_path / "train", {"a": 2, "b": 2})
        make_tree(tmp_path / "test", {"a": 1, "b": 1})
        broken, split = tmp_path / "train" / "a" / "000.JPEG", "train"
        args = ("birds", tmp_path, tmp_path / "d")
    broken.write_bytes(bytes(len(made[0])))  # as long as the right one
    os.utime(broken, ns=(0, 0))
    broken_off(monkeypatch, *args, incomplete="accept")
    broken.write_bytes(made[0])
    capsys.readouterr()
    found = contents(prepare.prepare(*args, incomplete="accept"))
    assert [image for image, _ in found[split]] == made
    assert "resumes after" not in capsys.readouterr().out


def test_a_full_check_does_not_resume_a_check_of_headers(tmp_path, monkeypatch):
    made = make_tree(tmp_path / "train", {"a": 1, "b": 1}, size=(200, 300))
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    path = tmp_path / "train" / "b" / "000.JPEG"
    path.write_bytes(made[1][:2] + b"\xff\xfe\x00\x04\xff\xd9" + made[1][2 : len(made[1]) // 2])
    broken_off(monkeypatch, "birds", tmp_path, tmp_path / "d", check="header")
    with pytest.raises(ConfigError, match="broken image"):
        prepare.prepare("birds", tmp_path, tmp_path / "d")


def test_shards_have_a_largest_number_of_records(tmp_path, monkeypatch):
    images = make_idx(tmp_path)
    monkeypatch.setattr(shards, "SHARD_RECORDS", 8)
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    assert info(folder).splits["train"].shard_lengths == [8, 8, 8, 6]
    found = contents(folder)
    both = found["train"] + found["test"]
    np.testing.assert_array_equal([pixels(image, 1)[..., 0] for image, _ in both], images)


def test_interrupted_by_the_user(tmp_path, monkeypatch, capsys):
    make_idx(tmp_path)
    monkeypatch.setattr(
        prepare, "encode_image", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    status, _, err = run(
        "my_digits", "--source", tmp_path, "--data_dir", tmp_path / "d", capsys=capsys
    )
    assert status == 130 and err.startswith("interrupted; the same command resumes")


def test_two_runs_at_once(tmp_path):
    make_idx(tmp_path)
    final = tmp_path / "d" / "my_digits" / "1.0.0"
    with shards.Unfinished(final, [], 10):
        with pytest.raises(ConfigError, match="another run is writing"):
            prepare.prepare("my_digits", tmp_path, tmp_path / "d")


def test_a_set_that_is_there_stays(tmp_path, capsys):
    make_idx(tmp_path)
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, out, _ = run(
        "my_digits", "--source=nowhere", "--data_dir", tmp_path / "d", capsys=capsys
    )
    assert status == 0 and f"already there: {folder}; nothing is read from " in out
    assert out.splitlines()[-1] == (
        f"next: jaxsplit train --config=folder:name=my_digits --config.data.dir={tmp_path / 'd'} "
        "--workdir=runs/my_digits"
    )
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_file_format_is_there(tmp_path):
    make_idx(tmp_path)
    folder = prepare.prepare("my_digits", tmp_path, tmp_path / "d")
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ConfigError, match="has file format 'tfrecord'"):
        prepare.prepare("my_digits", tmp_path, tmp_path / "d")


# Bad input


def cut(path: pathlib.Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", ("cifar-10-python.tar.gz", "cifar-10-batches-py")),
        ("cifar100", ("cifar-100-python.tar.gz", "cifar-100-python")),
        ("svhn_cropped", ("train_32x32.mat", "extra_32x32.mat")),
        ("imagenet2012", ("ILSVRC2012_img_train.tar", "train/<wnid>", "ILSVRC2012_img_val.tar")),
        ("mnist", ("train-images-idx3-ubyte",)),
        ("birds", ("<class>", ".jpg")),
    ],
)
def test_a_wrong_source_names_what_is_looked_for(tmp_path, capsys, name, words):
    status, _, err = run(
        name, "--source", tmp_path, "--data_dir", tmp_path / "d", "--partial", capsys=capsys
    )
    assert status == 2 and err.startswith(f"error: source={tmp_path}: ")
    assert "looked for" in err and err.count("\n") == 1
    assert all(word in err for word in words)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits",), "name='digits': is built in"),
        (("My Set",), "name='My Set': must be lower-case"),
        (("birds", "--holdout=1.5"), "holdout=1.5: must be in [0, 1)"),
        (("cifar10", "--holdout=0.1"), "holdout=0.1: must be left out"),
        (("birds", "--check=some"), "check='some': must be one of full, header"),
        (("birds", "--source=nowhere"), "source=nowhere: no such file or folder"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, args, message):
    given = ("--source", tmp_path, *args, "--data_dir", tmp_path / "d")
    status, _, err = run(*given, capsys=capsys)
    assert (status, err.count("\n")) == (2, 1) and message in err


def test_numbers_of_a_known_set(tmp_path, monkeypatch):
    """Numbers known in advance stop it at once, the others before the set is final."""
    make_idx(tmp_path)
    with pytest.raises(ConfigError, match="30 train images of mnist, must be 60,000"):
        prepare.prepare("mnist", tmp_path, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    make_cifar10(tmp_path)
    with pytest.raises(ConfigError, match="20 train images of cifar10, must be 50,000; .*partial"):
        prepare.prepare("cifar10", tmp_path, tmp_path / "d")
    assert not (tmp_path / "d" / "cifar10" / "3.0.2").exists()
    assert (
        len(contents(prepare.prepare("cifar10", tmp_path, tmp_path / "d", incomplete="accept")))
        == 2
    )


def test_known_numbers_are_those_of_the_papers():
    assert {name: known.counts for name, known in prepare.KNOWN.items()} == {
        "cifar10": {"train": 50000, "test": 10000},
        "cifar100": {"train": 50000, "test": 10000},
        "svhn_cropped": {"train": 73257, "test": 26032, "extra": 531131},
        "mnist": {"train": 60000, "test": 10000},
        "fashion_mnist": {"train": 60000, "test": 10000},
        "imagenet2012": {"train": 1281167, "validation": 50000},
    }


def test_labels_of_a_wrong_number(tmp_path):
    make_idx(tmp_path)
    labels = np.full(30, 10, np.uint8)
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx_bytes(labels))
    message = "train-images-idx3-ubyte.gz, image 0: label 10, must be in 0..9"
    with pytest.raises(ConfigError, match=message):
        prepare.prepare("mnist", tmp_path, tmp_path / "d", incomplete="accept")
    with pytest.raises(ConfigError, match="10 of 11 classes have no training image"):
        prepare.prepare("my_digits", tmp_path, tmp_path / "d")


@pytest.mark.parametrize("check", ["full", "header"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_cut_image_is_named(tmp_path, capsys, check, form):
    made = make_tree(tmp_path / "train", {"a": 3, "b": 3}, form=form)
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    broken = sorted((tmp_path / "train" / "b").iterdir())[1]
    cut(broken)
    args = ("birds", "--source", tmp_path, "--data_dir", tmp_path / "d", f"--check={check}")
    status, _, err = run(*args, capsys=capsys)
    assert status == 2 and f"source: {broken}: broken image" in err
    assert not (tmp_path / "d" / "birds" / "1.0.0").exists()
    status, out, err = run(*args, "--partial", capsys=capsys)
    assert status == 0 and f"left out: source: {broken}" in err
    assert "train: 1 broken images left out" in out
    found = contents(tmp_path / "d" / "birds" / "1.0.0")
    assert [image for image, _ in found["train"]] == made[:4] + made[5:]


def test_only_the_full_check_sees_what_lies_behind_an_end_marker(tmp_path):
    made = make_tree(tmp_path / "train", {"a": 1, "b": 1}, size=(200, 300))
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    path = tmp_path / "train" / "b" / "000.JPEG"
    # Cut in half, but with an end marker, as a thumbnail has one, in a comment before the image.
    path.write_bytes(made[1][:2] + b"\xff\xfe\x00\x04\xff\xd9" + made[1][2 : len(made[1]) // 2])
    with pytest.raises(ConfigError, match="broken image"):
        prepare.prepare("birds", tmp_path, tmp_path / "d")
    prepare.prepare("birds", tmp_path, tmp_path / "d", check="header")


def test_a_file_that_is_no_image(tmp_path):
    make_tree(tmp_path / "train", {"a": 1, "b": 1})
    make_tree(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train" / "a" / "z.jpg").write_text("hello")
    with pytest.raises(ConfigError, match=r"a/z.jpg: broken image \(ValueError: no known image"):
        prepare.prepare("birds", tmp_path, tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "make", "file"),
    [
        ("cifar10", make_cifar10, "cifar-10-python.tar.gz"),
        ("cifar100", make_cifar100, "cifar-100-python/train"),
        ("svhn_cropped", make_svhn, "train_32x32.mat"),
        ("mnist", make_idx, "train-images-idx3-ubyte.gz"),
        ("mnist", make_idx, "t10k-images-idx3-ubyte"),
        ("mnist", make_idx, "t10k-labels-idx1-ubyte"),
        ("imagenet2012", make_imagenet_tars, "ILSVRC2012_img_train.tar"),
        ("imagenet2012", make_imagenet_tars, "ILSVRC2012_img_val.tar"),
    ],
)
def test_a_cut_archive_is_named(tmp_path, name, make, file):
    make(tmp_path)
    cut(tmp_path / file, 0.3)
    with pytest.raises(ConfigError) as caught:
        prepare.prepare(name, tmp_path, tmp_path / "d", incomplete="accept")
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "d").rglob("dataset_info.json")]


def test_a_missing_batch_is_named(tmp_path):
    make_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "test").unlink()
    with pytest.raises(ConfigError, match="cifar-100-python has no test"):
        prepare.prepare("cifar100", tmp_path, tmp_path / "d", incomplete="accept")


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": _Evil(), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072), object), "labels": [0]}, protocol=2),
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8)})[:-20],
        b"\x80\x02cnumpy\nload\n(S'x'\ntR.",
    ],
    ids=["call", "float", "object", "list", "cut", "numpy.load"],
)
def test_pickles_hold_arrays_and_text_only(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        readers.unpickle(content)
    assert not (tmp_path / "evil").exists()


def test_unpickled_arrays_are_equal(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for value in (array, np.asfortranarray(array)):
        np.testing.assert_array_equal(
            readers.unpickle(pickle.dumps({"a": value}, protocol=2))["a"], array
        )


@pytest.mark.parametrize("member", ["n00000000.tar", "../n01440764.txt"])
def test_a_strange_member_of_the_training_tar(tmp_path, member):
    make_imagenet_tars(tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "a") as tar:
        add(tar, member, b"x")
    with pytest.raises(ConfigError, match=f"ILSVRC2012_img_train.tar.*{member}"):
        prepare.prepare("imagenet2012", tmp_path, tmp_path / "d", incomplete="accept")


def test_a_validation_image_without_a_label(tmp_path):
    make_imagenet_tars(tmp_path)
    for name, content in make_devkit().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    with pytest.raises(ConfigError, match="ILSVRC2012_val_00000003.JPEG: no label"):
        prepare.prepare("imagenet2012", tmp_path, tmp_path / "d", incomplete="accept")


def test_a_class_that_only_the_test_part_has(tmp_path):
    make_tree(tmp_path / "train", {"a": 1, "b": 1})
    make_tree(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(ConfigError, match="test has the class 'c'"):
        prepare.prepare("birds", tmp_path, tmp_path / "d")


def test_a_folder_that_cannot_be_written(tmp_path):
    make_idx(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare.prepare("my_digits", tmp_path, tmp_path / "file")


# The program


def test_command_without_tensorflow(tmp_path):
    """In a fresh process: no TensorFlow, plain lines, status 0 and 2."""
    make_idx(tmp_path)
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('jaxsplit.data.prepare', run_name='__main__')\n"
        "finally:\n"
        "    assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, "mnist", f"--source={tmp_path}"]
    command += [f"--data_dir={tmp_path / 'd'}"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: source="), wrong.stderr
    right = subprocess.run(
        [*command, "--partial"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert right.returncode == 0 and "train 30, test 10 images" in right.stdout, right.stderr


def test_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    shown = progress.Progress("train", 4000, 1000)
    assert list(shown.of(range(2))) == [0, 1]
    assert capsys.readouterr().out.startswith("train: 1,001 of 4,000 images, ")
