"""What every family of backbones declares about itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from flax import linen as nn
from jax.typing import DTypeLike


class Spec(Protocol):
    """The fields that the frozen Spec of every architecture has."""

    @property
    def arch(self) -> str:
        """Name of the architecture."""
        ...

    @property
    def splits(self) -> tuple[int, ...]:
        """The numbers S of networks that it can be divided into, including 1 (undivided)."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images that the architecture was made for, in pixels."""
        ...


class ModuleFields(TypedDict, total=False):
    """What `Family.build` takes besides the Spec and the number of classes."""

    axis_name: str | None  # mesh axis of synchronised BatchNorm
    dtype: DTypeLike | None  # of the computation; None: the dtype of the images
    remat: tuple[str, ...]  # stages to recompute in the backward pass


AnySpec = TypeVar("AnySpec", bound=Spec)


def _stages(spec: Any) -> int:
    return spec.num_stages


def scaled(channels: int, factor: float, multiple: int = 1) -> int:
    """channels * factor, rounded up to a multiple of a number."""
    exact = channels * factor / multiple
    return multiple * max(1, math.ceil(exact - 1e-9))  # a factor such as 0.6 is not exact


@dataclass(frozen=True)
class Family(Generic[AnySpec]):
    """A family of backbones; each architecture file of `jaxsplit/models` ends in one.

    specs: architecture -> the frozen Spec of the undivided network; see `Spec`.
    divide: (spec, S) -> Spec of one of the S networks; S is in `spec.splits`.
    build: (spec, num_classes, axis_name=, dtype=) -> Linen module. If the family has stages, it
      also takes remat=, the names of the stages to recompute in the backward pass, and its module
      names the layers as `models.in_trunk` says.
    pattern: a name that stands for many, such as 'wide_resnet{6n+4}_{k}'; '': none.
    parse: a name -> its Spec if the name matches `pattern`, else None.
    num_stages: Spec -> number of stages, which `config.remat` and `config.trunk` choose from.
    torch_name: (spec, path of a module) -> its name in the reference's `state_dict`; None: PyTorch
      weights of the family cannot be imported.
    torch_dead: regular expressions of tensors in that `state_dict` that no computation reads.
    pack: (spec, factor) -> Spec with all channels times a factor, rounded up; see `scaled`. None:
      the family cannot be packed.
    products: whether matrix products, not convolutions, take nearly all of the time.
    whole: Spec -> names of convolutions that have no subgroups in a member of a Packed-Ensemble.
    """

    specs: Mapping[str, AnySpec]
    divide: Callable[[AnySpec, int], AnySpec]
    build: Callable[..., nn.Module]
    pattern: str = ""
    parse: Callable[[str], AnySpec | None] = lambda arch: None
    num_stages: Callable[[AnySpec], int] = _stages
    torch_name: Callable[[AnySpec, tuple[str, ...]], str] | None = None
    torch_dead: tuple[str, ...] = ()
    pack: Callable[[AnySpec, float], AnySpec] | None = None
    products: bool = False
    whole: Callable[[AnySpec], tuple[str, ...]] = lambda spec: ("fc1", "fc2")  # channel attention

    def find(self, arch: str) -> AnySpec | None:
        """The undivided Spec of an architecture; None: the family has no such architecture."""
        return self.specs[arch] if arch in self.specs else self.parse(arch)
