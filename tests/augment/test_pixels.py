"""Compares image ops with Pillow: the reference's results, and images made here.

`golden/augment_ops.npz` holds a part of the reference's results (see `thinned`); with
JAXSPLIT_PARITY all of them are compared, and a test says that the golden file is a part of them.
"""

import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxsplit.augment import autoaugment, pixels
from jaxsplit.augment.pixels import BICUBIC, BILINEAR, GEOMETRIC
from tests.support.paths import GOLDEN
from tests.support.policies import our_name, randaugment_params, random_image
from tests.support.samples import every, first

FILE = GOLDEN / "augment_ops.npz"
GOLDEN_IMAGES = [1, 3]  # of the four; the last has a constant green channel
INTERPOLATION = {"bilinear": BILINEAR, "bicubic": BICUBIC}


def thinned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of the reference's results that the golden file holds."""
    part = {}
    for name, array in arrays.items():
        words = name.split("/")
        if len(words) > 2 and (
            words[1] in ("TranslateX", "TranslateY", "PosterizeOriginal")  # in no policy
            or words[2] in ("idx2", "level6.5")
            or (words[2] == "level3.0" and ("bilinear" in words or "bicubic" in words))
        ):
            continue
        if words[0] != "posterize_bits":
            four = array.ndim == 4 and len(array) == 4
            part[name] = array[GOLDEN_IMAGES] if four else array
    return part


def cases(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[int, int], int, tuple]]:
    """(name of the results, shape, fill, our Params) of every result."""
    for name in arrays:
        words = name.split("/")
        size = arrays["images_nonsquare" if words[-1] == "nonsquare" else "images"].shape[1:3]
        words = words[:-1] if words[-1] == "nonsquare" else words
        if len(words) < 4 or words[-1] in ("magnitude", "args"):
            continue
        if words[1] in ("TranslateX", "TranslateY", "PosterizeOriginal"):
            continue
        op, sign = our_name(words[1]), -1 if words[3] == "neg" else 1
        if words[0] == "autoaugment":
            p = autoaugment.params(op, int(words[2][3:]), sign, size)
            yield name, size, "autoaugment", p
        else:
            p = randaugment_params(
                op,
                float(words[2][5:]),
                sign,
                size,
                interpolation=INTERPOLATION.get(words[-1]),
                increasing=words[1].endswith("Increasing"),
            )
            yield name, size, "randaugment", p


@functools.cache
def program(fill: tuple[int, ...]):
    """(images [4, ...], Params of 64 applications) -> uint8[64, 4, ...]; two tests share it."""
    run = jax.vmap(lambda image, p: pixels.apply(image, p, fill), (0, None))
    return jax.jit(jax.vmap(run, (None, 0)))


def assert_equals_pillow(arrays: Mapping[str, np.ndarray]) -> int:
    """Compares every result; returns how many there were."""
    groups = {}
    for name, size, policy, p in cases(arrays):
        groups.setdefault((size, policy), []).append((name, p))
    for (size, policy), members in groups.items():
        fill = (128,) * 3 if policy == "autoaugment" else (124, 116, 104)
        images = arrays["images" if size == (32, 32) else "images_nonsquare"]
        names, applications = zip(*members, strict=True)
        four, got = np.resize(images, (4, *images.shape[1:])), []
        for start in range(0, len(applications), 64):
            part = applications[start : start + 64]
            padded = [*part, *part[:1] * (64 - len(part))]
            out = np.asarray(program(fill)(four, pixels.stack(padded, np)))
            got.extend(out[: len(part), : len(images)])
        assert got[0].dtype == np.uint8
        for name, ours in zip(names, got, strict=True):
            error = np.abs(ours.astype(int) - arrays[name])
            words = name.split("/")
            if our_name(words[1]) not in GEOMETRIC:
                assert error.max() == 0, name
                continue
            # A pixel whose source lies on the border to 1e-16 may be inside or outside.
            assert (error <= 1).mean() >= 0.995, (name, (error > 1).mean())
            assert (error == 0).mean() >= 0.95, (name, (error > 0).mean())
            if words[0] == "autoaugment" and not words[1].startswith("shear"):
                assert error.max() == 0, name  # nearest
    return sum(map(len, groups.values()))


def test_every_op_equals_the_golden_results():
    with np.load(FILE) as arrays:
        assert assert_equals_pillow(dict(arrays)) == 196


def test_every_op_equals_the_parity_results(parity):
    with np.load(parity / "augment_ops.npz") as arrays:
        assert assert_equals_pillow(dict(arrays)) == 348


def test_posterize_to_any_number_of_bits(parity):
    with np.load(parity / "augment_ops.npz") as arrays:
        bits = range(1, 9)
        every = [pixels.params("posterize", b, shape=(32, 32), xp=np) for b in bits]
        run = jax.vmap(pixels._point, (0, None))
        got = jax.jit(jax.vmap(run, (None, 0)))(arrays["images"], pixels.stack(every, np))
        np.testing.assert_array_equal(got, [arrays[f"posterize_bits/{b}"] for b in bits])


def test_golden_file_is_a_part_of_the_parity_file(parity):
    with np.load(parity / "augment_ops.npz") as arrays, np.load(FILE) as golden:
        want = thinned(arrays)
        assert want.keys() == set(golden.files)
        for name in want:
            np.testing.assert_array_equal(golden[name], want[name])


# ---- images of our own


def ours(op: str, magnitude: float, image: np.ndarray, interpolation=None, fill=7) -> np.ndarray:
    p = pixels.params(op, magnitude, shape=image.shape[:2], interpolation=interpolation, xp=np)
    run = jax.jit(lambda i, p: pixels.apply(i, p, (fill,) * image.shape[-1]))
    return np.asarray(run(image, p))


def pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


@pytest.mark.parametrize("channels", first(1, [1, 3]))
@pytest.mark.parametrize("interpolation", [None, BILINEAR, BICUBIC])
def test_rotation_of_a_large_image_equals_pillow(interpolation, channels):
    image = random_image(150, 211, channels)
    resample = {None: Image.NEAREST, BILINEAR: Image.BILINEAR, BICUBIC: Image.BICUBIC}
    want = pillow(image).rotate(
        -17.3, resample[interpolation], fillcolor=7 if channels == 1 else (7, 7, 7)
    )
    want = np.asarray(want).reshape(image.shape)
    error = np.abs(ours("rotate", -17.3, image, interpolation).astype(int) - want)
    assert (error == 0).mean() > 0.998
    assert (error <= 1).mean() > 0.9999
    if interpolation is None:
        assert error.max() == 0


@pytest.mark.parametrize("channels", first(1, [1, 3]))
def test_integer_ops_equal_pillow(channels):
    image = random_image(19, 33, channels)
    image[:4] = 0  # uneven histogram
    it = pillow(image)
    want = {
        ("invert", 0.0): ImageOps.invert(it),
        ("solarize", 113.8): ImageOps.solarize(it, 113.8),
        ("solarize", 256.0): it,
        ("posterize", 3.0): ImageOps.posterize(it, 3),
        ("autocontrast", 0.0): ImageOps.autocontrast(it),
        ("equalize", 0.0): ImageOps.equalize(it),
        ("brightness", 1.2): ImageEnhance.Brightness(it).enhance(1.2),
        ("contrast", 0.3): ImageEnhance.Contrast(it).enhance(0.3),
        ("color", 1.7): ImageEnhance.Color(it).enhance(1.7),
        ("sharpness", 1.6): ImageEnhance.Sharpness(it).enhance(1.6),
    }
    for (op, magnitude), result in want.items():
        result = np.asarray(result).reshape(image.shape)
        np.testing.assert_array_equal(ours(op, magnitude, image), result, err_msg=op)


@pytest.mark.parametrize("op", every(3, ["autocontrast", "equalize", "contrast"]))
@pytest.mark.parametrize("levels", [(60,), (60, 61), (0, 255), (255,), (0,)])
def test_images_of_one_or_two_levels_equal_pillow(op, levels):
    image = np.resize(np.asarray(levels, np.uint8), (31, 17, 3))
    it = pillow(image)
    if op == "contrast":
        want = ImageEnhance.Contrast(it).enhance(1.9)
    else:
        want = getattr(ImageOps, op)(it)
    np.testing.assert_array_equal(ours(op, 1.9, image), np.asarray(want))


def test_autocontrast_of_every_pair_of_levels():
    """Pillow's table is trunc(level * scale + offset) in double precision."""
    low, high = np.triu_indices(256, 1)
    histogram = np.zeros((len(low), 256), np.int32)
    np.put_along_axis(histogram, np.stack([low, high], 1), 1, 1)
    got = np.asarray(jax.jit(pixels._autocontrast)(histogram))
    scale = 255.0 / (high - low)
    want = np.arange(256) * scale[:, None] + (-low * scale)[:, None]
    np.testing.assert_array_equal(got, np.clip(np.trunc(want), 0, 255))


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.8, 1.1, 1.2, 1.6, 1.7, 1.9])
def test_blend_of_every_pair_of_levels_rounds_twice(factor):
    """Brightness of a gray image has one level to blend; contrast has all of them."""
    low = np.repeat(np.arange(256), 256).reshape(256, 256, 1)
    high = np.tile(np.arange(256), 256).reshape(256, 256, 1)
    p = pixels.params("brightness", factor, shape=(256, 256))
    blend = jax.jit(lambda low, high: pixels._blend(high, p, lambda *_: low))
    got = np.asarray(blend(low.astype(np.uint8), high.astype(np.uint8)))
    want = Image.blend(pillow(low.astype(np.uint8)), pillow(high.astype(np.uint8)), factor)
    np.testing.assert_array_equal(got[..., 0], np.asarray(want))


def test_images_of_two_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        ours("invert", 0.0, random_image(4, 4, 2))
