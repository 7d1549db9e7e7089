"""Magnitudes that are drawn inside a step, as RandAugment's reference has them in double precision.

A drawn level is a multiple of 2^-16, an integer L here. What follows from it is a quotient of
integers, so that no rounding of a device nor of a compiler comes between: all values are those of
double precision, rounded once.
"""

import jax
import jax.numpy as jnp
import numpy as np

PER_LEVEL = 1 << 16
_TEN = 10 * PER_LEVEL  # the highest level
_DIVISOR = 100  # of `_factor`
_WANTED = _DIVISOR << 24


def steps(level: jax.Array) -> jax.Array:
    """int32[]: the nearest L of a level from 0 to 10."""
    return jnp.round(level * PER_LEVEL).astype(jnp.int32)


def times(n: int, steps: jax.Array) -> jax.Array:
    """int32[]: floor(n * level / 10), n below 3276."""
    return n * steps // _TEN


def enhancing(steps: jax.Array, sign: jax.Array | int, increasing: bool) -> jax.Array:
    """float32[]: 1 +- 0.9 * level / 10 if `increasing`, else 1.8 * level / 10 + 0.1."""
    if increasing:
        return _factor(10 * _TEN + jnp.where(sign > 0, 9, -9) * steps)
    return _factor(18 * steps + _TEN)


def _factor(n: jax.Array) -> jax.Array:
    """float32(n / (100 * 2^16)), rounded to nearest; n from 10 * 2^16 to 190 * 2^16."""
    n = n.astype(jnp.int32)
    # Shifted so far that the quotient has the 24 bits of a float32's mantissa.
    shift = sum((n < _WANTED >> k).astype(jnp.int32) for k in range(1, 12))
    shifted = n << shift
    quotient, rest = shifted // _DIVISOR, shifted % _DIVISOR
    quotient += (2 * rest > _DIVISOR).astype(jnp.int32)  # a half does not occur
    exponent = (np.int32(127 - 16) - shift) << 23
    return quotient.astype(jnp.float32) * jax.lax.bitcast_convert_type(exponent, jnp.float32)
