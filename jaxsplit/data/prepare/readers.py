"""Readers of data sets that come as arrays in a few files: CIFAR, SVHN and IDX.

A reader looks into a folder and returns `Found`; `jaxsplit.data.prepare` writes it as tfds data.
"""

import contextlib
import functools
import gzip
import io
import math
import os
import pathlib
import pickle
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from jaxsplit.data.names import KNOWN
from jaxsplit.data.prepare.junk import is_junk
from jaxsplit.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """An image of the source that may not be read yet.

    where: its file and its place in the file, for messages.
    image: pixels uint8[H, W, 1 or 3]; or an encoded image, as its file or as a function that reads
      it. The function must be called before the next example is requested.
    """

    where: str
    label: int
    image: np.ndarray | pathlib.Path | Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """What a reader found.

    splits: split -> function that yields its examples, always in the same order.
    names: class names, in the order of the labels.
    totals: split -> number of examples, for splits that can be counted without reading them.
    stamp: a JSON value that changes if the source changes.
    notes: lines for the user.
    train_counts: number of training images of each class, including a held-out part; () if they are
      unknown.
    """

    splits: dict[str, Callable[[], Iterator[Example]]]
    names: tuple[str, ...]
    totals: dict[str, int]
    stamp: Any
    notes: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()


def not_found(source: pathlib.Path, looked_for: str) -> ConfigError:
    """The error that a source lacks the files of its format."""
    kind = "no such file or folder" if not source.exists() else "not found there"
    return ConfigError(f"source={source}: {kind}; looked for {looked_for}")


@contextlib.contextmanager
def reading(path: pathlib.Path | str) -> Iterator[None]:
    """Turns an error in the block into a ConfigError that names the file `path`."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _damaged(path, error) from error
    except (tarfile.TarError, zlib.error, pickle.UnpicklingError, struct.error) as error:
        raise _damaged(path, error) from error


def extracted(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    """Opens a regular file of a tar for reading.

    Raises:
      ValueError: `info` is a folder or another entry without contents.
    """
    file = tar.extractfile(info)
    if file is None:
        raise ValueError(f"{info.name}: not a regular file")
    return file


def _damaged(path: pathlib.Path | str, error: Exception) -> ConfigError:
    line = str(error).partition("\n")[0]
    return ConfigError(f"source: {path}: cannot be read ({type(error).__name__}: {line})")


def file_stamp(*paths: pathlib.Path) -> list:
    """[name, size in bytes, modification time] of each file."""
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


# CIFAR: python tarballs


class _PickledArray:
    """Receives the state of a pickled uint8 array, without NumPy's own unpickling."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or dtype.name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("an array that is not uint8")
        array = np.frombuffer(raw, np.uint8)
        self.value = array.reshape(shape, order="F" if fortran else "C")


class _PickledDtype:
    def __init__(self, name: str | bytes, *_: Any):
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and the like do not matter for uint8


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 pickles bytes for Python 2


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _PickledArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _PickledArray(),
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Creates only dicts, lists, tuples, strings, bytes, numbers and uint8 arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"holds a {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]


def unpickle(data: bytes) -> dict[str, Any]:
    """Unpickles the dict of a CIFAR batch; keys become str, uint8 arrays np.ndarray.

    Raises:
      pickle.UnpicklingError: the data is no such dict, or holds an object of another class.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        texts = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        return {k: v.value if isinstance(v, _PickledArray) else v for k, v in texts.items()}
    except Exception as error:  # pickle raises any kind of error on damaged data
        raise pickle.UnpicklingError(str(error)) from error


@dataclass(frozen=True)
class Cifar:
    """Reads a CIFAR data set in its authors' version for Python."""

    archive: str
    folder: str  # in the archive
    batches: dict[str, tuple[str, ...]]  # {split: members}
    meta: str
    names_key: str
    labels_key: str
    num_classes: int

    def __call__(self, source: pathlib.Path) -> Found:
        read, place, files = self._open(source)
        with reading(place + self.meta):
            names = unpickle(read(self.meta))[self.names_key]
            names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
            if len(names) != self.num_classes:
                raise ValueError(f"{len(names)} class names, must be {self.num_classes}")

        def examples(members: tuple[str, ...]) -> Iterator[Example]:
            for member in members:
                with reading(place + member):
                    batch = unpickle(read(member))
                    data, labels = np.asarray(batch["data"]), np.asarray(batch[self.labels_key])
                    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
                        raise ValueError(f"data {data.dtype}{data.shape}, {len(labels)} labels")
                    if labels.ndim != 1 or labels.dtype.kind != "i":
                        raise ValueError(f"labels {labels.dtype}, must be a list of integers")
                images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield Example(f"{place}{member}, image {i}", int(label), image)

        splits = {s: functools.partial(examples, m) for s, m in self.batches.items()}
        return Found(splits, names, {}, file_stamp(*files))

    def _open(self, source: pathlib.Path) -> tuple[Callable[[str], bytes], str, list[pathlib.Path]]:
        """(function from member to bytes, prefix of a member in messages, files of the source)."""
        members = (self.meta, *(m for split in self.batches.values() for m in split))
        for base in (source, source / self.folder):
            missing = [m for m in members if not (base / m).is_file()]
            if not missing:
                files = [base / m for m in members]
                return lambda m, base=base: (base / m).read_bytes(), f"{base}{os.sep}", files
            if len(missing) < len(members):
                raise ConfigError(f"source={source}: {base} has no {', '.join(missing)}")
        path = source if source.is_file() else source / self.archive
        if not path.is_file():
            raise not_found(
                source, f"{self.archive}, or the folder {self.folder} with {', '.join(members)}"
            )

        def read(member: str) -> bytes:
            with tarfile.open(path) as tar:
                for info in tar:
                    if info.isfile() and info.name.removeprefix("./") == f"{self.folder}/{member}":
                        return extracted(tar, info).read()
            raise ValueError(f"holds no {self.folder}/{member}")

        return read, f"{path}: ", [path]


CIFAR10 = Cifar(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    meta="batches.meta",
    names_key="label_names",
    labels_key="labels",
    num_classes=10,
)
CIFAR100 = Cifar(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    meta="meta",
    names_key="fine_label_names",
    labels_key="fine_labels",
    num_classes=100,
)


# SVHN: MATLAB files


def svhn(source: pathlib.Path) -> Found:
    """Reads SVHN's cropped digits; the split `extra`, if it exists, takes 1.6 GB of memory."""
    paths = {split: source / f"{split}_32x32.mat" for split in ("train", "test", "extra")}
    missing = [paths[split].name for split in ("train", "test") if not paths[split].is_file()]
    if missing:
        raise not_found(source, "train_32x32.mat, test_32x32.mat and extra_32x32.mat")
    paths = {split: path for split, path in paths.items() if path.is_file()}

    def examples(path: pathlib.Path) -> Iterator[Example]:
        images, labels = _read_svhn(path)
        for i, label in enumerate(labels):
            # In the file the digit 0 is class 10.
            yield Example(f"{path}, image {i}", 0 if label == 10 else int(label), images[..., i])

    splits = {split: functools.partial(examples, path) for split, path in paths.items()}
    return Found(splits, tuple("0123456789"), {}, file_stamp(*paths.values()))


def _read_svhn(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8[32, 32, 3, N], labels int[N] from 1 to 10), as in the file."""
    from scipy.io import loadmat  # comes with jax

    try:
        arrays = loadmat(path, variable_names=["X", "y"])
        images, labels = arrays["X"], arrays["y"].ravel()
    except Exception as error:  # SciPy's parser raises any kind of error on a damaged file
        raise _damaged(path, error) from error
    with reading(path):
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
            raise ValueError(f"X is {images.dtype}{list(images.shape)}, y has {len(labels)} labels")
        if np.any((labels < 1) | (labels > 10)):
            raise ValueError(f"labels {labels.min()}..{labels.max()}, must lie in 1..10")
    return images, labels


# IDX: the format of MNIST and similar data sets

_IDX = re.compile(r"(?:.*[-_.])?(train|t10k|test)[-_.](images|labels)[-_.]idx(\d)[-_.]ubyte(\.gz)?")


def has_idx(source: pathlib.Path) -> bool:
    return source.is_dir() and any(_idx_match(path.name) for path in source.iterdir())


def _idx_match(name: str) -> re.Match | None:
    return None if is_junk(name) else _IDX.fullmatch(name)  # such as ._train-images-idx3-ubyte


def idx(source: pathlib.Path, names: tuple[str, ...] | None = None) -> Found:
    """Reads IDX files, plain or gz; without `names` the classes are 0 to the largest label."""
    wanted = {
        (part, kind): [] for part in ("train", "test") for kind in ("images", "labels")
    }  # paths; a plain file goes before a compressed one of the same name
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        match = _idx_match(path.name)
        if match and path.is_file():
            part = "train" if match[1] == "train" else "test"
            if not (match[4] and path.with_suffix("").is_file()):
                wanted[part, match[2]].append(path)
    shape = (
        "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz] and the same of t10k or test"
    )
    for (part, kind), paths in wanted.items():
        if len(paths) > 1:
            raise ConfigError(
                f"source={source}: {len(paths)} files with {part} {kind} ("
                f"{', '.join(p.name for p in paths)}), must be one"
            )
        if not paths:
            raise not_found(source, f"{shape} (no {part} {kind})")
    files = {key: paths[0] for key, paths in wanted.items()}
    labels = {part: _idx_labels(files[part, "labels"]) for part in ("train", "test")}
    counts = np.bincount(labels["train"], minlength=len(names or ())).tolist()
    names = names or tuple(map(str, range(len(counts))))

    def examples(part: str) -> Iterator[Example]:
        path = files[part, "images"]
        with reading(path), _open_idx(path) as (file, dims):
            if (
                len(dims) not in (3, 4)
                or dims[0] != len(labels[part])
                or dims[3:] not in ((), (1,), (3,))
            ):
                raise ValueError(f"shape {dims}, {len(labels[part])} labels")
            shape = (*dims[1:3], *(dims[3:] or (1,)))
            for i, label in enumerate(labels[part]):
                raw = _read_exactly(file, math.prod(shape))
                image = np.frombuffer(raw, np.uint8).reshape(shape)
                yield Example(f"{path}, image {i}", int(label), image)
            if file.read(1):
                raise ValueError("more bytes than its header says")

    return Found(
        splits={part: functools.partial(examples, part) for part in labels},
        names=names,
        totals={part: len(values) for part, values in labels.items()},
        stamp=file_stamp(*files.values()),
        train_counts=tuple(counts) if len(counts) == len(names) else (),  # else: a wrong label
    )


def fashion_mnist(source: pathlib.Path) -> Found:
    return idx(source, KNOWN["fashion_mnist"])


def mnist(source: pathlib.Path) -> Found:
    return idx(source, tuple("0123456789"))


@contextlib.contextmanager
def _open_idx(path: pathlib.Path) -> Iterator[tuple[io.BufferedIOBase, tuple[int, ...]]]:
    """(the file after its header, its dimensions); the values are bytes."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if zipped else contextlib.nullcontext(raw) as file:
            zeros, kind, ndim = struct.unpack(">HBB", _read_exactly(file, 4))
            if zeros or kind != 8:
                raise ValueError("not an IDX file of bytes")
            yield file, struct.unpack(f">{ndim}I", _read_exactly(file, 4 * ndim))


def _idx_labels(path: pathlib.Path) -> np.ndarray:
    """uint8[N]."""
    with reading(path), _open_idx(path) as (file, dims):
        if len(dims) != 1 or not dims[0]:
            raise ValueError(f"shape {dims}, must be one dimension")
        labels = np.frombuffer(_read_exactly(file, dims[0]), np.uint8)
        if file.read(1):
            raise ValueError("more bytes than its header says")
    return labels


def _read_exactly(file: io.BufferedIOBase, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("ends too early")
    return data
