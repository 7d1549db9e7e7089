"""The 15 corruptions of CIFAR-10-C and ImageNet-C at 5 severities, on the device.

Hendrycks & Dietterich 2019 (arXiv 1903.12261) published programs that make them; each line of
`KINDS` says how near this one is. Random numbers are JAX's, so that no image equals a published
one: the distribution does. `corrupt` depends on the kind, the severity, the number of the image and
a seed only.

Both sets of severities are here: CIFAR's for images of up to 64 pixels, ImageNet's for larger ones.
Gray images have one channel; the published programs know colours only.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsplit.evaluation.corruptions import blur, digital, noise, resampling, weather
from jaxsplit.evaluation.corruptions.severities import CIFAR, IMAGENET

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64  # pixels; the larger side of images that get the severities of CIFAR


class Kind(NamedTuple):
    """A kind of corruption.

    apply: (key, image float32[H, W, C] in 0..1, *constants) -> the same shape, not clipped.
    constants: (rows of the table of severities, H, W) -> arrays [5, ...], an argument of `apply`
      each.
    definition: 'published', or 'approximation' and why.
    """

    apply: Callable[..., Array]
    constants: Callable[[list, int, int], tuple[Any, ...]]
    definition: str = "published"


def _columns(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    """The numbers as they stand."""
    table = np.array(rows, np.float32)
    return tuple(table[:, None].T) if table.ndim == 1 else tuple(table.T)


def _glass(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    filters = [
        np.stack([resampling.gaussian(size, row[0], "nearest", 4.0) for row in rows])
        for size in (height, width)
    ]
    return *filters, *(np.array([row[i] for row in rows], np.int32) for i in (1, 2))


def _motion(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    taps = 2 * max(radius for radius, _ in rows) + 1
    return (np.stack([blur.half_gaussian(radius, sigma, taps) for radius, sigma in rows]),)


def _zooms(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    factors = [np.arange(1, stop, step) for stop, step in rows]
    count = np.array([len(its) for its in factors], np.float32)
    return blur.zooms(height, factors), blur.zooms(width, factors), count


def _snow(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    mean, scale, factor, threshold, radius, sigma, share = zip(*rows, strict=True)
    zooms = [np.stack([resampling.zoom(size, f) for f in factor]) for size in (height, width)]
    (kernels,) = _motion(list(zip(radius, sigma, strict=True)), height, width)
    return *zooms, kernels, *(np.array(v, np.float32) for v in (mean, scale, threshold, share))


def _elastic(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    side = min(height, width)
    filters = [
        np.stack([resampling.gaussian(size, row[1] * side, "reflect", 3.0) for row in rows])
        for size in (height, width)
    ]
    return *filters, *(np.array([row[i] * side for row in rows], np.float32) for i in (0, 2))


def _pixelate(rows: list, height: int, width: int) -> tuple[np.ndarray, ...]:
    there, back = [], []
    for size in (height, width):
        fewer = [max(int(size * share), 1) for share in rows]
        there.append(np.zeros((len(rows), max(fewer), size), np.float32))
        back.append(np.zeros((len(rows), size, max(fewer)), np.float32))
        for severity, few in enumerate(fewer):
            there[-1][severity, :few] = resampling.box(size, few)
            back[-1][severity, :, :few] = resampling.box(few, size)
    return *there, *back


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind(noise.gaussian, _columns),
    "shot_noise": Kind(noise.shot, _columns),
    "impulse_noise": Kind(noise.impulse, _columns),
    "defocus_blur": Kind(blur.defocus, lambda rows, height, width: (blur.disks(rows),)),
    "glass_blur": Kind(blur.glass, _glass),
    "motion_blur": Kind(blur.motion_blur, _motion),
    "zoom_blur": Kind(blur.zoom_blur, _zooms),
    "snow": Kind(weather.snow, _snow),
    "frost": Kind(
        weather.frost,
        _columns,
        "approximation: procedural ice, as the published one needs photographs",
    ),
    "fog": Kind(weather.fog, _columns),
    "brightness": Kind(weather.brightness, _columns),
    "contrast": Kind(digital.contrast, _columns),
    "elastic_transform": Kind(digital.elastic, _elastic),
    "pixelate": Kind(digital.pixelate, _pixelate),
    "jpeg_compression": Kind(digital.jpeg, lambda rows, height, width: (digital.tables(rows),)),
}


@functools.lru_cache(maxsize=len(KINDS))
def constants(kind: str, height: int, width: int) -> tuple[np.ndarray, ...]:
    """What `apply` of a kind needs for images of a size: arrays [5, ...], one for each severity."""
    table = CIFAR if max(height, width) <= SMALL else IMAGENET
    return KINDS[kind].constants(table[kind], height, width)


def corrupt(
    kind: str, images: Array | np.ndarray, severity: int, index: Array | np.ndarray, seed: int = 0
) -> Array:
    """Corrupts images; each kind is compiled once for all severities.

    Args:
      kind: a name in KINDS.
      images: uint8[B, H, W, C], C = 1 or 3.
      severity: 1 to 5.
      index: int[B]: the number of each image; with the kind and the severity it seeds the random
        numbers.
      seed: another one gives other random numbers.

    Returns:
      uint8[B, H, W, C], cut to whole numbers as the published ones are.

    Raises:
      ValueError: no such kind or severity.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r}: must be one of 1, 2, 3, 4, 5")
    its = [array[severity - 1] for array in constants(kind, *images.shape[1:3])]
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{kind} {severity}".encode()))
    # As numbers of NumPy, which all processes may give to a computation on all devices.
    return _corrupt(kind, np.asarray(jax.random.key_data(key)), images, index, its)


@functools.partial(jax.jit, static_argnums=0)
def _corrupt(kind: str, key: Array, images: Array, index: Array, its: list[Array]) -> Array:
    def one(index: Array, image: Array) -> Array:
        own = jax.random.fold_in(jax.random.wrap_key_data(key), index)
        out = KINDS[kind].apply(own, image.astype(jnp.float32) / 255, *its)
        # What float32 rounds away of a whole number does not count.
        return jnp.floor(out.clip(0, 1) * 255 + 1e-3).astype(jnp.uint8)

    return jax.vmap(one)(index, images)
