"""What every family of backbones tells of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from flax import linen as nn
from jax.typing import DTypeLike


class Spec(Protocol):
    """What the frozen Spec of every architecture has."""

    @property
    def arch(self) -> str:
        """Its name."""
        ...

    @property
    def splits(self) -> tuple[int, ...]:
        """The S it can be divided in; 1, the undivided, is among them."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images that it was made for, in pixels."""
        ...


class ModuleFields(TypedDict, total=False):
    """What `Family.build` takes besides the Spec and the number of classes."""

    axis_name: str | None  # mesh axis of synchronised BatchNorm
    dtype: DTypeLike | None  # of computation; None: that of the images
    remat: tuple[str, ...]  # stages to recompute in the backward pass


AnySpec = TypeVar("AnySpec", bound=Spec)


def _stages(spec: Any) -> int:
    return spec.num_stages


@dataclass(frozen=True)
class Family(Generic[AnySpec]):
    """A family of backbones; each file of `jaxsplit/models` ends in one.

    specs: architecture -> the frozen Spec of the undivided network. A Spec has `arch`, `splits`
      (the S it can be divided in) and `image_size` (pixels that it was made for).
    divide: (spec, S) -> Spec of one of the S networks; S is among `spec.splits`.
    build: (spec, num_classes, axis_name=, dtype=) -> Linen module; where its Specs have stages,
      also remat=: names of the stages to recompute in the backward pass, and the layers of the
      module are named as `models.in_trunk` says.
    pattern: a name that stands for many, such as 'wide_resnet{6n+4}_{k}'; '': there is none.
    parse: architecture -> Spec, of those names; None where it is none of them.
    num_stages: Spec -> number of stages, which `remat` and `trunk` choose from.
    torch_name: (spec, path of a module) -> its name in the reference's `state_dict`; None: the
      family's PyTorch weights cannot be imported.
    torch_dead: patterns of tensors there that no computation reads.
    """

    specs: Mapping[str, AnySpec]
    divide: Callable[[AnySpec, int], AnySpec]
    build: Callable[..., nn.Module]
    pattern: str = ""
    parse: Callable[[str], AnySpec | None] = lambda arch: None
    num_stages: Callable[[AnySpec], int] = _stages
    torch_name: Callable[[AnySpec, tuple[str, ...]], str] | None = None
    torch_dead: tuple[str, ...] = ()

    def find(self, arch: str) -> AnySpec | None:
        """The undivided Spec of an architecture; None where the family has none of that name."""
        return self.specs[arch] if arch in self.specs else self.parse(arch)
