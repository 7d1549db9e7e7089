"""Splits that stay on disk as encoded images: decoding, random-resized crops, evaluation crops.

A record that cannot be decoded, or whose label or shape is none of the data set's, is bad. It is an
error that names it, or is left out and counted: `config.data.on_bad_record`.
"""

import functools
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxsplit.errors import ConfigError

# Interpolation in cv2 does not smooth: a crop that shrinks would alias. By its linear shrinkage the
# filter nearest to Pillow's antialiased bicubic on photographs is cubic up to about 1.2, linear (a
# box of two pixels) and then area. Area is nearest from 1.3 on but 5 times as slow; at 1.5 linear
# differs by 3.8 levels (root mean square, of 255; area 2.5, cubic 8.0), at 1.8 by 7.4 (2.4, 11.5).
_CUBIC_UP_TO, _LINEAR_UP_TO = 1.2, 1.5
_ASPECT = (3 / 4, 4 / 3)  # width / height of a random crop
_TRIES = 10


class BadRecordError(ConfigError):
    """A record that cannot be used; one line that names it."""


@dataclass
class Skipped:
    """Bad records that were left out, `count` times so far; the first is told in one line."""

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
    skipped: counts the bad records that are left out; None: a bad record is an error.
    """

    source: Any
    indices: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    files: tuple[tuple[str, int], ...] = ()
    skipped: Skipped | None = None

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
        record = int(i if self.indices is None else self.indices[i])
        example = {}
        try:
            example = self.source[record]
            image, label = decode(example["image"], channels), int(example["label"])
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            # RuntimeError: array_record on a damaged file; the others: Pillow on a damaged image.
            line = str(error).partition("\n")[0]
            raise BadRecordError(
                f"data.dir: {self._name(record, example)} cannot be decoded ({line}); must be an "
                "image"
            ) from error
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise BadRecordError(
                f"data.dir: {self._name(record, example)} has the label {label}, must lie in "
                f"0..{self.num_classes - 1}"
            )
        if self.shape is not None and image.shape != self.shape:
            raise BadRecordError(
                f"data.dir: {self._name(record, example)} has the shape {image.shape}, must be "
                f"{self.shape}"
            )
        return image, label

    def read_eval(self, i: int, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
        """Example i as evaluation sees it: (uint8[H, W, C], label); raises as `read`."""
        height, width, channels = image_shape
        image, label = self.read(i, channels)
        return image if self.shape is not None else centre_crop(image, height, width), label

    def labels(self) -> np.ndarray:
        """int64[N] without decoding an image; -1 where a record cannot be read and is skipped.

        Raises:
          BadRecordError: a record cannot be read and must not be skipped.
        """
        records = range(len(self.source)) if self.indices is None else self.indices
        out = np.full(len(self), -1)
        for i, record in enumerate(records):
            try:
                out[i] = int(self.source[int(record)]["label"])
            except (OSError, ValueError, RuntimeError) as error:
                if self.skipped is None:
                    raise BadRecordError(
                        f"data.dir: {self._name(int(record), {})} cannot be read ({error})"
                    ) from error
        return out

    def _name(self, record: int, example: dict) -> str:
        """'record 7 (cat.jpg, number 2 of train.array_record-00001-of-00002)', what is known."""
        known = []
        if name := example.get("file_name"):
            known.append(name.decode() if isinstance(name, bytes) else str(name))
        at = record
        for path, count in self.files:
            if at < count:
                known.append(f"number {at} of {path}")
                break
            at -= count
        return f"record {record}" + f" ({', '.join(known)})" * bool(known)


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W, channels] from an encoded image (or such an array, returned as it is).

    channels is 3 (RGB) or 1 (gray). Grayscale and CMYK files become RGB where that is asked for.

    Raises:
      OSError, ValueError, SyntaxError: not an image, or a damaged one.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] != channels:
            raise ValueError(f"array {data.dtype}{list(data.shape)}, not uint8[H, W, {channels}]")
        return data
    if data[:2] == b"\xff\xd8":
        import simplejpeg

        try:
            # CMYK is left to Pillow, which knows that Adobe stores it inverted.
            if simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            pass  # Pillow accepts some files that are not quite right
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        cv2 = _cv2()
        flags = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None:
            return image[..., ::-1] if channels == 3 else image[..., None]
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[..., None]


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
    cv2 = _cv2()
    size = (out.shape[2], out.shape[1])
    for view in out:
        top, left, h, w = random_box(rng, *image.shape[:2], scale_min)
        shrink = np.sqrt(h * w / (size[0] * size[1]))
        if shrink <= _CUBIC_UP_TO:
            how = cv2.INTER_CUBIC
        else:
            how = cv2.INTER_LINEAR if shrink <= _LINEAR_UP_TO else cv2.INTER_AREA
        crop = cv2.resize(image[top : top + h, left : left + w], size, interpolation=how)
        view[...] = crop.reshape(view.shape)  # cv2 drops a channel axis of length 1


def centre_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[height, width, C]: the evaluation view of image (uint8[h, w, C]).

    The shorter side is resized to int(1.15 * the crop's shorter side) with Pillow's antialiased
    bicubic filter, then the centre is cut out: arXiv 2011.14660's evaluation of ImageNet.
    """
    from PIL import Image

    h, w = image.shape[:2]
    short = int(1.15 * min(height, width))
    new_h, new_w = (short, short * w // h) if h <= w else (short * h // w, short)
    # A crop that is not square may ask for more than the resized image has.
    new_h, new_w = max(new_h, height), max(new_w, width)
    pixels = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    resized = np.asarray(pixels.resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = round((new_h - height) / 2), round((new_w - width) / 2)
    return resized.reshape(new_h, new_w, -1)[top : top + height, left : left + width]


@functools.cache
def _cv2():
    import cv2

    cv2.setNumThreads(1)  # the threads of the feed are enough
    return cv2
