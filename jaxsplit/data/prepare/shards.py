"""Writes a tfds data set of images as array_record shards; an interrupted run can resume.

The writer of tensorflow_datasets keeps a second copy of a split's examples until it ends, needs
TensorFlow for more than 1 GB of them, and starts again after an interruption. Here a closed shard
is final. tensorflow_datasets still makes features, examples and metadata.
"""

import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files

# The size of a full shard; an interrupted run loses at most one. The more records a shard has, the
# slower array_record reads one of them: 0.06 ms from 10,000, 0.26 ms from 60,000.
SHARD_BYTES, SHARD_RECORDS = 256 << 20, 8192
EVALUATED = ("test", "validation")  # the splits for evaluation; all others are for training
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class Record:
    """An example to be written.

    image: an encoded image.
    shape: (H, W, C) of the decoded image; C = 1 for gray.
    turned: whether its EXIF orientation turns the image.
    """

    image: bytes
    label: int
    shape: tuple[int, int, int]
    turned: bool = False


@dataclass
class SplitState:
    """What the disk holds of a split; all fields are JSON values.

    shards: [records, bytes of the records, size of the file] of each shard.
    consumed: number of examples of the source that are written or left out.
    per_class: number of records of each class.
    height, width: of all images; 0 before the first image, None if images differ.
    channels: the largest number of channels.
    left_out: names of the broken images.
    done: whether the split is complete.
    turned: number of images that EXIF turns.
    """

    shards: list[list[int]] = field(default_factory=list)
    consumed: int = 0
    per_class: list[int] = field(default_factory=list)
    height: int | None = 0
    width: int | None = 0
    channels: int = 1
    left_out: list[str] = field(default_factory=list)
    done: bool = False
    turned: int = 0

    @property
    def records(self) -> int:
        return sum(shard[0] for shard in self.shards)

    def note_shape(self, shape: tuple[int, int, int]) -> None:
        h, w, c = shape
        self.height = h if self.height in (0, h) else None
        self.width = w if self.width in (0, w) else None
        self.channels = max(self.channels, c)


class Unfinished:
    """The folder `incomplete.<version>` beside `final`, with its lock and its progress file.

    `stamp` identifies the source and the options; with another stamp the work starts again.
    """

    def __init__(self, final: pathlib.Path, stamp: Any, num_classes: int) -> None:
        self.final, self.num_classes = final, num_classes
        self.folder = final.with_name(f"incomplete.{final.name}")
        self.progress = self.folder / "progress.json"
        self._stamp = json.loads(json.dumps(stamp))
        self.splits: dict[str, SplitState] = {}

    def __enter__(self) -> "Unfinished":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(f"data_dir: another run is writing {self.folder}") from error
        except OSError:
            pass  # a file system without locks
        files.clear_temporary(self.folder)
        try:
            saved = json.loads(self.progress.read_text())
            if saved["stamp"] == self._stamp:
                self.splits = {name: SplitState(**state) for name, state in saved["splits"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no progress file, or one of another program
        if not self.splits:
            self.clear()
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._lock)

    def clear(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def state(self, split: str) -> SplitState:
        """The state of a split; a fresh one if its files differ from the progress file."""
        state = self.splits.get(split)
        if state is not None:
            sizes = [self._size(self._shard(split, i)) for i in range(len(state.shards))]
            digests = [self._size(self._digests(split, i)) for i in range(len(state.shards))]
            good = sizes == [shard[2] for shard in state.shards]
            if good and digests == [_DIGEST_BYTES * shard[0] for shard in state.shards]:
                return state
        return self.restart(split)

    def restart(self, split: str) -> SplitState:
        """Deletes the files of a split; returns a fresh state."""
        for pattern in (f"{split}.[0-9]*", f"*-{split}.array_record-*"):
            for path in self.folder.glob(pattern):
                path.unlink()
        self.splits[split] = SplitState(per_class=[0] * self.num_classes)
        return self.splits[split]

    def write(self, split: str, records: Iterable[Record | str], shard_bytes: int) -> None:
        """Appends `records` to a split and marks it as done; a str names a left-out image.

        `records` must begin after the `consumed` examples of the split's state.
        """
        state = self.state(split)
        serialize = _serializer(self.num_classes)
        writer, shard, digests = None, [0, 0, 0], bytearray()
        path = self._shard(split, len(state.shards))
        try:
            for record in records:
                state.consumed += 1
                if isinstance(record, str):
                    state.left_out.append(record)
                    continue
                if writer is None:
                    writer, shard, digests = _open_shard(path), [0, 0, 0], bytearray()
                data = serialize(record)
                writer.write(data)
                shard[0] += 1
                shard[1] += len(data)
                digests += _digest(record.image)
                state.per_class[record.label] += 1
                state.note_shape(record.shape)
                state.turned += record.turned
                if shard[0] >= SHARD_RECORDS or shard[1] >= shard_bytes:
                    self._write_digests(split, len(state.shards), digests)
                    self._close_shard(writer, path, shard, state)
                    writer, path = None, self._shard(split, len(state.shards))
            if writer is not None:
                self._write_digests(split, len(state.shards), digests)
                self._close_shard(writer, path, shard, state)
                writer = None
        finally:
            if writer is not None:  # interrupted: the progress file is still right
                writer.close()
        state.done = bool(state.records)  # every run refuses a split without images
        self._save()

    def _close_shard(self, writer: Any, path: pathlib.Path, shard: list, state: SplitState) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        writer.close()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        reader = ArrayRecordReader(str(path))
        if reader.num_records() != shard[0]:
            raise OSError(f"{path} has {reader.num_records()} of {shard[0]} records")
        reader.close()
        state.shards.append([*shard[:2], path.stat().st_size])
        self._save()

    def _save(self) -> None:
        saved = {
            "stamp": self._stamp,
            "splits": {name: asdict(state) for name, state in self.splits.items()},
        }
        files.write_text(self.progress, json.dumps(saved))

    def _shard(self, split: str, i: int) -> pathlib.Path:
        """The file of a shard; `finish` gives it its final name, with the number of shards."""
        final = self.folder / self._final_name(split, i)
        return final if final.exists() else self.folder / f"{split}.{i:05}"

    def _final_name(self, split: str, i: int) -> str:
        name, count = self.final.parent.name, len(self.splits[split].shards)
        return f"{name}-{split}.array_record-{i:05}-of-{count:05}"

    def _digests(self, split: str, i: int) -> pathlib.Path:
        """The file with the digests of a shard's images."""
        return self.folder / f"{split}.{i:05}.digests"

    def _write_digests(self, split: str, i: int, digests: bytes | bytearray) -> None:
        files.write_bytes(self._digests(split, i), bytes(digests))

    def in_both(self) -> list[str]:
        """A line for each evaluation split that holds images of the training splits.

        Two images are the same if their files, or for arrays their pixels, have the same bytes.
        """
        found = {
            split: np.concatenate(
                [np.fromfile(self._digests(split, i), "<u8") for i in range(len(state.shards))]
            )
            for split, state in self.splits.items()
        }
        trained = np.concatenate([found[split] for split in found if split not in EVALUATED])
        lines = []
        for split in EVALUATED:
            if split in found:
                same = np.flatnonzero(np.isin(found[split], trained))
                if len(same):
                    lines.append(
                        f"{len(same):,} of {len(found[split]):,} images of {split} are images of "
                        f"the training part too, byte by byte; the first is number {same[0]}"
                    )
        return lines

    @staticmethod
    def _size(path: pathlib.Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    def finish(self, names: tuple[str, ...], description: str) -> None:
        """Writes the metadata; at last gives the folder its final name."""
        for split, state in self.splits.items():
            for i in range(len(state.shards)):
                os.replace(self._shard(split, i), self.folder / self._final_name(split, i))
        _write_metadata(self.final, self.folder, self.splits, names, description)
        for path in self.folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.fsync(self._lock)
        os.replace(self.folder, self.final)
        for path in (self.final / self.progress.name, *self.final.glob("*.digests")):
            path.unlink()


def _digest(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=_DIGEST_BYTES).digest()


def _serializer(num_classes: int):
    """A function that turns a Record into the bytes of a tf.train.Example."""
    from tensorflow_datasets.core import example_serializer

    features = _features((None, None, 3), tuple(map(str, range(num_classes))))
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialize(record: Record) -> bytes:
        example = {"image": io.BytesIO(record.image), "label": record.label}
        return serializer.serialize_example(features.encode_example(example))

    return serialize


def _features(shape: tuple[int | None, int | None, int], names: tuple[str, ...]):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(names=list(names)),
        }
    )


def _open_shard(path: pathlib.Path):
    from array_record.python.array_record_module import ArrayRecordWriter

    path.unlink(missing_ok=True)
    return ArrayRecordWriter(str(path), "group_size:1")  # as in tfds: each record in its own group


def image_shape(splits: dict[str, SplitState]) -> tuple[int | None, int | None, int]:
    """(H, W, C) of all images; H and W are None unless all images have the same."""
    sizes = {(state.height, state.width) for state in splits.values()}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    if height is None or width is None:
        height = width = None
    return height, width, max(state.channels for state in splits.values())


def _write_metadata(
    final: pathlib.Path,
    folder: pathlib.Path,
    splits: dict[str, SplitState],
    names: tuple[str, ...],
    description: str,
) -> None:
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core import dataset_info, file_adapters, naming
    from tensorflow_datasets.core.splits import SplitDict

    identity = dataset_info.DatasetIdentity(
        name=final.parent.name,
        version=tfds.core.Version(final.name),
        data_dir=str(folder),
        module_name="jaxsplit.data.prepare",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=_features(image_shape(splits), names),
        supervised_keys=("image", "label"),
        disable_shuffling=True,
        description=description,
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard[0] for shard in state.shards],
            num_bytes=sum(shard[1] for shard in state.shards),
            filename_template=naming.ShardedFileTemplate(
                dataset_name=final.parent.name,
                data_dir=epath.Path(folder),
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, state in splits.items()
    ]
    info.set_splits(SplitDict(infos))
    info.write_to_directory(str(folder))
