"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545): atto, femto, pico, nano and tiny.

The stem cuts patches of 4 pixels. For small images there are stems of 2 pixels and of 1:
  convnext_tiny     patches of 4 pixels, for images of 32 pixels and more
  convnext_atto_p1  patches of one pixel, for images of 8 pixels and more

Without `drop_path` the network is timm's, and so are the names of its weights.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Unpack

from flax import linen as nn
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import (
    Conv,
    Dtype,
    block_class,
    classify,
    find_block,
    parameter,
    spread,
    widen,
)
from jaxsplit.models.stochastic import DropPath
from jaxsplit.models.tokens import LayerNorm, Mlp, Patches, truncated_normal

# Size -> (blocks of each stage, S -> channels of each stage). The rows of S = 2 and 4 are ours: the
# multiples of 4 nearest to channels / sqrt(S) whose S networks cost at most 1.02 times the
# undivided one. The depthwise convolutions make the exact quotient too expensive.
SIZES = {
    "atto": (
        (2, 2, 6, 2),
        {1: (40, 80, 160, 320), 2: (28, 56, 112, 228), 4: (20, 40, 76, 160)},
    ),
    "femto": (
        (2, 2, 6, 2),
        {1: (48, 96, 192, 384), 2: (32, 68, 136, 272), 4: (24, 48, 92, 192)},
    ),
    "pico": (
        (2, 2, 6, 2),
        {1: (64, 128, 256, 512), 2: (44, 92, 180, 364), 4: (32, 64, 124, 256)},
    ),
    "nano": (
        (2, 2, 8, 2),
        {1: (80, 160, 320, 640), 2: (56, 112, 228, 452), 4: (40, 80, 156, 320)},
    ),
    "tiny": (
        (3, 3, 9, 3),
        {1: (96, 192, 384, 768), 2: (68, 136, 272, 544), 4: (48, 96, 188, 384)},
    ),
}
PATCHES = {4: 224, 2: 64, 1: 32}  # patch size of the stem -> side of the usual images, in pixels
LAYER_SCALE = 1e-6  # initial factor of every channel of a branch


@dataclass(frozen=True)
class Spec:
    """One ConvNeXt: everything that its module needs. The module never sees S."""

    arch: str
    size: str  # a key of `SIZES`
    image_size: int  # side of the images that it is usually given, in pixels
    patch: int  # side of the stem's patches in pixels
    channels: tuple[int, ...]  # of each stage
    blocks: tuple[int, ...]  # of each stage
    drop_path: float = 0.0  # rate of the last block's branch; grows linearly with the block
    splits: tuple[int, ...] = (1, 2, 4)  # the values of S that `divide` accepts

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.blocks)


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: channels from `SIZES`, rate over sqrt(S)."""
    s = num_networks
    return dataclasses.replace(
        spec, channels=SIZES[spec.size][1][s], drop_path=spec.drop_path / s**0.5
    )


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with all channels times a factor, in multiples of 4 as after dividing."""
    return dataclasses.replace(spec, channels=tuple(scaled(c, factor, 4) for c in spec.channels))


class Block(nn.Module):
    """x + scale * MLP(norm(depthwise 7x7)): float[B, H, W, C] -> the same shape."""

    drop_path: float
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        c = x.shape[-1]
        depthwise = Conv(
            c,
            7,
            groups=c,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=truncated_normal,
            name="conv_dw",
        )
        y = LayerNorm(dtype=self.dtype, name="norm")(depthwise(x))
        y = Mlp(4 * c, self.dtype, truncated_normal, name="mlp")(y)
        scale = parameter(self, "layer_scale", nn.initializers.constant(LAYER_SCALE), (c,))
        y = y * spread(scale, y).astype(y.dtype)
        return x + DropPath(self.drop_path, name="drop_path")(y, train, example_ids)


class Downsample(nn.Module):
    """LayerNorm, then a product of 2x2 patches: float[B, H, W, C] -> [B, H/2, W/2, features]."""

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return Patches(self.features, 2, self.dtype, truncated_normal, name="conv")(x)


class ConvNeXt(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the output of every stage, in order, as `stage1` ... `stage4`, and `final`, the map
    that is pooled for the classifier; float[B, h, w, c] each. Logits are at least float32.
    """

    spec: Spec
    num_classes: int
    axis_name: str | None = None  # of BatchNorm in other backbones; this one has none
    dtype: Dtype | None = None
    remat: tuple[str, ...] = ()  # stages whose blocks are recomputed; see layers.block_class

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, example_ids: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        spec, (b, height, width, _) = self.spec, x.shape
        least = spec.patch * 2 ** (spec.num_stages - 1)
        if min(height, width) < least:
            smaller = [p for p in PATCHES if p * 2 ** (spec.num_stages - 1) <= min(height, width)]
            hint = f"; convnext_{spec.size}_p{smaller[0]} can" if smaller else ""
            raise ConfigError(
                f"arch={spec.arch!r}: takes images of at least {least} x {least} pixels, not "
                f"{height} x {width}{hint}"
            )
        stem = Patches(
            spec.channels[0], spec.patch, self.dtype, truncated_normal, name="stem_patches"
        )
        x = stem(x)
        x = LayerNorm(dtype=self.dtype, name="stem_norm")(x)
        features, done, total = {}, 0, sum(spec.blocks)
        for stage, (channels, blocks) in enumerate(
            zip(spec.channels, spec.blocks, strict=True), start=1
        ):
            if stage > 1:
                name = f"stage{stage - 1}_transition"
                x = Downsample(channels, self.dtype, name=name)(x)
            make = block_class(Block, stage, self.remat)
            for i in range(blocks):
                rate = spec.drop_path * done / max(total - 1, 1)
                block = make(rate, self.dtype, name=f"stage{stage}_block{i + 1}")
                x, done = block(x, train, example_ids), done + 1
            features[f"stage{stage}"] = x
        features["final"] = x
        x = LayerNorm(name="norm")(widen(x).mean((1, 2)))
        logits = classify(x.reshape(b, 1, 1, -1), self.num_classes, train=train)
        return logits, features


def parse(arch: str) -> Spec | None:
    """The Spec of a name such as 'convnext_atto_p1'; None: of another form."""
    match = re.fullmatch(rf"convnext_({'|'.join(SIZES)})(?:_p([12]))?", arch)
    if match is None:
        return None
    size, patch = match[1], int(match[2] or 4)
    blocks, channels = SIZES[size]
    return Spec(arch, size, PATCHES[patch], patch, channels[1], blocks)


TORCH_NAMES = {
    "stem_patches": "stem.0",
    "stem_norm": "stem.1",
    "norm": "head.norm",
    "head": "head.fc",
}


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """timm's name of a module: (stage2_block1, mlp, fc1) -> stages.1.blocks.0.mlp.fc1."""
    if (place := find_block(module[0])) is not None:
        stage, block = place
        return ".".join((f"stages.{stage - 1}.blocks.{block - 1}", *module[1:]))
    if match := re.fullmatch(r"stage(\d+)_transition", module[0]):
        return f"stages.{match[1]}.downsample.{('norm', 'conv').index(module[1])}"
    return TORCH_NAMES[module[0]]


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> ConvNeXt:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return ConvNeXt(spec, num_classes, **fields)


def _named(*names: str) -> dict[str, Spec]:
    return {name: spec for name in names if (spec := parse(name))}


FAMILY = Family(
    specs=_named(
        *(f"convnext_{size}" for size in SIZES), *(f"convnext_{size}_p1" for size in SIZES)
    ),
    divide=divide,
    build=build,
    pattern="convnext_{size}_p{patch}",
    parse=parse,
    torch_name=torch_name,
    pack=pack,
    products=True,
    whole=lambda spec: (),
)
