"""Layers of Transformers and of ConvNeXt: dense layers, LayerNorm, patches, attention, MLP.

Under `vmap` over the networks of a stack, every product of matrices here is one batched product.
As in `layers`, `dtype` is that of the computation (None: of the input), and sums over channels, a
map or a batch use at least float32, the sums of the backward pass included.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxsplit import compiler
from jaxsplit.models import subgroups
from jaxsplit.models.layers import Dtype, parameter, spread, widen

# As ViT starts (arXiv 2010.11929), whatever its width. DeiT's constant deviation of 0.02 would
# leave narrow networks, such as divided ones, with nearly no signal.
xavier_uniform = nn.initializers.xavier_uniform()
lecun_normal = nn.initializers.lecun_normal()
# As ConvNeXt starts: normal with deviation 0.02, cut at two deviations.
truncated_normal = nn.initializers.truncated_normal(0.02)


def _product(x: Array, kernel: Array, bias: Array, groups: int, dtype: Dtype) -> Array:
    """x W + b in `groups` groups of channels.

    float[..., C], float[C / groups, F], float[F] -> float[..., F] of `dtype`.
    """
    x, kernel = compiler.kept(x.astype(dtype)), kernel.astype(dtype)
    if groups == 1:
        y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    else:
        x = x.reshape(*x.shape[:-1], groups, -1)
        y = jnp.einsum("...gc,cgf->...gf", x, kernel.reshape(len(kernel), groups, -1))
        y = y.reshape(*y.shape[:-2], -1)
    y = compiler.kept(y)
    return (widen(y) + spread(bias, y)).astype(dtype)


class Dense(nn.Module):
    """x W + b over the last axis: float[..., C] -> float[..., features].

    In a Packed-Ensemble W has subgroups, as a convolution has; see `subgroups`.
    """

    features: int
    dtype: Dtype | None = None
    kernel_init: Callable = xavier_uniform

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        groups = subgroups.current().of(self.name, c, self.features, 1)
        kernel = parameter(self, "kernel", self.kernel_init, (c // groups, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return _product(x, kernel, bias, groups, self.dtype or x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) over the last axis."""

    epsilon: float = 1e-6
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:])
        bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:])
        wide = widen(x)
        deviation = wide - wide.mean(-1, keepdims=True)
        root = lax.rsqrt(jnp.square(deviation).mean(-1, keepdims=True) + self.epsilon)
        y = deviation * root * spread(scale, x) + spread(bias, x)
        return y.astype(self.dtype or x.dtype)


class Patches(nn.Module):
    """A convolution with stride = kernel size, as one product of patches and kernel.

    float[B, H, W, C] -> float[B, H // size, W // size, features]. Rows and columns beyond the last
    whole patch are left out. `kernel`, float[size, size, C, features], is that of the convolution.
    """

    features: int
    size: int
    dtype: Dtype | None = None
    kernel_init: Callable = lecun_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p, (b, height, width, c) = self.size, x.shape
        groups = subgroups.current().of(self.name, c, self.features, 1)
        shape = (p, p, c // groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        h, w = height // p, width // p
        # Channels of a group lie together: [..., groups, p, p, C / groups].
        x = x[:, : h * p, : w * p].reshape(b, h, p, w, p, groups, c // groups)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(b, h, w, -1)
        return _product(x, kernel.reshape(-1, self.features), bias, groups, self.dtype or x.dtype)


class Attention(nn.Module):
    """Self-attention of `heads` heads (Vaswani et al. 2017): float[B, N, C] -> float[B, N, C].

    `qkv` computes queries, keys and values, in this order; C is a multiple of `heads`.
    """

    heads: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, n, c = x.shape
        qkv = Dense(3 * c, self.dtype, name="qkv")(x)
        if (groups := subgroups.current().of("qkv", c, 3 * c, 1)) > 1:
            # A group's queries, keys and values; as they lie, q would be of the first groups alone.
            qkv = qkv.reshape(b, n, groups, 3, c // groups).swapaxes(2, 3)
        qkv = qkv.reshape(b, n, 3, self.heads, -1)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return Dense(c, self.dtype, name="proj")(y.reshape(b, n, c))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    Its slope is written out: that of `jax.nn.gelu` cannot be traced inside `shard_map` (jax 0.12).
    """
    wide = widen(x)
    return (wide * _share_below(wide)).astype(x.dtype)


def _share_below(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * 0.5**0.5))


@gelu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide = widen(x)
    slope = _share_below(wide) + wide * jnp.exp(-0.5 * wide**2) * (2 * math.pi) ** -0.5
    return gelu(x), (slope * tangent).astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers with GELU between them, over the last axis, which keeps its size."""

    hidden: int
    dtype: Dtype | None = None
    kernel_init: Callable = xavier_uniform

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.hidden, self.dtype, self.kernel_init, name="fc1")(x)
        return Dense(x.shape[-1], self.dtype, self.kernel_init, name="fc2")(gelu(y))
