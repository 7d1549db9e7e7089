"""What the features of a data set of Hugging Face say, and the headers of its images."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxsplit.data import decoding
from jaxsplit.data.hugging_face.place import Found, find, one_line
from jaxsplit.data.hugging_face.rows import Columns, Part, Rows, mapped, no_examples, part_of
from jaxsplit.data.stream import Skipped, Stream, announced, chunks
from jaxsplit.errors import ConfigError

_GRAY = ("1", "L", "LA", "I;16")  # what `datasets.Image(mode=)` may convert to, of one channel
_SCAN = 256  # records whose headers are read together


class Description(NamedTuple):
    """What the features and the headers of the images say.

    image_shape: (H, W, C); H and W are None if they vary.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]


def counts(data_config: ConfigDict, splits: Iterable[str]) -> dict[str, int]:
    """Split -> number of examples, of those of `splits` that the set has; raises as `find`."""
    found = find(data_config)
    filled = [split for split in splits if split in found.splits and found.splits[split][1]]
    return {split: len(mapped(part_of(found, split))[0]) for split in filled}


def open_split(
    found: Found,
    data_config: ConfigDict,
    split: str,
    num_classes: int,
    shape: tuple[int, int, int] | None,
) -> Stream:
    """A Stream of a split; num_classes and shape as in `Stream`.

    Raises:
      ConfigError: a file is missing or damaged, or a column is not what it must be.
    """
    table, files = mapped(part_of(found, split))
    rows = Rows(table, _columns(table.features, data_config))
    return Stream(
        rows,
        None,
        shape,
        num_classes,
        files,
        Skipped() if data_config.on_bad_record == "skip" else None,
        f"{found.name} {split}",
        where="data.name",
        record="an example with an image",
    )


def describe(found: Found, data_config: ConfigDict, splits: list[str]) -> Description:
    """What the used splits of a set hold; the first is the training split.

    Raises:
      ConfigError: no column, or several, may be the images or labels; the splits differ; or no
        image can be read.
    """
    tables = {split: mapped(part_of(found, split))[0] for split in splits}
    features = tables[splits[0]].features
    columns = _columns(features, data_config)
    for split, table in tables.items():
        if not len(table):
            raise no_examples(found.name, split)
        for column in columns:
            if (other := table.features.get(column)) != features[column]:
                raise ConfigError(
                    f"data.name={found.name!r}: column {column!r} of split {split!r} is {other}, "
                    f"must be {features[column]} as in split {splits[0]!r}"
                )
    classes = _classes(found.name, tables[splits[0]], columns.label)
    mode = features[columns.image].mode
    parts = tuple(part_of(found, split) for split in splits)
    height, width, channels = _image_shape(parts, columns, found.name)
    if mode is not None:
        channels = 1 if mode in _GRAY else 3
    return Description(len(classes), classes, (height, width, channels))


def _columns(features: Mapping[str, Any], data_config: ConfigDict) -> Columns:
    """The columns of images and of labels."""
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    numbers = [
        key
        for key, kind in features.items()
        if isinstance(kind, datasets.Value) and re.fullmatch(r"u?int\d+", kind.dtype)
    ]
    choose = functools.partial(_column, features, data_config)
    label = "ClassLabel, or a named one of integers"
    return Columns(
        choose("image_column", images, images, "Image"),
        choose("label_column", classes, classes + numbers, label),
    )


def _column(
    features: Mapping[str, Any],
    data_config: ConfigDict,
    field: str,
    found: list[str],
    allowed: list[str],
    kind: str,
) -> str:
    """The column that a field names; if it names none, the only one found."""
    given = data_config[field]
    if given in allowed or (not given and len(found) == 1):
        return given or found[0]
    one_of = f"one of {', '.join(found if not given and found else allowed)}"
    has = ", ".join(f"{key}: {_kind(each)}" for key, each in features.items())
    raise ConfigError(
        f"data.{field}={given!r}: must be {one_of if allowed else 'a column'}, of the feature type "
        f"{kind}; {data_config.name!r} has {has or 'no columns'}"
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return f"{name}({feature.dtype})" if name == "Value" else name


def _classes(name: str, table: Any, column: str) -> tuple[str, ...]:
    """The names of the classes; numbers where the column holds integers without names.

    Raises:
      ConfigError: there is one class, or an integer column leaves a class out.
    """
    feature = table.features[column]
    where = f"data.name={name!r}: column {column!r}"
    classes = getattr(feature, "names", None)
    if classes is None:
        values = table.select_columns([column]).with_format("arrow")[:].column(column).unique()
        labels = sorted(label for label in values.to_pylist() if label is not None and label >= 0)
        if labels != list(range(len(labels))):
            gap = next(i for i, label in enumerate(labels) if i != label)
            raise ConfigError(
                f"{where}: no training example of class {gap}, must have some of each class from 0 "
                f"to the largest, {labels[-1]}"
            )
        classes = list(map(str, labels))
    if len(classes) < 2:
        raise ConfigError(f"{where}: must have at least two classes, has {len(classes)}")
    return tuple(classes)


@functools.lru_cache(maxsize=16)
def _image_shape(
    parts: tuple[Part, ...], columns: Columns, name: str
) -> tuple[int | None, int | None, int]:
    """(H, W, C) of the images by their headers; H and W are None if they vary.

    C is 1 if all are gray. Damaged headers are passed over: whoever decodes the image names it.
    """
    sizes: set[tuple[int, int]] = set()
    channels, why = 0, ""
    tables = [mapped(part)[0] for part in parts]
    rows = [Rows(table, columns) for table in tables]
    count = sum(map(len, rows))
    every = ((one, some) for one in rows for some in chunks(len(one), _SCAN))
    for one, some in announced(every, f"the sizes of {name}", count):
        for data in one.headers(some):
            try:
                if data is not None:
                    height, width, its = decoding.header_shape(data)
                    sizes.add((height, width))
                    channels = max(channels, its)
            except (MemoryError, ImportError):
                raise
            except Exception as error:  # damaged bytes raise anything
                why = why or f" ({one_line(error)})"
        if len(sizes) > 1 and channels == 3:
            break
    if not sizes:
        raise ConfigError(f"data.name={name!r}: none of its {count} images can be read{why}")
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return height, width, channels
