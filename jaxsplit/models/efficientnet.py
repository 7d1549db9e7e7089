"""EfficientNet (Tan & Le 2019, arXiv 1905.11946) for CIFAR-size and ImageNet-size images.

The blocks are MobileNetV2's inverted residuals (1801.04381) with squeeze-excite (1709.01507) and
swish, scaled in width, depth and image size at once. The channel table of divide and co-training
(2011.14660) divides them. There are three variants with the same channels. The two for ImageNet
cost the same but compute different outputs, and each has published weights:
  efficientnetb0 ...             TensorFlow's padding, which puts an odd row at the end
  efficientnetb0_lightnetpp ...  equal padding on every side; drops channels of residual branches
  efficientnetb0_cifar ...       as lightnetpp with three fewer strides, for images of 32 pixels
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Unpack

from flax import linen as nn
from jax import Array

from jaxsplit.conv import Padding
from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import (
    BatchNorm,
    Conv,
    Dtype,
    Norm,
    SqueezeExcite,
    block_class,
    classify,
    find_block,
    he_normal,
)
from jaxsplit.models.stochastic import Dropout

# Of each of the seven stages: kernel size, inner channels over input channels, blocks at depth 1.
KERNELS = (3, 3, 5, 3, 5, 5, 3)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
SE_RATIO = 0.25  # squeeze-excite's inner channels over the block's input channels

# S -> channels of stem, stages and last convolution at width 1. The rows of S = 2 and 4 are
# published. They are about 1 / sqrt(S) of the first row, but no rounding rule gives all of them (24
# from 40, 920 from 1280, 12 from 16).
CHANNELS = {
    1: (32, 16, 24, 40, 80, 112, 192, 320, 1280),
    2: (24, 12, 16, 24, 56, 80, 136, 224, 920),
    4: (16, 12, 16, 20, 40, 56, 96, 160, 640),
}
# Size -> (width, depth, pixels, dropout); b8 is AdvProp's (1911.09665), l2 Noisy Student's
# (1911.04252).
SIZES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "b8": (2.2, 3.6, 672, 0.5),
    "l2": (4.3, 5.3, 800, 0.5),
}

# As in TensorFlow, the fan of a depthwise kernel is k * k, because it reads one channel. PyTorch's
# fan-out multiplies by the channels, so that a wide layer would start with almost zero weights.
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


@dataclass(frozen=True)
class Spec:
    """One EfficientNet: everything that its module needs. The module never sees S.

    `channels` and `blocks` follow from `base_channels` and the coefficients `width` and `depth`.
    """

    arch: str
    image_size: int  # side of the images for which the coefficients were chosen, in pixels
    width: float
    depth: float
    dropout: float = 0.0  # rate before the classifier
    drop_path: float = 0.0  # rate in the last stage's branches; grows linearly with the stage
    drop_unit: Literal["example", "channel"] = "example"  # what is dropped as one; see Dropout
    base_channels: tuple[int, ...] = CHANNELS[1]  # of stem, stages, last convolution, at width 1
    divisor: int = 8  # divides all channels
    strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1)  # of stem and stages
    padding: Literal["same", "symmetric"] = "same"  # TensorFlow's, or (k - 1) / 2 on every side
    splits: tuple[int, ...] = (1, 2, 4)  # the values of S that `divide` accepts

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of stem, stages and last convolution.

        `width` times `base_channels`, rounded to the nearest multiple of `divisor`, or up if that
        multiple is more than a tenth too narrow.
        """
        return tuple(_round_channels(self.width * c, self.divisor) for c in self.base_channels)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks in each stage."""
        return tuple(math.ceil(self.depth * n) for n in BLOCKS)

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.blocks)

    @property
    def drop_paths(self) -> tuple[float, ...]:
        """Rate at which each stage drops its residual branches."""
        return tuple(self.drop_path * i / len(BLOCKS) for i in range(1, len(BLOCKS) + 1))


def _round_channels(channels: float, divisor: int) -> int:
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _size(name: str) -> Spec:
    width, depth, pixels, dropout = SIZES[name]
    return Spec(f"efficientnet{name}", pixels, width, depth, dropout)


def _lightnetpp(name: str) -> Spec:
    spec = _size(name)
    return dataclasses.replace(
        spec,
        arch=f"{spec.arch}_lightnetpp",
        drop_path=spec.dropout,
        drop_unit="channel",
        padding="symmetric",
    )


def _cifar(name: str) -> Spec:
    return dataclasses.replace(
        _lightnetpp(name),
        arch=f"efficientnet{name}_cifar",
        image_size=32,
        strides=(1, 1, 2, 1, 2, 1, 1, 1),
    )


SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        *map(_size, SIZES),
        *map(_lightnetpp, SIZES),
        *(_cifar(name) for name in SIZES if name not in ("b8", "l2")),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: channels from the table, rates over sqrt(S)."""
    s = num_networks
    return dataclasses.replace(
        spec,
        base_channels=CHANNELS[s],
        divisor=spec.divisor if s == 1 else 4,
        dropout=spec.dropout / s**0.5,
        drop_path=spec.drop_path / s**0.5,
    )


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with all channels times a factor, in multiples of 4 as after dividing."""
    channels = tuple(scaled(c, factor) for c in spec.base_channels)
    return dataclasses.replace(spec, base_channels=channels, divisor=4)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, if `swish`, swish."""

    norm: Norm
    features: int
    kernel_size: int = 1
    stride: int = 1
    padding: Padding | None = None
    depthwise: bool = False
    swish: bool = True
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            groups=self.features if self.depthwise else 1,
            padding=self.padding,
            dtype=self.dtype,
            kernel_init=depthwise_init if self.depthwise else he_normal,
            name="conv",
        )(x)
        x = self.norm(name="bn")(x, train)
        return nn.swish(x) if self.swish else x


class Block(nn.Module):
    """Inverted residual: 1x1 to `expansion` x channels, depthwise, squeeze-excite, 1x1 back."""

    norm: Norm
    features: int
    expansion: int
    kernel_size: int
    stride: int
    padding: Padding | None
    drop_path: float
    drop_unit: Literal["example", "channel"]
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        channels = x.shape[-1]
        inner = channels * self.expansion
        y = x
        if self.expansion != 1:
            y = ConvNorm(self.norm, inner, dtype=self.dtype, name="expand")(y, train)
        y = ConvNorm(
            self.norm,
            inner,
            self.kernel_size,
            self.stride,
            self.padding,
            depthwise=True,
            dtype=self.dtype,
            name="depthwise",
        )(y, train)
        reduced = max(1, int(channels * SE_RATIO))
        y = SqueezeExcite(reduced, self.dtype, nn.swish, name="se")(y)
        project = ConvNorm(self.norm, self.features, swish=False, dtype=self.dtype, name="project")
        y = project(y, train)
        if self.stride != 1 or channels != self.features:
            return y
        return x + Dropout(self.drop_path, self.drop_unit, name="drop_path")(y, train, example_ids)


class EfficientNet(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the output of every stage, in order, as `stage1` ... `stage7`, and `final`, the map
    that is pooled for the classifier; float[B, h, w, c] each. Logits are at least float32.
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
            # PyTorch's momentum is 0.01 in both variants.
            return BatchNorm(self.axis_name, 0.99, 1e-3, self.dtype, name=name)

        # None: (k - 1) / 2 on every side.
        padding = "SAME" if spec.padding == "same" else None
        stem, *widths, last = spec.channels
        stem_stride, *strides = spec.strides
        x = ConvNorm(norm, stem, 3, stem_stride, padding, dtype=self.dtype, name="stem_conv")(
            x, train
        )
        features = {}
        for stage, blocks in enumerate(spec.blocks, start=1):
            kernel = KERNELS[stage - 1]
            make = block_class(Block, stage, self.remat)
            for i in range(blocks):
                stride = strides[stage - 1] if i == 0 else 1
                x = make(
                    norm,
                    widths[stage - 1],
                    EXPANSIONS[stage - 1],
                    kernel,
                    stride,
                    padding,
                    spec.drop_paths[stage - 1],
                    spec.drop_unit,
                    self.dtype,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train, example_ids)
            features[f"stage{stage}"] = x
        x = ConvNorm(norm, last, dtype=self.dtype, name="final_conv")(x, train)
        features["final"] = x

        logits = classify(
            x, self.num_classes, train=train, example_ids=example_ids, dropout=spec.dropout
        )
        return logits, features


# Module of a network or a block -> its names in the reference's two variants.
TORCH_NAMES = {
    "stem_conv.conv": ("_conv_stem", "mod1.conv_block.conv"),
    "stem_conv.bn": ("_bn0", "mod1.conv_block.norm"),
    "expand.conv": ("_expand_conv", "expansion.conv_block.conv"),
    "expand.bn": ("_bn0", "expansion.conv_block.norm"),
    "depthwise.conv": ("_depthwise_conv", "depth_wise.conv_block.conv"),
    "depthwise.bn": ("_bn1", "depth_wise.conv_block.norm"),
    "se.fc1": ("_se_reduce", "se_block.channel_se.linear1"),
    "se.fc2": ("_se_expand", "se_block.channel_se.linear2"),
    "project.conv": ("_project_conv", "point_wise.conv"),
    "project.bn": ("_bn2", "point_wise.norm"),
    "final_conv.conv": ("_conv_head", "last_feat.conv_block.conv"),
    "final_conv.bn": ("_bn1", "last_feat.conv_block.norm"),
    "head": ("_fc", "classifier"),
}


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The PyTorch name of a module, in the reference's variant of `spec`.

    (stage2_block1, project, bn) -> _blocks.1._bn2 or mod3.block1.point_wise.norm
    """
    symmetric = spec.padding == "symmetric"
    place = find_block(module[0])
    if place is None:
        return TORCH_NAMES[".".join(module)][symmetric]
    stage, block = place
    name = TORCH_NAMES[".".join(module[1:])][symmetric]
    if symmetric:
        return f"mod{stage + 1}.block{block}.{name}"  # mod1 is the stem
    return f"_blocks.{sum(spec.blocks[: stage - 1]) + block - 1}.{name}"


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> EfficientNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return EfficientNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=pack,
)
