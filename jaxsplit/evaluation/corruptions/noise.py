"""Noise of every pixel and channel by itself. Images are float32[H, W, C] in 0..1."""

import jax
import jax.numpy as jnp
from jax import Array


def gaussian(key: Array, image: Array, scale: Array) -> Array:
    """Adds normal noise of standard deviation `scale`."""
    return image + scale * jax.random.normal(key, image.shape)


def shot(key: Array, image: Array, photons: Array) -> Array:
    """Counts of photons, Poisson with a mean of `photons` at full brightness."""
    return jax.random.poisson(key, image * photons, image.shape) / photons


def impulse(key: Array, image: Array, share: Array) -> Array:
    """A share of the values becomes 0 or 1, either as likely."""
    hit, salt = jax.random.split(key)
    hit = jax.random.uniform(hit, image.shape) < share
    salt = jax.random.bernoulli(salt, shape=image.shape)
    return jnp.where(hit, salt.astype(image.dtype), image)
