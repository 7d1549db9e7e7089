"""Layers shared by all backbones.

Every module takes `dtype`, the dtype of its computation (None: the dtype of its input). Parameters
and statistics keep the dtype that they were initialised in. Sums over a map or a batch use at least
float32, also in the backward pass, where the gradient of a broadcast array is such a sum: XLA's CPU
backend adds bfloat16 numbers in bfloat16, so that a sum of ones stops at a few hundred.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike

from jaxsplit import compiler
from jaxsplit.conv import Padding, conv
from jaxsplit.models import subgroups
from jaxsplit.models.stochastic import Dropout
from jaxsplit.sharding import same_axes

Dtype = DTypeLike
NETWORK = "network"  # name of the axis of a `vmap` over the networks of a stack
AnyModule = TypeVar("AnyModule", bound=nn.Module)
# He et al. 2015 with fan-out, as in both reference systems.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def parameter(
    module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]
) -> Array:
    """As `module.param(name, init, shape)`, which traces `init` again in every `apply`.

    Flax does that to learn the shape that a given parameter should have; here it is known. In deep
    networks it is a tenth of the time that tracing takes.

    Raises:
      ScopeParamShapeError: the variables that are applied hold the parameter in another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value = module.get_variable("params", name)
    if value.shape != shape:
        path = module.scope.path_text if module.scope else ""
        raise flax.errors.ScopeParamShapeError(name, path, value.shape, shape)
    return value


def widen(x: Array) -> Array:
    """`x` as a float of at least 32 bits."""
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


class Conv(nn.Module):
    """2-D convolution: float[B, H, W, C] -> float[B, H', W', features].

    `padding` None means (k - 1) // 2 on every side, as is usual in PyTorch code.
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
        cut = subgroups.current().of(self.name, x.shape[-1], self.features, self.groups)
        groups = self.groups * cut
        shape = (k, k, x.shape[-1] // groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        padding = ((k - 1) // 2,) * 2
        y = conv(
            x.astype(self.dtype or x.dtype),
            kernel.astype(self.dtype or kernel.dtype),
            strides=(self.stride, self.stride),
            padding=(padding, padding) if self.padding is None else self.padding,
            groups=groups,
        )
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
            y = (widen(y) + spread(bias, y)).astype(y.dtype)
        return y


class ConvTranspose(nn.Module):
    """3x3 transposed convolution of stride 2 that doubles a map.

    float[B, H, W, C] -> float[B, 2H, 2W, features]: the transpose of a 3x3 convolution of stride 2
    and padding 1, which PyTorch calls `padding=1, output_padding=1`. `kernel`, float[3, 3,
    features, C], is the kernel of that convolution, not flipped: PyTorch's kernel [C, features, 3,
    3] with its axes reversed, as for every other convolution.
    """

    features: int
    dtype: Dtype | None = None
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        kernel = parameter(self, "kernel", self.kernel_init, (3, 3, self.features, c))
        x = x.astype(self.dtype or x.dtype)
        kernel = kernel.astype(self.dtype or kernel.dtype).swapaxes(2, 3)
        # Four small convolutions (Shi et al. 2016, arXiv 1609.07009): an even row of the output
        # reads one row of the input through the kernel's middle row; an odd one reads two rows
        # through its last and first. One convolution of an input padded with zeros between the
        # rows would multiply by these zeros: 5 to 10 times slower in the backward pass on CPU.
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

    Like PyTorch, it normalises by the biased variance and keeps a running mean of the *unbiased*
    variance (Flax's own layer keeps the biased one). Statistics are computed in at least float32.
    `axis_name`: axes, of the mesh or of `vmap`, to take the statistics over; None: each device has
    its own.
    """

    axis_name: str | tuple[str, ...] | None = None
    momentum: float = 0.9  # of the running average; PyTorch's momentum is 1 - this
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        features = x.shape[-1:]
        scale = parameter(self, "scale", self.scale_init, features)
        bias = parameter(self, "bias", nn.initializers.zeros, features)
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
            for axis in _axes(self.axis_name):
                n *= lax.axis_size(axis)
            m = self.momentum
            unbiased = var * (n / max(n - 1, 1))
            mean_var.value = m * mean_var.value + (1 - m) * mean
            var_var.value = m * var_var.value + (1 - m) * unbiased
        return y


class Norm(Protocol):
    """Makes a BatchNorm layer with the given name."""

    def __call__(self, *, name: str) -> BatchNorm: ...


def per_channel(v: Array, x: Array) -> Array:
    """Gives float[C] as many axes as `x`, because the tests forbid implicit rank promotion."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def spread(v: Array, x: Array) -> Array:
    """float[C] as `per_channel` gives it, for a parameter; on CPU `_sum` sums its gradient."""
    if compiler.platform() != "cpu":
        return per_channel(v, x)
    return _spread(x.shape, same_axes(v, x)[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(shape: tuple[int, ...], v: Array) -> Array:
    return jnp.broadcast_to(v, shape)


_spread.defvjp(lambda shape, v: (_spread(shape, v), None), lambda shape, _, g: (_sum(g),))


def _affine(x: Array, mean: Array, factor: Array, bias: Array, dtype: Dtype) -> Array:
    return ((x - per_channel(mean, x)) * per_channel(factor, x) + per_channel(bias, x)).astype(
        dtype
    )


def _axes(axis_name: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else axis_name or ()


def _mean_over(axes: tuple[str, ...], x: Array) -> Array:
    for axis in axes:
        x = _mean_over_networks(x) if axis == NETWORK else lax.pmean(x, axis)
    return x


@custom_vmap
def _mean_over_networks(x: Array) -> Array:
    """`lax.pmean` over the axis `NETWORK`, which inside `shard_map` takes the mesh's axes only."""
    return x


@_mean_over_networks.def_vmap
def _(size: int, batched: Sequence[bool], x: Array) -> tuple[Array, bool]:
    return (x.mean(0) if batched[0] else x), False


def _sum(x: Array) -> Array:
    """float[..., C] -> float[C]."""
    if compiler.platform() == "cpu":
        # One axis at a time: XLA's sum over all axes at once reads memory in strides, which is 10
        # times slower, and adds one number after another, which is less exact.
        while x.ndim > 2:
            x = lax.optimization_barrier(x.sum(-2))
    return x.sum(tuple(range(x.ndim - 1)))


def _statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance, float[C] each, of float[..., C]."""
    n = x.size // x.shape[-1]
    if compiler.platform() == "cpu":
        mean = _sum(x) / n
        return mean, _sum(jnp.square(x - per_channel(mean, x))) / n
    # An accelerator is bound by reading `x`: both sums read it once. They are sums of deviations
    # from the mean of the first example, because E[x^2] - E[x]^2 would lose digits.
    near = _sum(x[:1]) / (n // x.shape[0])
    deviation = x - per_channel(near, x)
    shift, square = _sum(deviation) / n, _sum(jnp.square(deviation)) / n
    return near + shift, jnp.maximum(square - jnp.square(shift), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon: float, axis_name, dtype: Dtype):
    """(`x` normalised, float[..., C] of `dtype`; mean float[C]; biased variance float[C]).

    The gradient is written by hand (Ioffe & Szegedy 2015, section 3) with two sums and one pass;
    JAX's automatic gradient makes four sums, one after another. The statistics have no gradient.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name, dtype)[0]


def _batch_norm_forward(x, scale, bias, epsilon, axis_name, dtype):
    wide = widen(x)
    mean, var = _statistics(wide)
    if axes := _axes(axis_name):
        # Uses deviations from the common mean, because E[x^2] - E[x]^2 would lose digits.
        own, mean = mean, _mean_over(axes, mean)
        var = _mean_over(axes, var + jnp.square(own - mean))
    root = lax.rsqrt(var + epsilon)
    y = _affine(wide, mean, scale * root, bias, dtype)
    return (y, mean, var), (x, scale, mean, root)


def _batch_norm_backward(epsilon, axis_name, dtype, saved, cotangents):
    x, scale, mean, root = saved
    g = widen(cotangents[0])
    deviation = widen(x) - per_channel(mean, x)
    d_bias, by_deviation = _sum(g), _sum(g * deviation)
    n = x.size // x.shape[-1]
    means = d_bias / n, by_deviation / n
    means = jax.tree.map(functools.partial(_mean_over, _axes(axis_name)), means)
    slope = per_channel(means[1] * jnp.square(root), x)
    dx = (g - per_channel(means[0], x) - deviation * slope) * per_channel(scale * root, x)
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

    A 3x3 convolution makes `radix` splits of `features` channels each. The output is their weighted
    sum. Two 1x1 convolutions in `groups` ("cardinality") compute the weights from the mean over the
    map; for each channel a softmax over the splits makes them sum to one.
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
        # Each group of `fc2` computes the weights of all splits for its channels.
        weights = nn.softmax(widen(y).reshape(*y.shape[:3], g, r, c // g), axis=4)
        weights = weights.swapaxes(3, 4).reshape(*y.shape[:3], r, c)
        return (widen(splits) * weights).sum(3).astype(splits.dtype)


def find_block(name: str) -> tuple[int, int] | None:
    """(stage, block in it), both counted from 1, of a name `stage<i>_block<j>`; else None."""
    match = re.fullmatch(r"stage(\d+)_block(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def block_place(name: str) -> tuple[int, int]:
    """(stage, block in it), both counted from 1, of a name `stage<i>_block<j>`.

    Raises:
      ValueError: the name has another form.
    """
    if (place := find_block(name)) is None:
        raise ValueError(f"{name!r}: must have the form stage<i>_block<j>")
    return place


def block_class(block: type[AnyModule], stage: int, remat: Sequence[str]) -> type[AnyModule]:
    """`block`, or, if `remat` names its stage, a class like it that recomputes.

    Such a block keeps only its input and computes everything else again in the backward pass (Chen
    et al. 2016, arXiv 1604.06174). Parameters, statistics and random draws do not change. `block`
    must be called as (x, train, ...).
    """
    if f"stage{stage}" not in remat:
        return block
    return nn.remat(block, static_argnums=(2,))  # `train`; argument 0 is the module itself


def classify(
    x: Array,
    num_classes: int,
    *,
    train: bool,
    example_ids: Array | None = None,
    dropout: float = 0.0,
) -> Array:
    """The end of a backbone: mean over the map, dropout, dense layer `head`.

    float[B, H, W, C] -> logits float[B, K] in at least float32; in bfloat16 the logits of a
    thousand classes would have few distinct values. Call it in a compact method: its layers belong
    to the calling module.
    """
    x = widen(x).mean((1, 2))
    x = Dropout(dropout, name="dropout")(x, train, example_ids)
    init = nn.initializers.normal(1e-3)
    return nn.Dense(num_classes, dtype=x.dtype, kernel_init=init, name="head")(x)
