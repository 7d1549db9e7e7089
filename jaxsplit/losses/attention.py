"""Losses over feature maps that FFSD is made of (Li et al. 2021, arXiv 2103.14473).

Maps are float[B, h, w, C], attention maps float[B, h, w]. All is computed in at least float32, and
values and gradients stay finite for any finite maps, also where a whole map is zero. Losses are
means over all elements; what has a gradient is the first argument.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.models.layers import widen

_EPS = 1e-12  # smallest norm that is divided by


def attention(x: Array) -> Array:
    """Mean of squares over channels: float[B, h, w, C] -> float[B, h, w] (arXiv 1612.03928)."""
    return jnp.square(widen(x)).mean(-1)


def attention_loss(x: Array, y: Array) -> Array:
    """Mean squared difference of two maps, each divided by the L2 norm of its example.

    Args:
      x, y: float[B, h, w] or float[B, h, w, C]. Attention maps of different sizes are compared at
        the smaller height and width.

    Returns:
      float[].
    """
    x, y = widen(x), widen(y)
    if x.shape != y.shape:
        size = tuple(min(pair) for pair in zip(x.shape, y.shape, strict=True))
        x, y = (jax.image.resize(z, size, "linear") if z.shape != size else z for z in (x, y))
    return jnp.square(_normalized(x)[0] - _normalized(y)[0]).mean()


def diversity_loss(x: Array, y: Array) -> Array:
    """Draws the attention `x` to where `y` does not look.

    Mean squared difference of x / |x| and `shifted(y)`, whose gradient is stopped.

    Args:
      x, y: attention maps float[B, h, w].

    Returns:
      float[].
    """
    target, _, _ = shifted(widen(y))
    return jnp.square(_normalized(widen(x))[0] - jax.lax.stop_gradient(target)).mean()


def shifted(y: Array) -> tuple[Array, Array, Array]:
    """The attention shift: what of a map is high becomes low.

    With u = y / |y| and t the k-th smallest of its n values, k = n // 3: |y| - u above t, u below
    it, |y| / 2 where they are equal.

    Args:
      y: attention maps float[B, h, w].

    Returns:
      (the shifted map, u, |y| float[B, 1, 1]).
    """
    unit, norm = _normalized(y)
    n = y.shape[1] * y.shape[2]
    ordered = jnp.sort(unit.reshape(-1, n), -1)
    threshold = ordered[:, max(n // 3, 1) - 1].reshape(-1, 1, 1)
    return (norm / 2 - unit) * jnp.sign(unit - threshold) + norm / 2, unit, norm


def diversity_target(y: Array) -> Array:
    """A map whose attention is shifted: float[B, h, w, C] -> float[B, h, w, C].

    y + (shifted(A) - A / |A|) * |A| / C for every channel, with A = `attention(y)`.
    """
    target, unit, norm = shifted(attention(y))
    return widen(y) + ((target - unit) * norm / y.shape[-1])[..., None]


def _normalized(x: Array) -> tuple[Array, Array]:
    """(x / |x| of each example, |x|); 0 and with no gradient where the norm is 0."""
    axes = tuple(range(1, x.ndim))
    square = jnp.square(x).sum(axes, keepdims=True)
    some = square > 0
    norm = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)
    return x / jnp.maximum(norm, _EPS), norm
