"""Layers that draw random numbers in training: dropout and relatives, shake-shake, shake-drop.

All layers draw from the stream `dropout`; the stack gives each network its own key. The key of an
example's draw contains its index in the global batch (`example_ids` int[B]; None: 0, 1, ...), so
that the draw does not depend on how devices divide the batch. Separate functions do the arithmetic
for given draws.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax


def per_example(
    key: Array, example_ids: Array | None, x: Array, draw: Callable[[Array], Array]
) -> Array:
    """Calls `draw(key)` for every example of `x`, float[B, ...], with a key by its id: [B, ...]."""
    ids = jnp.arange(x.shape[0]) if example_ids is None else example_ids
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    return jax.vmap(draw)(keys)


class Dropout(nn.Module):
    """Drops parts of float[B, ..., C] with probability `rate`; scales the rest by 1 / (1 - rate).

    `unit` says what is dropped or kept as a whole: an `element` (Srivastava et al. 2014), a
    `channel` of an example (Tompson et al. 2015, "dropout2d"), or an `example` (see `DropPath`).
    """

    rate: float
    unit: Literal["element", "channel", "example"] = "element"

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        if not train or self.rate == 0.0:
            return x
        ones = (1,) * (x.ndim - 2)
        shape = {
            "element": x.shape[1:],
            "channel": (*ones, x.shape[-1]),
            "example": (*ones, 1),
        }[self.unit]
        keep = per_example(
            self.make_rng("dropout"),
            example_ids,
            x,
            lambda key: jax.random.bernoulli(key, 1.0 - self.rate, shape),
        )
        return keep_scaled(x, keep, self.rate)


# Drops the whole residual branch of an example: stochastic depth (Huang et al. 2016), which
# EfficientNet code calls "drop connect".
DropPath = functools.partial(Dropout, unit="example")


def keep_scaled(x: Array, keep: Array, rate: float) -> Array:
    """x / (1 - rate) where `keep` is true, else 0; `keep` is a bool array that broadcasts to x."""
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class DropBlock(nn.Module):
    """Drops squares of every channel (Ghiasi et al. 2018, arXiv 1810.12890), then rescales.

    float[B, H, W, C] -> the same shape. Seeds may lie at the border, which cuts their squares off.
    The paper's probability of a seed assumes that they do not, so on small maps more than `rate` is
    dropped. The kept values are divided by their share of the batch. `axis_name`: mesh axis that
    divides the batch; None: each device uses the share of its own part.
    """

    rate: float
    block_size: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        if not train or self.rate == 0.0:
            return x
        gamma = drop_block_gamma(self.rate, self.block_size, (x.shape[1], x.shape[2]))
        seeds = per_example(
            self.make_rng("dropout"),
            example_ids,
            x,
            lambda key: jax.random.bernoulli(key, gamma, x.shape[1:]),
        )
        return drop_block(x, seeds, self.block_size, self.axis_name)


def drop_block_gamma(rate: float, block_size: int, size: tuple[int, int]) -> float:
    """Probability of a seed in maps of `size` (H, W): Eq. (1) of the DropBlock paper."""
    h, w = size
    block = min(block_size, h, w)
    return rate * h * w / block**2 / ((h - block + 1) * (w - block + 1))


def drop_block(x: Array, seeds: Array, block_size: int, axis_name: str | None = None) -> Array:
    """Sets the squares around `seeds` (bool[B, H, W, C]) in x to zero and rescales the rest.

    A square of even size reaches one pixel further down and right than up and left.
    """
    block = min(block_size, *x.shape[1:3])
    before, after = block // 2, (block - 1) // 2  # swapped: a pixel looks back at its seed
    pads = ((0, 0), (before, after), (before, after), (0, 0))
    dropped = lax.reduce_window(
        seeds.astype(x.dtype), np.array(0, x.dtype), lax.max, (1, block, block, 1), (1,) * 4, pads
    )
    keep = 1.0 - dropped
    share = keep.astype(jnp.promote_types(jnp.float32, x.dtype)).mean()
    if axis_name is not None:
        share = lax.pmean(share, axis_name)
    return x * keep / jnp.maximum(share, 1e-7).astype(x.dtype)


class ShakeShake(nn.Module):
    """Two branches mixed at random (Gastaldi 2017, arXiv 1705.07485): "shake-shake-image".

    Two arrays float[B, ...] -> float[B, ...]. For each example the forward pass mixes with a random
    alpha and the backward pass with another random number beta, both uniform in [0, 1]. Evaluation
    mixes with 1/2.
    """

    @nn.compact
    def __call__(self, x1: Array, x2: Array, train: bool, example_ids: Array | None) -> Array:
        if not train:
            return 0.5 * (x1 + x2)
        alpha, beta = uniform_pair(self.make_rng("dropout"), example_ids, x1, 0.0)
        return shake_shake(x1, x2, alpha, beta)


def shake_shake(x1: Array, x2: Array, alpha: Array, beta: Array) -> Array:
    """alpha x1 + (1 - alpha) x2 with the gradient of beta x1 + (1 - beta) x2."""
    return _shaken(x1, alpha, beta) + _shaken(x2, 1.0 - alpha, 1.0 - beta)


class ShakeDrop(nn.Module):
    """Shakes a residual branch (Yamada et al. 2018, arXiv 1802.02375): float[B, ...] -> same.

    With probability 1 - `rate` the branch passes unchanged. Otherwise each example is multiplied by
    a random alpha, uniform in [-1, 1], in the forward pass, and its gradient by a random beta,
    uniform in [0, 1]. One draw decides for the whole batch. Evaluation multiplies the branch by the
    mean factor, 1 - rate.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        if self.rate == 0.0:
            return x
        if not train:
            return x * (1.0 - self.rate)
        gate_key, key = jax.random.split(self.make_rng("dropout"))
        gate = jax.random.bernoulli(gate_key, 1.0 - self.rate)
        alpha, beta = uniform_pair(key, example_ids, x, -1.0)
        return shake_drop(x, gate, alpha, beta)


def shake_drop(x: Array, gate: Array, alpha: Array, beta: Array) -> Array:
    """x if `gate` (bool[]) is true, else alpha x with the gradient of beta x."""
    forward = jnp.where(gate, jnp.ones_like(alpha), alpha)
    backward = jnp.where(gate, jnp.ones_like(beta), beta)
    return _shaken(x, forward, backward)


def _shaken(x: Array, forward: Array, backward: Array) -> Array:
    """x * forward with the gradient of x * backward."""
    constant = lax.stop_gradient(x)
    # The difference is zero, so the value is exact even in bfloat16.
    return constant * forward + (x - constant) * backward


def uniform_pair(
    key: Array, example_ids: Array | None, x: Array, low: float
) -> tuple[Array, Array]:
    """alpha, uniform in [low, 1], and beta, uniform in [0, 1]: [B, 1, ...] in the dtype of x."""
    pair = per_example(key, example_ids, x, lambda k: jax.random.uniform(k, (2,)))
    pair = pair.astype(x.dtype)
    wide = (-1, *(1,) * (x.ndim - 1))
    return (low + (1.0 - low) * pair[:, 0]).reshape(wide), pair[:, 1].reshape(wide)
