"""What lies on disk -> a tensorflow_datasets array_record data set. Offline, without TensorFlow.

python -m jaxsplit.data.prepare cifar10 --source=downloads
python -m jaxsplit.data.prepare fashion_mnist --source=/usr/share/datasets/fashion-mnist
python -m jaxsplit.data.prepare imagenet2012 --source=/data/imagenet --data_dir=/data/tfds
python -m jaxsplit.data.prepare my_birds --source=birds --holdout=0.1

An interrupted run is continued by the same command, from the last full shard (8192 images or
256 MiB), unless an image, another file of the source or --check has changed. The set appears in
`data_dir` under its name only when it is whole.
"""

import collections
import itertools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsplit.data import decoding
from jaxsplit.data.prepare import image_files, image_folder, readers, shards
from jaxsplit.data.prepare.readers import Example, Found
from jaxsplit.errors import ConfigError

CHECKS = ("full", "header")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BUILT_IN = ("digits", "synthetic")
_LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Known:
    """A published set: tfds's version of it, its reader, and how many images it must have."""

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
    partial: bool = False,
    shard_bytes: int = shards.SHARD_BYTES,
) -> pathlib.Path:
    """Write <data_dir>/<name>/<version>/ from the files in `source`; returns that path.

    Args:
      name: one of KNOWN, each in its published form; any other: IDX files or folders of images.
      holdout: share of every class that becomes the test split of a folder of images without one;
        each class keeps a training image.
      check: "full" decodes every image; "header" looks at its header and its end only.
      partial: allow other numbers of images than a known set has and classes without images, and
        leave out broken images.
      shard_bytes: of records after which a shard is closed.

    A set that is there already stays as it is. Encoded images are kept byte by byte, arrays
    become PNG. Images in both the training and the test part are told.

    Raises:
      ConfigError: `source` does not hold what it must, an image is broken, numbers or labels are
        wrong, or `data_dir` cannot be written. What was written is kept for the next run.
    """
    source = pathlib.Path(source).expanduser()
    known = KNOWN.get(name)
    _check_arguments(name, holdout, check)
    root = pathlib.Path(os.path.abspath(pathlib.Path(data_dir).expanduser())) / name
    final = root / (known.version if known else _OTHER_VERSION)
    ready = _ready(root)
    if ready:
        print(f"already there: {ready}", flush=True)
        return ready
    if final.is_dir() and any(final.iterdir()):
        raise ConfigError(f"data_dir={data_dir}: {final} is no whole data set; delete it first")
    found = _find(name, source, holdout)
    for note in found.notes:
        print(f"note: {note}", flush=True)
    _check_found(name, source, found, partial)
    began = time.monotonic()
    stamp = [3, name, list(found.splits), list(found.names), check, found.stamp]
    try:
        with shards.Unfinished(final, stamp, len(found.names)) as work:
            for split, examples in found.splits.items():
                total = found.totals.get(split) or (known.counts.get(split) if known else None)
                _write_split(work, split, examples, total, found.names, check, partial, shard_bytes)
            counts = {split: state.records for split, state in work.splits.items()}
            _check_counts(name, source, counts, partial)
            _check_classes(source, work.splits["train"].per_class, found.names, partial)
            for line in work.in_both():
                print(f"note: {line}", flush=True)
            work.finish(found.names, f"{name}, prepared by jaxsplit from files on disk.")
            shape = shards.image_shape(work.splits)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError on a full disk
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"data_dir={data_dir}: {final} cannot be written ({type(error).__name__}: {line})"
        ) from error
    numbers = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    size = "x".join("?" if n is None else str(n) for n in shape)
    seconds = time.monotonic() - began
    print(
        f"prepared {final}: {numbers} images, {len(found.names)} classes, {size}, {seconds:.0f} s",
        flush=True,
    )
    return final


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
    """The version that is there already, in the right format.

    Raises:
      ConfigError: only in another format.
    """
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
        if not label.isprintable():  # the list of names is a text file with a line for each
            raise ConfigError(f"source={source}: class {label!r}: must be printable text")
    return found


def _check_found(name: str, source: pathlib.Path, found: Found, partial: bool) -> None:
    """Raise for what can be known to lack before anything is written."""
    known = KNOWN.get(name)
    missing = [split for split in (known.counts if known else ()) if split not in found.splits]
    if missing and not partial:
        raise ConfigError(
            f"source={source}: has nothing for the split {', '.join(missing)} of {name}; give "
            "--partial to do without"
        )
    _check_counts(name, source, found.totals, partial)
    if found.train_counts:
        _check_classes(source, found.train_counts, found.names, partial)


def _check_counts(name: str, source: pathlib.Path, counts: dict[str, int], partial: bool) -> None:
    """Raise unless the splits in `counts` have as many images as those of a known set must."""
    if name not in KNOWN or partial:
        return
    for split, count in counts.items():
        must = KNOWN[name].counts[split]
        if count != must:
            raise ConfigError(
                f"source={source}: {count:,} {split} images of {name}, must be {must:,}; give "
                "--partial to take them nevertheless"
            )


def _check_classes(
    source: pathlib.Path, per_class: Sequence[int], names: tuple[str, ...], partial: bool
) -> None:
    empty = [name for name, count in zip(names, per_class, strict=True) if not count]
    if empty and not partial:
        raise ConfigError(
            f"source={source}: {len(empty)} of {len(names)} classes have no training image (first: "
            f"{empty[0]!r}); delete what is empty, or give --partial to take it nevertheless"
        )


def _write_split(
    work: shards.Unfinished,
    split: str,
    examples: Callable[[], Iterator[Example]],
    total: int | None,
    names: tuple[str, ...],
    check: str,
    partial: bool,
    shard_bytes: int,
) -> None:
    state = work.state(split)
    if state.left_out and not partial:  # those of a run with --partial
        state = work.restart(split)
    if state.done:
        print(f"{split}: done before, {state.records:,} images", flush=True)
        return
    if state.consumed:
        print(f"{split}: goes on after {state.consumed:,} images", flush=True)
    threads = min(32, os.cpu_count() or 1)
    rest = itertools.islice(examples(), state.consumed, None)
    with ThreadPoolExecutor(threads) as pool, _Progress(split, total, state.consumed) as tick:
        records = _records(rest, pool, 4 * threads, len(names), check, partial)
        try:
            work.write(split, tick(records), shard_bytes)
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
    examples: Iterable[Example],
    pool: ThreadPoolExecutor,
    window: int,
    num_classes: int,
    check: str,
    partial: bool,
) -> Iterator[shards.Record | str]:
    """Encoded and checked in the threads of `pool`, at most `window` ahead, in order."""

    def result(example: Example, future: Any) -> shards.Record | str:
        try:
            image, shape, turned = future.result()
        except ConfigError as error:
            if not partial:
                raise
            print(f"left out: {error}", file=sys.stderr, flush=True)
            return example.where
        return shards.Record(image, int(example.label), shape, turned)

    pending: collections.deque = collections.deque()
    for example in examples:
        # A wrong label is an error of the whole source: nothing that could be left out.
        if not 0 <= example.label < num_classes:
            raise ConfigError(
                f"source: {example.where}: label {example.label}, must be in 0..{num_classes - 1}"
            )
        image = example.image
        if callable(image):  # of an archive: read here, one after the other
            with readers.reading(example.where):
                image = image()
        pending.append((example, pool.submit(encode_image, example.where, image, check)))
        if len(pending) == window:
            yield result(*pending.popleft())
    while pending:
        yield result(*pending.popleft())


def encode_image(
    where: str, image: np.ndarray | pathlib.Path | bytes, check: str
) -> tuple[bytes, tuple[int, int, int], bool]:
    """(bytes of an image file, its (H, W, C), whether EXIF turns it)."""
    try:
        if isinstance(image, np.ndarray):
            import cv2

            pixels = image[..., ::-1] if image.shape[-1] == 3 else image  # cv2 has BGR
            return cv2.imencode(".png", pixels)[1].tobytes(), image.shape, False
        data = image.read_bytes() if isinstance(image, pathlib.Path) else image
        return data, *decoding.checked_shape(data, decode_all=check == "full")
    except MemoryError:
        raise
    except Exception as error:  # Pillow and cv2 raise anything on a damaged image
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"source: {where}: broken image ({type(error).__name__}: {line}); mend or delete it, "
            "or give --partial to leave it out"
        ) from error


class _Progress:
    """Counts on a terminal with a bar, elsewhere with a line every ten seconds."""

    def __init__(self, split: str, total: int | None, done: int):
        self.split, self.total, self.done = split, total, done

    def __enter__(self) -> Callable[[Iterable[Any]], Iterable[Any]]:
        if not sys.stderr.isatty():
            return self._lines
        from tqdm import tqdm

        return lambda records: tqdm(
            records, desc=self.split, total=self.total, initial=self.done, unit=" images"
        )

    def __exit__(self, *_: Any) -> None:
        pass

    def _lines(self, records: Iterable) -> Iterator:
        began = last = time.monotonic()
        done = self.done
        for record in records:
            yield record
            done += 1
            now = time.monotonic()
            if now - last >= _LINE_EVERY_S:
                last = now
                of = f" of {self.total:,}" if self.total else ""
                rate = (done - self.done) / (now - began)
                print(f"{self.split}: {done:,}{of} images, {rate:,.0f}/s", flush=True)
