"""Subgroups of convolutions, with which one member of a Packed-Ensemble saves parameters.

Laurent et al. 2023, "Packed-Ensembles for Efficient Uncertainty Estimation" (arXiv 2210.09184):
inside a member every convolution is cut into gamma groups of channels, except where a group would
be narrower than a least number of channels; there gamma is lowered, as in the authors' code.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Subgroups:
    """How the convolutions of a network are cut.

    gamma: groups within each group that a convolution has anyway.
    least: input channels of a group at least.
    whole: names of convolutions that stay as they are.
    """

    gamma: int
    least: int = 64
    whole: tuple[str, ...] = ()

    def of(self, name: str | None, channels: int, features: int, groups: int) -> int:
        """The subgroups of a convolution: gamma, or the next lower number that fits."""
        gamma = 1 if name in self.whole else self.gamma
        while gamma > 1 and (
            channels % (groups * gamma)
            or features % (groups * gamma)
            or channels // (groups * gamma) < self.least
        ):
            gamma -= 1
        return gamma


NONE = Subgroups(1)
_current = contextvars.ContextVar("subgroups", default=NONE)


def current() -> Subgroups:
    """Those of the network that is being computed."""
    return _current.get()


@contextlib.contextmanager
def _within(its: Subgroups) -> Iterator[None]:
    token = _current.set(its)
    try:
        yield
    finally:
        _current.reset(token)


@dataclasses.dataclass(frozen=True)
class Member:
    """The Spec of a network whose convolutions have subgroups; see `models.family.Spec`."""

    spec: Any  # of the same network without subgroups
    subgroups: Subgroups

    @property
    def arch(self) -> str:
        return self.spec.arch

    @property
    def splits(self) -> tuple[int, ...]:
        return self.spec.splits

    @property
    def image_size(self) -> int:
        return self.spec.image_size


def plain(spec: Any) -> Any:
    """The Spec without subgroups."""
    return spec.spec if isinstance(spec, Member) else spec


@functools.cache
def _class_with(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose convolutions have the subgroups of its field `subgroups`."""

    # The function itself: a call of the base's method would be a second scope of that name.
    inner = inspect.unwrap(base.__call__)

    @nn.compact
    def call(self, *args, **kwargs):
        with _within(self.subgroups):
            return inner(self, *args, **kwargs)

    members = {
        "__annotations__": {"subgroups": Subgroups},
        "subgroups": NONE,
        "__call__": call,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
    }
    return type(base.__name__, (base,), members)


def applied(module: nn.Module, its: Subgroups) -> nn.Module:
    """The same module with subgroups; layers have the same names."""
    fields = {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.init and f.name not in ("parent", "name")
    }
    return _class_with(type(module))(**fields, subgroups=its)
