"""Blur. Images are float32[H, W, C] in 0..1; matrices are [out, in], of `resampling`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsplit.evaluation.corruptions import resampling

_DOUBLINGS = 6  # pointers of `glass` follow chains of 2 ** 6 moves; longer ones hardly happen


def along_axes(image: Array, rows: Array, columns: Array) -> Array:
    """A matrix applied along the height, another along the width, of every channel."""
    exact = jax.lax.Precision.HIGHEST
    half = jnp.einsum("wj,hjc->hwc", columns, image, precision=exact)
    return jnp.einsum("hi,iwc->hwc", rows, half, precision=exact)


def eight_bits(image: Array) -> Array:
    """The nearest of 256 levels, halves up."""
    return jnp.floor(image.clip(0, 1) * 255 + 0.5) / 255


def cut_to_eight_bits(image: Array) -> Array:
    """The next lower of 256 levels; what float32 rounds away does not count."""
    return jnp.floor(image.clip(0, 1) * 255 + 1e-3) / 255


def disk(radius: float, sigma: float) -> np.ndarray:
    """float32[k, k]: a disk, its edge smoothed by a Gaussian of 3 (radius up to 8) or 5 pixels."""
    half = 8 if radius <= 8 else int(radius)
    at = np.arange(-half, half + 1)
    kernel = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    reach = 1 if radius <= 8 else 2
    smooth = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth /= smooth.sum()
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        wide = np.pad(kernel, pad, mode="reflect")
        parts = [np.take(wide, np.arange(len(at)) + i, axis) for i in range(2 * reach + 1)]
        kernel = np.tensordot(smooth, np.stack(parts), 1)
    return kernel.astype(np.float32)


def disks(constants: list[tuple[float, float]]) -> np.ndarray:
    """float32[5, k, k]: those of `disk`, on the smallest square that holds all."""
    kernels = [disk(*one) for one in constants]
    half = max(len(kernel) // 2 for kernel in kernels)
    square = np.stack([np.pad(kernel, half - len(kernel) // 2) for kernel in kernels])
    used = np.flatnonzero(square.any((0, 1)))
    return square[:, used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def defocus(key: Array, image: Array, kernel: Array) -> Array:
    """The image correlated with a disk; pixels outside mirror those inside, the edge once."""
    half = kernel.shape[0] // 2
    wide = jnp.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    channels = wide.transpose(2, 0, 1)[:, None]
    out = jax.lax.conv(
        channels, kernel[None, None], (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST
    )
    return out[:, 0].transpose(1, 2, 0)


def glass(
    key: Array, image: Array, rows: Array, columns: Array, reach: Array, times: Array, most: int = 3
) -> Array:
    """A Gaussian blur, pixels that take the value of one nearby, and the blur again.

    The published program walks from the last pixel to the first and means to swap each with one up
    to `reach` away. NumPy's views make that a copy of the other pixel, on which this is built: a
    pixel that takes from one that was walked over before gets what that had taken.
    """
    image = cut_to_eight_bits(along_axes(image, rows, columns))
    height, width, channels = image.shape
    y, x = jnp.mgrid[:height, :width]
    moves = (y > reach) & (y <= height - reach) & (x > reach) & (x <= width - reach)

    def once(i: Array, pixels: Array) -> Array:
        key_i = jax.random.fold_in(key, i)
        dy, dx = jax.random.randint(key_i, (2, height, width), -reach, reach)
        from_y = jnp.where(moves, y + dy, y).clip(0, height - 1)
        from_x = jnp.where(moves, x + dx, x).clip(0, width - 1)
        source, here = from_y * width + from_x, y * width + x
        walked = moves & moves[from_y, from_x] & (source > here)
        # Where a pixel's value comes from: the walk at another pixel, or (+ count) its old value.
        count = height * width
        to = jnp.where(walked, source, source + count).ravel()
        to = jnp.concatenate([to, jnp.arange(count) + count])
        for _ in range(_DOUBLINGS):
            to = to[to]
        taken = pixels.reshape(count, channels)[to[:count] % count].reshape(pixels.shape)
        return jnp.where(i < times, taken, pixels)

    return along_axes(jax.lax.fori_loop(0, most, once, image), rows, columns)


def half_gaussian(radius: int, sigma: float, taps: int) -> np.ndarray:
    """float32[taps]: ImageMagick's kernel of motion blur, 2 radius + 1 of them not 0."""
    at = np.arange(taps)
    weights = np.where(at <= 2 * radius, np.exp(-0.5 * (at / sigma) ** 2), 0)
    return (weights / weights.sum()).astype(np.float32)


def motion(image: Array, degrees: Array, kernel: Array) -> Array:
    """A blur in one direction, by whole pixels as ImageMagick's; outside, the edge goes on."""
    taps = len(kernel)
    wide = jnp.pad(image, ((taps, taps), (taps, taps), (0, 0)), mode="edge")
    angle = jnp.deg2rad(degrees)
    at = jnp.arange(taps)
    dy = jnp.ceil(at * jnp.sin(angle) - 0.5).astype(jnp.int32)
    dx = jnp.ceil(at * jnp.cos(angle) - 0.5).astype(jnp.int32)

    def add(total: Array, tap: tuple[Array, Array, Array]) -> tuple[Array, None]:
        weight, down, right = tap
        part = jax.lax.dynamic_slice(wide, (taps + down, taps + right, 0), image.shape)
        return total + weight * part, None

    return jax.lax.scan(add, jnp.zeros_like(image), (kernel, dy, dx))[0]


def motion_blur(key: Array, image: Array, kernel: Array) -> Array:
    """`motion` within 45 degrees of the horizontal."""
    return eight_bits(motion(image, jax.random.uniform(key, minval=-45, maxval=45), kernel))


def zooms(size: int, factors: list[np.ndarray]) -> np.ndarray:
    """float32[5, Z, size, size]: a matrix for each factor; those that a severity lacks are 0."""
    out = np.zeros((len(factors), max(map(len, factors)), size, size), np.float32)
    for severity, its in enumerate(factors):
        for i, factor in enumerate(its):
            out[severity, i] = resampling.zoom(size, factor)
    return out


def zoom_blur(key: Array, image: Array, rows: Array, columns: Array, count: Array) -> Array:
    """The mean of the image and `count` enlargements of its middle."""

    def add(total: Array, matrices: tuple[Array, Array]) -> tuple[Array, None]:
        return total + along_axes(image, *matrices), None

    return jax.lax.scan(add, image, (rows, columns))[0] / (count + 1)
