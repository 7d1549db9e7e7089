"""ResNeXSt: ResNeXt with the split attention of ResNeSt (Zhang et al. 2020, arXiv 2004.08955).

This family is from divide and co-training (2011.14660). It differs from ResNeSt in two places: the
stem's max pool has no padding and covers the border, and every block of stages 2 to 4 has the 3x3
mean after the attention. `<groups>x<d>d` gives the cardinal groups and their channels in stage 1.
"""

import dataclasses
import functools

from jaxsplit.models import resnet
from jaxsplit.models.family import Family
from jaxsplit.models.resnet import Spec, build
from jaxsplit.models.senet import torch_name

__all__ = ["SPECS", "build", "divide", "torch_name"]


def _spec(
    depth: int, blocks: tuple[int, ...], groups: int, base_width: int, dropout: float = 0.0
) -> Spec:
    return Spec(
        f"resnexst{depth}_{groups}x{base_width}d",
        blocks,
        width=64,
        stem=(64, 64, 128),
        stem_pool="ceil",
        groups=groups,
        base_width=base_width,
        radix=2,
        pool_every=True,
        zero_init=False,
        splits=tuple(s for s in (1, 2, 4, 8) if s <= groups),
        dropout=dropout,
    )


SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        _spec(50, (3, 4, 6, 3), 4, 16),
        _spec(50, (3, 4, 6, 3), 8, 16),
        _spec(50, (3, 4, 6, 3), 4, 32),
        _spec(101, (3, 4, 23, 3), 8, 32, dropout=0.1),
    )
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: groups / S, dropout / sqrt(S)."""
    return dataclasses.replace(
        spec,
        groups=spec.groups // num_networks,
        dropout=spec.dropout / num_networks**0.5,
    )


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=functools.partial(resnet.pack, multiple=2),  # the attention has two splits
    whole=resnet.whole,
)
