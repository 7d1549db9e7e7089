"""Layers shared by all backbones.

Every module takes `dtype`: the type of its computation (None: that of its input). Parameters and
statistics stay in the type they were made in. Sums over a map or a batch are in at least float32,
also those of the backward pass: where an array is broadcast its gradient is such a sum, and XLA's
CPU backend adds bfloat16 numbers in bfloat16, which stops at a few hundred.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsplit import compiler
from jaxsplit.conv import Padding, conv
from jaxsplit.models.stochastic import Dropout
from jaxsplit.sharding import same_axes

Dtype = DTypeLike
AnyModule = TypeVar("AnyModule", bound=nn.Module)
# He et al. 2015, fan-out, as both reference systems.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def widen(x: Array) -> Array:
    """`x` as a float of at least 32 bits."""
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


class Conv(nn.Module):
    """2-D convolution: float[B, H, W, C] -> float[B, H', W', features].

    `padding` None is (k - 1) // 2 on every side, the usual one of PyTorch code.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    padding: Padding | None = None
    use_bias: bool = False
    dtype: Dtype | None = None
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k = self.kernel_size
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        padding = ((k - 1) // 2,) * 2
        y = conv(
            x.astype(self.dtype or x.dtype),
            kernel.astype(self.dtype or kernel.dtype),
            strides=(self.stride, self.stride),
            padding=(padding, padding) if self.padding is None else self.padding,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = (widen(y) + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(y.dtype)
        return y


class ConvTranspose(nn.Module):
    """3x3 transposed convolution of stride 2 that doubles a map.

    float[B, H, W, C] -> float[B, 2H, 2W, features]: the transpose of a 3x3 convolution of stride 2
    and padding 1, in PyTorch's words `padding=1, output_padding=1`. `kernel`, float[3, 3, features,
    C], is that convolution's, not flipped: PyTorch's [C, features, 3, 3] with its axes reversed as
    those of every other kernel.
    """

    features: int
    dtype: Dtype | None = None
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 3, self.features, c))
        x = x.astype(self.dtype or x.dtype)
        kernel = kernel.astype(self.dtype or kernel.dtype).swapaxes(2, 3)
        # Four small convolutions (Shi et al. 2016, arXiv 1609.07009): an even row of the output
        # sees one row of the input by the kernel's middle, an odd one two by its last and first.
        # A convolution of the input with zeros between would multiply by those: 5 to 10 times
        # slower backwards on CPU.
        taps = (slice(1, 2), slice(2, None, -2))
        pads = ((0, 0), (0, 1))
        rows = [
            [conv(x, kernel[taps[i], taps[j]], padding=(pads[i], pads[j])) for j in (0, 1)]
            for i in (0, 1)
        ]
        y = jnp.stack([jnp.stack(row, 3) for row in rows], 2)  # [B, H, 2, W, 2, features]
        return y.reshape(b, 2 * h, 2 * w, self.features)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over all axes but the last.

    Normalises by the biased variance, keeps the running mean of the *unbiased* one, as PyTorch does
    (Flax's own layer keeps the biased one). Statistics are computed in at least float32.
    `axis_name`: mesh axis to synchronise over; None: each device its own statistics.
    """

    axis_name: str | None = None
    momentum: float = 0.9  # of the running average: 1 - PyTorch's
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        features = x.shape[-1:]
        scale = self.param("scale", self.scale_init, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, features)
        var_var = self.variable("batch_stats", "var", jnp.ones, features)
        dtype = self.dtype or x.dtype
        if not train:
            mean, var = mean_var.value, var_var.value
            return _affine(widen(x), mean, scale * lax.rsqrt(var + self.epsilon), bias, dtype)
        operands = same_axes(x, scale, bias)
        y, mean, var = _batch_norm(*operands, self.epsilon, self.axis_name, jnp.dtype(dtype))
        mean, var = lax.stop_gradient((mean, var))
        if not self.is_initializing():
            n = x.size // x.shape[-1]
            if self.axis_name is not None:
                n *= lax.axis_size(self.axis_name)
            m = self.momentum
            unbiased = var * (n / max(n - 1, 1))
            mean_var.value = m * mean_var.value + (1 - m) * mean
            var_var.value = m * var_var.value + (1 - m) * unbiased
        return y


class Norm(Protocol):
    """Makes the BatchNorm of a layer of that name."""

    def __call__(self, *, name: str) -> BatchNorm: ...


def _wide(v: Array, x: Array) -> Array:
    """float[C] as an array of as many axes as `x` has: rank promotion is an error in our tests."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def _affine(x: Array, mean: Array, factor: Array, bias: Array, dtype: Dtype) -> Array:
    return ((x - _wide(mean, x)) * _wide(factor, x) + _wide(bias, x)).astype(dtype)


def _sum(x: Array) -> Array:
    """float[..., C] -> float[C]."""
    if compiler.platform() == "cpu":
        # Axis by axis: XLA's own sum over all at once reads memory in strides, 10 times slower, and
        # adds one number after the other, less exactly.
        while x.ndim > 2:
            x = lax.optimization_barrier(x.sum(-2))
    return x.sum(tuple(range(x.ndim - 1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon: float, axis_name: str | None, dtype: Dtype):
    """Normalised by the batch: (float[..., C] of `dtype`, mean float[C], biased variance float[C]).

    Its gradient is written out (Ioffe & Szegedy 2015, section 3), as two sums and one pass; jax's
    own would make four sums, one after another. The statistics have none.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name, dtype)[0]


def _batch_norm_forward(x, scale, bias, epsilon, axis_name, dtype):
    wide = widen(x)
    n = x.size // x.shape[-1]
    mean = _sum(wide) / n
    var = _sum(jnp.square(wide - _wide(mean, x))) / n
    if axis_name is not None:
        # Deviations from the common mean: E[x^2] - E[x]^2 would cancel.
        own, mean = mean, lax.pmean(mean, axis_name)
        var = lax.pmean(var + jnp.square(own - mean), axis_name)
    root = lax.rsqrt(var + epsilon)
    y = _affine(wide, mean, scale * root, bias, dtype)
    return (y, mean, var), (x, scale, mean, root)


def _batch_norm_backward(epsilon, axis_name, dtype, saved, cotangents):
    x, scale, mean, root = saved
    g = widen(cotangents[0])
    deviation = widen(x) - _wide(mean, x)
    d_bias, by_deviation = _sum(g), _sum(g * deviation)
    n = x.size // x.shape[-1]
    means = d_bias / n, by_deviation / n
    if axis_name is not None:
        means = lax.pmean(means, axis_name)
    slope = _wide(means[1] * jnp.square(root), x)
    dx = (g - _wide(means[0], x) - deviation * slope) * _wide(scale * root, x)
    d_scale = by_deviation * root
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018): x * sigmoid(W2 act(W1 mean_hw(x))), both with bias."""

    reduced: int
    dtype: Dtype | None = None
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x.mean((1, 2), keepdims=True)
        y = Conv(self.reduced, 1, use_bias=True, dtype=self.dtype, name="fc1")(y)
        y = self.activation(y)
        y = Conv(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name="fc2")(y)
        return (widen(x) * nn.sigmoid(widen(y))).astype(x.dtype)


class SplitAttention(nn.Module):
    """Split attention (Zhang et al. 2020, arXiv 2004.08955): float[B, H, W, C] -> [..., features].

    A 3x3 convolution makes `radix` splits of `features` channels, which are added with weights that
    sum to one: a softmax, per channel, of what two 1x1 convolutions in `groups` ("cardinality")
    make of the mean over the map.
    """

    features: int
    radix: int
    groups: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c, r, g = self.features, self.radix, self.groups
        x = Conv(r * c, 3, groups=r * g, dtype=self.dtype, name="conv")(x)
        x = nn.relu(self.norm(name="bn0")(x, train))
        splits = x.reshape(*x.shape[:3], r, c)
        y = splits.sum(3).mean((1, 2), keepdims=True)
        reduced = max(r * c // 4, 32)
        y = Conv(reduced, 1, groups=g, use_bias=True, dtype=self.dtype, name="fc1")(y)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = Conv(r * c, 1, groups=g, use_bias=True, dtype=self.dtype, name="fc2")(y)
        # A group of `fc2` makes the weights of all splits of its channels.
        weights = nn.softmax(widen(y).reshape(*y.shape[:3], g, r, c // g), axis=4)
        weights = weights.swapaxes(3, 4).reshape(*y.shape[:3], r, c)
        return (widen(splits) * weights).sum(3).astype(splits.dtype)


def find_block(name: str) -> tuple[int, int] | None:
    """(stage, number in it), both from 1, of a module `stage<i>_block<j>`; None: another name."""
    match = re.fullmatch(r"stage(\d+)_block(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def block_place(name: str) -> tuple[int, int]:
    """(stage, number in it), both from 1, of a module `stage<i>_block<j>`.

    Raises:
      ValueError: another name.
    """
    if (place := find_block(name)) is None:
        raise ValueError(f"{name!r}: must have the form stage<i>_block<j>")
    return place


def block_class(block: type[AnyModule], stage: int, remat: Sequence[str]) -> type[AnyModule]:
    """`block`, called as (x, train, ...); one that recomputes where `remat` names its stage.

    It keeps its input only and computes the rest again in the backward pass (Chen et al. 2016,
    arXiv 1604.06174). Parameters, statistics and random draws are the same.
    """
    if f"stage{stage}" not in remat:
        return block
    return nn.remat(block, static_argnums=(2,))  # `train`; number 0 is the module itself


def classify(
    x: Array,
    num_classes: int,
    *,
    train: bool,
    example_ids: Array | None = None,
    dropout: float = 0.0,
) -> Array:
    """The end of a backbone: mean over the map, dropout, dense layer `head`.

    float[B, H, W, C] -> logits [B, K] of at least float32: bfloat16 would leave a thousand classes
    few distinct ones. For use in a compact method; the layers belong to the calling module.
    """
    x = widen(x).mean((1, 2))
    x = Dropout(dropout, name="dropout")(x, train, example_ids)
    init = nn.initializers.normal(1e-3)
    return nn.Dense(num_classes, dtype=x.dtype, kernel_init=init, name="head")(x)


def max_pool(x: Array, window: int, stride: int, padding: Sequence[tuple[int, int]]) -> Array:
    """float[B, H, W, C] -> float[B, H', W', C]; padded places never win."""
    pads = ((0, 0), *padding, (0, 0))
    # A constant, not a traced value, or jax does not see a maximum that it can differentiate.
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(
        x, lowest, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


def ceil_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding at the end that makes a pooling cover all of `size` (PyTorch's `ceil_mode`)."""
    steps = -(-(size - window) // stride)
    return 0, max(0, steps * stride + window - size)


def avg_pool_2x2(x: Array) -> Array:
    """2x2 mean, stride 2; a last odd row or column is averaged over what exists (`ceil_mode`).

    float[B, H, W, C] -> float[B, ceil(H/2), ceil(W/2), C].
    """
    b, h, w, c = x.shape
    pad_h, pad_w = h % 2, w % 2
    x = jnp.pad(x, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
    y = x.reshape(b, (h + pad_h) // 2, 2, (w + pad_w) // 2, 2, c).mean((2, 4))
    # A window that hangs over the edge was divided by 4 instead of by what it holds.
    if pad_h:
        y = y.at[:, -1].multiply(2.0)
    if pad_w:
        y = y.at[:, :, -1].multiply(2.0)
    return y


def avg_pool_3x3(x: Array, stride: int) -> Array:
    """3x3 mean with a border of zeros that count: float[B, H, W, C] -> [B, ceil(H/stride), ...]."""
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    y = widen(x)
    y = lax.reduce_window(y, np.array(0, y.dtype), lax.add, window, strides, pads) / 9
    return y.astype(x.dtype)
