"""PyramidNet for CIFAR-size images: every block is a little wider than the one before.

Han et al. 2017 (arXiv 1610.02915) with bottlenecks, and ShakeDrop (Yamada et al. 2018, 1802.02375).
Widths and rates after dividing are from the appendix of divide and co-training (2011.14660).
"""

import dataclasses
from dataclasses import dataclass
from typing import Unpack

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import (
    BatchNorm,
    Conv,
    Dtype,
    Norm,
    block_class,
    block_place,
    classify,
)
from jaxsplit.models.pooling import avg_pool_2x2
from jaxsplit.models.stochastic import ShakeDrop

EXPANSION = 4  # output channels of a bottleneck over its nominal width


@dataclass(frozen=True)
class Spec:
    """One network. Block i of n has the nominal width stem + alpha * i / n, rounded."""

    arch: str
    blocks: tuple[int, ...]  # number of bottlenecks in each stage
    alpha: float  # growth of the nominal width from the stem to the last block
    shake_drop: float = 0.5  # rate of the last block; the rate grows linearly over the blocks
    stem: int = 16  # channels of the first convolution
    splits: tuple[int, ...] = (1, 2, 4, 8, 16)  # the values of S that `divide` accepts
    image_size: int = 32

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Nominal width of every block."""
        n = sum(self.blocks)
        # Python rounds halves to the even number; so does the reference.
        return tuple(round(self.stem + self.alpha / n * i) for i in range(1, n + 1))

    @property
    def rates(self) -> tuple[float, ...]:
        """ShakeDrop's rate of every block."""
        n = sum(self.blocks)
        return tuple(self.shake_drop * i / n for i in range(1, n + 1))


SPECS: dict[str, Spec] = {
    f"pyramidnet{depth}": Spec(f"pyramidnet{depth}", ((depth - 2) // 9,) * 3, alpha)
    for depth, alpha in ((164, 270), (272, 200))
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: alpha and ShakeDrop / sqrt(S), the same stem."""
    root = num_networks**0.5
    return dataclasses.replace(spec, alpha=spec.alpha / root, shake_drop=spec.shake_drop / root)


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with the stem and the growth, and so all channels, times a factor."""
    stem = scaled(spec.stem, factor)
    return dataclasses.replace(spec, alpha=spec.alpha * factor, stem=stem)


class Block(nn.Module):
    """A bottleneck without activations at its start and end; its shortcut has no parameters."""

    width: int  # nominal
    stride: int
    rate: float
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        width, features = self.width, self.width * EXPANSION
        y = self.norm(name="bn1")(x, train)
        y = Conv(width, 1, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = Conv(width, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="bn3")(y, train))
        y = Conv(features, 1, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn4")(y, train)
        y = ShakeDrop(self.rate, name="shake_drop")(y, train, example_ids)
        if self.stride == 2:
            x = avg_pool_2x2(x)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        return x + y


class PyramidNet(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the output of every stage, in order, as `stage1` ..., and `final`, the map that is
    pooled for the classifier; float[B, h, w, c] each. Logits are at least float32.
    """

    spec: Spec
    num_classes: int
    axis_name: str | None = None  # mesh axis of synchronised BatchNorm
    dtype: Dtype | None = None
    remat: tuple[str, ...] = ()  # stages whose blocks are recomputed; see layers.block_class

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, example_ids: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        spec = self.spec

        def norm(name: str) -> BatchNorm:
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)

        x = Conv(spec.stem, dtype=self.dtype, name="stem_conv")(x)
        x = norm("stem_bn")(x, train)

        features = {}
        shapes = zip(spec.widths, spec.rates, strict=True)
        for stage, blocks in enumerate(spec.blocks, start=1):
            make = block_class(Block, stage, self.remat)
            for i in range(blocks):
                width, rate = next(shapes)
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage{stage}_block{i + 1}"
                block = make(width, stride, rate, norm, self.dtype, name=name)
                x = block(x, train, example_ids)
            features[f"stage{stage}"] = x
        features["final"] = x = nn.relu(norm("final_bn")(x, train))
        return classify(x, self.num_classes, train=train), features


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a module: (stage1_block2, conv1) -> layer1.1.conv1."""
    first, *rest = module
    names = {"head": "fc", "stem_conv": "conv1", "stem_bn": "bn1", "final_bn": "bn_final"}
    if first in names:
        return names[first]
    stage, block = block_place(first)
    return f"layer{stage}.{block - 1}.{rest[0]}"


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> PyramidNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return PyramidNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=pack,
)
