"""Prepares a tensorflow_datasets array_record data set from files. Offline, without TensorFlow.

python -m jaxsplit.data.prepare cifar10 --source=downloads
python -m jaxsplit.data.prepare fashion_mnist --source=/usr/share/datasets/fashion-mnist
python -m jaxsplit.data.prepare imagenet2012 --source=/data/imagenet --data_dir=/data/tfds
python -m jaxsplit.data.prepare my_birds --source=birds --holdout=0.1

The same command resumes an interrupted run after its last full shard (8192 images or 256 MiB). It
starts again if an image, another file of the source or --check has changed. The data set appears
under its name in `data_dir` only when it is complete.
"""

import collections
import itertools
import json
import os
import pathlib
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxsplit.data import decoding
from jaxsplit.data.prepare import image_files, image_folder, readers, shards
from jaxsplit.data.prepare.progress import Progress
from jaxsplit.data.prepare.readers import Example, Found
from jaxsplit.errors import ConfigError

Incomplete: TypeAlias = Literal["refuse", "accept"]

CHECKS = ("full", "header")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BUILT_IN = ("digits", "synthetic")


@dataclass(frozen=True)
class Known:
    """A published data set: its version in tfds, its reader, and its number of images."""

    version: str
    read: Callable[[pathlib.Path], Found]
    counts: dict[str, int]


KNOWN = {
    "cifar10": Known("3.0.2", readers.CIFAR10, {"train": 50_000, "test": 10_000}),
    "cifar100": Known("3.0.2", readers.CIFAR100, {"train": 50_000, "test": 10_000}),
    "svhn_cropped": Known(
        "3.1.0", readers.svhn, {"train": 73_257, "test": 26_032, "extra": 531_131}
    ),
    "mnist": Known("3.0.1", readers.mnist, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Known("3.0.1", readers.fashion_mnist, {"train": 60_000, "test": 10_000}),
    "imagenet2012": Known(
        "5.1.0", image_files.imagenet, {"train": 1_281_167, "validation": 50_000}
    ),
}
_OTHER_VERSION = "1.0.0"


def prepare(
    name: str,
    source: str | os.PathLike,
    data_dir: str | os.PathLike = "~/tensorflow_datasets",
    *,
    holdout: float = 0.0,
    check: str = "full",
    incomplete: Incomplete = "refuse",
    shard_bytes: int = shards.SHARD_BYTES,
) -> pathlib.Path:
    """Writes <data_dir>/<name>/<version>/ from the files in `source`; returns that path.

    A data set that is already there stays as it is. Encoded images are copied byte by byte; arrays
    become PNG. A line says how many images are in both the training and the test part.

    Args:
      name: one of KNOWN, to read its published files; any other name, to read IDX files or folders
        of images.
      source: the folder with the files.
      data_dir: where prepared data sets lie.
      holdout: share of every class that becomes the test split, if `source` is a folder of images
        without one. Each class keeps a training image.
      check: 'full' decodes each image; 'header' reads only its header and its end.
      incomplete: whether a source is refused that has another number of images than a known set,
        a class without images or a broken image; 'accept' leaves broken images out.
      shard_bytes: size of the records after which a shard is closed.

    Raises:
      ConfigError: `source` does not hold the expected files, an image is broken, numbers or labels
        are wrong, or `data_dir` cannot be written. The next run resumes from what was written.
    """
    source = pathlib.Path(os.path.expanduser(source))
    _check_arguments(name, holdout, check)
    root = pathlib.Path(os.path.abspath(os.path.expanduser(data_dir))) / name
    final = root / (KNOWN[name].version if name in KNOWN else _OTHER_VERSION)
    if ready := _ready(root):
        more = f"nothing is read from {source}. To prepare it again, delete that folder first"
        print(f"already there: {ready}; {more}", flush=True)
        return ready
    if final.is_dir() and any(final.iterdir()):
        raise ConfigError(
            f"data_dir={data_dir}: {final} is an incomplete data set; delete it first"
        )
    found = _find(name, source, holdout)
    for note in found.notes:
        print(f"note: {note}", flush=True)
    task = _Task(name, source, found, check, incomplete, shard_bytes)
    _check_found(task)
    began = time.monotonic()
    try:
        splits = _write(task, final)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError on a full disk
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"data_dir={data_dir}: {final} cannot be written ({type(error).__name__}: {line})"
        ) from error
    print(_summary(final, found, splits, time.monotonic() - began), flush=True)
    return final


@dataclass(frozen=True)
class _Task:
    """What one call of `prepare` writes, and how it checks it; the fields as its arguments."""

    name: str
    source: pathlib.Path
    found: Found
    check: str
    incomplete: Incomplete
    shard_bytes: int

    @property
    def stamp(self) -> list:
        """A JSON value; a run resumes an interrupted one only if both have the same stamp."""
        found = self.found
        return [3, self.name, list(found.splits), list(found.names), self.check, found.stamp]

    def total(self, split: str) -> int | None:
        """The number of examples in a split; None: unknown before they are read."""
        known = KNOWN[self.name].counts.get(split) if self.name in KNOWN else None
        return self.found.totals.get(split) or known


def _write(task: _Task, final: pathlib.Path) -> dict[str, shards.SplitState]:
    """Writes the data set; returns the state of each split.

    Raises:
      ConfigError: an image, a number of images or a label is wrong.
      OSError, RuntimeError: the folder cannot be written.
    """
    names = task.found.names
    with shards.Unfinished(final, task.stamp, len(names)) as work:
        for split in task.found.splits:
            _write_split(work, task, split)
        counts = {split: state.records for split, state in work.splits.items()}
        _check_counts(task, counts)
        _check_classes(task, work.splits["train"].per_class)
        for line in work.in_both():
            print(f"note: {line}", flush=True)
        work.finish(names, f"{task.name}, prepared by jaxsplit from files on disk.")
        return work.splits


def _summary(
    final: pathlib.Path, found: Found, splits: dict[str, shards.SplitState], seconds: float
) -> str:
    """The line that says what was written."""
    numbers = ", ".join(f"{split} {state.records:,}" for split, state in splits.items())
    size = "x".join("?" if n is None else str(n) for n in shards.image_shape(splits))
    return (
        f"prepared {final}: {numbers} images, {len(found.names)} classes, {size}, {seconds:.0f} s"
    )


def _check_arguments(name: str, holdout: float, check: str) -> None:
    if name in _BUILT_IN:
        raise ConfigError(f"name={name!r}: is built in and needs no preparing")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name={name!r}: must be lower-case letters, digits and _")
    if check not in CHECKS:
        raise ConfigError(f"check={check!r}: must be one of {', '.join(CHECKS)}")
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout={holdout:g}: must be in [0, 1)")
    if holdout and name in KNOWN:
        raise ConfigError(f"holdout={holdout:g}: must be left out, {name} has its own test images")


def _ready(root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest prepared version; None: there is none.

    Raises:
      ConfigError: the newest version has another file format than array_record, or a file has the
        name of the data set.
    """
    if (npz := root.with_name(f"{root.name}.npz")).exists():
        raise ConfigError(f"data_dir: {npz} is a data set of that name; rename or move it first")
    for info in sorted(root.glob("[0-9]*/dataset_info.json"), reverse=True):
        try:
            form = json.loads(info.read_text()).get("fileFormat", "tfrecord")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"data_dir: {info} is not a JSON object") from error
        if form != "array_record":
            raise ConfigError(
                f"data_dir: {info.parent} has file format '{form}', and the two cannot share a "
                "data_dir; choose another one"
            )
        return info.parent
    return None


def _find(name: str, source: pathlib.Path, holdout: float) -> Found:
    if not source.exists():
        raise ConfigError(f"source={source}: no such file or folder")
    try:
        if name in KNOWN:
            found = KNOWN[name].read(source)
        elif readers.has_idx(source) and not holdout:
            found = readers.idx(source)
        else:
            found = image_folder.image_folder(source, holdout)
    except OSError as error:
        raise ConfigError(f"source={source}: cannot be read ({error})") from error
    if len(found.names) < 2:
        raise ConfigError(
            f"source={source}: {len(found.names)} class ({', '.join(map(ascii, found.names))}), "
            "must be at least two"
        )
    for label in found.names:
        # A text file holds one name a line, in UTF-8. Letters may need joiners and wide blanks.
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in label):
            raise ConfigError(
                f"source={source}: class {label!r}: must be text without line breaks and control "
                "characters"
            )
    return found


def _check_found(task: _Task) -> None:
    """Raises ConfigError for everything that is known to be missing before anything is written."""
    name, found = task.name, task.found
    known = KNOWN[name].counts if name in KNOWN else {}
    missing = [split for split in known if split not in found.splits]
    if missing and task.incomplete == "refuse":
        raise ConfigError(
            f"source={task.source}: has nothing for the split {', '.join(missing)} of {name}; give "
            "--partial to do without"
        )
    _check_counts(task, found.totals)
    if found.train_counts:
        _check_classes(task, found.train_counts)


def _check_counts(task: _Task, counts: dict[str, int]) -> None:
    """Raises ConfigError if a split in `counts` has another number of images than published."""
    if task.name not in KNOWN or task.incomplete == "accept":
        return
    for split, count in counts.items():
        must = KNOWN[task.name].counts[split]
        if count != must:
            raise ConfigError(
                f"source={task.source}: {count:,} {split} images of {task.name}, must be {must:,}; "
                "give --partial to take them nevertheless"
            )


def _check_classes(task: _Task, per_class: Sequence[int]) -> None:
    """Raises ConfigError if a class has no training image."""
    names = task.found.names
    empty = [name for name, count in zip(names, per_class, strict=True) if not count]
    if empty and task.incomplete == "refuse":
        numbered = names == tuple(map(str, range(len(names))))
        mend = "number the labels from 0 on" if numbered else "delete what is empty"
        raise ConfigError(
            f"source={task.source}: {len(empty)} of {len(names)} classes have no training image "
            f"(first: {empty[0]!r}); {mend}, or give --partial to take it nevertheless"
        )


def _write_split(work: shards.Unfinished, task: _Task, split: str) -> None:
    """Writes the rest of a split, or all of it; a finished split stays as it is."""
    state = work.state(split)
    if (
        state.left_out and task.incomplete == "refuse"
    ):  # an earlier run with --partial left them out
        state = work.restart(split)
    if state.done:
        print(f"{split}: done before, {state.records:,} images", flush=True)
        return
    if state.consumed:
        print(f"{split}: resumes after {state.consumed:,} images", flush=True)
    threads = min(32, os.cpu_count() or 1)
    rest = itertools.islice(task.found.splits[split](), state.consumed, None)
    progress = Progress(split, task.total(split), state.consumed)
    with ThreadPoolExecutor(threads) as pool:
        records = _records(rest, pool, 4 * threads, task)
        try:
            work.write(split, progress.of(records), task.shard_bytes)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    state = work.splits[split]
    if not state.records:
        raise ConfigError(f"source: no image for the split {split}")
    if state.left_out:
        print(f"{split}: {len(state.left_out)} broken images left out", flush=True)
    if state.turned:
        print(f"{split}: {state.turned:,} images are turned as their EXIF says", flush=True)


def _records(
    examples: Iterable[Example], pool: ThreadPoolExecutor, window: int, task: _Task
) -> Iterator[shards.Record | str]:
    """The records of `examples`, in order; a str stands for a broken image that is left out.

    The threads of `pool` encode and check at most `window` images ahead.
    """
    num_classes = len(task.found.names)

    def result(example: Example, future: Any) -> shards.Record | str:
        try:
            image, shape, turned = future.result()
        except ConfigError as error:
            if task.incomplete == "refuse":
                raise
            print(f"left out: {error}", file=sys.stderr, flush=True)
            return example.where
        return shards.Record(image, int(example.label), shape, turned)

    pending: collections.deque = collections.deque()
    for example in examples:
        # A wrong label is an error of the whole source, even with --partial.
        if not 0 <= example.label < num_classes:
            raise ConfigError(
                f"source: {example.where}: label {example.label}, must be in 0..{num_classes - 1}"
            )
        image = example.image
        if callable(image):  # a member of an archive: this thread reads one after the other
            with readers.reading(example.where):
                image = image()
        pending.append((example, pool.submit(encode_image, example.where, image, task.check)))
        if len(pending) == window:
            yield result(*pending.popleft())
    while pending:
        yield result(*pending.popleft())


def encode_image(
    where: str, image: np.ndarray | pathlib.Path | bytes, check: str
) -> tuple[bytes, tuple[int, int, int], bool]:
    """(bytes of an image file, its shape (H, W, C), whether EXIF turns it).

    Args:
      where: names the image in errors.
      image: uint8[H, W, C], a file, or the bytes of one.
      check: as of `prepare`.

    Raises:
      ConfigError: the image is broken.
    """
    try:
        if isinstance(image, np.ndarray):
            import cv2

            pixels = image[..., ::-1] if image.shape[-1] == 3 else image  # cv2 has BGR
            return cv2.imencode(".png", pixels)[1].tobytes(), image.shape, False
        data = image.read_bytes() if isinstance(image, pathlib.Path) else image
        return data, *decoding.checked_shape(data, check)
    except MemoryError:
        raise
    except Exception as error:  # Pillow and cv2 raise anything on a damaged image
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"source: {where}: broken image ({type(error).__name__}: {line}); mend or delete it, "
            "or give --partial to leave it out"
        ) from error
