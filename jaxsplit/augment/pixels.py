"""Image ops of AutoAugment and RandAugment, on uint8 images, with Pillow's roundings.

`Params` describes one application of an op: which of six branches runs, and with which numbers.
Each image of a batch may get another op; an accelerator then runs every branch for every image. As
the fifteen ops share six branches, that costs six branches instead of fifteen ops. The branches are
a gather, a gather of 16 taps, a blend, a table look-up, elementwise integers, and the identity.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit import compiler

KEEP, POINT, NEAREST, FILTERED, BLEND, LOOKUP = range(6)  # branches
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
ENHANCE = ("brightness", "contrast", "color", "sharpness")  # variants of BLEND
HISTOGRAM = ("autocontrast", "equalize")  # variants of LOOKUP
BILINEAR, BICUBIC = range(2)  # variants of FILTERED
LEVELS = np.arange(256, dtype=np.int32)
Choose = Callable[..., jax.Array]  # (index, functions, *operands) -> result of functions[index]


class Params(NamedTuple):
    """One application of one op; leading axes stack several applications."""

    branch: Any  # int32[], one of KEEP .. LOOKUP
    variant: Any  # int32[], which op or filter within the branch
    factor: Any  # float32[], of BLEND: 0 is the degenerate image, 1 the image itself
    point: Any  # int32[4]: threshold, number added below it, xor above it, mask
    matrix: Any  # float32[6]: x_in = a x + b y + c, y_in = d x + e y + f, at pixel centres
    fixed: Any  # int32[6]: the same in 16.16 fixed point, c and f at the first pixel's centre


def params(
    op: str,
    magnitude: Any = 0.0,
    *,
    shape: tuple[int, int],
    interpolation: Any = None,
    xp: Any = jnp,
) -> Params:
    """The `Params` with which `apply` runs an op.

    Args:
        op: 'invert', 'solarize', 'solarize_add', 'posterize' or a name in GEOMETRIC, ENHANCE,
            HISTOGRAM.
        magnitude: scalar, may be traced. rotate: degrees, counter-clockwise. shear_*: tangent;
            translate_*: share of the width or height; both move the image to the left or up.
            solarize: smallest value that is inverted. solarize_add: number added to values below
            128. posterize: number of bits kept. ENHANCE: factor; 1 changes nothing.
        shape: height and width, both below 32768.
        interpolation: BILINEAR or BICUBIC, may be traced; None: nearest.
        xp: numpy for static magnitudes (float64, tables), jax.numpy for traced ones.
    """
    branch, variant, factor, point = KEEP, 0, 1.0, (0, 0, 0, 255)
    matrix = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    if op in GEOMETRIC:
        branch, variant = (NEAREST, 0) if interpolation is None else (FILTERED, interpolation)
        matrix = _matrix(op, magnitude, *shape, xp)
    elif op in ENHANCE:
        branch, variant, factor = BLEND, ENHANCE.index(op), magnitude
    elif op in HISTOGRAM:
        branch, variant = LOOKUP, HISTOGRAM.index(op)
    else:
        branch = POINT
        point = {
            "invert": lambda: (0, 0, 255, 255),
            "solarize": lambda: (xp.ceil(magnitude), 0, 255, 255),
            "solarize_add": lambda: (128, magnitude, 0, 255),
            "posterize": lambda: (0, 0, 0, 256 - 2.0 ** (8 - magnitude)),
        }[op]()
    a, b, c, d, e, f = matrix
    fixed = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return Params(
        branch=xp.asarray(branch, xp.int32),
        variant=xp.asarray(variant, xp.int32),
        factor=xp.asarray(factor, xp.float32),
        point=xp.stack([xp.asarray(v, xp.int32) for v in point]),
        matrix=xp.stack([xp.asarray(v, xp.float32) for v in matrix]),
        fixed=xp.stack([_fixed(v, xp) for v in fixed]),
    )


def stack(applications: Sequence[Params], xp: Any = jnp) -> Params:
    """Stacks Params along a new leading axis."""
    return jax.tree.map(lambda *leaves: xp.stack(leaves), *applications)


def select(
    index: jax.Array, functions: Sequence[Callable[..., jax.Array]], *operands: Any
) -> jax.Array:
    """Calls all functions and keeps the result of one, as `jax.lax.switch` does under `vmap`.

    It replaces `switch` because batching `switch` inside `shard_map` fails if a branch holds an
    array that does not vary over devices (jax 0.10.2).
    """
    return jax.lax.select_n(index, *[f(*operands) for f in functions])


def apply(
    image: jax.Array,
    p: Params,
    fill: Sequence[int] | np.ndarray,
    branches: Collection[int] = range(6),
    choose: Choose = select,
) -> jax.Array:
    """Runs one op on one image.

    Args:
        image: uint8[H, W, C], C = 1 (color changes nothing) or 3.
        p: the op.
        fill: C numbers, for pixels from outside the image.
        branches: branches that may occur in `p`; the others are not compiled.
        choose: `select`; or, outside `vmap`, `jax.lax.switch`, which runs a single branch.

    Returns:
        uint8[H, W, C].
    """
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"augment.pixels: image is {image.shape}, needs 1 or 3 channels")
    colour = np.asarray(fill, np.uint8).reshape(1, 1, -1)
    calls = {
        POINT: _point,
        NEAREST: functools.partial(_nearest, fill=colour),
        FILTERED: functools.partial(_filtered, fill=colour),
        BLEND: functools.partial(_blend, choose=choose),
        LOOKUP: functools.partial(_lookup, choose=choose),
    }
    used = [_keep] + [calls[i] if i in branches else _keep for i in range(POINT, LOOKUP + 1)]
    return choose(p.branch, used, image, p)


def apply_branches(
    image: jax.Array, drawn: Params, fill: Sequence[int] | np.ndarray, branches: Sequence[int]
) -> jax.Array:
    """Runs several ops on one image, one after the other.

    Args:
        image: uint8[H, W, C], C = 1 or 3.
        drawn: the ops, along the leading axis of its leaves.
        fill: C numbers, for pixels from outside the image.
        branches: branches that may occur in `drawn`.

    Returns:
        uint8[H, W, C].
    """
    # On an accelerator every branch runs for every image, all at once. A CPU is 20 times faster
    # with a loop over the images that runs only the branch that an image needs.
    loop = compiler.platform() == "cpu"
    choose = jax.lax.switch if loop else select

    def run(image: jax.Array, drawn: Params) -> jax.Array:
        def step(image: jax.Array, p: Params) -> tuple[jax.Array, None]:
            return apply(image, p, fill, branches, choose), None

        return jax.lax.scan(step, image, drawn)[0]

    return (jax.custom_batching.sequential_vmap(run) if loop else run)(image, drawn)


# ---- branches: (image, Params) -> image


def _keep(image: jax.Array, p: Params) -> jax.Array:
    return image


def _point(image: jax.Array, p: Params) -> jax.Array:
    """Elementwise integers: invert, solarize, solarize_add, posterize."""
    threshold, add, xor, mask = p.point
    v = image.astype(jnp.int32)
    v = jnp.where(v < threshold, jnp.minimum(v + add, 255), v ^ xor)
    return (v & mask).astype(jnp.uint8)


def _nearest(image: jax.Array, p: Params, fill: np.ndarray) -> jax.Array:
    """Affine map to the nearest pixel, in 16.16 fixed point."""
    height, width, _ = image.shape
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    a, b, c, d, e, f = p.fixed
    x_in, y_in = (c + a * x + b * y) >> 16, (f + d * x + e * y) >> 16
    inside = (x_in >= 0) & (x_in < width) & (y_in >= 0) & (y_in < height)
    return jnp.where(inside[..., None], _pixels(image, y_in, x_in), fill)


def _filtered(image: jax.Array, p: Params, fill: np.ndarray) -> jax.Array:
    """Affine map that interpolates: bilinear, or cubic convolution with a = -1.

    Pillow's resize has a = -0.5, its transform -1. A pixel whose source lies outside the image
    becomes `fill`; taps outside repeat the border. The result is cut to whole levels.
    """
    height, width, _ = image.shape
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    a, b, c, d, e, f = p.matrix
    x_in, y_in = a * x + b * y + c, d * x + e * y + f
    inside = (x_in >= 0) & (x_in < width) & (y_in >= 0) & (y_in < height)
    x_in, y_in = x_in - 0.5, y_in - 0.5
    column, row = jnp.floor(x_in), jnp.floor(y_in)
    dx, dy = (x_in - column)[..., None], (y_in - row)[..., None]
    column, row = column.astype(jnp.int32), row.astype(jnp.int32)
    cubic = p.variant == BICUBIC

    def between(taps: Sequence[jax.Array], t: jax.Array) -> jax.Array:
        before, left, right, after = taps
        difference = right - left
        convolution = (
            -before
            + right
            + t * (2 * (before - left) + right - after + t * (-before + left - right + after))
        )
        return left + t * jnp.where(cubic, convolution, difference)

    rows = [
        between(
            [_pixels(image, row + j, column + i).astype(jnp.float32) for i in (-1, 0, 1, 2)], dx
        )
        for j in (-1, 0, 1, 2)
    ]
    value = jnp.clip(between(rows, dy), 0, 255).astype(jnp.uint8)
    return jnp.where(inside[..., None], value, fill)


def _blend(image: jax.Array, p: Params, choose: Choose) -> jax.Array:
    """degenerate + factor * (image - degenerate), clipped, cut to whole levels (ENHANCE)."""
    degenerate = choose(p.variant, (_black, _mean, _gray, _smooth), image)
    low, high = degenerate.astype(jnp.float32), image.astype(jnp.float32)
    # Pillow rounds the product before it adds. The clip, which changes nothing, stands between
    # the two so that no compiler makes one fused multiply-add of them.
    product = jnp.clip(p.factor * (high - low), -1e6, 1e6)
    return jnp.clip(low + product, 0, 255).astype(jnp.uint8)


def _lookup(image: jax.Array, p: Params, choose: Choose) -> jax.Array:
    """Maps each channel by a table made from its histogram (HISTOGRAM)."""
    channels = image.shape[-1]
    index = image.astype(jnp.int32) + 256 * jnp.arange(channels, dtype=jnp.int32).reshape(1, 1, -1)
    histogram = jnp.zeros(channels * 256, jnp.int32).at[index].add(1).reshape(channels, 256)
    table = choose(p.variant, (_autocontrast, _equalize), histogram)
    return jnp.take(table.reshape(-1), index, mode="clip").astype(jnp.uint8)


# ---- degenerate images of _blend: uint8[H, W, C] -> uint8[H, W, C]


def _black(image: jax.Array) -> jax.Array:
    return image & np.uint8(0)


def _mean(image: jax.Array) -> jax.Array:
    """An image of one colour: the rounded mean of the gray image."""
    gray = _gray(image)[..., 0]
    mean = (2 * gray.sum(dtype=jnp.int32) + gray.size) // (2 * gray.size)
    return jnp.broadcast_to(mean.astype(jnp.uint8), image.shape)


def _gray(image: jax.Array) -> jax.Array:
    """ITU-R 601-2 luma, in 16.16 fixed point."""
    if image.shape[-1] == 1:
        return image
    weighted = image.astype(jnp.int32) * np.reshape([19595, 38470, 7471], (1, 1, 3))
    luma = (weighted.sum(-1, keepdims=True) + 0x8000) >> 16
    return jnp.broadcast_to(luma.astype(jnp.uint8), image.shape)


def _smooth(image: jax.Array) -> jax.Array:
    """3x3 mean with weight 5 of 13 in the middle; the border stays as it is."""
    height, width, _ = image.shape
    v = image.astype(jnp.int32)
    total = 4 * v[1:-1, 1:-1] + sum(
        v[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


# ---- tables of _lookup: histogram int32[C, 256] -> int32[C, 256]


def _autocontrast(histogram: jax.Array) -> jax.Array:
    """Maps a channel's darkest level to 0 and its lightest to 255, linearly between."""
    levels = LEVELS.reshape(1, -1)
    low = (histogram > 0).argmax(1, keepdims=True).astype(jnp.int32)
    high = 255 - (histogram[:, ::-1] > 0).argmax(1, keepdims=True).astype(jnp.int32)
    above, span = levels - low, jnp.maximum(high - low, 1)
    table = 255 * above // span
    # Where the quotient is whole, Pillow's two roundings may fall just short of it.
    whole = (above >= 0) & (255 * above % span == 0)
    nth = jnp.clip(jnp.cumsum(whole, 1) - 1, 0, 31)
    short = (jnp.asarray(_short_quotients())[low, high] >> nth) & whole
    return jnp.where(high <= low, levels, jnp.clip(table - short, 0, 255))


@functools.cache
def _short_quotients() -> np.ndarray:
    """int32[256, 256]: for which levels Pillow's autocontrast is one less than the quotient.

    The axes are `low` and `high` of `_autocontrast`. Bit k stands for the k-th level between them
    whose quotient is a whole number. It is set if trunc(level * scale - low * scale) in double
    precision is one less than the quotient.
    """
    bits = np.zeros((256, 256), np.int32)
    for low in range(256):
        high = np.arange(low + 1, 256)[:, None]
        above = LEVELS - low
        scale = 255.0 / (high - low)
        whole = (above >= 0) & (LEVELS <= high) & (255 * above % (high - low) == 0)
        short = whole & ((LEVELS * scale + -low * scale).astype(int) < 255 * above // (high - low))
        nth = np.cumsum(whole, 1) - 1
        bits[low, low + 1 :] = np.where(short, 1 << np.minimum(nth, 30), 0).sum(1)
    return bits


def _equalize(histogram: jax.Array) -> jax.Array:
    """Makes all levels equally frequent; pixels of the lightest level do not count for the step."""
    last = 255 - (histogram[:, ::-1] > 0).argmax(1, keepdims=True)
    step = (histogram.sum(1, keepdims=True) - jnp.take_along_axis(histogram, last, 1)) // 255
    below = jnp.cumsum(histogram, 1) - histogram
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step == 0, LEVELS.reshape(1, -1), table)


# ---- helpers


def _pixels(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The pixels at [row, column]; the border repeats outside."""
    height, width, channels = image.shape
    index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    return jnp.take(image.reshape(height * width, channels), index, axis=0, mode="clip")


def _matrix(op: str, m: Any, height: int, width: int, xp: Any) -> tuple[Any, ...]:
    """The affine map from output to input pixels: its rows (a, b, c) and (d, e, f)."""
    if op == "rotate":
        angle = -m * (math.pi / 180)
        cos, sin, x, y = xp.cos(angle), xp.sin(angle), width / 2, height / 2
        return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
    return {
        "shear_x": (1.0, m, 0.0, 0.0, 1.0, 0.0),
        "shear_y": (1.0, 0.0, 0.0, m, 1.0, 0.0),
        "translate_x": (1.0, 0.0, m * width, 0.0, 1.0, 0.0),
        "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, m * height),
    }[op]


def _fixed(v: Any, xp: Any) -> Any:
    """Rounds to 16.16 fixed point, halves away from zero."""
    return xp.asarray(xp.trunc(v * 65536.0 + xp.where(v < 0, -0.5, 0.5)), xp.int32)
