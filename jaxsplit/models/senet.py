"""SE-ResNet, SE-ResNeXt and SENet (Hu et al. 2018, arXiv 1709.01507).

These are residual networks of `resnet.py` with squeeze-excite in every block, for CIFAR-size and
ImageNet-size images. They differ from plain ResNets in three places: the stem's max pool has no
padding and covers the border, the dropout before the ImageNet classifier is 0.2 / sqrt(S), and
branches do not start at zero. In SENet-154 and SENet-113 a 3x3 is twice as wide as in ResNeXt, and
the first 1x1 is half as wide as the 3x3. `_B` marks variants of divide and co-training
(2011.14660): SE-ResNet-50 with DropBlock (1810.12890), SE-ResNeXt-101 with a doubled stem.
"""

import dataclasses
import re
from typing import Any

from jaxsplit.models import resnet
from jaxsplit.models.family import Family
from jaxsplit.models.resnet import Spec, build

__all__ = ["SPECS", "build", "divide", "torch_name"]


def _cifar(depth: int) -> Spec:
    plain = resnet.SPECS[f"resnet{depth}"]
    return dataclasses.replace(
        plain, arch=f"se_{plain.arch}", se_reduction=4, zero_init=False, splits=(1, 2, 4)
    )


def _imagenet(arch: str, blocks: tuple[int, ...], **fields: Any) -> Spec:
    spec = Spec(
        arch,
        blocks,
        width=64,
        stem=(64, 64, 64),
        stem_pool="ceil",
        se_reduction=16,
        dropout=0.2,
        zero_init=False,
        splits=(1, 2, 4, 8),
    )
    return dataclasses.replace(spec, **fields)


_D50, _D101 = (3, 4, 6, 3), (3, 4, 23, 3)
_DOUBLED = (64, 64, 128)
_64X4D = dict(groups=64, base_width=4, splits=(1, 2, 4, 8, 16))

SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        _cifar(110),
        _cifar(164),
        _imagenet("se_resnet50", _D50),
        _imagenet("se_resnet50_B", _D50, drop_block=0.1),
        _imagenet("se_resnet101", _D101),
        _imagenet("se_resnet152", (3, 8, 36, 3)),
        _imagenet("se_resnext101_64x4d", _D101, **_64X4D),
        _imagenet("se_resnext101_64x4d_B", _D101, stem=_DOUBLED, **_64X4D),
        _imagenet("senet113", (3, 8, 23, 3), stem=_DOUBLED, first_divisor=2, **_64X4D),
        _imagenet(
            "senet154",
            (3, 8, 36, 3),
            stem=_DOUBLED,
            first_divisor=2,
            shortcut="strided_3x3",
            **_64X4D,
        ),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`, with dropout and DropBlock rates / sqrt(S).

    Networks with groups divide these by S; the others take their width from the ResNets' table.
    """
    root = num_networks**0.5
    spec = dataclasses.replace(spec, dropout=spec.dropout / root, drop_block=spec.drop_block / root)
    if spec.groups > 1:
        return dataclasses.replace(spec, groups=spec.groups // num_networks)
    return resnet.narrow(spec, num_networks)


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a module: (stem_conv1,) -> layer0.conv1."""
    if module[0] == "head":
        return "last_linear"
    if match := re.fullmatch(r"stem_((?:conv|bn)\d+)", module[0]):
        return f"layer0.{match[1]}"
    return resnet.torch_name(spec, module)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=resnet.pack,
    whole=resnet.whole,
)
