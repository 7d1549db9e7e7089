"""What a user gives as images, as the uint8 arrays that evaluation would make of them."""

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxsplit.data import decoding
from jaxsplit.data.facts import Facts
from jaxsplit.errors import ConfigError

# A path, a picture of Pillow, uint8[H, W] or uint8[H, W, C].
Picture: TypeAlias = "str | os.PathLike[str] | np.ndarray | Any"
Pictures: TypeAlias = "Picture | Sequence[Picture] | Iterable[Picture]"


class PictureError(ConfigError):
    """A picture that cannot be read; one line that names it."""


class Reader:
    """Reads pictures as the networks see them; threads may share one.

    Args:
      facts: of the data set.
      say: gets one line when the first picture of another size comes, where the data set's images
        have one size.
    """

    def __init__(self, facts: Facts, say: Callable[[str], None] = print) -> None:
        self._facts, self._say, self._told = facts, say, False

    def __call__(self, picture: Picture) -> np.ndarray:
        """uint8[H, W, C] of a picture.

        Raises:
          PictureError: it cannot be read or decoded; names the file.
        """
        try:
            pixels = _decoded(picture, self._facts.image_shape[2])
            self._tell(pixels)
            return self._facts.fit(pixels)
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # decoders raise anything at damaged bytes
            path = isinstance(picture, str | os.PathLike)
            name = os.fspath(picture) if path else type(picture).__name__
            raise PictureError(f"{name}: cannot be read as an image ({_reason(error)})") from error

    def _tell(self, pixels: np.ndarray) -> None:
        height, width, channels = self._facts.image_shape
        if self._told or self._facts.shorter_side or pixels.shape[:2] == (height, width):
            return
        self._told = True
        kind = "gray" if channels == 1 else "RGB"
        self._say(
            f"images of {self._facts.name} are {height}x{width} and {kind}: others are resized "
            "and converted"
        )


def _decoded(picture: Picture, channels: int) -> np.ndarray:
    if isinstance(picture, str | os.PathLike):
        return decoding.decode(pathlib.Path(os.path.expanduser(picture)).read_bytes(), channels)
    if isinstance(picture, np.ndarray):
        return decoding.of_array(picture, channels)
    if hasattr(picture, "getexif"):  # of Pillow
        return decoding.of_image(picture, channels)
    raise ValueError("must be a path, a picture of Pillow or uint8[H, W, C]")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # its text has the path again
        return error.strerror
    if type(error).__name__ == "UnidentifiedImageError":
        return "no known image format"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def singly(pictures: Pictures) -> Iterator[Picture]:
    """The pictures in what a user gave, one after another.

    Raises:
      ConfigError: an array of another shape.
    """
    if isinstance(pictures, str | os.PathLike) or hasattr(pictures, "getexif"):
        yield pictures
    elif hasattr(pictures, "__array__"):
        array = np.asarray(pictures)
        if array.ndim not in (3, 4) or array.shape[-1] not in (1, 2, 3, 4):
            raise ConfigError(
                f"images: {array.dtype}{list(array.shape)}, must be uint8[B, H, W, C] or, of one "
                "image, uint8[H, W, C]"
            )
        yield from array if array.ndim == 4 else array[None]
    else:
        yield from pictures


def ready(pictures: Any, facts: Facts) -> np.ndarray | None:
    """uint8[B, H, W, C] of the networks' own size, as a batch of evaluation; None: it is not so."""
    if getattr(pictures, "dtype", None) != np.uint8:
        return None
    array = np.asarray(pictures)
    return array if array.ndim == 4 and array.shape[1:] == facts.image_shape else None
