"""Find and open data sets that tensorflow_datasets prepared; never downloads, never TensorFlow."""

import json
import pathlib
import re

import numpy as np

from jaxsplit.data.arrays import NPZ_KEYS, Arrays, check_arrays
from jaxsplit.data.stream import Stream
from jaxsplit.errors import ConfigError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def _prepare_command(name: str, data_dir: str) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"'
    )


def find(name: str, data_dir: str) -> pathlib.Path:
    """The folder <data_dir>/<name>[/<config>]/<version> of the newest array_record version.

    Raises:
      ConfigError: none there, or only in another file format; says how to prepare it.
    """
    root = pathlib.Path(data_dir).expanduser() / name
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
        return max((path for path, _ in ready), key=lambda p: tuple(map(int, p.name.split("."))))
    command = _prepare_command(name, data_dir)
    if other:
        path, form = other[0]
        raise ConfigError(
            f"data.dir={data_dir}: {path} has file format '{form}', must be 'array_record' (the "
            f"two cannot share a data_dir); prepare it into another data.dir with: {command}"
        )
    raise ConfigError(
        f"data.dir={data_dir}: no prepared '{name}' there; prepare it with: {command} "
        f"(or put a {name}.npz with the arrays {', '.join(NPZ_KEYS)} there)"
    )


def open_splits(
    name: str,
    data_dir: str,
    splits: tuple[str, ...],
    *,
    num_classes: int,
    optional: tuple[str, ...] = (),
) -> dict[str, Stream]:
    """{split: Stream} of the prepared data set `name`: all of `splits`, of `optional` what it has.

    Raises:
      ConfigError: as `find`; or tensorflow_datasets is not installed, files are missing or damaged,
        a split is missing, the number of classes is not num_classes.
    """
    path = find(name, data_dir)
    where = f"data.dir={data_dir}: {path}"
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ConfigError(
            f"{where} needs the packages tensorflow-datasets and array_record ({error}); without "
            f"them put a {name}.npz with the arrays {', '.join(NPZ_KEYS)} into data.dir"
        ) from error
    try:
        builder = tfds.builder_from_directory(path)
        features = builder.info.features
        found = features["label"].num_classes if "label" in features else 0
        if found != num_classes or "image" not in features:
            raise ConfigError(
                f"{where} has the features {', '.join(features)} and {found} classes, must have "
                f"image, label and {num_classes} classes"
            )
        streams = {}
        for split in (*splits, *optional):
            if split in builder.info.splits:
                source = builder.as_data_source(
                    split, decoders={"image": tfds.decode.SkipDecoding()}
                )
                source[len(source) - 1]  # opens the last shard: now rather than in mid-run
                streams[split] = Stream(source)
            elif split in splits:
                raise ConfigError(
                    f"data.dir={data_dir}: '{name}' has no split '{split}' "
                    f"(has: {', '.join(builder.info.splits)})"
                )
    except ConfigError:
        raise
    except Exception as error:  # tfds and array_record raise anything, bare RuntimeError included
        line = str(error).partition("\n")[0]
        raise ConfigError(
            f"{where} is incomplete or damaged ({type(error).__name__}: {line}); delete it and "
            f"prepare it again with: {_prepare_command(name, data_dir)}"
        ) from error
    return streams


def read_all(
    streams: list[Stream], shape: tuple[int, int, int], num_classes: int, where: str
) -> Arrays:
    """All examples of `streams`, one after the other, decoded into memory.

    Raises:
      ConfigError: an image that is damaged or not of `shape`, or a label out of range.
    """
    total = sum(map(len, streams))
    images = np.empty((total, *shape), np.uint8)
    labels = np.empty(total, np.int32)
    at = 0
    for stream in streams:
        for i in range(len(stream)):
            image, labels[at] = stream.read(i, shape[2])
            if image.shape != shape:
                raise ConfigError(f"{where} image {at}: shape {image.shape}, must be {shape}")
            images[at] = image
            at += 1
    return check_arrays(images, labels, num_classes=num_classes, where=where)
