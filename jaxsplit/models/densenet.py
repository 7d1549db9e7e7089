"""DenseNet for CIFAR-size and ImageNet-size images (Huang et al. 2017, arXiv 1608.06993).

Every layer of a block appends `growth` channels to its input. The growth rates after dividing are
from the appendix of divide and co-training (2011.14660).
"""

import dataclasses
import re
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
    classify,
)
from jaxsplit.models.pooling import avg_pool_2x2, max_pool
from jaxsplit.models.stochastic import ShakeDrop

BOTTLENECK = 4  # channels between the two convolutions of a layer, as a multiple of the growth


@dataclass(frozen=True)
class Spec:
    """One DenseNet: everything that its module needs. The module never sees S."""

    arch: str
    layers: tuple[int, ...]  # number of layers in each dense block
    growth: int  # channels that a layer adds; the stem has twice as many
    stem: str = "imagenet"  # plain (3x3) | norm (3x3, BN, ReLU) | imagenet (7x7, BN, ReLU, pool)
    bottleneck: bool = True  # a 1x1 convolution before the 3x3
    compression: float = 0.5  # channels after a transition over channels before it
    shake_drop: float = 0.0  # rate at the last layer, growing linearly; see stochastic.ShakeDrop
    splits: tuple[int, ...] = (1, 2, 4, 8)  # the values of S that `divide` accepts

    @property
    def num_stages(self) -> int:
        """Number of stages, whose outputs are the features `stage1` ..."""
        return len(self.layers)

    @property
    def image_size(self) -> int:
        """Side of the images that the architecture was made for, in pixels."""
        return 224 if self.stem == "imagenet" else 32


_CIFAR190 = dict(layers=(31, 31, 31), growth=40, splits=(1, 2, 4, 8, 16))

SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        Spec("densenet190", stem="norm", **_CIFAR190),
        Spec("densenet190_plain", stem="plain", **_CIFAR190),
        Spec(
            "densenet40_12",
            (12, 12, 12),
            12,
            stem="plain",
            bottleneck=False,
            compression=1.0,
            splits=(1, 2, 4),
        ),
        Spec("densenet121", (6, 12, 24, 16), 32),
        Spec("densenet161", (6, 12, 36, 24), 48),
        Spec("densenet169", (6, 12, 32, 32), 32),
        Spec("densenet201", (6, 12, 48, 32), 32),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: growth and ShakeDrop's rate over sqrt(S).

    The growth is rounded down; the stem's channels follow it.
    """
    root = num_networks**0.5
    growth = int(spec.growth / root * 2) // 2
    return dataclasses.replace(spec, growth=growth, shake_drop=spec.shake_drop / root)


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with its growth, and so all channels, times a factor."""
    return dataclasses.replace(spec, growth=scaled(spec.growth, factor))


class DenseLayer(nn.Module):
    """float[B, H, W, C] -> float[B, H, W, C + growth]: [BN, ReLU, 1x1,] BN, ReLU, 3x3, appended."""

    growth: int
    bottleneck: bool
    shake_drop: float
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        shapes = ((BOTTLENECK * self.growth, 1),) if self.bottleneck else ()
        y = x
        for i, (channels, kernel) in enumerate((*shapes, (self.growth, 3)), start=1):
            y = nn.relu(self.norm(name=f"bn{i}")(y, train))
            y = Conv(channels, kernel, dtype=self.dtype, name=f"conv{i}")(y)
        y = ShakeDrop(self.shake_drop, name="shake_drop")(y, train, example_ids)
        return jnp.concatenate((x, y), axis=-1)


class Transition(nn.Module):
    """BN, ReLU, 1x1, 2x2 mean: float[B, H, W, C] -> float[B, H // 2, W // 2, features]."""

    features: int
    norm: Norm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(self.norm(name="bn")(x, train))
        x = Conv(self.features, 1, dtype=self.dtype, name="conv")(x)
        _, h, w, _ = x.shape
        return avg_pool_2x2(x[:, : h // 2 * 2, : w // 2 * 2])  # drops the last odd row and column


class DenseNet(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: the output of every dense block, in order, as `stage1` ..., and `final`, the map
    that is pooled for the classifier; float[B, h, w, c] each. Logits are at least float32.
    """

    spec: Spec
    num_classes: int
    axis_name: str | None = None  # mesh axis of synchronised BatchNorm
    dtype: Dtype | None = None
    remat: tuple[str, ...] = ()  # stages whose layers are recomputed; see layers.block_class

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, example_ids: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        spec = self.spec

        def norm(name: str) -> BatchNorm:
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)

        large = spec.stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        x = Conv(2 * spec.growth, kernel, stride, dtype=self.dtype, name="stem_conv")(x)
        if spec.stem != "plain":
            x = nn.relu(norm("stem_bn")(x, train))
        if large:
            x = max_pool(x, 3, 2, ((1, 1), (1, 1)))

        features, done = {}, 0
        for stage, layers in enumerate(spec.layers, start=1):
            if stage > 1:
                channels = int(x.shape[-1] * spec.compression)
                name = f"stage{stage - 1}_transition"
                x = Transition(channels, norm, self.dtype, name=name)(x, train)
            make = block_class(DenseLayer, stage, self.remat)
            for i in range(1, layers + 1):
                done += 1
                rate = spec.shake_drop * done / sum(spec.layers)
                layer = make(
                    spec.growth,
                    spec.bottleneck,
                    rate,
                    norm,
                    self.dtype,
                    name=f"stage{stage}_layer{i}",
                )
                x = layer(x, train, example_ids)
            features[f"stage{stage}"] = x
        x = nn.relu(norm("final_bn")(x, train))
        features["final"] = x

        logits = classify(x, self.num_classes, train=train, example_ids=example_ids)
        return logits, features


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The PyTorch name of a module. (stage1_layer2, conv1) has three, depending on the Spec:

    features.denseblock1.denselayer2.conv1 as in torchvision; dense1.1.conv1 as in FFSD (without
    bottlenecks); block1.layer.1.conv1 as in Veit's implementation (with the plain stem).
    """
    first, *rest = module
    layer = re.fullmatch(r"stage(\d+)_layer(\d+)", first)
    transition = re.fullmatch(r"stage(\d+)_transition", first)
    if spec.stem == "plain":
        if layer:
            i = int(layer[2]) - 1
            block = f"block{layer[1]}.layer" if spec.bottleneck else f"dense{layer[1]}"
            return f"{block}.{i}.{rest[0]}"
        if transition:
            return f"trans{transition[1]}.{rest[0]}1"
        last = "bn1" if spec.bottleneck else "bn"
        return {"stem_conv": "conv1", "final_bn": last, "head": "fc"}[first]
    if layer:
        name = rest[0].replace("bn", "norm")
        return f"features.denseblock{layer[1]}.denselayer{layer[2]}.{name}"
    if transition:
        return f"features.transition{transition[1]}.{rest[0].replace('bn', 'norm')}"
    return {
        "stem_conv": "features.conv0",
        "stem_bn": "features.norm0",
        "final_bn": "features.norm5" if spec.stem == "imagenet" else "features.norm_final",
        "head": "classifier",
    }[first]


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> DenseNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return DenseNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=pack,
)
