"""Weather and light. Images are float32[H, W, C] in 0..1."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsplit.evaluation.corruptions import blur

_WIBBLE = 100.0  # the published programs' start; only ratios matter, as the map is scaled to 0..1
_ICE = np.array([[[0.80, 0.92, 1.0]]], np.float32)  # colour of `frost`


def luma(image: Array) -> Array:
    """float[H, W, 1]: the brightness of colours (ITU-R BT.601); gray as it is."""
    if image.shape[2] == 1:
        return image
    return image @ jnp.array([[0.299], [0.587], [0.114]])


def brightness(key: Array, image: Array, more: Array) -> Array:
    """Adds to V of HSV: hue and saturation stay, so all channels grow by one ratio."""
    value = image.max(2, keepdims=True)
    brighter = (value + more).clip(0, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1), brighter)


def plasma(key: Array, shape: tuple[int, ...], decay: Array) -> Array:
    """float32[H, W] in 0..1: diamond-square noise, whose detail falls by `decay` a level.

    The map is a square of the next power of two that wraps around, and its corner is taken. Each
    level fills the middles of squares from their corners, then of the edges between them.
    """
    size = 1 << max(max(shape) - 1, 1).bit_length()
    levels = size.bit_length() - 1
    y, x = jnp.mgrid[:size, :size]

    def level(i: Array, its: tuple[Array, Array]) -> tuple[Array, Array]:
        values, wibble = its
        step = size >> i
        half = step // 2
        # The square of `wibble` is the amplitude: the published code multiplies by it twice.
        noise = jax.random.uniform(jax.random.fold_in(key, i), (size, size), minval=-1, maxval=1)
        noise *= wibble**2
        beside = jnp.roll(values, half, 1) + jnp.roll(values, -half, 1)
        corners = jnp.roll(beside, half, 0) + jnp.roll(beside, -half, 0)
        middle = (y % step == half) & (x % step == half)
        values = jnp.where(middle, corners / 4 + noise, values)
        beside = jnp.roll(values, half, 1) + jnp.roll(values, -half, 1)
        above = jnp.roll(values, half, 0) + jnp.roll(values, -half, 0)
        edge = ((y % step == half) & (x % step == 0)) | ((y % step == 0) & (x % step == half))
        return jnp.where(edge, (beside + above) / 4 + noise, values), wibble / decay

    start = jnp.zeros((size, size)), jnp.float32(_WIBBLE)
    values, _ = jax.lax.fori_loop(0, levels, level, start)
    values -= values.min()
    return (values / values.max())[: shape[0], : shape[1]]


def fog(key: Array, image: Array, thickness: Array, decay: Array) -> Array:
    """Adds `plasma` in all channels; the brightest value keeps its brightness at least."""
    brightest = image.max()
    haze = thickness * plasma(key, image.shape[:2], decay)[..., None]
    share = jnp.where(brightest > 0, brightest / (brightest + thickness), 0)
    return (image + haze) * share


def snow(
    key: Array,
    image: Array,
    rows: Array,
    columns: Array,
    kernel: Array,
    mean: Array,
    scale: Array,
    threshold: Array,
    share: Array,
) -> Array:
    """Flakes: normal noise, enlarged, of which what is above a threshold falls in one direction."""
    noise_key, angle_key = jax.random.split(key)
    flakes = mean + scale * jax.random.normal(noise_key, image.shape[:2])
    flakes = blur.along_axes(flakes[..., None], rows, columns)
    flakes = blur.cut_to_eight_bits(jnp.where(flakes < threshold, 0, flakes))
    angle = jax.random.uniform(angle_key, minval=-135, maxval=-45)
    flakes = blur.eight_bits(blur.motion(flakes, angle, kernel))
    pale = share * image + (1 - share) * jnp.maximum(image, luma(image) * 1.5 + 0.5)
    return pale + flakes + flakes[::-1, ::-1]


def frost(key: Array, image: Array, share: Array, ice: Array) -> Array:
    """Blends the image with ice. An approximation: the published program takes photographs.

    The ice is two layers of ridges, where `plasma` crosses its middle, over a clouded pane. Its
    values, 0.1 to 1 with a mean near 0.45, are about those of photographs of frost.
    """
    keys = jax.random.split(key, 3)
    decays = jnp.array([1.5, 1.2, 1.7])
    maps = jax.vmap(plasma, in_axes=(0, None, 0))(keys, image.shape[:2], decays)
    coarse, fine = (1 - jnp.abs(2 * maps[:2] - 1)) ** 4
    texture = (0.1 + 0.4 * maps[2] + 0.5 * coarse + 0.3 * fine).clip(0, 1)
    colour = _ICE if image.shape[2] == 3 else np.ones((1, 1, 1), np.float32)
    return share * image + ice * texture[..., None] * colour
