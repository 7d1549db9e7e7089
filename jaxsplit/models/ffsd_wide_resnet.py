"""FFSD's Wide-ResNets for CIFAR-size images (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

Unlike the Wide-ResNets of `resnet.py` they apply activations before convolutions (He et al. 2016,
1603.05027), may have dropout between convolutions, have biases, and stride in a block's second
convolution. FFSD (2103.14473) does not divide them; here they are divided as the others.
"""

import dataclasses
from dataclasses import dataclass
from typing import Unpack

from flax import linen as nn
from jax import Array

from jaxsplit.models import resnet
from jaxsplit.models.family import Family, ModuleFields, scaled
from jaxsplit.models.layers import BatchNorm, Conv, Dtype, block_class, block_place, classify
from jaxsplit.models.stochastic import Dropout


@dataclass(frozen=True)
class Spec:
    """One network: three stages of `blocks` blocks, the first `16 * widening` channels wide."""

    arch: str
    blocks: int
    widening: float
    stem: int = 16  # channels of the first convolution
    dropout: float = 0.0  # rate between the convolutions of a block
    splits: tuple[int, ...] = (1, 2, 4)  # the values of S that `divide` accepts
    image_size: int = 32
    num_stages: int = 3  # the outputs of the stages are the features `stage1` ...


def _undivided(n: int, k: int) -> Spec:
    arch = f"ffsd_wide_resnet{6 * n + 4}_{k}"
    return Spec(arch, n, k, dropout=0.3 if arch == "ffsd_wide_resnet28_10" else 0.0)


def _named(arch: str) -> Spec | None:
    """The undivided Spec of a name ffsd_wide_resnet{6n+4}_{k}; None for other names."""
    found = resnet.wide_name(arch, "ffsd_wide_resnet")
    return None if found is None else _undivided(*found)


SPECS: dict[str, Spec] = {
    spec.arch: spec for spec in (_undivided(2, 2), _undivided(6, 2), _undivided(4, 10))
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: k / sqrt(S), dropout / S, as `resnet.divide`."""
    s = num_networks
    if s == 1:
        return spec
    return dataclasses.replace(
        spec, widening=resnet.widening(int(spec.widening), s), dropout=spec.dropout / s
    )


def pack(spec: Spec, factor: float) -> Spec:
    """`spec` with all channels times a factor."""
    width = scaled(round(16 * spec.widening), factor)
    return dataclasses.replace(spec, widening=width / 16, stem=scaled(spec.stem, factor))


class Block(nn.Module):
    """BatchNorm, ReLU, 3x3, dropout, BatchNorm, ReLU, strided 3x3; plus the input itself."""

    features: int
    stride: int
    dropout: float
    axis_name: str | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, example_ids: Array | None) -> Array:
        def conv(name: str, kernel: int, stride: int = 1) -> Conv:
            return Conv(self.features, kernel, stride, use_bias=True, dtype=self.dtype, name=name)

        y = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name="bn1")(x, train))
        y = conv("conv1", 3)(y)
        y = Dropout(self.dropout, name="dropout")(y, train, example_ids)
        y = nn.relu(BatchNorm(self.axis_name, dtype=self.dtype, name="bn2")(y, train))
        y = conv("conv2", 3, self.stride)(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv("shortcut", 1, self.stride)(x)
        return x + y


class WideResNet(nn.Module):
    """float[B, H, W, C] -> (logits float[B, K], features).

    `features`: `stage1` ..., the sums that end the stages, before any activation; and `final`, the
    map after the last BatchNorm and ReLU, which is pooled; float[B, h, w, c] each.
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
        x = Conv(spec.stem, use_bias=True, dtype=self.dtype, name="stem_conv")(x)
        features = {}
        for stage in range(1, spec.num_stages + 1):
            make = block_class(Block, stage, self.remat)
            for i in range(spec.blocks):
                block = make(
                    int(16 * spec.widening) * 2 ** (stage - 1),
                    2 if stage > 1 and i == 0 else 1,
                    spec.dropout,
                    self.axis_name,
                    self.dtype,
                    name=f"stage{stage}_block{i + 1}",
                )
                x = block(x, train, example_ids)
            features[f"stage{stage}"] = x
        # The reference's running statistics change faster here than in its other layers.
        norm = BatchNorm(self.axis_name, momentum=0.1, dtype=self.dtype, name="final_bn")
        x = nn.relu(norm(x, train))
        features["final"] = x
        return classify(x, self.num_classes, train=train), features


def torch_name(spec: Spec, path: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a module: (stage1_block2, conv1) -> layer1.1.conv1."""
    first, *rest = path
    outer = {"stem_conv": "conv1", "final_bn": "bn1", "head": "linear"}
    if first in outer:
        return outer[first]
    stage, block = block_place(first)
    if rest[0] == "shortcut":
        rest = ["shortcut", "0"]
    return ".".join([f"layer{stage}", str(block - 1), *rest])


def build(spec: Spec, num_classes: int, **fields: Unpack[ModuleFields]) -> WideResNet:
    """The module of a Spec; `fields`: axis_name, dtype, remat."""
    return WideResNet(spec, num_classes, **fields)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    pattern="ffsd_wide_resnet{6n+4}_{k}",
    parse=_named,
    torch_name=torch_name,
    pack=pack,
)
