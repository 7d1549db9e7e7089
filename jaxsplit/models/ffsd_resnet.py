"""FFSD's ResNets with basic blocks, as first published (He et al. 2016, arXiv 1512.03385).

`resnet20`, `32` and `56` are for CIFAR-size images. `ffsd_resnet18` and `34`, for ImageNet-size
images, equal torchvision's `resnet18` and `34`: they have a 7x7 stem and strided 1x1 convolutions
as shortcuts; the networks of `resnet.py` have three 3x3 convolutions and average pools there. FFSD
(2103.14473) does not divide its ResNets; here they take the widths of the other residual networks.
"""

from jaxsplit.models import resnet
from jaxsplit.models.family import Family
from jaxsplit.models.layers import block_place
from jaxsplit.models.resnet import Spec, build
from jaxsplit.models.resnet import narrow as divide

__all__ = ["SPECS", "build", "divide", "torch_name"]

_COMMON = dict(block="basic", shortcut="strided", zero_init=False, splits=(1, 2, 4))


def _cifar(depth: int) -> Spec:
    n = (depth - 2) // 6
    return Spec(f"resnet{depth}", (n, n, n), 16, stem=(16,), **_COMMON)


def _imagenet(depth: int, blocks: tuple[int, ...]) -> Spec:
    stem = dict(stem=(64,), stem_kernel=7, stem_pool="padded")
    return Spec(f"ffsd_resnet{depth}", blocks, 64, **stem, **_COMMON)


SPECS: dict[str, Spec] = {
    spec.arch: spec
    for spec in (
        *map(_cifar, (20, 32, 56)),
        _imagenet(18, (2, 2, 2, 2)),
        _imagenet(34, (3, 4, 6, 3)),
    )
}


def torch_name(spec: Spec, path: tuple[str, ...]) -> str:
    """The PyTorch name, as in torchvision: (stage1_block2, conv1) -> layer1.1.conv1."""
    first, *rest = path
    if first == "head":
        return "fc"
    if first.startswith("stem_"):
        return first.removeprefix("stem_")  # conv1, bn1
    stage, block = block_place(first)
    if rest[0] == "shortcut":
        rest = ["downsample", str(int(rest[1] == "bn"))]
    return ".".join([f"layer{stage}", str(block - 1), *rest])


FAMILY = Family(
    specs=SPECS,
    divide=divide,
    build=build,
    torch_name=torch_name,
    pack=resnet.pack,
    whole=resnet.whole,
)
