"""Splits that stay on disk as encoded images: reading, random-resized crops, evaluation crops.

A record is bad if it cannot be decoded, or has a label or shape that the data set does not have.
`config.data.on_bad_record` decides whether a bad record is an error or is left out and counted.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxsplit.data import decoding
from jaxsplit.data.decoding import decode
from jaxsplit.errors import ConfigError

# OpenCV does not smooth when it interpolates, so a crop that shrinks would alias. These are the
# linear shrinkages up to which a filter is closest to Pillow's antialiased bicubic on photographs:
# cubic up to about 1.2, then linear (a box of two pixels), then area. From 1.3 on area is closest,
# but 6 times as slow. At 1.5 linear differs by 3.8 levels of 255 (root mean square; area 2.5, cubic
# 8.0), at 1.8 by 7.4 (2.4, 11.5). Linear to twice the size, followed by the mean of 2x2, differs as
# little as area (2.5 levels at 1.6 and at 1.9, 2.9 at 2.2) and takes half the time: 0.35 against
# 0.77 ms for a crop of 224 pixels.
_CUBIC_UP_TO, _LINEAR_UP_TO, _TWICE_UP_TO = 1.2, 1.5, 2.1
_ASPECT = (3 / 4, 4 / 3)  # width / height of a random crop
_TRIES = 10
# Number of records read together; read alone, each of a large shard costs 0.3 ms. Images of any
# size may take megabytes, so fewer of them are read together.
READ_AHEAD, READ_AHEAD_ANY_SIZE = 512, 32
_SLOW_S = 2.0  # seconds after which `announced` prints a line


class BadRecordError(ConfigError):
    """A record cannot be used; the message is one line that names it."""


@dataclass
class Skipped:
    """Counts how often a bad record was left out; prints a line about the first."""

    count: int = 0

    def add(self, errors: list[str]) -> None:
        """Counts one bad record for each line in `errors`."""
        if errors and not self.count:
            print(
                f"warning: {errors[0]}; left out, as any other will be (data.on_bad_record='skip')",
                flush=True,
            )
        self.count += len(errors)


@dataclass(frozen=True)
class Stream:
    """A split of encoded images in a random-access source, decoded when they are needed.

    source: has a length; source[i] is dict(image=..., label=int), and the image is an encoded file
      (bytes of JPEG, PNG, ...) or uint8[H, W, C]. It may read several records together
      (`__getitems__`), and without their images (`labels`).
    indices: int[N], the records of the source that make up this split; None: all.
    shape: (H, W, C) of every image, which is used whole; None: sizes vary and images are cropped.
    num_classes: labels must lie below it; None: any label is allowed.
    files: (path, number of records) of the source's files, in order; for messages.
    skipped: counts the bad records that evaluations leave out; None: a bad record is an error.
    name: name of the data set and its splits; for messages.
    where: the field that errors begin with.
    record: what a record must be; for messages.
    """

    source: Any
    indices: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    files: tuple[tuple[str, int], ...] = ()
    skipped: Skipped | None = None
    name: str = ""
    where: str = "data.dir"
    record: str = "a tf.train.Example"

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def part(self, indices: np.ndarray) -> "Stream":
        """A split of the examples at `indices` (int[M]), with its own counter of bad records."""
        records = indices if self.indices is None else self.indices[indices]
        skipped = None if self.skipped is None else Skipped()
        return replace(self, indices=records, skipped=skipped)

    def read(self, i: int, channels: int) -> tuple[np.ndarray, int]:
        """Example i of the split: (uint8[H, W, channels], label).

        Raises:
          BadRecordError: the record cannot be read or decoded, or has a wrong label or shape.
        """
        example = self._example(i)
        label = self.label(i, example)
        return self.image(i, example, channels), label

    def read_eval(self, i: int, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
        """Example i as evaluation sees it: (uint8[H, W, C], label); raises as `read`."""
        height, width, channels = image_shape
        image, label = self.read(i, channels)
        return image if self.shape is not None else centre_crop(image, height, width), label

    def examples(self, positions: Sequence[int]) -> Sequence["dict | BadRecordError"]:
        """Reads the examples at `positions` together, without decoding; for `label` and `image`.

        An example that cannot be read is replaced by its error.
        """
        if hasattr(self.source, "__getitems__"):
            try:
                return self.source.__getitems__([self._record(i) for i in positions])
            except (MemoryError, ImportError):
                raise
            except Exception:  # one of them is bad: read them one by one to find it
                pass
        found: list[dict | BadRecordError] = []
        for i in positions:
            try:
                found.append(self._example(i))
            except BadRecordError as error:
                found.append(error)
        return found

    def label(self, i: int, example: "dict | BadRecordError") -> int:
        """The label of `example`, which is example i; raises as `read`."""
        if isinstance(example, BadRecordError):
            raise example
        with self._must(i, example, "has no label that can be read", "a number"):
            label = int(example["label"])
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise BadRecordError(
                f"{self.where}: {self._name(i, example)} has the label {label}, must lie in "
                f"0..{self.num_classes - 1}"
            )
        return label

    def image(self, i: int, example: "dict | BadRecordError", channels: int) -> np.ndarray:
        """uint8[H, W, channels]: the image of `example`, which is example i; raises as `read`."""
        if isinstance(example, BadRecordError):
            raise example
        with self._must(i, example, "cannot be decoded", "an image"):
            image = decode(example["image"], channels)
        if self.shape is not None and image.shape != self.shape:
            height, width, channels = self.shape
            turned = image.shape == (width, height, channels)
            raise BadRecordError(
                f"{self.where}: {self._name(i, example)} has the shape {image.shape}, must be "
                f"{self.shape}" + " (prepare the set again if EXIF turns its images)" * turned
            )
        return image

    def labels(self) -> np.ndarray:
        """int64[N]: all labels, without decoding an image; -1 for a skipped record without one.

        Raises:
          BadRecordError: a record has no valid label, and bad records are an error.
        """
        out = np.full(len(self), -1)
        parts = chunks(len(self), READ_AHEAD_ANY_SIZE if self.shape is None else READ_AHEAD)
        for some in announced(parts, f"the labels of {self.name}", len(self)):
            for i, example in zip(some, self._without_images(some), strict=True):
                try:
                    out[i] = self.label(i, example)
                except BadRecordError:
                    if self.skipped is None:
                        raise
        return out

    def _without_images(self, positions: Sequence[int]) -> Sequence["dict | BadRecordError"]:
        """The examples at `positions`, as `examples`; without images where the source has a way."""
        if hasattr(self.source, "labels"):
            try:
                return self.source.labels([self._record(i) for i in positions])
            except (MemoryError, ImportError):
                raise
            except Exception:  # one of them is bad: `examples` finds it
                pass
        return self.examples(positions)

    def _record(self, i: int) -> int:
        return int(i if self.indices is None else self.indices[i])

    def _example(self, i: int) -> dict:
        with self._must(i, {}, "cannot be read", self.record):
            return self.source[self._record(i)]

    @contextlib.contextmanager
    def _must(self, i: int, example: dict, what: str, allowed: str) -> Iterator[None]:
        """Turns an error in the block into a BadRecordError of example i.

        Damaged bytes make array_record, protobuf, tfds, Pillow and OpenCV raise any kind of error.
        Only missing memory and missing packages are not the record's fault.
        """
        try:
            yield
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadRecordError(
                f"{self.where}: {self._name(i, example)} {what} ({line}); must be {allowed}"
            ) from error

    def _name(self, i: int, example: dict) -> str:
        """A name such as 'record 7 (cat.jpg, number 2 of train.array_record-00001-of-00002)'."""
        known = []
        if name := example.get("file_name"):
            known.append(name.decode(errors="replace") if isinstance(name, bytes) else str(name))
        at = record = self._record(i)
        for path, count in self.files:
            if at < count:
                known.append(f"number {at} of {path}")
                break
            at -= count
        return f"record {record}" + f" ({', '.join(known)})" * bool(known)


def chunks(count: int, size: int) -> Iterator[range]:
    """Yields 0..count-1 in ranges of `size`."""
    return (range(at, min(at + size, count)) for at in range(0, count, size))


def announced(done: Iterable, what: str, count: int) -> Iterator:
    """Yields `done`; if that takes long, prints a line that says what is being read."""
    began, told = time.monotonic(), False
    for each in done:
        if not told and time.monotonic() - began > _SLOW_S:
            print(f"reading {what}: {count:,} images", flush=True)
            told = True
        yield each


def random_box(
    rng: np.random.Generator, height: int, width: int, scale_min: float
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random-resized crop, as torchvision documents it.

    The area is uniform in [scale_min, 1] of the image's, and width / height is log-uniform in
    [3/4, 4/3]. If ten boxes do not fit, it is the largest centred box with a permitted aspect.
    """
    low, high = np.log(_ASPECT[0]), np.log(_ASPECT[1])
    for _ in range(_TRIES):
        area = height * width * rng.uniform(scale_min, 1.0)
        aspect = np.exp(rng.uniform(low, high))
        h, w = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h = min(height, round(width / _ASPECT[0]))
    w = min(width, round(height * _ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_crops(
    image: np.ndarray, out: np.ndarray, rng: np.random.Generator, scale_min: float
) -> None:
    """Fills `out` (uint8[S, H, W, C]) with S independent random-resized crops of `image`.

    The draws of view s do not depend on S. The device does the flips.
    """
    cv2 = decoding.cv2()
    size = (out.shape[2], out.shape[1])
    for view in out:
        top, left, h, w = random_box(rng, image.shape[0], image.shape[1], scale_min)
        shrink = math.sqrt(h * w / (size[0] * size[1]))
        crop = image[top : top + h, left : left + w]
        if shrink <= _CUBIC_UP_TO:
            how = cv2.INTER_CUBIC
        else:
            how = cv2.INTER_LINEAR if shrink <= _LINEAR_UP_TO else cv2.INTER_AREA
            if _LINEAR_UP_TO < shrink <= _TWICE_UP_TO:
                twice = (2 * size[0], 2 * size[1])
                crop = cv2.resize(crop, twice, interpolation=cv2.INTER_LINEAR)
        crop = cv2.resize(crop, size, interpolation=how)
        view[...] = crop.reshape(view.shape)  # cv2 drops a channel axis of length 1


def shorter_side(height: int, width: int) -> int:
    """The length to which evaluation resizes the shorter side before it crops [height, width]."""
    return int(1.15 * min(height, width))


_LONGEST = 8  # times the asked aspect, beyond which the ends of an image are cut first


def _not_so_long(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image that is far longer than what is cut out of it: whole, a strip of
    2000x1 pixels would be resized to half a million rows."""
    h, w = image.shape[:2]
    most_h, most_w = _LONGEST * -(-w * height // width), _LONGEST * -(-h * width // height)
    top, left = max(h - most_h, 0) // 2, max(w - most_w, 0) // 2
    return image[top : top + most_h, left : left + most_w]


def centre_crop(image: np.ndarray, height: int, width: int, short: int = 0) -> np.ndarray:
    """uint8[height, width, C]: the evaluation view of image (uint8[h, w, C]).

    Pillow's antialiased bicubic filter resizes the shorter side to `short`, by default
    int(1.15 * the crop's shorter side); then the centre is cut out. arXiv 2011.14660 evaluates
    ImageNet in this way.
    """
    from PIL import Image

    image = _not_so_long(image, height, width)
    h, w = image.shape[:2]
    short = short or shorter_side(height, width)
    new_h, new_w = (short, short * w // h) if h <= w else (short * h // w, short)
    # A crop that is not square may ask for more than the resized image has.
    new_h, new_w = max(new_h, height), max(new_w, width)
    pixels = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    resized = np.asarray(pixels.resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = round((new_h - height) / 2), round((new_w - width) / 2)
    return resized.reshape(new_h, new_w, -1)[top : top + height, left : left + width]
