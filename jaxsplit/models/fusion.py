"""FFSD's auxiliary modules (Li et al. 2021, arXiv 2103.14473).

`Fusion` classifies the students' concatenated last maps. `TransFusion` predicts these maps from the
leader's last map. `SelfDistillation` predicts a network's earlier maps from its last map. All maps
are NHWC; M networks have C channels each.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit.models.layers import BatchNorm, Conv, ConvTranspose, Dtype, classify


def _separable(module: nn.Module, x: Array, features: int, train: bool) -> Array:
    """Depthwise 3x3, then 1x1, each with BatchNorm and ReLU; the layers belong to `module`."""
    channels, axis_name, dtype = x.shape[-1], module.axis_name, module.dtype
    x = Conv(channels, 3, groups=channels, dtype=dtype, name="conv1")(x)
    x = nn.relu(BatchNorm(axis_name, dtype=dtype, name="bn1")(x, train))
    x = Conv(features, 1, dtype=dtype, name="conv2")(x)
    return nn.relu(BatchNorm(axis_name, dtype=dtype, name="bn2")(x, train))


class Fusion(nn.Module):
    """The students' concatenated maps float[B, h, w, M * C] -> (logits float[B, K], fused map).

    The fused map is float[B, h, w, features], with features = C. Logits are at least float32.
    """

    features: int
    num_classes: int
    axis_name: str | None = None  # mesh axis of synchronised BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        x = _separable(self, x, self.features, train)
        return classify(x, self.num_classes, train=train), x


class TransFusion(nn.Module):
    """The leader's map float[B, h, w, C] -> float[B, h, w, features], with features = M * C."""

    features: int
    axis_name: str | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        return _separable(self, x, self.features, train)


class SelfDistillation(nn.Module):
    """float[B, h, w, C] -> maps of the shapes of earlier stages, the coarsest first.

    `features`: channels of each map. `sizes`: (height, width) of each map; None: each map is twice
    as large as the one before it. Each map comes from the one before it by a transposed convolution
    that doubles its size, BatchNorm and ReLU. Networks with other sizes than the paper's: if two
    maps have the same size, the convolution is a plain one; a map of less than twice the size is
    cropped; a larger one repeats its pixels.
    """

    features: Sequence[int]
    sizes: Sequence[tuple[int, int]] | None = None
    axis_name: str | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        maps = []
        for i, channels in enumerate(self.features, start=1):
            have = x.shape[1:3]
            size = self.sizes[i - 1] if self.sizes else tuple(2 * n for n in have)
            larger = any(a > b for a, b in zip(size, have, strict=True))
            layer = ConvTranspose if larger else Conv
            x = layer(channels, dtype=self.dtype, name=f"layer{i}_conv")(x)
            for axis, wanted in enumerate(size, start=1):
                if wanted > x.shape[axis]:
                    x = jnp.repeat(x, -(-wanted // x.shape[axis]), axis)
                x = jax.lax.slice_in_dim(x, 0, wanted, axis=axis)
            x = BatchNorm(self.axis_name, dtype=self.dtype, name=f"layer{i}_bn")(x, train)
            x = nn.relu(x)
            maps.append(x)
        return maps


_TORCH_NAMES = {"conv1": "conv1", "bn1": "bn1", "conv2": "conv1_1", "bn2": "bn1_1", "head": "fc2"}


def torch_name(path: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a layer of these modules: (layer1_bn,) -> layer0.norm."""
    (layer,) = path
    if match := re.fullmatch(r"layer(\d+)_(conv|bn)", layer):
        kind = {"conv": "convtranpose", "bn": "norm"}[match[2]]  # the reference's spelling
        return f"layer{int(match[1]) - 1}.{kind}"
    return _TORCH_NAMES[layer]


def trans_fusion_torch_name(path: tuple[str, ...]) -> str:
    """The name in the leader's `state_dict`: (conv1,) -> trans_fusion_module.conv1."""
    return f"trans_fusion_module.{torch_name(path)}"
