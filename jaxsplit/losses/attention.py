"""FFSD's losses over feature maps (Li et al. 2021, arXiv 2103.14473).

Maps are float[B, h, w, C], attention maps float[B, h, w]. Everything is computed in at least
float32. Values and gradients stay finite for any finite maps, even if a whole map is zero. Losses
are means over all elements. Callers give the map that learns as the first argument.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.models.layers import widen

_EPS = 1e-12  # smallest divisor


def attention(x: Array) -> Array:
    """Mean of squares over channels: float[B, h, w, C] -> float[B, h, w] (arXiv 1612.03928)."""
    return jnp.square(widen(x)).mean(-1)


def attention_loss(x: Array, y: Array) -> Array:
    """Mean squared difference of two maps, each divided by the L2 norm of its example.

    Args:
      x, y: float[B, h, w] or float[B, h, w, C]. If two attention maps differ in size, both are
        resized to the smaller height and the smaller width.

    Returns:
      float[].
    """
    x, y = widen(x), widen(y)
    if x.shape != y.shape:
        size = tuple(min(pair) for pair in zip(x.shape, y.shape, strict=True))
        x, y = (jax.image.resize(z, size, "linear") if z.shape != size else z for z in (x, y))
    return jnp.square(_normalized(x)[0] - _normalized(y)[0]).mean()


def diversity_loss(x: Array, y: Array) -> Array:
    """Draws the attention `x` to places where the attention `y` is low.

    Mean squared difference of x / |x| and `shifted(y)`. The latter is detached.

    Args:
      x, y: attention maps float[B, h, w].

    Returns:
      float[].
    """
    target, _, _ = shifted(widen(y))
    return jnp.square(_normalized(widen(x))[0] - jax.lax.stop_gradient(target)).mean()


def shifted(y: Array) -> tuple[Array, Array, Array]:
    """The attention shift: high values of a map become low.

    Let u = y / |y| and t the k-th smallest of the n values of u, with k = n // 3. The shifted map
    is |y| - u where u > t, u where u < t, and |y| / 2 where u = t.

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
    """Shifts the attention of a map: float[B, h, w, C] -> float[B, h, w, C].

    Adds (shifted(A) - A / |A|) * |A| / C to every channel of y, with A = `attention(y)`.
    """
    target, unit, norm = shifted(attention(y))
    return widen(y) + ((target - unit) * norm / y.shape[-1])[..., None]


def _normalized(x: Array) -> tuple[Array, Array]:
    """(x / |x|, |x|) of each example. Where x is zero, both are 0 and |x| has no gradient."""
    axes = tuple(range(1, x.ndim))
    square = jnp.square(x).sum(axes, keepdims=True)
    some = square > 0
    norm = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)
    return x / jnp.maximum(norm, _EPS), norm
