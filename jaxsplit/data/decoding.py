"""Encoded images as arrays: the decoder of each format, 16-bit values, EXIF orientation."""

import contextlib
import functools
import io
import struct
from typing import Any

import numpy as np

_Bytes = bytes | memoryview
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s").unpack_from  # (number of bytes, name) of a chunk
_MAX_PIXELS = 178_956_970  # the most that a file of any format may claim; Pillow's own limit
_ORIENTATION = 274  # the tag of EXIF and TIFF
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow's
_PGM_FORMATS = ("PPM", "PNG")  # formats whose mode I holds 16-bit values


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decodes an image to uint8[H, W, channels]; returns such an array as it is.

    channels is 3 (RGB) or 1 (gray). Colours are converted as needed, transparency is dropped, and
    16-bit values give their upper 8 bits. The image is turned as its EXIF orientation says.

    Raises:
      Exception: many kinds, if the data is no image, is damaged, or holds numbers without a known
        range.
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
        turned = 1 if image.format == "TIFF" else orientation(data, image)  # Pillow has turned it
        pixels = _of_pillow(image, channels)
    return turn(pixels if channels == 3 else pixels[..., None], turned)


def of_image(image: Any, channels: int) -> np.ndarray:
    """Converts an image of Pillow to uint8[H, W, channels], as `decode` does.

    Raises:
      Exception: as `decode`.
    """
    pixels = _of_pillow(image, channels)
    pixels = pixels if channels == 3 else pixels[..., None]
    # Pillow turns TIFF files but keeps their tag.
    found = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION)
    return turn(pixels, found if found in range(1, 9) else 1)


def of_array(array: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8[H, W] or uint8[H, W, 1 to 4] to uint8[H, W, channels], as `decode` does.

    The second of two channels and the last of four are transparency, which is dropped.

    Raises:
      ValueError: the array has another dtype or shape.
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
    """Decodes a JPEG or PNG without turning it; None: Pillow must decode the file."""
    if data[:2] == _JPEG:
        import simplejpeg

        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _check_claim(int(width), int(height))
            # Pillow decodes CMYK: it knows that Adobe stores it inverted.
            if colours not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            pass  # Pillow accepts some files with small errors
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
    """Converts an image that Pillow has opened to uint8[H, W, 3] or uint8[H, W].

    Pillow's own conversion would clip 16-bit values at 255.
    """
    check_mode(image)
    mode, white_is_zero, bits = image.mode, False, 16
    if image.format == "TIFF":
        white_is_zero = image.tag_v2.get(262) == 0
        bits = image.tag_v2.get(258, (16,))[0]
    if mode.startswith("I;16") or (mode == "I" and image.format in _PGM_FORMATS):
        values = np.asarray(image).astype(np.int64)
        gray = (values >> max(bits - 8, 0)).astype(np.uint8)
        if white_is_zero:  # Pillow inverts only 8-bit images
            gray = 255 - gray
        return np.repeat(gray[..., None], 3, -1) if channels == 3 else gray
    if mode in ("RGBa", "La"):  # premultiplied by transparency
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    elif mode == "PA" and channels == 1:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def check_mode(image: Any) -> None:
    """Raises ValueError if no known rule converts the image's values to 0..255."""
    mode = image.mode
    if mode == "F" or (mode == "I" and image.format not in _PGM_FORMATS):
        kind = "integers" if mode == "I" else "floating-point numbers"
        raise ValueError(
            f"mode {mode}: {kind} without a known range; convert it to 8 bits, or 16 without a sign"
        )
    if mode in ("LAB", "HSV"):
        raise ValueError(f"mode {mode}: no rule for its colours; convert it to RGB")


def checked_shape(data: bytes, check: str) -> tuple[tuple[int, int, int], bool]:
    """((H, W, C) as decoded, whether EXIF turns it) of an encoded image.

    Args:
      data: the bytes of an image file.
      check: 'full' decodes the image; 'header' reads only its header and its end.

    Raises:
      Exception: as `decode`.
    """
    shape, turned, form = _header_of_pillow(data)
    if check == "full":
        decode(data, shape[2])
    else:
        end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(form or "", b"")
        if end not in data:
            raise ValueError("ends too early")
    return shape, turned > 1


def header_shape(data: _Bytes) -> tuple[int, int, int]:
    """(H, W, C) of an encoded image as `decode` gives it; reads the header only.

    Raises:
      Exception: many kinds, if the data is no image or its header is damaged.
    """
    height = width = channels = 0
    if data[:2] == _JPEG:
        import simplejpeg

        with contextlib.suppress(ValueError):  # Pillow accepts some files with small errors
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            channels = 1 if colours == "Gray" else 3
    elif data[:8] == _PNG and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", data, 16)
        channels = 1 if data[25] in (0, 4) else 3  # gray, and gray with transparency
    if not channels:
        return _header_of_pillow(bytes(data))[0]
    if orientation(data) >= 5:
        height, width = width, height
    return int(height), int(width), channels


def _header_of_pillow(data: bytes) -> tuple[tuple[int, int, int], int, str | None]:
    """((H, W, C) as decoded, EXIF's orientation, the format) of an image of any format."""
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            (width, height), form = image.size, image.format
            turned = orientation(data, image)
            # Some versions of Pillow give the turned size of a TIFF.
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                width, height = image.tag_v2[256], image.tag_v2[257]
            channels = 1 if image.mode in GRAY_MODES else 3
            check_mode(image)
    except UnidentifiedImageError as error:
        raise ValueError("no known image format") from error
    if turned >= 5:
        width, height = height, width
    return (height, width, channels), turned, form


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [h, w, C] as EXIF's orientation says; from orientation 5 on it becomes [w, h, C]."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])


def orientation(data: _Bytes, image: Any = None) -> int:
    """EXIF's orientation of an encoded image, 1 to 8; 1 (not turned) if it is missing or wrong.

    image: the image as Pillow has opened it; needed for formats other than JPEG and PNG.
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


def _jpeg_exif(data: _Bytes) -> tuple[_Bytes, int, int]:
    """(data, first, end) of the EXIF block data[first:end] in a JPEG; an empty block if none."""
    at, end = 2, len(data) - 4
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # the image itself
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # a marker without a body
            at += 2
            continue
        size = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data, at + 10, min(at + 2 + size, len(data))
        at += 2 + size
    return data, 0, 0


def _png_exif(data: _Bytes) -> tuple[_Bytes, int, int]:
    """The same as `_jpeg_exif`, for a PNG."""
    at, end = 8, len(data) - 8
    while at < end:  # a search for the name would read the whole file
        size, name = _PNG_CHUNK(data, at)
        if name == b"eXIf":
            first = at + 8
            if data[first : first + 6] == b"Exif\0\0":
                first += 6
            return data, first, min(at + 8 + size, len(data))
        at += 12 + size
    return data, 0, 0


def _of_tiff(data: _Bytes, first: int, end: int) -> int | None:
    """The orientation in the first directory of the TIFF structure data[first:end]."""
    if first == end:
        return None
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[first : first + 2]))
    if order is None or end - first < 14:
        return None
    at = first + struct.unpack_from(order + "I", data, first + 4)[0]
    if at + 2 > end:
        return None
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, end - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if tag == _ORIENTATION:
            if number != 1 or kind not in (1, 3, 4):  # 8, 16 or 32 bits
                return None
            return struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], data, entry + 8)[0]
    return None


def _check_claim(width: int, height: int) -> None:
    """Raises ValueError before a damaged header makes a decoder use all memory."""
    if width * height > _MAX_PIXELS:
        raise ValueError(f"claims {width}x{height} pixels")


@functools.cache
def cv2() -> Any:
    """OpenCV, with one thread and without messages."""
    import cv2

    cv2.setNumThreads(1)  # the threads of the feed are enough
    # jaxsplit names a damaged record once; OpenCV would print lines each time.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
