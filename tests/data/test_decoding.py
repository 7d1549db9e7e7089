"""jaxsplit.data.decoding: every mode of image files, 16-bit values, EXIF orientation."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxsplit.data import decoding, load, prepare
from jaxsplit.data.decoding import decode
from tests.support.data import data_config, message_of
from tests.support.tfds import encode, picture, write_image_dataset

RGB = picture(0, 5, 7)
ALPHA = picture(1, 5, 7, 1)[..., 0]
WIDE = np.random.default_rng(2).integers(0, 65536, (5, 7)).astype(np.uint16)

NO_RANGE = "without a known range; convert it to 8 bits, or 16 without a sign"


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def wide(mode):
    """The 16-bit values of WIDE in one of Pillow's modes."""
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}[mode]
    return Image.frombytes(mode, (7, 5), WIDE.astype(kind).tobytes())


def of_mode(mode):
    colour = Image.fromarray(RGB)
    if mode in ("RGBA", "LA"):
        image = colour.convert(mode[:-1])
        image.putalpha(Image.fromarray(ALPHA))
        return image
    if mode == "PA":
        return colour.convert("P").convert("PA")
    if mode == "LAB":
        return Image.frombytes("LAB", (7, 5), RGB.tobytes())
    return wide(mode) if mode[0] in "IF" else colour.convert(mode)


@pytest.mark.parametrize(
    ("mode", "forms"),
    [
        ("1", ("PNG", "TIFF", "BMP", "PPM", "GIF")),
        ("L", ("PNG", "TIFF", "BMP", "PPM", "GIF")),
        ("LA", ("PNG", "TIFF")),
        ("P", ("PNG", "TIFF", "BMP", "GIF")),
        ("PA", ("TIFF",)),
        ("RGB", ("PNG", "TIFF", "BMP", "PPM", "WEBP")),
        ("RGBA", ("PNG", "TIFF", "BMP")),
        ("RGBX", ("TIFF",)),
        ("CMYK", ("TIFF",)),
        ("YCbCr", ("TIFF",)),
    ],
)
def test_modes_of_8_bits(mode, forms):
    """Lossless files keep the image's colours; gray is its luma within one level."""
    image = of_mode(mode)
    opaque = image.convert({"LA": "L", "PA": "RGBA"}.get(mode, mode)).convert("RGB")
    for form in forms:
        data = saved(image, form, **({"lossless": True} if form == "WEBP" else {}))
        np.testing.assert_array_equal(decode(data, 3), np.asarray(opaque), err_msg=form)
        luma = np.asarray(opaque.convert("L"), int)[..., None]
        rounded = form == "PNG" or mode == "YCbCr"  # another formula than Pillow's
        assert np.abs(decode(data, 1) - luma).max() <= (1 if rounded else 0)
    if mode in ("1", "L", "LA"):
        np.testing.assert_array_equal(decode(data, 1).repeat(3, -1), np.asarray(opaque))


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("I;16", "PNG", {}),
        ("I;16", "TIFF", {}),
        ("I;16", "TIFF", {"compression": "tiff_lzw"}),
        ("I;16L", "TIFF", {}),
        ("I;16B", "TIFF", {}),
        ("I", "PPM", {}),
    ],
)
def test_gray_of_16_bits_gives_its_upper_8(mode, form, options):
    data = saved(wide(mode), form, **options)
    want = (WIDE >> 8).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(decode(data, 1), want)
    np.testing.assert_array_equal(decode(data, 3), want.repeat(3, -1))


def test_white_may_be_zero_and_gray_have_12_bits():
    want = (WIDE >> 8).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(
        decode(saved(wide("I;16"), "TIFF", tiffinfo={262: 0}), 1), 255 - want
    )
    row = bytes([0x12, 0x34, 0x56, 0xFF, 0xF0, 0x00])  # 0x123, 0x456, 0xfff, 0x000
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(row)))
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(row))
    twelve = head + row + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode(twelve, 1).tolist() == [[[0x12], [0x45], [0xFF], [0x00]]]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_16_bits_gives_its_upper_8(suffix, channels):
    import cv2

    values = np.random.default_rng(3).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    data = cv2.imencode(suffix, values)[1].tobytes()
    np.testing.assert_array_equal(decode(data, 3), (values[..., 2::-1] >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("I", f"mode I: integers {NO_RANGE}"),
        ("F", f"mode F: floating-point numbers {NO_RANGE}"),
        ("LAB", "mode LAB: no rule for its colours; convert it to RGB"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_without_a_range_are_refused(mode, message, channels):
    with pytest.raises(ValueError) as caught:
        decode(saved(of_mode(mode), "TIFF"), channels)
    assert str(caught.value) == message


# Orientation


def oriented(form, orientation, image=None, order="<"):
    """An image file with this orientation in its EXIF, or in a TIFF's own tag."""
    image = image or Image.fromarray(RGB)
    if form == "TIFF":
        return saved(image, form, tiffinfo={274: orientation})
    exif = Image.Exif()
    exif.endian = order
    exif[271], exif[274], exif[305] = "maker", orientation, "software"
    options = {"lossless": True} if form == "WEBP" else {}
    return saved(image, form, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_exif_says(form, orientation, order):
    data = oriented(form, orientation, order=order)
    with Image.open(io.BytesIO(data)) as image:
        assert decoding.orientation(data, image) == orientation
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert want.shape == ((5, 7, 3) if orientation < 5 else (7, 5, 3))
    got = decode(data, 3)
    np.testing.assert_array_equal(got, want)
    assert got.flags.c_contiguous or orientation == 1
    data = oriented(form, orientation, Image.fromarray(ALPHA), order)
    gray = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    np.testing.assert_array_equal(decode(data, 1)[..., 0], np.asarray(gray))


@pytest.mark.parametrize("orientation", [1, 6])
def test_cmyk_is_turned_too(orientation):
    data = oriented("JPEG", orientation, Image.fromarray(RGB).convert("CMYK"))
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data, 3), want)


def test_exif_behind_other_blocks_of_a_jpeg():
    data = oriented("JPEG", 6)
    start = data.index(b"\xff\xe1")
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"Exif\0\0" * 10_000
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000)
    behind = data[:start] + comment + profile + b"\xff" + data[start:]  # and a fill byte
    assert decoding.orientation(behind) == 6 and decode(behind, 3).shape == (7, 5, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_damaged_exif_leaves_the_image_as_it_is(form):
    plain = decode(encode(RGB, form), 3)
    for wrong in (0, 9, 65535):
        np.testing.assert_array_equal(decode(oriented(form, wrong), 3), plain)
    data = oriented(form, 6)
    first = data.index(b"II*\0" if b"II*\0" in data else b"MM\0*")
    if form == "JPEG":  # a PNG's chunk has a checksum
        for offset in (9, 0xFFFF, 0xFFFFFFF0):
            broken = data[: first + 4] + struct.pack("<I", offset) + data[first + 8 :]
            np.testing.assert_array_equal(decode(broken, 3), plain)
        broken = data[: first + 8] + b"\xff\xff" + data[first + 10 :]  # 65,535 entries
        assert decoding.orientation(broken) in (1, 6)
    for end in range(len(data)):  # cut anywhere: an answer, and no error of its own
        assert decoding.orientation(data[:end]) in (1, 6)


@pytest.mark.parametrize("check", ["header", "full"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_shapes_are_those_of_the_turned_image(form, check):
    for orientation, shape in ((1, (5, 7, 3)), (3, (5, 7, 3)), (8, (7, 5, 3))):
        data = oriented(form, orientation)
        assert decoding.checked_shape(data, check) == (shape, orientation > 1)
        for given in (data, memoryview(data)):
            assert decoding.header_shape(given) == shape


@pytest.mark.parametrize("check", ["header", "full"])
def test_gray_has_one_channel_whatever_its_mode(check):
    for mode, form in (("1", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("I;16B", "TIFF")):
        data = saved(of_mode(mode), form)
        assert decoding.checked_shape(data, check) == ((5, 7, 1), False), mode
        assert decoding.header_shape(data) == (5, 7, 1), mode
    assert decoding.checked_shape(saved(wide("I"), "PPM"), check)[0] == (5, 7, 1)
    for mode in ("I", "F", "LAB"):
        with pytest.raises(ValueError, match=f"mode {mode}: "):
            decoding.checked_shape(saved(of_mode(mode), "TIFF"), check)


def test_headers_tell_what_decoding_gives():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        assert decoding.header_shape(saved(of_mode(mode), "PNG"))[2] == (
            3 if mode[0] in "RP" else 1
        )
    for mode, channels in (("L", 1), ("RGB", 3), ("CMYK", 3)):
        data = saved(of_mode(mode), "JPEG")
        assert decoding.header_shape(data) == (5, 7, channels)
        with pytest.raises(ValueError, match="no known image format"):
            decoding.header_shape(data[1:])
        assert decoding.header_shape(data[:-20]) == (5, 7, channels)  # its end is not read


@pytest.mark.parametrize("check", ["full", "header"])
def test_prepare_keeps_the_bytes_and_counts_the_turned(tmp_path, capsys, check):
    made = [oriented("JPEG", orientation) for orientation in (6, 8, 5, 7)]
    for i, content in enumerate(made):
        for split in ("train", "test"):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (tmp_path / "test" / "a" / "0.jpg").write_bytes(encode(RGB.swapaxes(0, 1), "PNG"))
    prepare.prepare("birds", tmp_path, tmp_path / "d", check=check)
    out = capsys.readouterr().out
    assert "train: 4 images are turned as their EXIF says\n" in out
    assert "test: 3 images are turned as their EXIF says\n" in out
    assert "2 classes, 7x5x3, " in out
    dataset = load(data_config("birds", tmp_path / "d"))
    want = [decode(made[i], 3) for i in (0, 2, 1, 3)]
    np.testing.assert_array_equal(dataset.train.images, want)


def test_a_set_prepared_before_images_were_turned_says_so(tmp_path):
    """An old set has the shape of the image before it is turned."""
    image = oriented("JPEG", 6)
    splits = {"train": [(image, 0)], "test": [(image, 1)]}
    write_image_dataset(tmp_path, "birds", splits, num_classes=2, shape=(5, 7, 3))
    message = message_of(lambda: load(data_config("birds", tmp_path)))
    assert message.endswith(
        "has the shape (7, 5, 3), must be (5, 7, 3) (prepare the set again if EXIF turns its "
        "images)"
    )
