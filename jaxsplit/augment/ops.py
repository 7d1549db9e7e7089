"""Image ops that run on the device.

A factory takes the settings of a run and returns `op(key, image) -> image` for one image [H, W, C].
The caller maps the op over examples and networks. Ops before `normalize` get uint8, ops after it
float32. Ops draw random numbers for an image, never for a pixel, and all shapes are static.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit.errors import ConfigError

Op = Callable[[jax.Array, jax.Array], jax.Array]
KeylessOp = Callable[[jax.Array | None, jax.Array], jax.Array]  # an Op that draws nothing

_EXACT = dict(precision=jax.lax.Precision.HIGHEST)  # TPUs and GPUs would round pixels to bfloat16


CROP_MODES = {"zeros": "constant", "reflect": "reflect"}  # name -> mode of `jnp.pad`


def random_crop(padding: int, mode: str = "zeros") -> Op:
    """Crops a window of the image's own size from a random place in the padded image.

    Args:
        padding: pixels on every side; each of the (2 * padding + 1)^2 offsets is equally likely.
        mode: 'zeros' pads with black; 'reflect' mirrors the image at its outermost pixels, without
            repeating them.

    Raises:
        ConfigError: `padding` is not above 0, or `mode` is unknown. The op raises it if an image is
            too small to be reflected.
    """
    if padding <= 0:
        raise ConfigError(f"augment.crop_padding={padding}: must be above 0 (0: no crop)")
    if mode not in CROP_MODES:
        raise ConfigError(f"augment.crop_mode={mode!r}: must be one of {', '.join(CROP_MODES)}")

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left = _below(2 * padding + 1, jax.random.uniform(key, (2,)))
        return crop_padded(image, padding, top, left, mode)

    return op


def crop_padded(
    image: jax.Array, padding: int, top: jax.Array, left: jax.Array, mode: str = "zeros"
) -> jax.Array:
    """Pads an image and returns its window at (`top`, `left`): [H, W, C] -> [H, W, C]."""
    if mode == "reflect" and padding >= min(image.shape[:2]):
        raise ConfigError(
            f"augment.crop_padding={padding}: must be below {min(image.shape[:2])}, the side of "
            "the image, with augment.crop_mode='reflect'"
        )
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(image, sides, mode=CROP_MODES[mode])
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_resized_crop(
    scale_min: float,
    scale_max: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> Op:
    """Crops a random box of the image and resizes it to the image's own size; see `resize_box`.

    It serves images held in memory. For streamed images the host draws the same distribution of
    boxes. An attempt draws the area uniformly in [`scale_min`, `scale_max`] * H * W and
    width / height log-uniformly in `aspect`; both sides are rounded. The first of `attempts` boxes
    that fits is placed at random. If none fits, the largest centred box with a permitted aspect
    is taken.

    Raises:
        ConfigError: a value is out of range.
    """
    if not 0 < scale_min <= scale_max <= 1:
        raise ConfigError(f"data.scale_min={scale_min}: must be in (0, {scale_max:g}]")
    if not 0 < aspect[0] <= aspect[1]:
        raise ConfigError(f"random_resized_crop: aspect {aspect}: must be 0 < least <= most")
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        u = jax.random.uniform(key, (2 + 2 * attempts,))
        pixels = _between(u[2 : 2 + attempts], (scale_min, scale_max)) * (height * width)
        ratio = jnp.exp(_between(u[2 + attempts :], log_aspect))
        h = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        first, any_fits = fits.argmax(), fits.any()
        h = jnp.where(any_fits, h[first], min(height, round(width / aspect[0])))
        w = jnp.where(any_fits, w[first], min(width, round(height * aspect[1])))
        top = jnp.where(any_fits, _below(height - h + 1, u[0]), (height - h) // 2)
        left = jnp.where(any_fits, _below(width - w + 1, u[1]), (width - w) // 2)
        return resize_box(image, top, left, h, w)

    return op


def resize_box(
    image: jax.Array, top: jax.Array, left: jax.Array, h: jax.Array, w: jax.Array
) -> jax.Array:
    """Resizes a box of an image bilinearly to the image's size: uint8[H, W, C] -> uint8[H, W, C].

    No pixel outside the box contributes. The box is never larger than the result, so antialiasing
    would change nothing. Two matrix products, with two weights in each row of a matrix, replace a
    gather, which is slow on TPUs. `jax.image.scale_and_translate` would read beyond the box.
    """

    def weights(side: int, first: jax.Array, length: jax.Array) -> jax.Array:
        centre = first + (jnp.arange(side) + 0.5) * length / side - 0.5
        centre = jnp.clip(centre, first, first + length - 1)[:, None]
        return jnp.maximum(0, 1 - jnp.abs(centre - jnp.arange(side)[None]))

    height, width, _ = image.shape
    rows, columns = weights(height, top, h), weights(width, left, w)
    pixels = jnp.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(jnp.float32), **_EXACT)
    return jnp.floor(pixels + 0.5).astype(image.dtype)


def random_flip() -> Op:
    """Exchanges left and right of the image with probability 1/2."""

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return op


def normalize(mean: Sequence[float], std: Sequence[float]) -> KeylessOp:
    """(image / 255 - mean) / std in float32, as one multiply-add for each value; ignores the key.

    Args:
        mean: C numbers, in units of the full range.
        std: C numbers above 0, same units.

    Raises:
        ConfigError: `mean` and `std` differ in length, or a `std` is not above 0.
    """
    mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean64.ndim != 1 or mean64.shape != std64.shape or not (std64 > 0).all():
        raise ConfigError(
            f"normalize: mean {mean64.tolist()} and std {std64.tolist()} must be as many numbers "
            "as channels, std above 0"
        )
    scale = (1 / (255 * std64)).astype(np.float32)
    shift = (-mean64 / std64).astype(np.float32)

    def op(key: jax.Array | None, image: jax.Array) -> jax.Array:
        del key
        if image.shape[-1] != len(scale):
            raise ValueError(f"normalize: {len(scale)} channels of mean, image is {image.shape}")
        shape = (1,) * (image.ndim - 1) + scale.shape
        return image.astype(jnp.float32) * scale.reshape(shape) + shift.reshape(shape)

    return op


def random_erase(
    prob: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    attempts: int = 10,
) -> Op:
    """Random erasing (arXiv 1708.04896): sets a rectangle to zero with probability `prob`.

    An attempt draws the area uniformly in `area` * H * W and height / width log-uniformly in
    `aspect`; both sides are rounded and must be shorter than the image's. The first of `attempts`
    rectangles that fits is placed at random. If none fits, the image stays as it is. In a
    normalised image zero is the mean colour.

    Args:
        prob: in [0, 1].
        area: (least, most) share of the image, in (0, 1].
        aspect: (least, most) height / width, above 0.
        attempts: number of draws.

    Raises:
        ConfigError: a value is out of range.
    """
    if not 0 <= prob <= 1:
        raise ConfigError(f"augment.erase_prob={prob}: must be in [0, 1]")
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"augment.erase_area={tuple(area)}: must be 0 < least <= most <= 1")
    if not 0 < aspect[0] <= aspect[1]:
        raise ConfigError(f"augment.erase_aspect={tuple(aspect)}: must be 0 < least <= most")
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        u = jax.random.uniform(key, (3 + 2 * attempts,))  # one draw: keys are the costly part
        pixels = _between(u[3 : 3 + attempts], area) * (height * width)
        ratio = jnp.exp(_between(u[3 + attempts :], log_aspect))
        h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
        fits = (h < height) & (w < width)
        first = fits.argmax()
        h, w = h[first], w[first]
        top, left = _below(height - h + 1, u[1]), _below(width - w + 1, u[2])
        rows, columns = jnp.arange(height), jnp.arange(width)
        in_rows = (rows >= top) & (rows < top + h)
        in_columns = (columns >= left) & (columns < left + w)
        erased = in_rows[:, None, None] & in_columns[None, :, None] & fits.any() & (u[0] < prob)
        return jnp.where(erased, jnp.zeros((), image.dtype), image)

    return op


def cutout(side: int) -> Op:
    """Cutout (arXiv 1708.04552): sets a square to zero in every image.

    Its centre is drawn uniformly from all pixels, so the border may cut the square off. If the side
    is even, the centre is the first pixel of its second half. In a normalised image zero is the
    mean colour.

    Args:
        side: side of the square in pixels.

    Raises:
        ConfigError: `side` is not above 0.
    """
    if side <= 0:
        raise ConfigError(f"augment.cutout={side}: must be above 0 (0: no cutout)")

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        centre = jax.random.uniform(key, (2,))
        row, column = (_below(n, u) for n, u in zip(image.shape[:2], centre, strict=True))
        return cut_square(image, row, column, side)

    return op


def cut_square(image: jax.Array, row: jax.Array, column: jax.Array, side: int) -> jax.Array:
    """Sets a square around (`row`, `column`) to zero: [H, W, C] -> [H, W, C]."""
    rows, columns = (
        (jnp.arange(n) >= centre - side // 2) & (jnp.arange(n) < centre - side // 2 + side)
        for n, centre in zip(image.shape[:2], (row, column), strict=True)
    )
    inside = rows[:, None, None] & columns[None, :, None]
    return jnp.where(inside, jnp.zeros((), image.dtype), image)


def _between(u: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    """Scales uniform numbers in [0, 1) to `bounds`."""
    return bounds[0] + u * (bounds[1] - bounds[0])


def _below(n: jax.Array | int, u: jax.Array) -> jax.Array:
    """Turns uniform numbers in [0, 1) into integers in [0, n).

    It hashes half as much as `jax.random.randint`.
    """
    return (u * n).astype(jnp.int32)
