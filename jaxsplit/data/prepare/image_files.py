"""Reads ImageNet 2012 from its tar files or from folders of images."""

import dataclasses
import hashlib
import io
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from jaxsplit.data.prepare.class_trees import Tree, list_trees, subfolders
from jaxsplit.data.prepare.junk import is_junk
from jaxsplit.data.prepare.readers import (
    Example,
    Found,
    extracted,
    file_stamp,
    not_found,
    reading,
)
from jaxsplit.errors import ConfigError

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LOOKED_FOR = (
    f"{_TRAIN_TAR} or train/<wnid>/*.JPEG, and {_VAL_TAR} or val/<wnid>/*.JPEG or "
    "val/ILSVRC2012_val_*.JPEG"
)


def imagenet(source: pathlib.Path) -> Found:
    """Reads ImageNet 2012; train and val are each a tar file or a folder.

    A label is the position of a wnid among the sorted wnids, as is customary. If validation images
    do not lie in wnid folders, their labels come from the development kit if the source has it (its
    folder, its tar.gz, or its two files), otherwise from a list in tensorflow_datasets.
    """
    names = tuple(_tfds_list("labels.txt"))
    train, val = source / "train", source / "val"
    splits, totals, stamp = {}, {}, []
    trees: dict[str, Tree] = {}
    if (source / _TRAIN_TAR).is_file():
        label_of = {name: label for label, name in enumerate(names)}
        splits["train"] = lambda: _train_tar(source / _TRAIN_TAR, label_of)
        stamp.append(file_stamp(source / _TRAIN_TAR))
    elif train.is_dir() and subfolders(train):
        trees["train"] = Tree(train)
    else:
        raise not_found(source, _LOOKED_FOR)
    if (source / _VAL_TAR).is_file():
        labels = _validation_labels(source, names)
        splits["validation"] = lambda: _val_tar(source / _VAL_TAR, labels)
        stamp += [file_stamp(source / _VAL_TAR), hashlib.sha256(repr(labels).encode()).hexdigest()]
    elif val.is_dir():
        trees["validation"] = Tree(val) if subfolders(val) else Tree(val, [""])
    else:
        raise not_found(source, _LOOKED_FOR)
    notes = list_trees(source, list(trees.values()))
    for split, tree in trees.items():
        if not len(tree):
            raise not_found(source, f"{_LOOKED_FOR} (no images in {tree.folder})")
        if tree.folders == [""]:
            labels = _validation_labels(source, names)
            stamp.append(hashlib.sha256(repr(labels).encode()).hexdigest())
            splits[split] = lambda tree=tree, labels=labels: (
                dataclasses.replace(e, label=_label(pathlib.PurePath(e.where), labels))
                for e in tree.examples({"": 0})
            )
        else:
            label_of = tree.label_of(names)
            splits[split] = lambda tree=tree, label_of=label_of: tree.examples(label_of)
        totals[split] = len(tree)
        stamp.append(tree.stamp)
    ordered = {split: splits[split] for split in ("train", "validation")}
    return Found(ordered, names, totals, stamp, tuple(notes))


def _train_tar(path: pathlib.Path, label_of: dict[str, int]) -> Iterator[Example]:
    """Yields the images of a tar of tars, one for each class; unpacks nothing to the disk."""
    with reading(path), tarfile.open(path, "r:") as outer:
        for member in outer:
            if not _is_file(member):
                continue
            wnid = pathlib.PurePosixPath(member.name).stem
            if wnid not in label_of or not member.name.endswith(".tar"):
                raise ValueError(f"holds {member.name!r}, must hold <wnid>.tar only")
            with (
                reading(f"{path}: {member.name}"),
                tarfile.open(fileobj=extracted(outer, member), mode="r:") as inner,
            ):
                for image in inner:
                    if _is_file(image):
                        where = f"{path}: {member.name}: {image.name}"
                        yield Example(where, label_of[wnid], _member(inner, image))


def _val_tar(path: pathlib.Path, labels: list[int]) -> Iterator[Example]:
    with reading(path), tarfile.open(path, "r:") as tar:
        for image in tar:
            if _is_file(image):
                where = f"{path}: {image.name}"
                label = _label(pathlib.PurePosixPath(image.name), labels)
                yield Example(where, label, _member(tar, image))


def _is_file(info: tarfile.TarInfo) -> bool:
    return info.isfile() and not is_junk(pathlib.PurePosixPath(info.name).name)


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        data = extracted(tar, info).read()
        if len(data) != info.size:
            raise EOFError("ends too early")
        return data

    return read


def _label(path: pathlib.PurePath, labels: list[int]) -> int:
    """The label of a validation image, from the number in its name."""
    match = _VAL_NAME.fullmatch(path.name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(labels):
        raise ConfigError(
            f"source: {path}: no label; must be ILSVRC2012_val_<number>.JPEG with a number in "
            f"1..{len(labels)}"
        )
    return labels[number - 1]


def _tfds_list(name: str) -> list[str]:
    """The lines of a file about ImageNet in tensorflow_datasets."""
    import tensorflow_datasets as tfds

    path = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012" / name
    with reading(path):
        return path.read_text().split()


def _validation_labels(source: pathlib.Path, names: tuple[str, ...]) -> list[int]:
    """The labels of validation images 1, 2, ..."""
    kit = source / f"{_DEVKIT}.tar.gz"
    for folder in (source, source / "data", source / _DEVKIT / "data"):
        if (folder / _TRUTH).is_file():
            truth, meta = folder / _TRUTH, folder / "meta.mat"
            if not meta.is_file():
                raise ConfigError(f"source: {truth} needs the meta.mat of {_DEVKIT} beside it")
            with reading(truth):
                return _devkit_labels(truth.read_text(), _wnids(meta), names)
    if kit.is_file():
        with reading(kit), tarfile.open(kit) as tar:
            files = {}
            for info in tar:
                name = pathlib.PurePosixPath(info.name).name
                if info.isfile() and name in (_TRUTH, "meta.mat"):
                    files[name] = extracted(tar, info).read()
            if len(files) != 2:
                raise ValueError(f"holds no {_TRUTH} or no meta.mat")
            wnids = _wnids(io.BytesIO(files["meta.mat"]))
            return _devkit_labels(files[_TRUTH].decode(), wnids, names)
    label_of = {name: label for label, name in enumerate(names)}
    return [label_of[wnid] for wnid in _tfds_list("validation_labels.txt")]


def _wnids(meta: pathlib.Path | IO[bytes]) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid, from the development kit's meta.mat (a path or an open file)."""
    from scipy.io import loadmat  # comes with jax

    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    except Exception as error:  # SciPy's parser raises any kind of error on a damaged file
        line = str(error).partition("\n")[0]
        raise ConfigError(f"source: meta.mat cannot be read ({line})") from error


def _devkit_labels(text: str, wnids: dict[int, str], names: tuple[str, ...]) -> list[int]:
    label_of = {name: label for label, name in enumerate(names)}
    return [label_of[wnids[int(number)]] for number in text.split()]
