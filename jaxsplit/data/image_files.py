"""Readers of data sets that come as image files: folders of classes, and ImageNet's tars."""

import hashlib
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxsplit.data.arrays import stratified_holdout
from jaxsplit.data.readers import Example, Found, file_stamp, not_found, reading
from jaxsplit.errors import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLIT_FOLDERS = {
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


def _subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """(image files at any depth, other files), paths within `folder`, sorted; no hidden ones.

    Raises:
      OSError: a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    images, others = [], []
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                kept = images if name.lower().endswith(SUFFIXES) else others
                kept.append(os.path.relpath(os.path.join(root, name), folder))
    return sorted(images), sorted(others)


def _update(digest: Any, folder: pathlib.Path, files: list[str]) -> None:
    """Adds name, size and time of change of each of the `files` in a folder."""
    for name in files:
        try:
            stat = os.stat(folder / name)
            facts = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:  # a dangling link, say: it is named when the image is read
            facts = "?"
        digest.update(f"{name}\0{facts}\0".encode(errors="surrogateescape"))


class _Tree:
    """A folder with one folder of images for each class.

    names: of the classes in it, sorted. counts: images of each. others: other files.
    stamp: changes with any of the images.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.names, self.counts, self.others = folder, [], [], []
        digest = hashlib.sha256()
        for name in _subfolders(folder):
            images, others = _files(folder / name)
            digest.update(f"{name}\0\0".encode(errors="surrogateescape"))
            _update(digest, folder / name, images)
            self.others += [str(folder / name / other) for other in others]
            self.names.append(name)
            self.counts.append(len(images))
        self.stamp = [folder.name, digest.hexdigest()]

    def __len__(self) -> int:
        return sum(self.counts)

    def labels(self) -> np.ndarray:
        """int[N], positions in `names`."""
        return np.repeat(np.arange(len(self.names)), self.counts)

    def examples(
        self, label_of: dict[str, int], take: np.ndarray | None = None
    ) -> Iterator[Example]:
        """Those that `take` (bool[N]) has, class by class; lists one class at a time."""
        at = 0
        for name in self.names:
            for image in _files(self.folder / name)[0]:
                if take is None or (at < len(take) and take[at]):
                    path = self.folder / name / image
                    yield Example(str(path), label_of[name], path)
                at += 1

    def note(self) -> tuple[str, ...]:
        if not self.others:
            return ()
        return (
            f"{len(self.others)} files in {self.folder} left out, not named as images: "
            f"{', '.join(self.others[:3])}{' ...' if len(self.others) > 3 else ''}",
        )


def _label_of(names: tuple[str, ...], tree: _Tree) -> dict[str, int]:
    """{class: label}; the classes of `tree` must be among `names`, the known ones."""
    unknown = sorted(set(tree.names) - set(names))
    if unknown:
        raise ConfigError(
            f"source: {tree.folder} has the class {unknown[0]!r}, which is not one of the "
            f"{len(names)} known classes ({names[0]}, ...)"
        )
    return {name: label for label, name in enumerate(names)}


def image_folder(source: pathlib.Path, holdout: float = 0.0) -> Found:
    """train/<class>/<image> with test/ or val/ beside it; or one level of classes and a holdout.

    Classes are numbered in the order of their names. `holdout` is the share of every class that
    becomes the split `test` where the source has none.
    """
    if not source.is_dir():
        raise not_found(source, "a folder train/<class>/<image>, with test/ or val/ beside it")
    nested = (source / "train").is_dir()  # otherwise every folder is a class
    parts: dict[str, pathlib.Path] = {}
    for name, split in _SPLIT_FOLDERS.items():
        if nested and (source / name).is_dir():
            if split in parts:
                raise ConfigError(f"source={source}: has {parts[split].name} and {name}")
            parts[split] = source / name
    train = _Tree(source / "train" if nested else source)
    if not len(train):
        raise not_found(source, f"images in {train.folder}/<class>/ ({', '.join(SUFFIXES)})")
    if parts and holdout:
        raise ConfigError(
            f"holdout={holdout:g}: must be left out, {source} has the folder "
            f"{next(iter(parts.values())).name}"
        )
    if not parts and not holdout:
        raise ConfigError(
            f"source={source}: no folder test or val beside train; give --holdout=0.1 to hold out "
            "a tenth of every class"
        )
    names = tuple(train.names)
    trees = {"train": train, **{split: _Tree(path) for split, path in parts.items()}}
    label_of = {split: _label_of(names, tree) for split, tree in trees.items()}
    splits: dict[str, Callable[[], Iterator[Example]]] = {
        split: lambda split=split: trees[split].examples(label_of[split]) for split in trees
    }
    totals = {split: len(tree) for split, tree in trees.items()}
    if holdout:
        kept, held = stratified_holdout(train.labels(), holdout, 0)
        if not len(kept) or not len(held):
            raise ConfigError(
                f"holdout={holdout:g}: holds out {len(held)} of {len(train)} images, must leave "
                "some on both sides"
            )
        mask = np.zeros(len(train), bool)
        mask[kept] = True
        splits["train"] = lambda: train.examples(label_of["train"], mask)
        splits["test"] = lambda: train.examples(label_of["train"], ~mask)
        totals = {"train": len(kept), "test": len(held)}
    return Found(
        splits=splits,
        names=names,
        totals=totals,
        stamp=[[tree.stamp for tree in trees.values()], holdout],
        notes=tuple(note for tree in trees.values() for note in tree.note()),
    )


# ImageNet

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LOOKED_FOR = (
    f"{_TRAIN_TAR} or train/<wnid>/*.JPEG, and {_VAL_TAR} or val/<wnid>/*.JPEG or "
    "val/ILSVRC2012_val_*.JPEG"
)


def imagenet(source: pathlib.Path) -> Found:
    """ImageNet 2012, each of train and val as its tar or as a folder.

    Labels number the sorted wnids, as everywhere. Those of validation images that do not lie in
    wnid folders come from the development kit where the source has it (its folder, its tar.gz, or
    its two files), otherwise from the list that tensorflow_datasets brings.
    """
    names = tuple(_tfds_list("labels.txt"))
    train, val = source / "train", source / "val"
    splits, totals, stamp, notes = {}, {}, [], []

    def add_tree(split: str, tree: _Tree) -> None:
        label_of = _label_of(names, tree)
        splits[split] = lambda: tree.examples(label_of)
        totals[split] = len(tree)
        stamp.append(tree.stamp)
        notes.extend(tree.note())

    if (source / _TRAIN_TAR).is_file():
        label_of = {name: label for label, name in enumerate(names)}
        splits["train"] = lambda: _train_tar(source / _TRAIN_TAR, label_of)
        stamp.append(file_stamp(source / _TRAIN_TAR))
    elif train.is_dir() and _subfolders(train):
        add_tree("train", _Tree(train))
    else:
        raise not_found(source, _LOOKED_FOR)
    if (source / _VAL_TAR).is_file():
        labels = _validation_labels(source, names)
        splits["validation"] = lambda: _val_tar(source / _VAL_TAR, labels)
        stamp += [file_stamp(source / _VAL_TAR), hashlib.sha256(repr(labels).encode()).hexdigest()]
    elif val.is_dir() and _subfolders(val):
        add_tree("validation", _Tree(val))
    elif val.is_dir() and _files(val)[0]:
        labels, images = _validation_labels(source, names), _files(val)[0]
        splits["validation"] = lambda: (
            Example(str(val / name), _label(val / name, labels), val / name) for name in images
        )
        totals["validation"] = len(images)
        digest = hashlib.sha256(repr(labels).encode())
        _update(digest, val, images)
        stamp.append(digest.hexdigest())
    else:
        raise not_found(source, _LOOKED_FOR)
    return Found(splits, names, totals, stamp, tuple(notes))


def _train_tar(path: pathlib.Path, label_of: dict[str, int]) -> Iterator[Example]:
    """Images of a tar of tars, one for each class, read where they lie."""
    with reading(path), tarfile.open(path, "r:") as outer:
        for member in outer:
            if not member.isfile():
                continue
            wnid = pathlib.PurePosixPath(member.name).stem
            if wnid not in label_of or not member.name.endswith(".tar"):
                raise ValueError(f"holds {member.name!r}, must hold <wnid>.tar only")
            with (
                reading(f"{path}: {member.name}"),
                tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner,
            ):
                for image in inner:
                    if image.isfile():
                        where = f"{path}: {member.name}: {image.name}"
                        yield Example(where, label_of[wnid], _member(inner, image))


def _val_tar(path: pathlib.Path, labels: list[int]) -> Iterator[Example]:
    with reading(path), tarfile.open(path, "r:") as tar:
        for image in tar:
            if image.isfile():
                where = f"{path}: {image.name}"
                label = _label(pathlib.PurePosixPath(image.name), labels)
                yield Example(where, label, _member(tar, image))


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        data = tar.extractfile(info).read()
        if len(data) != info.size:
            raise EOFError("ends too early")
        return data

    return read


def _label(path: pathlib.PurePath, labels: list[int]) -> int:
    """The label of a validation image, by the number in its name."""
    match = _VAL_NAME.fullmatch(path.name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(labels):
        raise ConfigError(
            f"source: {path}: no label; must be ILSVRC2012_val_<number>.JPEG with a number in "
            f"1..{len(labels)}"
        )
    return labels[number - 1]


def _tfds_list(name: str) -> list[str]:
    """The lines of one of tensorflow_datasets' files on ImageNet."""
    import tensorflow_datasets as tfds

    path = pathlib.Path(tfds.__file__).parent / "datasets" / "imagenet2012" / name
    with reading(path):
        return path.read_text().split()


def _validation_labels(source: pathlib.Path, names: tuple[str, ...]) -> list[int]:
    """Labels of the validation images 1, 2, ..."""
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
                    files[name] = tar.extractfile(info)
                    if name == _TRUTH:
                        text = files[name].read().decode()
                    else:
                        wnids = _wnids(files[name])
            if len(files) != 2:
                raise ValueError(f"holds no {_TRUTH} or no meta.mat")
            return _devkit_labels(text, wnids, names)
    label_of = {name: label for label, name in enumerate(names)}
    return [label_of[wnid] for wnid in _tfds_list("validation_labels.txt")]


def _wnids(meta) -> dict[int, str]:
    """{ILSVRC2012_ID: wnid} of the development kit's meta.mat, a path or file."""
    from scipy.io import loadmat  # comes with jax

    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    except Exception as error:  # SciPy's parser lets anything through on a damaged file
        line = str(error).partition("\n")[0]
        raise ConfigError(f"source: meta.mat cannot be read ({line})") from error


def _devkit_labels(text: str, wnids: dict[int, str], names: tuple[str, ...]) -> list[int]:
    label_of = {name: label for label, name in enumerate(names)}
    return [label_of[wnids[int(number)]] for number in text.split()]
