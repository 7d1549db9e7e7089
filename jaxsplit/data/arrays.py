"""Splits that fit in memory, and sources that need no tfds: digits, synthetic, .npz files."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxsplit.data import names
from jaxsplit.data.stream import BadRecordError, Skipped
from jaxsplit.errors import ConfigError

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
CLASS_NAMES = "class_names"  # an optional array


@dataclass(frozen=True)
class Arrays:
    """A split in memory.

    images: uint8[N, H, W, C].
    labels: int32[N], classes from 0.
    bad: {i: why example i cannot be used}. A bad example keeps its place, so that held-out parts
      and orders are the same as those of a stream. Its label is -1 if it has none.
    skipped: counts the bad examples that evaluations leave out; None: a bad example is an error.
    """

    images: np.ndarray
    labels: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    skipped: Skipped | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Arrays":
        """A split of the examples at `indices` (int[M]), in that order, with its own counter."""
        bad = {}
        if self.bad:
            bad = {k: self.bad[i] for k, i in enumerate(indices.tolist()) if i in self.bad}
        skipped = None if self.skipped is None else Skipped()
        return Arrays(self.images[indices], self.labels[indices], bad, skipped)

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Example i: (uint8[H, W, C], label).

        Raises:
          BadRecordError: the example is bad.
        """
        if i in self.bad:
            raise BadRecordError(self.bad[i])
        return self.images[i], int(self.labels[i])


def stratified_holdout(
    labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0..N-1 so that every class gives the same share of its examples.

    `round(share * N)` examples are held out. The share of a class is rounded down or up, up for
    the largest remainders, but each class keeps an example. Fewer are held out if no class can give
    more. The result depends only on `labels`, `share` and `seed`.

    Args:
      labels: int[N].
      share: in (0, 1).
      seed: seed of the draw within each class.

    Returns:
      (kept, held_out): int64 indices, both ascending, disjoint, together all of 0..N-1.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * share
    take = np.floor(exact).astype(np.int64)
    missing = round(share * len(labels)) - int(take.sum())
    order = np.argsort(take - exact, kind="stable")
    take[order[take[order] + 1 < counts[order]][:missing]] += 1
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    held = np.zeros(len(labels), bool)
    for label, count in zip(classes, take, strict=True):
        held[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def not_held_out(labels: np.ndarray, held: np.ndarray, names: Sequence[str] = ()) -> str | None:
    """A line that names the classes without a held-out example; None: every class has one.

    labels: int[N]; examples with a negative label belong to no class.
    held: int[M], indices of the held-out examples.
    names: names of the classes; without them the line gives their numbers.
    """
    without = np.setdiff1d(labels[labels >= 0], labels[held])
    if not len(without):
        return None
    known = [names[label] if label < len(names) else str(label) for label in without[:3].tolist()]
    count = len(np.unique(labels[labels >= 0]))
    more = " ..." if len(without) > len(known) else ""
    return f"{len(without)} of {count} classes have no held-out image: {', '.join(known)}{more}"


def read_digits() -> tuple[Arrays, Arrays]:
    """scikit-learn's handwritten digits, 8x8x1: 1437 for training, 360 for testing.

    The values 0..16 are scaled to 0..255. The split is stratified and always the same.

    Raises:
      ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError(
            "data.name='digits': needs scikit-learn, or a digits.npz in data.dir with the arrays "
            + ", ".join(NPZ_KEYS)
        ) from error
    bunch: Any = load_digits()  # scikit-learn gives its fields no types
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    every = Arrays(images, labels)
    return every.take(train), every.take(test)


def read_synthetic(size: int) -> tuple[Arrays, Arrays]:
    """Ten classes of noisy colour patterns, size x size x 3: 2048 for training, 512 for testing.

    A class is a 4x4 pattern of colours in 0..127, to which each pixel adds noise in 0..127. The
    numbers depend only on the size. The classes are easy to learn, so that tests can see a network
    learn.

    Raises:
      ConfigError: the images exceed this machine's memory.
    """
    from jaxsplit.config import limits  # imports jax, which preparing data does not need

    limits.check_host(f"data.image_size={size}", "2,560 synthetic images", 2560 * size * size * 3)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([2011, size])))
    patterns = rng.integers(0, 128, (10, 4, 4, 3), dtype=np.uint8)
    cell = np.arange(size) * 4 // size
    patterns = patterns[:, cell][:, :, cell]

    def split(count: int) -> Arrays:
        labels = rng.permutation(np.arange(count, dtype=np.int32) % 10)
        images = np.frombuffer(rng.bytes(count * size * size * 3), np.uint8) >> 1
        images = images.reshape(count, size, size, 3)
        for i, label in enumerate(labels):
            images[i] += patterns[label]
        return Arrays(images, labels)

    return split(2048), split(512)


def _image_shape(shape: tuple[int, ...], dtype: np.dtype, where: str) -> tuple[int, int, int]:
    """(H, W, C) of the images in an array of that shape and dtype; raises ConfigError."""
    if dtype != np.uint8:
        raise ConfigError(f"{where}_images: dtype {dtype}, must be uint8")
    full = (*shape, 1) if len(shape) == 3 else shape
    if len(full) != 4 or full[-1] not in (1, 3) or 0 in full[1:]:
        raise ConfigError(f"{where}_images: shape {shape}, must be [N, H, W, 1 or 3]")
    return full[1:]


def _flat(labels: np.ndarray) -> np.ndarray:
    """[N] of labels [N] or [N, 1], as Keras has those of CIFAR; others as they are."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check_labels(labels: np.ndarray, count: int, where: str) -> None:
    """Raises ConfigError unless `labels` are `count` integers."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{where}_labels: dtype {labels.dtype}, must be an integer type")
    if labels.shape != (count,) or not count:
        raise ConfigError(
            f"{where}_labels: shape {labels.shape}, must be [N] or [N, 1] with N = {count} > 0"
        )


def check_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    where: str,
    on_bad_record: str = "error",
) -> Arrays:
    """Checks images and labels; returns them as `Arrays`.

    Args:
      images: uint8[N, H, W, C], or uint8[N, H, W] with C = 1.
      labels: int[N] or int[N, 1].
      num_classes: labels must lie in 0..num_classes-1.
      where: the beginning of every error.
      on_bad_record: 'error' raises at a wrong label; 'skip' notes its example in `Arrays.bad`.

    Raises:
      ConfigError: a dtype, shape, length or label is wrong, or all labels are.
    """
    shape = _image_shape(images.shape, images.dtype, where)
    labels = _flat(labels)
    _check_labels(labels, len(images), where)
    images = images.reshape(-1, *shape)
    good = (labels >= 0) & (labels < num_classes)
    bad = np.flatnonzero(~good).tolist()
    skip = on_bad_record == "skip"
    if bad and not (skip and good.any()):
        raise ConfigError(
            f"{where}_labels: values {labels.min()}..{labels.max()}, must lie in "
            f"0..{num_classes - 1} (example {bad[0]} has {labels[bad[0]]})"
        )
    allowed = f"must lie in 0..{num_classes - 1}"
    return Arrays(
        images,
        np.where(good, labels, np.int64(-1)).astype(np.int32),  # uint8 holds no -1
        {i: f"{where}_labels: example {i} has the label {labels[i]}, {allowed}" for i in bad},
        Skipped() if skip else None,
    )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[Any, str]]:
    """(the .npz file, the beginning of its errors); an error in the block becomes a ConfigError."""
    where = f"data.dir: {path}: "
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [key for key in NPZ_KEYS if key not in file.files]
            if missing:
                raise ConfigError(
                    f"{where}no array {', '.join(missing)}; must hold {', '.join(NPZ_KEYS)}"
                )
            yield file, where
    except ConfigError:
        raise
    except Exception as error:  # NumPy lets through what zipfile, zlib and its own parser raise
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"{where}cannot be read, must be an .npz file ({type(error).__name__}: {line})"
        ) from error


def find_npz(name: str, data_dir: str) -> pathlib.Path | None:
    """<data.dir>/<name>.npz, where it exists."""
    if {"", ".", ".."} & set(name.split("/")):  # it would lie elsewhere
        return None
    if name.startswith(names.HUGGING_FACE):
        return None
    path = pathlib.Path(os.path.expanduser(data_dir)) / f"{name}.npz"
    return path if path.exists() else None


def count_npz(path: pathlib.Path) -> int:
    """The number of training examples of an .npz as `read_npz` reads it; no image is read.

    Raises:
      ConfigError: not such a file.
    """
    with _opened(path) as (file, _):
        return len(file["train_labels"])


def describe_npz(path: pathlib.Path) -> tuple[int, tuple[int, int, int]]:
    """(number of classes, (H, W, C)) of an .npz file as `read_npz` reads it; reads no image.

    The classes are 0 to the largest training label.

    Raises:
      ConfigError: the file is no such .npz, has a class without a training example, or one class.
    """
    with _opened(path) as (file, where):
        with file.zip.open("train_images.npy") as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        image_shape = _image_shape(shape, dtype, f"{where}train")
        labels = _flat(file["train_labels"])
        _check_labels(labels, shape[0], f"{where}train")
    classes = np.unique(labels[labels >= 0])  # `read_npz` reports negative labels
    if len(classes) < 2:
        raise ConfigError(
            f"{where}train_labels: values {labels.min()}..{labels.max()}, must be at least two "
            "classes, numbered from 0"
        )
    gaps = np.flatnonzero(classes != np.arange(len(classes)))
    if len(gaps):
        raise ConfigError(
            f"{where}train_labels: no example of class {gaps[0]}, must have some of each class "
            f"from 0 to the largest, {classes[-1]}"
        )
    return len(classes), image_shape


def npz_class_names(path: pathlib.Path, num_classes: int) -> tuple[str, ...]:
    """The array class_names (texts [K]) of an .npz file; () if it has none.

    Raises:
      ConfigError: the array does not hold K texts.
    """
    with _opened(path) as (file, where):
        if CLASS_NAMES not in file.files:
            return ()
        found = file[CLASS_NAMES]
    if found.shape != (num_classes,) or found.dtype.kind != "U":
        raise ConfigError(
            f"{where}{CLASS_NAMES}: {found.dtype}{list(found.shape)}, must be {num_classes} texts"
        )
    return tuple(found.tolist())


def in_both(train: Arrays, test: Arrays) -> str | None:
    """A line about test images that are also training images; None: there are none."""
    trained, tested = (
        [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in part.images]
        for part in (train, test)
    )
    known = set(trained)
    same = [i for i, digest in enumerate(tested) if digest in known]
    if not same:
        return None
    return (
        f"{len(same):,} of {len(tested):,} test images are training images too; the first is "
        f"number {same[0]}"
    )


def read_npz(
    path: pathlib.Path, num_classes: int, on_bad_record: str = "error"
) -> tuple[Arrays, Arrays]:
    """(train, test) from an .npz file with the arrays NPZ_KEYS.

    num_classes and on_bad_record: as of `check_arrays`.

    Raises:
      ConfigError: the file cannot be read, lacks an array, or `check_arrays` refuses one.
    """
    with _opened(path) as (file, where):
        arrays = {key: file[key] for key in NPZ_KEYS}
    train, test = (
        check_arrays(
            arrays[f"{split}_images"],
            arrays[f"{split}_labels"],
            num_classes=num_classes,
            where=f"{where}{split}",
            on_bad_record=on_bad_record,
        )
        for split in ("train", "test")
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ConfigError(
            f"{where}test_images: shape {test.images.shape}, must be "
            f"[N, {', '.join(map(str, train.images.shape[1:]))}] as train_images"
        )
    return train, test
