"""FFSD's GoogLeNet for CIFAR-size images (Szegedy et al. 2015, arXiv 1409.4842).

It differs from the paper: the stem is one 3x3 convolution at full resolution, BatchNorm
(1502.03167) follows every convolution, two 3x3 convolutions replace each 5x5, and there are no
auxiliary classifiers.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Unpack

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
from jaxsplit.models.pooling import max_pool

PAD = ((1, 1), (1, 1))


class Widths(NamedTuple):
    """Channels of an inception block: the columns of Table 1 of the paper."""

    one: int  # branch 1x1
    three_reduced: int
    three: int  # branch 1x1, 3x3
    five_reduced: int
    five: int  # branch 1x1, 3x3, 3x3
    pool: int  # branch max pool, 1x1


@dataclass(frozen=True)
class Spec:
    """One GoogLeNet: everything that its module needs. The module never sees S."""

    arch: str
    stem: int  # channels
    stages: tuple[tuple[Widths, ...], ...]  # inception blocks; max pools separate the stages
    splits: tuple[int, ...]  # the values of S that `divide` accepts
    image_size: int = 32

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.stages)


SPECS: dict[str, Spec] = {
    "googlenet": Spec(
        "googlenet",
        192,
        (
            (Widths(64, 96, 128, 16, 32, 32), Widths(128, 128, 192, 32, 96, 64)),
            (
                Widths(192, 96, 208, 16, 48, 64),
                Widths(160, 112, 224, 24, 64, 64),
                Widths(128, 128, 256, 24, 64, 64),
                Widths(112, 144, 288, 32, 64, 64),
                Widths(256, 160, 320, 32, 128, 128),
            ),
            (Widths(256, 160, 320, 32, 128, 128), Widths(384, 192, 384, 48, 128, 128)),
        ),
        splits=(1, 2, 4),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: all widths over sqrt(S), in multiples of 4.

    The rule is jaxsplit's own, because FFSD does not divide networks. It agrees with the table of
    divide and co-training (arXiv 2011.14660) for ResNets of 64 channels (44, 32, 24) and of 16
    (12, 8).
    """
    if num_networks == 1:
        return spec

    def narrow(width: int) -> int:
        return max(4, 4 * round(width / num_networks**0.5 / 4))

    stages = tuple(tuple(Widths(*map(narrow, block)) for block in blocks) for blocks in spec.stages)
    return dataclasses.replace(spec, stem=narrow(spec.stem), stages=stages)


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with all widths times a factor."""
    stages = tuple(
        tuple(Widths(*(scaled(width, factor) for width in block)) for block in blocks)
        for blocks in spec.stages
    )
    return dataclasses.replace(spec, stem=scaled(spec.stem, factor), stages=stages)


class Inception(nn.Module):
    """Four branches side by side: float[B, H, W, C] -> float[B, H, W, sum of their widths]."""

    widths: Widths
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        w = self.widths
        branches = {
            "branch1": ((w.one, 1),),
            "branch3": ((w.three_reduced, 1), (w.three, 3)),
            "branch5": ((w.five_reduced, 1), (w.five, 3), (w.five, 3)),
            "pool": ((w.pool, 1),),
        }
        ends = []
        for branch, shapes in branches.items():
            y = max_pool(x, 3, 1, PAD) if branch == "pool" else x
            for i, (channels, kernel) in enumerate(shapes, start=1):
                conv = Conv(
                    channels, kernel, use_bias=True, dtype=self.dtype, name=f"{branch}_conv{i}"
                )
                y = nn.relu(self.norm(name=f"{branch}_bn{i}")(conv(y), train))
            ends.append(y)
        return jnp.concatenate(ends, axis=-1)


class GoogLeNet(nn.Module):
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
        def norm(name: str) -> BatchNorm:
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)

        x = Conv(self.spec.stem, use_bias=True, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(norm("stem_bn")(x, train))
        features = {}
        for stage, blocks in enumerate(self.spec.stages, start=1):
            if stage > 1:
                x = max_pool(x, 3, 2, PAD)
            make = block_class(Inception, stage, self.remat)
            for i, widths in enumerate(blocks, start=1):
                x = make(widths, norm, self.dtype, name=f"stage{stage}_block{i}")(x, train)
            features[f"stage{stage}"] = x
        features["final"] = x
        return classify(x, self.num_classes, train=train, example_ids=example_ids), features


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """FFSD's PyTorch name: (stage1_block2, branch3_conv2) -> inception_b3.branch3x3.3."""
    first, *rest = module
    if first == "head":
        return "linear"
    if first.startswith("stem"):
        return f"pre_layers.{int(first == 'stem_bn')}"
    stage, block = block_place(first)
    # The paper numbers stages from 3, because the pooling layers of its stem count.
    inception = f"inception_{'abcde'[block - 1]}{stage + 2}"
    branch, layer = rest[0].split("_")
    index = 3 * (int(layer[-1]) - 1) + layer.startswith("bn")  # a Sequential of conv, bn, relu ...
    if branch == "pool":
        return f"{inception}.branch_pool.{index + 1}"  # the max pool has index 0
    size = branch.removeprefix("branch")
    return f"{inception}.branch{size}x{size}.{index}"


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> GoogLeNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return GoogLeNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=pack,
)
