"""Finds, opens and, on request, downloads data sets of tensorflow_datasets.

Reading prepared data needs no TensorFlow. This module looks for the files itself, because tfds
takes minutes to fail without a network if it finds nothing.
"""

import json
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxsplit.data import feature_classes
from jaxsplit.data.arrays import NPZ_KEYS, Arrays
from jaxsplit.data.stream import READ_AHEAD, BadRecordError, Skipped, Stream, announced, chunks
from jaxsplit.errors import ConfigError

_NAME = re.compile(r"\w+(/[\w.+-]+)?")  # a tfds data set, with or without one of its configurations
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def _command(name: str, data_dir: str) -> str:
    return f"python -m jaxsplit.data.prepare {name} --source=FILES --data_dir={data_dir}"


def how_to_prepare(name: str, data_dir: str) -> str:
    """The commands that put the data set `name` into data_dir, from files or by download."""
    return (
        f"prepare it with: {_command(name, data_dir)}, or let tfds download it with "
        "--config.data.download=True"
    )


def missing(name: str, data_dir: str) -> ConfigError:
    """The error that data_dir holds no prepared `name`; it says how to prepare it."""
    return ConfigError(
        f"data.dir={data_dir}: no prepared '{name}' there; {how_to_prepare(name, data_dir)} "
        f"(or put a {name}.npz with the arrays {', '.join(NPZ_KEYS)} there)"
    )


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The folder <data_dir>/<name>[/<configuration>]/<version> of the newest array_record version.

    None: no data set of that name is prepared there.

    Raises:
      ConfigError: the data set exists only in another file format, or in several configurations.
    """
    if not _NAME.fullmatch(name):
        return None
    root = pathlib.Path(os.path.expanduser(data_dir)) / name
    ready, other = [], []
    for pattern in ("*/dataset_info.json", "*/*/dataset_info.json"):
        for info in root.glob(pattern):
            if not _VERSION.fullmatch(info.parent.name):
                continue  # tfds leaves 'incomplete...' folders behind when it is interrupted
            try:
                form = json.loads(info.read_text()).get("fileFormat", "tfrecord")
            except (OSError, ValueError, AttributeError) as error:
                raise ConfigError(f"data.dir={data_dir}: {info} is not a JSON object") from error
            (ready if form == "array_record" else other).append((info.parent, form))
    if ready:
        configurations = sorted({path.parent for path, _ in ready})
        if len(configurations) > 1:
            names = ", ".join(str(path.relative_to(root.parent)) for path in configurations)
            raise ConfigError(f"data.name={name!r}: is there as {names}; must name one of them")
        return max((path for path, _ in ready), key=lambda p: tuple(map(int, p.name.split("."))))
    if other:
        path, form = other[0]
        raise ConfigError(
            f"data.dir={data_dir}: {path} has file format '{form}', must be 'array_record' (the "
            f"two cannot share a data_dir); choose another data.dir and "
            f"{how_to_prepare(name, 'DIR')}"
        )
    return None


def find_builder(name: str, data_config: ConfigDict) -> Any:
    """The tfds builder of the data set prepared in data.dir; None if there is none.

    With data.download it is otherwise the builder of tfds's own data set `name`, which is not yet
    downloaded; None if tfds has no such data set.

    Raises:
      ConfigError: as `find`; or packages are missing, or the prepared data set is damaged.
    """
    data_dir = data_config.dir
    path = find(name, data_dir)
    if path is None and not (data_config.download and _NAME.fullmatch(name)):
        return None
    where = f"data.dir={data_dir}: {path or name}"
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ConfigError(
            f"{where} needs the packages tensorflow-datasets and array_record ({error}); without "
            "them a set can lie in data.dir as <name>.npz with the arrays "
            f" {', '.join(NPZ_KEYS)}"
        ) from error
    if path is not None:
        try:
            feature_classes.check(path, data_dir)
            return tfds.builder_from_directory(path)
        except ConfigError:
            raise
        except Exception as error:  # tfds raises anything
            raise _damaged(path, name, data_dir, error) from error
    folder = pathlib.Path(os.path.expanduser(data_dir))
    try:
        # If tfds has no code for a name, it reads the files there, in any file format.
        for pattern in ("*/features.json", "*/*/features.json"):
            for file in (folder / name).glob(pattern):
                feature_classes.check(file.parent, data_dir)
        return tfds.builder(name, data_dir=str(folder), file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        return None
    except ConfigError:
        raise
    except Exception as error:
        raise _not_downloaded(name, data_dir, error) from error


def open_builder(name: str, data_config: ConfigDict) -> Any:
    """The tfds builder of a prepared data set; downloads it first if data.download is set.

    Raises:
      ConfigError: as `find_builder`; or no data set is prepared, or it cannot be downloaded.
    """
    builder = find_builder(name, data_config)
    if builder is None:
        raise missing(name, data_config.dir)
    if find(name, data_config.dir) is None:
        _download(builder, name, data_config.dir)
    return builder


def _download(builder: Any, name: str, data_dir: str) -> None:
    import fcntl

    import tensorflow_datasets as tfds

    folder = pathlib.Path(os.path.expanduser(data_dir))
    print(
        f"downloading '{name}' into {folder}; without a network this gives up in some minutes",
        flush=True,
    )
    options = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The processes of a machine take turns; the later ones find the data set there.
        path = folder / f".{name.replace('/', '.')}.lock"
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            builder.download_and_prepare(download_config=options)
        finally:
            os.close(lock)
    except Exception as error:  # the network, checksums, missing manual files, packages, disks
        raise _not_downloaded(name, data_dir, error) from error


def _not_downloaded(name: str, data_dir: str, error: Exception) -> ConfigError:
    line = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"data.download=True: '{name}' cannot be downloaded into {data_dir} "
        f"({type(error).__name__}: {line}); prepare it from files with: {_command(name, data_dir)}"
    )


def _damaged(path: Any, name: str, data_dir: str, error: Exception) -> ConfigError:
    line = str(error).partition("\n")[0]
    return ConfigError(
        f"data.dir={data_dir}: {path} is incomplete or damaged ({type(error).__name__}: {line}); "
        f"delete it and {how_to_prepare(name, data_dir)}"
    )


def describe(builder: Any, name: str) -> tuple[int, tuple[int | None, int | None, int]]:
    """(number of classes, (H, W, C)) of a data set by its features; H and W are None if they vary.

    Raises:
      ConfigError: the data set is not for image classification.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features or {}
    image = features["image"] if "image" in features else None
    label = features["label"] if "label" in features else None
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes == 1:
        raise ConfigError(
            f"data.name={name!r}: has one class, must have at least two; is what was prepared one "
            "level too deep?"
        )
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and image.shape[-1] in (1, 3)
        and isinstance(label, tfds.features.ClassLabel)
        and label.num_classes
    ):
        has = ", ".join(f"{key}: {value}" for key, value in sorted(features.items()))
        raise ConfigError(
            f"data.name={name!r}: has the features {has or 'none'}".replace("\n", " ")
            + "; must have an image (uint8, 1 or 3 channels) and a label (one of its classes)"
        )
    return label.num_classes, tuple(image.shape)


def class_names(name: str, data_dir: str, num_classes: int) -> tuple[str, ...]:
    """The class names of the data set prepared in data_dir; () if it or its names are missing."""
    try:
        path = find(name, data_dir)
        if path is None:
            return ()
        names = tuple((path / "label.labels.txt").read_text("utf-8").rstrip("\n").split("\n"))
    except (OSError, ValueError):
        return ()
    return names if len(names) == num_classes else ()


def open_split(
    builder: Any,
    name: str,
    data_config: ConfigDict,
    splits: tuple[str, ...],
    *,
    num_classes: int,
    shape: tuple[int, int, int] | None,
) -> Stream:
    """A Stream of `splits`, one after the other; `shape` as in `Stream`.

    Raises:
      ConfigError: files are missing or damaged, or the number of classes is not num_classes.
    """
    path, data_dir = builder.data_path, data_config.dir
    skip = data_config.on_bad_record == "skip"
    try:
        import tensorflow_datasets as tfds

        features = builder.info.features
        found = features["label"].num_classes if "label" in features else 0
        if found != num_classes or "image" not in features:
            raise ConfigError(
                f"data.dir={data_dir}: {path} has the features {', '.join(features)} and {found} "
                f"classes, must have image, label and {num_classes} classes"
            )
        split = "+".join(splits)
        files = tuple(
            (str(part.filename), part.examples_in_shard)
            for part in builder.info.splits[split].file_instructions
        )
        for file, _ in files:
            open(file, "rb").close()
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if not skip:
            # Opens the last shard now rather than in mid-run; does not check the record.
            source.data_source[len(source) - 1]
    except ConfigError:
        raise
    except Exception as error:  # tfds and array_record raise anything, bare RuntimeError included
        raise _damaged(path, name, data_dir, error) from error
    skipped = Skipped() if skip else None
    return Stream(source, None, shape, num_classes, files, skipped, f"{name} {split}")


def read_all(stream: Stream, threads: int) -> Arrays:
    """Decodes all examples of a stream, whose images have one shape, into memory with `threads`.

    Raises:
      BadRecordError: a record is bad, and bad records are an error; names the first.
      ConfigError: no record is good.
      ValueError: the images vary in shape.
    """
    if (shape := stream.shape) is None:
        raise ValueError(f"{stream.name}: shape=None: must be that of every image")
    count, channels = len(stream), shape[2]
    images = np.zeros((count, *shape), np.uint8)
    labels = np.full(count, -1, np.int32)

    def read(some: range) -> dict[int, str]:
        bad = {}
        for i, example in zip(some, stream.examples(some), strict=True):
            try:
                labels[i] = stream.label(i, example)
                images[i] = stream.image(i, example, channels)
            except BadRecordError as error:
                if stream.skipped is None:
                    raise
                bad[i] = str(error)
        return bad

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for found in announced(pool.map(read, chunks(count, READ_AHEAD)), stream.name, count):
            bad |= found
    if len(bad) == count:
        raise ConfigError(f"{bad[0]}; no record is good" if bad else "data.dir: no records")
    return Arrays(images, labels, bad, None if stream.skipped is None else Skipped())
