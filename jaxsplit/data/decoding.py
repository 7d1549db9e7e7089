"""Encoded images as arrays: the decoder of each format, 16-bit values, EXIF orientation."""

import functools
import io
import struct
from typing import Any

import numpy as np

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s").unpack_from  # of a chunk: bytes in it, name
_MAX_PIXELS = 178_956_970  # that a file may claim; Pillow's own limit, of every format
_ORIENTATION = 274  # the tag of EXIF and TIFF
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow's
_PGM_FORMATS = ("PPM", "PNG")  # whose mode I has values of 16 bits


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W, channels] from an encoded image (or such an array, returned as it is).

    channels is 3 (RGB) or 1 (gray). Grayscale and CMYK files become RGB where that is asked for,
    transparency is dropped, values of 16 bits give their upper 8. The image is turned as its EXIF
    orientation says.

    Raises:
      Exception: not an image, a damaged one, or one of numbers without a known range; of many
        kinds.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[-1] != channels:
            raise ValueError(f"array {data.dtype}{list(data.shape)}, not uint8[H, W, {channels}]")
        return data
    pixels = _by_format(data, channels)
    if pixels is not None:
        return turn(pixels, orientation(data))
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        turned = 1 if image.format == "TIFF" else orientation(data, image)  # Pillow turns those
        pixels = _of_pillow(image, channels)
    return turn(pixels if channels == 3 else pixels[..., None], turned)


def of_image(image: Any, channels: int) -> np.ndarray:
    """uint8[H, W, channels] of a picture that Pillow has opened or made; otherwise as `decode`.

    Raises:
      Exception: as `decode`.
    """
    pixels = _of_pillow(image, channels)
    pixels = pixels if channels == 3 else pixels[..., None]
    # Pillow turns TIFF files, and leaves their tag as it was.
    found = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION)
    return turn(pixels, found if found in range(1, 9) else 1)


def of_array(array: np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W, channels] of uint8[H, W] or [H, W, 1 to 4]; as `decode` changes colours.

    Of two channels the second, of four the last is transparency.

    Raises:
      ValueError: another dtype or shape.
    """
    given = array[..., None] if array.ndim == 2 else array
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] not in (1, 2, 3, 4):
        raise ValueError(
            f"array {array.dtype}{list(array.shape)}, must be uint8[H, W] or [H, W, 1 to 4]"
        )
    given = given[..., : 3 if given.shape[2] > 2 else 1]
    if given.shape[2] == channels:
        return given
    if channels == 3:
        return np.repeat(given, 3, -1)
    from PIL import Image

    return np.asarray(Image.fromarray(given).convert("L"))[..., None]


def _by_format(data: bytes, channels: int) -> np.ndarray | None:
    """A JPEG or PNG by its own decoder, not turned; None: left to Pillow."""
    if data[:2] == _JPEG:
        import simplejpeg

        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _check_claim(int(width), int(height))
            # CMYK is left to Pillow, which knows that Adobe stores it inverted.
            if colours not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            pass  # Pillow accepts some files that are not quite right
    elif data[:8] == _PNG:
        library = cv2()
        if len(data) >= 24:
            _check_claim(*struct.unpack_from(">II", data, 16))
        flags = library.IMREAD_COLOR if channels == 3 else library.IMREAD_GRAYSCALE
        flags |= library.IMREAD_IGNORE_ORIENTATION
        image = library.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is not None:
            return image[..., ::-1] if channels == 3 else image[..., None]
    return None


def _of_pillow(image: Any, channels: int) -> np.ndarray:
    """uint8[H, W, 3] or uint8[H, W] of an image that Pillow has opened.

    Pillow itself cuts values above 255 off.
    """
    check_mode(image)
    mode, white_is_zero, bits = image.mode, False, 16
    if image.format == "TIFF":
        white_is_zero = image.tag_v2.get(262) == 0
        bits = image.tag_v2.get(258, (16,))[0]
    if mode.startswith("I;16") or (mode == "I" and image.format in _PGM_FORMATS):
        values = np.asarray(image).astype(np.int64)
        gray = (values >> max(bits - 8, 0)).astype(np.uint8)
        if white_is_zero:  # which Pillow knows of 8 bits only
            gray = 255 - gray
        return np.repeat(gray[..., None], 3, -1) if channels == 3 else gray
    if mode in ("RGBa", "La"):  # colour times transparency
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    elif mode == "PA" and channels == 1:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def check_mode(image: Any) -> None:
    """Raise ValueError for an opened image whose values become 0..255 by no known rule."""
    mode = image.mode
    if mode == "F" or (mode == "I" and image.format not in _PGM_FORMATS):
        kind = "integers" if mode == "I" else "floating-point numbers"
        raise ValueError(
            f"mode {mode}: {kind} without a known range; convert it to 8 bits, or 16 without a sign"
        )
    if mode in ("LAB", "HSV"):
        raise ValueError(f"mode {mode}: no rule for its colours; convert it to RGB")


def checked_shape(data: bytes, *, decode_all: bool) -> tuple[tuple[int, int, int], bool]:
    """((H, W, C) as decoded, whether EXIF turns it) of an encoded image.

    decode_all: decodes it; otherwise its header and its end are looked at.

    Raises:
      Exception: as `decode`.
    """
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            (width, height), form = image.size, image.format
            turned = orientation(data, image)
            # Of a TIFF some versions of Pillow give the turned size.
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                width, height = image.tag_v2[256], image.tag_v2[257]
            channels = 1 if image.mode in GRAY_MODES else 3
            check_mode(image)
    except UnidentifiedImageError as error:
        raise ValueError("no known image format") from error
    if turned >= 5:
        width, height = height, width
    if decode_all:
        decode(data, channels)
    else:
        end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(form or "", b"")
        if end not in data:
            raise ValueError("ends too early")
    return (height, width, channels), turned > 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C], or [W, H, C] from orientation 5 on: as EXIF's orientation says it is looked at."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def orientation(data: bytes, image: Any = None) -> int:
    """EXIF's orientation of an encoded image, 1 to 8; 1, as it is, without one or with a wrong one.

    image: what Pillow has opened, needed for formats other than JPEG and PNG.
    """
    if data[:2] == _JPEG:
        found = _of_tiff(*_jpeg_exif(data))
    elif data[:8] == _PNG:
        found = _of_tiff(*_png_exif(data))
    elif image is None:
        found = 1
    elif image.format == "TIFF":
        found = image.tag_v2.get(_ORIENTATION)
    else:
        exif = image.info.get("exif") or b""
        exif = exif.removeprefix(b"Exif\0\0")
        found = _of_tiff(exif, 0, len(exif))
    return found if found is not None and found in range(1, 9) else 1


def _jpeg_exif(data: bytes) -> tuple[bytes, int, int]:
    """(data, first, last + 1) of the EXIF block in a JPEG; an empty one where it has none."""
    at, end = 2, len(data) - 4
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # the image itself
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a body
            at += 2
            continue
        size = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data, at + 10, min(at + 2 + size, len(data))
        at += 2 + size
    return data, 0, 0


def _png_exif(data: bytes) -> tuple[bytes, int, int]:
    """As `_jpeg_exif`, of a PNG."""
    at, end = 8, len(data) - 8
    while at < end:  # no search for the name: that would read the whole file
        size, name = _PNG_CHUNK(data, at)
        if name == b"eXIf":
            first = at + 8
            if data[first : first + 6] == b"Exif\0\0":
                first += 6
            return data, first, min(at + 8 + size, len(data))
        at += 12 + size
    return data, 0, 0


def _of_tiff(data: bytes, first: int, end: int) -> int | None:
    """The orientation in the first directory of the TIFF structure data[first:end]."""
    if first == end:
        return None
    order = {b"II": "<", b"MM": ">"}.get(data[first : first + 2])
    if order is None or end - first < 14:
        return None
    at = first + struct.unpack_from(order + "I", data, first + 4)[0]
    if at + 2 > end:
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, end - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if tag == _ORIENTATION:
            if number != 1 or kind not in (1, 3, 4):  # a byte, 16 or 32 bits
                return None
            return struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], data, entry + 8)[0]
    return None


def _check_claim(width: int, height: int) -> None:
    """Raise before a damaged header makes a decoder take all memory."""
    if width * height > _MAX_PIXELS:
        raise ValueError(f"claims {width}x{height} pixels")


@functools.cache
def cv2() -> Any:
    """The module, silent and with one thread."""
    import cv2

    cv2.setNumThreads(1)  # the threads of the feed are enough
    # Of damaged images the record is named, once; cv2 would add lines of its own, each time.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
