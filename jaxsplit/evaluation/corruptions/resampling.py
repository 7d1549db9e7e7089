"""Filters and changes of size as matrices [out, in], one for each axis, made once in NumPy."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


def gaussian(size: int, sigma: float, mode: str, truncate: float) -> Matrix:
    """A Gaussian filter along an axis, as of `scipy.ndimage.gaussian_filter`.

    mode: 'nearest' or 'reflect' (about the pixels' outer edge), in SciPy's words.
    """
    radius = int(truncate * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2) if radius else np.ones(1)
    weights /= weights.sum()
    at = np.arange(size)[:, None] + taps
    if mode == "nearest":
        at = at.clip(0, size - 1)
    else:
        at = at % (2 * size)
        at = np.minimum(at, 2 * size - 1 - at)
    out = np.zeros((size, size))
    np.add.at(out, (np.arange(size)[:, None], at), weights)
    return out.astype(np.float32)


def zoom(size: int, factor: float) -> Matrix:
    """The middle of an axis, enlarged by `factor` and cut to `size` again; linear.

    As `scipy.ndimage.zoom` of order 1: the outer pixels' centres stay the outer pixels' centres.
    """
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    large = max(round(kept * factor), size)
    trim = (large - size) // 2
    at = (np.arange(size) + trim) * ((kept - 1) / max(large - 1, 1))
    low = np.minimum(at.astype(int), kept - 1)
    share = at - low
    out = np.zeros((size, size))
    rows = np.arange(size)
    np.add.at(out, (rows, first + low), 1 - share)
    np.add.at(out, (rows, first + np.minimum(low + 1, kept - 1)), share)
    return out.astype(np.float32)


def box(before: int, after: int) -> Matrix:
    """Pillow's resize with BOX along an axis; float32[after, before]."""
    scale = before / after
    half = max(scale, 1.0) / 2
    out = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(int(centre - half + 0.5), 0)
        last = min(int(centre + half + 0.5), before)
        distance = (np.arange(first, last) - centre + 0.5) / (2 * half)
        inside = (distance > -0.5) & (distance <= 0.5)
        out[row, first:last] = inside / inside.sum()
    return out.astype(np.float32)
