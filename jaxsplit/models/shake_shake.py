"""Shake-Shake networks for CIFAR-size images: two residual branches, mixed at random in training.

Gastaldi 2017 (arXiv 1705.07485), "S-S-I": every example has its own coefficients, and the backward
pass draws others. Widths after dividing are from the appendix of divide and co-training
(2011.14660).
"""

import dataclasses
from dataclasses import dataclass
from typing import Unpack

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import BatchNorm, Conv, Dtype, Norm, block_class, block_place, classify
from jaxsplit.models.stochastic import ShakeShake


@dataclass(frozen=True)
class Spec:
    """One network. `width` is the width of stage 1; it doubles at every later stage."""

    arch: str
    width: int
    splits: tuple[int, ...]  # the values of S that `divide` accepts
    blocks: tuple[int, ...] = (4, 4, 4)  # number of residual blocks in each stage
    stem: int = 16  # channels of the first convolution
    image_size: int = 32

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.blocks)


SPECS: dict[str, Spec] = {
    f"shake_resnet26_2x{width}d": Spec(f"shake_resnet26_2x{width}d", width, splits)
    for width, splits in (
        # With a width below 16, S networks would not cost about as much as the undivided one.
        (32, (1, 2, 4)),
        (64, (1, 2, 4, 8, 16)),
        (96, (1, 2, 4, 8, 16)),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`; the first convolution does not change.

    The new width is the multiple of 8 nearest to width / sqrt(S). For width 96 this gives the
    published 64, 48, 32 and 24 for S = 2, 4, 8 and 16. Nothing is published for other widths.
    """
    return dataclasses.replace(spec, width=8 * round(spec.width / 8 / num_networks**0.5))


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with all channels times a factor."""
    width = scaled(spec.width, factor)
    return dataclasses.replace(spec, width=width, stem=scaled(spec.stem, factor))


class Branch(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, 3x3 convolution, BatchNorm."""

    features: int
    stride: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, train))
        x = Conv(self.features, 3, dtype=self.dtype, name="conv2")(x)
        return self.norm(name="bn2")(x, train)


class Shortcut(nn.Module):
    """The shortcut of a block that changes shapes.

    Two samples of the map give half of the channels each. The second sample is shifted by one pixel
    down and right, even with stride 1.
    """

    features: int
    stride: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shifted = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        halves = [
            Conv(self.features // 2, 1, self.stride, dtype=self.dtype, name=name)(y)
            for name, y in (("conv1", x), ("conv2", shifted))
        ]
        return self.norm(name="bn")(jnp.concatenate(halves, axis=-1), train)


class Block(nn.Module):
    """A residual block that starts with the activation and has two branches."""

    features: int
    stride: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        args = (self.features, self.stride, self.norm, self.dtype)
        active = nn.relu(x)
        y1, y2 = (Branch(*args, name=f"branch{i}")(active, train) for i in (1, 2))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Shortcut(*args, name="shortcut")(active, train)
        return x + ShakeShake(name="shake")(y1, y2, train, example_ids)


class ShakeResNet(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the output of every stage, in order, as `stage1` ..., before the next activation,
    and `final`, the map that is pooled for the classifier; float[B, h, w, c] each. Logits are at
    least float32.
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

        x = Conv(spec.stem, use_bias=True, dtype=self.dtype, name="stem_conv")(x)
        x = norm("stem_bn")(x, train)  # no activation: the blocks begin with one

        features = {}
        for stage, blocks in enumerate(spec.blocks, start=1):
            make = block_class(Block, stage, self.remat)
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                width = spec.width * 2 ** (stage - 1)
                name = f"stage{stage}_block{i + 1}"
                x = make(width, stride, norm, self.dtype, name=name)(x, train, example_ids)
            features[f"stage{stage}"] = x
        features["final"] = x = nn.relu(x)
        return classify(x, self.num_classes, train=train), features


_IN_BRANCH = {"conv1": 1, "bn1": 2, "conv2": 4, "bn2": 5}  # in a Sequential of relu, conv, bn ...


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The reference's PyTorch name: (stage1_block2, branch1, conv1) -> stage_1.1.branch1.1."""
    first, *rest = module
    if first in ("head", "stem_conv", "stem_bn"):
        return {"head": "fc_out", "stem_conv": "conv_1", "stem_bn": "bn_1"}[first]
    stage, block = block_place(first)
    part, layer = rest
    index = layer if part == "shortcut" else _IN_BRANCH[layer]
    return f"stage_{stage}.{block - 1}.{part}.{index}"


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> ShakeResNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return ShakeResNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    # A block that keeps its shape adds its input unchanged; the reference builds a shortcut for it
    # too but never runs it.
    torch_dead=(r"stage_[123]\.[123]\.shortcut\..*",),
    torch_name=torch_name,
    pack=pack,
)
