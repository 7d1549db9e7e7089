"""ResNeSt: split attention in residual networks (Zhang et al. 2020, arXiv 2004.08955).

The blocks are bottlenecks of `resnet.py` with a split attention of radix 2 in place of the 3x3. A
block with a stride applies it in a 3x3 mean after the attention.
"""

import functools
import re

from jaxsplit.models import resnet
from jaxsplit.models.family import Family
from jaxsplit.models.resnet import Spec, build

__all__ = ["SPECS", "build", "divide", "torch_name"]


def _spec(depth: int, blocks: tuple[int, ...]) -> Spec:
    return Spec(
        f"resnest{depth}",
        blocks,
        width=64,
        stem=(64, 64, 128),
        stem_pool="padded",
        radix=2,
        zero_init=False,
        splits=(1, 2, 4, 8),
    )


SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        _spec(101, (3, 4, 23, 3)),
        _spec(200, (3, 24, 36, 3)),
        _spec(269, (3, 30, 48, 8)),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`; the reference does not divide ResNeSt.

    The widths are a ResNet's. As in a ResNet, almost all kernels grow with the square of the width
    (all but the first and the narrowest of the attention), and all widths in the table are even,
    which radix 2 needs. Measured cost of S networks over the undivided ResNeSt-101 / 200 / 269, for
    S = 2, 4 and 8:

      parameters  0.965 / 0.960 / 0.955, 1.046 / 1.033 / 1.022, 1.212 / 1.190 / 1.169
      mult-adds   0.946 / 0.946 / 0.946, 1.002 / 1.001 / 1.001, 1.129 / 1.128 / 1.127
    """
    return resnet.narrow(spec, num_networks)


def torch_name(spec: Spec, module: tuple[str, ...]) -> str:
    """The reference's PyTorch name of a module: (stem_conv2,) -> conv1.3."""
    if match := re.fullmatch(r"stem_(conv|bn)(\d+)", module[0]):
        kind, i = match[1], int(match[2])
        if kind == "bn" and i == len(spec.stem):
            return "bn1"
        return f"conv1.{3 * (i - 1) + (kind == 'bn')}"  # in a Sequential of conv, bn, relu ...
    if module[:2] == ("stage1_block1", "shortcut"):
        # Index 0 of the Sequential is a pool without effect, which the other families do not have.
        return f"layer1.0.downsample.{1 + (module[2] == 'bn')}"
    return resnet.torch_name(spec, module)


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=functools.partial(resnet.pack, multiple=2),  # the attention has two splits
    whole=resnet.whole,
)
