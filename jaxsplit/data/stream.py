"""Splits that stay on disk as encoded images: reading, random-resized crops, evaluation crops.

A record that cannot be decoded, or whose label or shape is none of the data set's, is bad. It is an
error that names it, or is left out and counted: `config.data.on_bad_record`.
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

# Interpolation in cv2 does not smooth: a crop that shrinks would alias. By its linear shrinkage the
# filter nearest to Pillow's antialiased bicubic on photographs is cubic up to about 1.2, linear (a
# box of two pixels) and then area. Area is nearest from 1.3 on but 6 times as slow; at 1.5 linear
# differs by 3.8 levels (root mean square, of 255; area 2.5, cubic 8.0), at 1.8 by 7.4 (2.4, 11.5).
# Linear to twice the size and the mean of 2x2 of that differ as little as area does (2.5 levels at
# 1.6 and at 1.9, 2.9 at 2.2) in half the time: 0.35 against 0.77 ms for a crop of 224 pixels.
_CUBIC_UP_TO, _LINEAR_UP_TO, _TWICE_UP_TO = 1.2, 1.5, 2.1
_ASPECT = (3 / 4, 4 / 3)  # width / height of a random crop
_TRIES = 10
# Records read together: one by one, a large shard costs 0.3 ms for each. Fewer of any size, which
# may be megabytes.
READ_AHEAD, READ_AHEAD_ANY_SIZE = 512, 32
_SLOW_S = 2.0  # what takes longer says so


class BadRecordError(ConfigError):
    """A record that cannot be used; one line that names it."""


@dataclass
class Skipped:
    """How often a bad record was left out so far; the first is told in one line."""

    count: int = 0

    def add(self, errors: list[str]) -> None:
        """Counts one for each line of `errors`."""
        if errors and not self.count:
            print(
                f"warning: {errors[0]}; left out, as any other will be (data.on_bad_record='skip')",
                flush=True,
            )
        self.count += len(errors)


@dataclass(frozen=True)
class Stream:
    """A split of encoded images in a random-access source, decoded when they are needed.

    source: source[i] -> dict(image=bytes (JPEG, PNG, ...) or uint8[H, W, C], label=int); len().
    indices: int[N], the part of the source that this split is; None: all of it.
    shape: (H, W, C) that every image has, and is used whole; None: they vary and are cropped.
    num_classes: labels lie below it; None: any label is fine.
    files: (path, number of records) of the source, in order; for messages.
    skipped: counts the bad records that evaluations leave out; None: a bad record is an error.
    name: of the data set and its splits; for messages.
    """

    source: Any
    indices: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    files: tuple[tuple[str, int], ...] = ()
    skipped: Skipped | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def part(self, indices: np.ndarray) -> "Stream":
        """The examples at `indices` (int[M]) of the split; it counts its own bad records."""
        records = indices if self.indices is None else self.indices[indices]
        skipped = None if self.skipped is None else Skipped()
        return replace(self, indices=records, skipped=skipped)

    def read(self, i: int, channels: int) -> tuple[np.ndarray, int]:
        """Example i of the split: (uint8[H, W, channels], label).

        Raises:
          BadRecordError: it cannot be read or decoded, or has a wrong label or shape.
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
        """Those at `positions` of the split, read together and not decoded, for `label`, `image`.

        In the place of one that cannot be read stands the error.
        """
        if hasattr(self.source, "__getitems__"):
            try:
                return self.source.__getitems__([self._record(i) for i in positions])
            except (MemoryError, ImportError):
                raise
            except Exception:  # one of them is bad; which, is seen one by one
                pass
        found: list[dict | BadRecordError] = []
        for i in positions:
            try:
                found.append(self._example(i))
            except BadRecordError as error:
                found.append(error)
        return found

    def label(self, i: int, example: "dict | BadRecordError") -> int:
        """That of example i, which is `example`; raises as `read`."""
        if isinstance(example, BadRecordError):
            raise example
        with self._must(i, example, "has no label that can be read", "a number"):
            label = int(example["label"])
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise BadRecordError(
                f"data.dir: {self._name(i, example)} has the label {label}, must lie in "
                f"0..{self.num_classes - 1}"
            )
        return label

    def image(self, i: int, example: "dict | BadRecordError", channels: int) -> np.ndarray:
        """uint8[H, W, channels] of example i, which is `example`; raises as `read`."""
        if isinstance(example, BadRecordError):
            raise example
        with self._must(i, example, "cannot be decoded", "an image"):
            image = decode(example["image"], channels)
        if self.shape is not None and image.shape != self.shape:
            height, width, channels = self.shape
            turned = image.shape == (width, height, channels)
            raise BadRecordError(
                f"data.dir: {self._name(i, example)} has the shape {image.shape}, must be "
                f"{self.shape}" + " (prepare the set again if EXIF turns its images)" * turned
            )
        return image

    def labels(self) -> np.ndarray:
        """int64[N] without decoding an image; -1 where there is none and the record is skipped.

        Raises:
          BadRecordError: a record has no label of a class and must not be skipped.
        """
        out = np.full(len(self), -1)
        parts = chunks(len(self), READ_AHEAD_ANY_SIZE if self.shape is None else READ_AHEAD)
        for some in announced(parts, f"the labels of {self.name}", len(self)):
            for i, example in zip(some, self.examples(some), strict=True):
                try:
                    out[i] = self.label(i, example)
                except BadRecordError:
                    if self.skipped is None:
                        raise
        return out

    def _record(self, i: int) -> int:
        return int(i if self.indices is None else self.indices[i])

    def _example(self, i: int) -> dict:
        with self._must(i, {}, "cannot be read", "a tf.train.Example"):
            return self.source[self._record(i)]

    @contextlib.contextmanager
    def _must(self, i: int, example: dict, what: str, allowed: str) -> Iterator[None]:
        """What goes wrong inside is a BadRecordError of example i.

        Damaged bytes make array_record, protobuf, tfds, Pillow and cv2 raise anything. Only a
        machine without the memory or the packages is no fault of the record.
        """
        try:
            yield
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadRecordError(
                f"data.dir: {self._name(i, example)} {what} ({line}); must be {allowed}"
            ) from error

    def _name(self, i: int, example: dict) -> str:
        """'record 7 (cat.jpg, number 2 of train.array_record-00001-of-00002)', what is known."""
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
    """0..count-1 in ranges of `size`."""
    return (range(at, min(at + size, count)) for at in range(0, count, size))


def announced(done: Iterable, what: str, count: int) -> Iterator:
    """`done` as it is; one line says what is being read if that takes long."""
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

    The area is uniform in [scale_min, 1] of the image, log(width / height) uniform between those of
    3/4 and 4/3. After ten boxes that do not fit: the largest centred box with a permitted aspect.
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
    """Fill out (uint8[S, H, W, C]) with S independent random-resized crops of image.

    The draws of view s do not depend on S. Without flips: those happen on the device.
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
    """What evaluation resizes the shorter side to before it cuts [height, width] out."""
    return int(1.15 * min(height, width))


def centre_crop(image: np.ndarray, height: int, width: int, short: int = 0) -> np.ndarray:
    """uint8[height, width, C]: the evaluation view of image (uint8[h, w, C]).

    The shorter side is resized to `short`, by default int(1.15 * the crop's shorter side), with
    Pillow's antialiased bicubic filter, then the centre is cut out: arXiv 2011.14660's evaluation
    of ImageNet.
    """
    from PIL import Image

    h, w = image.shape[:2]
    short = short or shorter_side(height, width)
    new_h, new_w = (short, short * w // h) if h <= w else (short * h // w, short)
    # A crop that is not square may ask for more than the resized image has.
    new_h, new_w = max(new_h, height), max(new_w, width)
    pixels = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    resized = np.asarray(pixels.resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = round((new_h - height) / 2), round((new_w - width) / 2)
    return resized.reshape(new_h, new_w, -1)[top : top + height, left : left + width]
