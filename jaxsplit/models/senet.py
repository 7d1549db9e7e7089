"""SE-ResNet (Hu et al. 2018, arXiv 1709.01507) for CIFAR-size and ImageNet-size images.

Residual networks of `resnet.py` with squeeze-excite in every block. They differ from the plain ones
in the stem (three convolutions of one width, a max pool without padding that covers the border), in
dropout (0.2 / sqrt(S) before the ImageNet classifier) and in branches that do not start at zero.
"""

import dataclasses

from jaxsplit.models import resnet
from jaxsplit.models.resnet import Spec, build, torch_name

__all__ = ["SPECS", "build", "divide", "torch_name"]


def _cifar(depth: int) -> Spec:
    plain = resnet.SPECS[f"resnet{depth}"]
    return dataclasses.replace(
        plain, arch=f"se_{plain.arch}", se_reduction=4, zero_init=False, splits=(1, 2, 4)
    )


def _imagenet(depth: int) -> Spec:
    plain = resnet.SPECS[f"resnet{depth}"]
    return dataclasses.replace(
        plain,
        arch=f"se_{plain.arch}",
        stem=(64, 64, 64),
        stem_pool="ceil",
        se_reduction=16,
        dropout=0.2,
        zero_init=False,
    )


SPECS: dict[str, Spec] = {
    spec.arch: spec for spec in (*map(_cifar, (110, 164)), *map(_imagenet, (50, 101, 152)))
}


def divide(spec: Spec, num_networks: int) -> Spec:
    """One of the S networks that replace `spec`: widths of the table, dropout / sqrt(S)."""
    divided = resnet.narrow(spec, num_networks)
    return dataclasses.replace(divided, dropout=spec.dropout / num_networks**0.5)
