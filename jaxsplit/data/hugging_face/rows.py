"""The records of a split in Arrow files, read at random; images stay encoded."""

import functools
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxsplit.data.hugging_face.place import INFO, Found, damaged
from jaxsplit.errors import ConfigError


class Part(NamedTuple):
    """The files of a split: (path, time of the last change in ns, size in bytes) of each."""

    folder: str  # of dataset_info.json
    info_changed: int
    files: tuple[tuple[str, int, int], ...]


class Columns(NamedTuple):
    image: str
    label: str


def no_examples(name: str, split: str) -> ConfigError:
    return ConfigError(f"data.name={name!r}: split {split!r} has no examples")


def part_of(found: Found, split: str) -> Part:
    folder, files = found.splits[split]
    if not files:  # save_to_disk writes none for a split without examples
        raise no_examples(found.name, split)
    try:
        changed = (folder / INFO).stat().st_mtime_ns
        known = [(str(file), file.stat()) for file in files]
    except OSError as error:
        raise damaged(found.folder, error) from error
    return Part(
        str(folder), changed, tuple((path, each.st_mtime_ns, each.st_size) for path, each in known)
    )


@functools.lru_cache(maxsize=16)
def mapped(part: Part) -> tuple[Any, tuple[tuple[str, int], ...]]:
    """(the table as a datasets.Dataset, (path, number of records) of its files)."""
    import datasets

    try:
        info = datasets.DatasetInfo.from_directory(part.folder)
        tables = [datasets.Dataset.from_file(path, info=info) for path, *_ in part.files]
        whole = datasets.concatenate_datasets(tables)
    except Exception as error:  # Arrow and datasets raise anything
        raise damaged(part.folder, error) from error
    counts = tuple((path, len(t)) for (path, *_), t in zip(part.files, tables, strict=True))
    return whole, counts


class Rows:
    """The records of a split, for `Stream`: encoded images with their labels."""

    def __init__(self, table: Any, columns: Columns) -> None:
        self._columns = columns
        self._both = table.select_columns(list(columns)).with_format("arrow")
        self._labels = table.select_columns([columns.label]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._both)

    def __getitem__(self, record: int) -> dict:
        return self.__getitems__([record])[0]

    def __getitems__(self, records: list[int]) -> list[dict]:
        """The records: file_name (None if unknown), image (bytes) and label.

        Raises:
          ValueError: a record has no image, or one that is not on this machine.
          OSError: an image's file cannot be read.
        """
        table = self._both[records]
        images, labels = (table.column(name).to_pylist() for name in self._columns)
        return [
            {
                "file_name": (image or {}).get("path"),
                "image": _bytes(image),
                "label": label,
            }
            for image, label in zip(images, labels, strict=True)
        ]

    def labels(self, records: list[int]) -> list[dict]:
        """The records without their images."""
        found = self._labels[records].column(self._columns.label).to_pylist()
        return [{"label": label} for label in found]

    def headers(self, some: range) -> Iterator[Any]:
        """The encoded images of neighbouring records as memoryviews; None where there is none.

        Only the bytes that are looked at are read from the disk.
        """
        for image in self._both[some.start : some.stop].column(self._columns.image):
            inside = image["bytes"] if image.is_valid else None
            if inside is not None and inside.is_valid:
                yield memoryview(inside.as_buffer()).cast("B").toreadonly()
            else:
                try:
                    yield _bytes(image.as_py())
                except (OSError, ValueError):
                    yield None


def _bytes(image: dict | None) -> bytes:
    """The encoded image of a record, which may lie in a file of its own."""
    if not image or (image["bytes"] is None and image["path"] is None):
        raise ValueError("it has no image")
    if image["bytes"] is not None:
        return image["bytes"]
    path = image["path"]
    if "://" in path:
        raise ValueError(f"its image is at {path}, which is not on this machine")
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or device might never end
        raise ValueError(f"{path} is not a file")
    return pathlib.Path(path).read_bytes()
