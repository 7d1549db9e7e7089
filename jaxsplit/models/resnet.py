"""Residual networks: ResNet, Wide-ResNet and ResNeXt for CIFAR-size and ImageNet-size images.

He et al. 2016 (arXiv 1512.03385) with the stem and shortcut of ResNet-D (1812.01187), Zagoruyko &
Komodakis 2016 (1605.07146), Xie et al. 2017 (1611.05431). Widths after dividing are from the tables
in the appendix of divide and co-training (2011.14660), which does not have ResNet-18 and 34. The
families with squeeze-excite or split attention are in their own files but use the same module.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any, Unpack

from flax import linen as nn
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import (
    BatchNorm,
    Conv,
    Dtype,
    Norm,
    SplitAttention,
    SqueezeExcite,
    block_class,
    block_place,
    classify,
)
from jaxsplit.models.pooling import avg_pool_2x2, avg_pool_3x3, ceil_padding, max_pool
from jaxsplit.models.stochastic import DropBlock

EXPANSION = 4  # output channels of a bottleneck over its nominal width


@dataclass(frozen=True)
class Spec:
    """One residual network: everything that its module needs. The module never sees S.

    `width` is the nominal width of stage 1; it doubles at every later stage. A bottleneck's 3x3 has
    int(width * base_width / 64) * groups channels.
    """

    arch: str
    blocks: tuple[int, ...]  # number of residual blocks in each stage
    width: int
    block: str = "bottleneck"  # bottleneck | basic
    stem: tuple[int, ...] = (16,)  # channels of the stem's convolutions
    stem_pool: str = "none"  # none (CIFAR) | padded | ceil: 3x3 max pool after a strided stem
    stem_kernel: int = 3
    # With a stride: pool (2x2 mean, then 1x1) | strided (1x1 with stride) | strided_3x3.
    shortcut: str = "pool"
    groups: int = 1
    base_width: int = 64
    first_divisor: int = 1  # channels of a bottleneck's 3x3 over those of its first 1x1
    se_reduction: int = 0  # squeeze-excite divides the channels by this; 0: no squeeze-excite
    radix: int = 0  # number of splits of the split attention in place of the 3x3; 0: no attention
    # Whether a 3x3 mean follows the attention in every block after stage 1, not only with a stride.
    pool_every: bool = False
    dropout: float = 0.0  # rate before the classifier
    drop_block: float = 0.0  # rate in the branches of stages 3 and 4
    zero_init: bool = True  # residual branches start at zero
    splits: tuple[int, ...] = ()  # the values of S that `divide` accepts

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.blocks)

    @property
    def image_size(self) -> int:
        """Side of the images that the architecture was made for, in pixels."""
        return 32 if self.stem_pool == "none" else 224


def _cifar_resnet(depth: int) -> Spec:
    n = (depth - 2) // 9
    return Spec(f"resnet{depth}", (n, n, n), 16, stem=(16,), splits=(1, 2, 4, 8, 16))


def _imagenet_resnet(arch: str, blocks: tuple[int, ...], **fields: Any) -> Spec:
    spec = Spec(arch, blocks, 64, stem=(64, 64, 128), stem_pool="padded", splits=(1, 2, 4, 8))
    return dataclasses.replace(spec, **fields)


def _cifar_resnext(groups: int, splits: tuple[int, ...]) -> Spec:
    return Spec(f"resnext29_{groups}x64d", (3, 3, 3), 64, stem=(64,), groups=groups, splits=splits)


_D50, _D101 = (3, 4, 6, 3), (3, 4, 23, 3)
_NARROW = dict(base_width=4, splits=(1, 2, 4, 8, 16))

SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        _cifar_resnet(110),
        _cifar_resnet(164),
        _cifar_resnext(8, (1, 2, 4, 8)),
        _cifar_resnext(16, (1, 2, 4, 8, 16)),
        _imagenet_resnet("resnet18", (2, 2, 2, 2), block="basic"),
        _imagenet_resnet("resnet34", _D50, block="basic"),
        _imagenet_resnet("resnet50", _D50),
        _imagenet_resnet("resnet101", _D101, dropout=0.1),
        _imagenet_resnet("resnet152", (3, 8, 36, 3)),
        _imagenet_resnet("resnet200", (3, 24, 36, 3)),
        _imagenet_resnet("wide_resnet50_2", _D50, base_width=128, splits=(1, 2, 4)),
        _imagenet_resnet("wide_resnet50_3", _D50, base_width=192, splits=(1, 2, 4)),
        _imagenet_resnet("wide_resnet101_2", _D101, base_width=128, splits=(1, 2, 4)),
        _imagenet_resnet("resnext50_32x4d", _D50, groups=32, **_NARROW),
        _imagenet_resnet("resnext101_32x4d", _D101, groups=32, **_NARROW),
        _imagenet_resnet("resnext101_64x4d", _D101, groups=64, **_NARROW),
    )
}


def wide_name(arch: str, prefix: str = "wide_resnet") -> tuple[int, int] | None:
    """(n, k) of a name `<prefix><6n+4>_<k>` with at most four digits each; None: another name."""
    match = re.fullmatch(rf"{prefix}([1-9]\d{{0,3}})_([1-9]\d{{0,3}})", arch, re.ASCII)
    if not match:
        return None
    n, rest = divmod(int(match[1]) - 4, 6)
    return None if n < 1 or rest else (n, int(match[2]))


def _wide_resnet(n: int, k: int) -> Spec:
    """The undivided network `wide_resnet{6n+4}_{k}`."""
    arch = f"wide_resnet{6 * n + 4}_{k}"
    dropout = 0.1 if arch == "wide_resnet40_10" else 0.0
    return Spec(arch, (n, n, n), 16 * k, block="basic", dropout=dropout, splits=(1, 2, 4, 8, 16))


def _named(arch: str) -> Spec | None:
    """The undivided Spec of a name wide_resnet{6n+4}_{k}; None for other names."""
    found = wide_name(arch)
    return None if found is None else _wide_resnet(*found)


SPECS |= {
    spec.arch: spec
    for spec in (_wide_resnet(*nk) for nk in ((2, 8), (2, 12), (4, 10), (6, 10), (8, 8)))
}

# S -> nominal width after dividing into S networks.
CIFAR_WIDTHS = {1: 16, 2: 12, 4: 8, 8: 6, 16: 4}
IMAGENET_WIDTHS = {1: 64, 2: 44, 4: 32, 8: 24}

# Published exceptions from the rules of `divide`, which looks here first.
EXCEPTIONS: dict[tuple[str, int], dict[str, Any]] = {
    ("wide_resnet50_2", 2): dict(base_width=64),
    ("wide_resnet50_3", 2): dict(base_width=128),
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec` at about the same total cost.

    ResNeXt divides its groups by S. Wide-ResNet takes `widening` for its factor k. The others take
    their width from a table. The dropout rate before the classifier is divided by S.
    """
    s = num_networks
    if s == 1:
        return spec
    spec = dataclasses.replace(spec, dropout=spec.dropout / s)
    if (spec.arch, s) in EXCEPTIONS:
        return dataclasses.replace(spec, **EXCEPTIONS[spec.arch, s])
    if spec.groups > 1:
        return dataclasses.replace(spec, groups=spec.groups // s)
    if spec.block == "basic" and spec.stem_pool == "none":
        return dataclasses.replace(spec, width=16 * widening(spec.width // 16, s))
    return narrow(spec, s)


def widening(k: int, num_networks: int) -> int:
    """Wide-ResNet's factor k after dividing: k / sqrt(S), rounded up from .6 on, at least 1."""
    return int(max(k / num_networks**0.5 + 0.4, 1.0))


def narrow(spec: Spec, num_networks: int) -> Spec:
    """`spec` with the table's width for S, and the stem's channels in proportion."""
    widths = CIFAR_WIDTHS if spec.stem_pool == "none" else IMAGENET_WIDTHS
    width = widths[num_networks]
    stem = tuple(width * (c // spec.width) for c in spec.stem)
    return dataclasses.replace(spec, width=width, stem=stem)


def pack(spec: Spec, factor: float, *, multiple: int = 1) -> Spec:
    """`spec` with all channels times a factor; groups stay as many, so they become narrower."""
    width = scaled(spec.width, factor, multiple)
    stem = tuple(scaled(c, factor, multiple) for c in spec.stem)
    inner = int(width * spec.base_width / 64)
    if inner % multiple or not inner:
        raise ConfigError(f"arch={spec.arch!r}: cannot be packed; its groups would be too narrow")
    return dataclasses.replace(spec, width=width, stem=stem)


def whole(spec: Spec) -> tuple[str, ...]:
    """As in the code of Packed-Ensembles, a ResNet's first convolution of a block has no subgroups.

    All of a Wide-ResNet have them.
    """
    return ("fc1", "fc2") if wide_name(spec.arch) else ("conv1", "fc1", "fc2")


def drop_block_size(image_side: int) -> int:
    """Side of DropBlock's squares in stages 3 and 4: 3 for images of 224 pixels, in proportion."""
    return max(1, 3 * image_side // 224)


class Shortcut(nn.Module):
    """The shortcut of a block that changes shapes: [2x2 mean,] convolution, BatchNorm."""

    kind: str  # Spec.shortcut
    features: int
    stride: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        stride = self.stride
        if self.kind == "pool" and stride == 2:
            x, stride = avg_pool_2x2(x), 1
        kernel = 3 if self.kind == "strided_3x3" and stride == 2 else 1
        x = Conv(self.features, kernel, stride, dtype=self.dtype, name="conv")(x)
        return self.norm(name="bn")(x, train)


class Block(nn.Module):
    """A residual block with the activation after the sum: `basic` (3x3, 3x3) or `bottleneck`."""

    spec: Spec
    stage: int
    stride: int
    drop_block_size: int = 1
    axis_name: str | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        spec = self.spec
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, self.axis_name, dtype=self.dtype)
        last_gamma = nn.initializers.zeros if spec.zero_init else nn.initializers.ones
        width = spec.width * 2 ** (self.stage - 1)

        if spec.block == "basic":
            features = width
            y = conv(features, 3, self.stride, name="conv1")(x)
            y = nn.relu(norm(name="bn1")(y, train))
            y = conv(features, 3, name="conv2")(y)
            y = norm(name="bn2", scale_init=last_gamma)(y, train)
        else:
            features = width * EXPANSION
            inner = int(width * spec.base_width / 64) * spec.groups
            y = conv(inner // spec.first_divisor, 1, name="conv1")(x)
            y = nn.relu(norm(name="bn1")(y, train))
            if spec.radix:
                attention = SplitAttention(
                    inner, spec.radix, spec.groups, norm, self.dtype, name="conv2"
                )
                y = attention(y, train)
                if self.stride == 2 or (spec.pool_every and self.stage > 1):
                    y = avg_pool_3x3(y, self.stride)
            else:
                y = conv(inner, 3, self.stride, spec.groups, name="conv2")(y)
                y = nn.relu(norm(name="bn2")(y, train))
            y = conv(features, 1, name="conv3")(y)
            y = norm(name="bn3", scale_init=last_gamma)(y, train)

        if self.stage > 2:
            # Applied once a block, to the branch, before squeeze-excite, which sees the holes.
            drop = DropBlock(spec.drop_block, self.drop_block_size, self.axis_name, name="drop")
            y = drop(y, train, example_ids)
        if spec.se_reduction:
            y = SqueezeExcite(features // spec.se_reduction, self.dtype, name="se")(y)
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = Shortcut(
                spec.shortcut, features, self.stride, norm, self.dtype, name="shortcut"
            )
            x = shortcut(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
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
        squares = drop_block_size(x.shape[1])
        strided = spec.stem_pool != "none"
        for i, channels in enumerate(spec.stem, start=1):
            stride = 2 if strided and i == 1 else 1
            kernel = spec.stem_kernel
            x = Conv(channels, kernel, stride, dtype=self.dtype, name=f"stem_conv{i}")(x)
            norm = BatchNorm(self.axis_name, dtype=self.dtype, name=f"stem_bn{i}")
            x = nn.relu(norm(x, train))
        if spec.stem_pool == "padded":
            x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        elif spec.stem_pool == "ceil":
            x = max_pool(x, 3, 2, tuple(ceil_padding(n, 3, 2) for n in x.shape[1:3]))

        features = {}
        for stage, blocks in enumerate(spec.blocks, start=1):
            make = block_class(Block, stage, self.remat)
            for i in range(blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage{stage}_block{i + 1}"
                block = make(spec, stage, stride, squares, self.axis_name, self.dtype, name=name)
                x = block(x, train, example_ids)
            features[f"stage{stage}"] = x
        features["final"] = x

        logits = classify(
            x, self.num_classes, train=train, example_ids=example_ids, dropout=spec.dropout
        )
        return logits, features


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a module: (stage1_block2, conv1) -> layer1.1.conv1."""
    first, *rest = module
    if first == "head":
        return "fc"
    if match := re.fullmatch(r"stem_(conv|bn)(\d+)", first):
        # An index into a Sequential of conv, bn, relu ...
        return f"layer0.{3 * (int(match[2]) - 1) + (match[1] == 'bn')}"
    stage, block = block_place(first)
    prefix = f"layer{stage}.{block - 1}"
    if rest[0] == "shortcut":
        # The average pool has index 0 of the Sequential.
        pooled = spec.shortcut == "pool" and stage > 1
        return f"{prefix}.downsample.{pooled + (rest[1] == 'bn')}"
    if rest[0] == "se":
        rest[0] = "se_module"
    return ".".join((prefix, *rest))


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> ResNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return ResNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    pattern="wide_resnet{6n+4}_{k}",
    parse=_named,
    torch_name=torch_name,
    pack=pack,
    whole=whole,
)
