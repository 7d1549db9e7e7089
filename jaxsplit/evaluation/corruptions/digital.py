"""Contrast, warping, pixels and JPEG. Images are float32[H, W, C] in 0..1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsplit.evaluation.corruptions import blur

# The tables of ITU-T T.81, Annex K, for quality 50.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# JFIF: Y, Cb, Cr of R, G, B.
_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
_EXACT = jax.lax.Precision.HIGHEST


def contrast(key: Array, image: Array, share: Array) -> Array:
    """Keeps a share of the distance to each channel's mean."""
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * share + mean


# ---- Elastic transform


def elastic(
    key: Array, image: Array, rows: Array, columns: Array, amplitude: Array, corners: Array
) -> Array:
    """An affine map that moves three points at random, then a smooth random displacement.

    Args:
      key: of the random numbers.
      image: float32[H, W, C].
      rows, columns: a Gaussian filter of the displacement.
      amplitude: pixels that the filtered displacement, uniform in -1..1 before, is multiplied by.
      corners: most pixels that each of the three points moves along an axis.
    """
    affine_key, dy_key, dx_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
    middle = np.array([width // 2, height // 2], np.float32)
    side = min(height, width) // 3
    moves = np.array([[side, side], [side, -side], [-side, -side]], np.float32)
    before = jnp.asarray(middle + moves)
    after = before + jax.random.uniform(affine_key, (3, 2), minval=-corners, maxval=corners)
    from_x, from_y = _affine(after, before, x, y)
    image = bilinear(image, from_y, from_x, _mirror_once)

    def smooth(key: Array) -> Array:
        raw = jax.random.uniform(key, (height, width, 1), minval=-1, maxval=1)
        return blur.along_axes(raw, rows, columns)[..., 0] * amplitude

    return bilinear(image, y + smooth(dy_key), x + smooth(dx_key), _mirror_edge)


def _affine(source: Array, target: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Where the affine map of three points [3, (x, y)] onto three others takes x and y."""
    (a, c), (b, d) = source[1] - source[0], source[2] - source[0]
    # In images of a few pixels the points can fall on one line.
    area = a * d - b * c
    area = jnp.where(jnp.abs(area) < 1e-6, 1e-6, area)
    u = ((x - source[0, 0]) * d - (y - source[0, 1]) * b) / area
    v = ((y - source[0, 1]) * a - (x - source[0, 0]) * c) / area
    one, other = target[1] - target[0], target[2] - target[0]
    return (
        target[0, 0] + u * one[0] + v * other[0],
        target[0, 1] + u * one[1] + v * other[1],
    )


def bilinear(image: Array, y: Array, x: Array, outside: Callable[[Array, int], Array]) -> Array:
    """float[H, W, C]: the image at y, x float[H, W]; `outside` maps whole positions inside."""
    low_y, low_x = jnp.floor(y), jnp.floor(x)
    share_y, share_x = (y - low_y)[..., None], (x - low_x)[..., None]
    total = jnp.zeros_like(image)
    for down in (0, 1):
        for right in (0, 1):
            at_y = outside(low_y.astype(jnp.int32) + down, image.shape[0])
            at_x = outside(low_x.astype(jnp.int32) + right, image.shape[1])
            weight = jnp.where(down, share_y, 1 - share_y) * jnp.where(right, share_x, 1 - share_x)
            total += weight * image[at_y, at_x]
    return total


def _mirror_once(at: Array, size: int) -> Array:
    """... 2 1 0 1 2 ...: OpenCV's BORDER_REFLECT_101."""
    at = at % max(2 * size - 2, 1)
    return jnp.minimum(at, 2 * size - 2 - at)


def _mirror_edge(at: Array, size: int) -> Array:
    """... 1 0 0 1 ...: SciPy's 'reflect'."""
    at = at % (2 * size)
    return jnp.minimum(at, 2 * size - 1 - at)


# ---- Pixels


def pixelate(
    key: Array, image: Array, rows: Array, columns: Array, back_rows: Array, back_columns: Array
) -> Array:
    """Means over boxes, and back to the size before, with Pillow's roundings to 8 bits."""
    for across, down in ((columns, rows), (back_columns, back_rows)):
        image = blur.eight_bits(jnp.einsum("wj,hjc->hwc", across, image, precision=_EXACT))
        image = blur.eight_bits(jnp.einsum("hi,iwc->hwc", down, image, precision=_EXACT))
    return image


# ---- JPEG


def tables(qualities: list[int]) -> np.ndarray:
    """float32[5, 2, 8, 8]: libjpeg's tables of luminance and chrominance at each quality."""
    out = []
    for quality in qualities:
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        base = np.stack([_LUMINANCE, _CHROMINANCE])
        out.append(((base * percent + 50) // 100).clip(1, 255))
    return np.stack(out).astype(np.float32)


def _dct() -> np.ndarray:
    """float32[8, 8]: the orthonormal DCT-II, frequencies in rows."""
    k, n = np.mgrid[:8, :8]
    basis = np.cos((2 * n + 1) * k * np.pi / 16) / 2
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def jpeg(key: Array, image: Array, table: Array) -> Array:
    """JPEG and back: colours in half size (4:2:0), blocks of 8x8, quantised cosines.

    As libjpeg does by default, which upsamples colours by a triangle filter; here transforms are
    exact, and libjpeg's are integer ones that differ by a level now and then.
    """
    pixels = jnp.round(image * 255)
    height, width, channels = pixels.shape
    if channels == 1:
        return _coded(pixels[..., 0] - 128, table[0])[..., None] / 255 + 128 / 255
    planes = _whole(jnp.einsum("kc,hwc->khw", _YCC, pixels, precision=_EXACT))
    light = _coded(planes[0] - 128, table[0]) + 128
    half = (-(-height // 2), -(-width // 2))
    colour = []
    for plane in planes[1:]:
        coded = _coded(_small(plane), table[1])[: half[0], : half[1]]
        colour.append(_large(coded, (height, width)))
    light = light.clip(0, 255)
    ycc = jnp.stack([light, *colour], -1)
    return _whole(jnp.einsum("ck,hwk->hwc", _RGB, ycc, precision=_EXACT)) / 255


def _whole(x: Array) -> Array:
    return jnp.floor(x + 0.5)


def _coded(plane: Array, table: Array) -> Array:
    """float[H, W] near 0, through quantised 8x8 blocks; the edge goes on to fill the last ones."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    rows, columns = (size // 8 for size in plane.shape)
    blocks = plane.reshape(rows, 8, columns, 8)
    basis = _dct()
    waves = jnp.einsum("ui,rics,vs->rucv", basis, blocks, basis, precision=_EXACT)
    each = table[None, :, None, :]
    waves = jnp.round(waves / each) * each
    back = jnp.einsum("ui,rucv,vs->rics", basis, waves, basis, precision=_EXACT)
    return _whole(back.reshape(plane.shape)[:height, :width]).clip(-128, 127)


def _small(plane: Array) -> Array:
    """Means of 2x2 pixels, in a width of whole blocks that the edge goes on to fill.

    Halves go down and up in turn along a row, as libjpeg's do.
    """
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    height, width = plane.shape
    total = plane.reshape(height // 2, 2, width // 2, 2).sum((1, 3))
    return jnp.floor((total + 1 + jnp.arange(width // 2)[None] % 2) / 4)


def _large(plane: Array, shape: tuple[int, int]) -> Array:
    """Twice the size by 3/4 of the near and 1/4 of the next pixel on both axes, cut to `shape`."""
    height, width = plane.shape
    near = 3 * plane
    above = jnp.concatenate([plane[:1], plane[:-1]]) + near
    below = jnp.concatenate([plane[1:], plane[-1:]]) + near
    tall = jnp.stack([above, below], 1).reshape(2 * height, width)
    near = 3 * tall
    left = jnp.concatenate([tall[:, :1], tall[:, :-1]], 1) + near + 8
    right = jnp.concatenate([tall[:, 1:], tall[:, -1:]], 1) + near + 7
    wide = jnp.stack([left, right], 2).reshape(2 * height, 2 * width)
    return jnp.floor(wide / 16)[: shape[0], : shape[1]]
