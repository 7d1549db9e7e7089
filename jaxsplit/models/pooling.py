"""Pooling layers: of maps float[B, H, W, C]."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsplit.models.layers import widen


def max_pool(x: Array, window: int, stride: int, padding: Sequence[tuple[int, int]]) -> Array:
    """float[B, H, W, C] -> float[B, H', W', C]; the maximum ignores the padding."""
    pads = ((0, 0), *padding, (0, 0))
    # A constant: with a traced initial value JAX cannot recognise and differentiate the maximum.
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(
        x, lowest, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


def ceil_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding at the end with which pooling covers all of `size` (PyTorch's `ceil_mode`)."""
    steps = -(-(size - window) // stride)
    return 0, max(0, steps * stride + window - size)


def avg_pool_2x2(x: Array) -> Array:
    """2x2 mean with stride 2; windows at an odd border average the pixels that exist (`ceil_mode`).

    float[B, H, W, C] -> float[B, ceil(H/2), ceil(W/2), C].
    """
    b, h, w, c = x.shape
    pad_h, pad_w = h % 2, w % 2
    x = jnp.pad(x, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
    y = x.reshape(b, (h + pad_h) // 2, 2, (w + pad_w) // 2, 2, c).mean((2, 4))
    # Windows over the border were divided by 4 instead of by their number of pixels.
    if pad_h:
        y = y.at[:, -1].multiply(2.0)
    if pad_w:
        y = y.at[:, :, -1].multiply(2.0)
    return y


def avg_pool_3x3(x: Array, stride: int) -> Array:
    """3x3 mean in which the zero padding counts: float[B, H, W, C] -> [B, ceil(H/stride), ...]."""
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    y = widen(x)
    y = lax.reduce_window(y, np.array(0, y.dtype), lax.add, window, strides, pads) / 9
    return y.astype(x.dtype)
