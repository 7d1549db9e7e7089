"""Magnitudes drawn inside a training step, equal to RandAugment's reference in double precision.

A drawn level is a multiple of 2^-16. This module holds it as the integer L = 2^16 * level and
computes every value as a quotient of integers. So no rounding by a device or compiler interferes:
each value is the one of double precision, rounded once to float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

PER_LEVEL = 1 << 16
_TEN = 10 * PER_LEVEL  # the highest level
_DIVISOR = 100  # of `_rounded`
_WANTED = _DIVISOR << 24


def steps(level: jax.Array) -> jax.Array:
    """int32[]: L of a level from 0 to 10, rounded to the nearest."""
    return jnp.round(level * PER_LEVEL).astype(jnp.int32)


def times(n: int, steps: jax.Array) -> jax.Array:
    """int32[]: floor(n * level / 10), for n below 3276."""
    return n * steps // _TEN


def factor(steps: jax.Array) -> jax.Array:
    """float32[]: 1.8 * level / 10 + 0.1, the factor of an enhancing op; 1 changes nothing."""
    return _rounded(18 * steps + _TEN)


def increasing_factor(steps: jax.Array, sign: jax.Array | int) -> jax.Array:
    """float32[]: 1 +- 0.9 * level / 10, the factor where a higher level is always stronger."""
    return _rounded(10 * _TEN + jnp.where(sign > 0, 9, -9) * steps)


def _rounded(n: jax.Array) -> jax.Array:
    """float32(n / (100 * 2^16)), rounded to nearest; for n from 10 * 2^16 to 190 * 2^16."""
    n = n.astype(jnp.int32)
    # The shift gives the quotient the 24 bits of a float32's mantissa.
    shift = sum((n < _WANTED >> k).astype(jnp.int32) for k in range(1, 12))
    shifted = n << shift
    quotient, rest = shifted // _DIVISOR, shifted % _DIVISOR
    quotient += (2 * rest > _DIVISOR).astype(jnp.int32)  # a tie does not occur
    exponent = (np.int32(127 - 16) - shift) << 23
    return quotient.astype(jnp.float32) * jax.lax.bitcast_convert_type(exponent, jnp.float32)
