"""What optimizers divide gradients by: as optax, but without its lost digits and NaN."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsplit.errors import ConfigError

PyTree = Any


def by_rms(alpha: float, eps: float, centered: bool, **fields: Any) -> optax.GradientTransformation:
    """By the root of a moving average of squares; `centered`: less the square of the mean.

    fields: initial_scale and eps_in_sqrt, as of `optax.scale_by_rms`.

    Raises:
        ConfigError: a value is out of range.
    """
    in_unit("alpha", alpha)
    positive_eps(eps)
    scale = _by_stddev if centered else optax.scale_by_rms
    return scale(alpha, eps, **fields)


def _by_stddev(
    alpha: float, eps: float, *, initial_scale: float = 0.0, eps_in_sqrt: bool
) -> optax.GradientTransformation:
    """`optax.scale_by_stddev` without NaN: of a steady gradient rounding makes s - m^2 negative."""
    plain = optax.scale_by_stddev(alpha, eps, initial_scale=initial_scale, eps_in_sqrt=eps_in_sqrt)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        # An optax.ScaleByRStdDevState; the type that optax declares is wider.
        new: Any = plain.update(updates, state, params)[1]

        def scaled(g: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
            variance = jnp.maximum(s - jnp.square(m), 0)
            return g / (jnp.sqrt(variance + eps) if eps_in_sqrt else jnp.sqrt(variance) + eps)

        return jax.tree.map(scaled, updates, new.mu, new.nu), new

    return optax.GradientTransformation(plain.init, update)


def by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, but accurate to the last digits in float32.

    Optax computes 1 - beta2 ** n, which loses up to four of seven digits in the first steps.

    Raises:
        ConfigError: a value is out of range.
    """
    in_unit("beta1", beta1)
    in_unit("beta2", beta2)
    positive_eps(eps)
    plain = optax.scale_by_adam(beta1, beta2, eps)

    def correction(beta: float, n: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """1 - beta ** n, without cancellation."""
        return -jnp.expm1(n.astype(dtype) * (math.log(beta) if beta else -math.inf))

    # `state` is an optax.ScaleByAdamState; the type that optax declares for it is wider.
    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        n = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment(updates, state.nu, beta2, 2)

        def scaled(m: jax.Array, v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / correction(beta2, n, v.dtype))
            return m / correction(beta1, n, m.dtype) / (root + eps)

        return jax.tree.map(scaled, mu, nu), optax.ScaleByAdamState(n, mu, nu)

    return optax.GradientTransformation(plain.init, update)


def in_unit(field: str, value: float) -> None:
    """Raises ConfigError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"optim.{field}={value}: must be in [0, 1)")


def positive_eps(eps: float) -> None:
    """Raises ConfigError unless eps > 0."""
    if not eps > 0:
        raise ConfigError(f"optim.eps={eps}: must be above 0")
