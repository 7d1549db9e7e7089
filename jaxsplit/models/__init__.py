"""Backbones: one family a file, a frozen Spec per architecture, `divide(spec, S)`, the module.

A family is a module, or any object, with
  SPECS       name -> undivided Spec; a Spec has `arch`, `splits` (the S it can be divided in) and
              `image_size` (pixels that it was made for)
  divide      (spec, S) -> Spec of one of the S networks; S is among `spec.splits`
  build       (spec, num_classes, axis_name=, dtype=) -> Linen module
and, where it has them,
  PATTERNS    names that stand for many, and `find(arch)` -> Spec or None, which knows them
  torch_name  (spec, path of a module) -> its name in the reference's `state_dict`
  TORCH_DEAD  patterns of tensors there that no computation reads
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from jaxsplit.errors import ConfigError
from jaxsplit.models import (
    densenet,
    efficientnet,
    ffsd_resnet,
    ffsd_wide_resnet,
    googlenet,
    pyramidnet,
    resnest,
    resnet,
    resnexst,
    senet,
    shake_shake,
)

FAMILIES: dict[str, Any] = {
    "resnet": resnet,
    "senet": senet,
    "resnest": resnest,
    "resnexst": resnexst,
    "densenet": densenet,
    "efficientnet": efficientnet,
    "googlenet": googlenet,
    "shake_shake": shake_shake,
    "pyramidnet": pyramidnet,
    "ffsd_resnet": ffsd_resnet,
    "ffsd_wide_resnet": ffsd_wide_resnet,
}


@dataclass(frozen=True)
class Family:
    """A family that is not a module of its own; see `register`."""

    SPECS: Mapping[str, Any]
    divide: Callable[[Any, int], Any]
    build: Callable[..., nn.Module]


def register(spec, divide: Callable[[Any, int], Any], build: Callable[..., nn.Module]) -> None:
    """Adds a backbone of your own under `spec.arch`; see README for an example.

    Args:
      spec: frozen dataclass of the undivided network, with `arch`, `splits`, `image_size`.
      divide: (spec, S) -> spec of one of the S networks.
      build: (spec, num_classes, axis_name=, dtype=) -> Linen module, which is called as
        (images float[B, H, W, C], train, example_ids) and returns (logits float[B, K], features:
        name -> float[B, h, w, c], the last of them `final`).

    Raises:
      ValueError: there is another architecture of that name.
    """
    taken = spec.arch in FAMILIES or _find(spec.arch)[1] is not None
    # Registering again is what running a notebook's cell again does.
    if taken and not isinstance(FAMILIES.get(spec.arch), Family):
        raise ValueError(f"arch={spec.arch!r}: there is one of that name already")
    FAMILIES[spec.arch] = Family({spec.arch: spec}, divide, build)


def names() -> list[str]:
    """Every architecture, and the patterns of those with free numbers."""
    return [
        name
        for family in FAMILIES.values()
        for name in (*family.SPECS, *getattr(family, "PATTERNS", ()))
    ]


def divided(arch: str, num_networks: int):
    """The Spec of one of the S networks that replace `arch`.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    family, spec = known(arch)
    if num_networks not in spec.splits:
        splits = ", ".join(map(str, spec.splits))
        raise ConfigError(f"split={num_networks}: {arch} can be divided in {splits}")
    return family.divide(spec, num_networks)


def build(spec, num_classes: int, *, axis_name: str | None = None, dtype=None) -> nn.Module:
    """The Linen module of a Spec: images float[B, H, W, C] -> (logits float[B, K], features)."""
    family, _ = known(spec.arch)
    return family.build(spec, num_classes, axis_name=axis_name, dtype=dtype)


def _find(arch: str):
    for family in FAMILIES.values():
        find = getattr(family, "find", family.SPECS.get)
        if (spec := find(arch)) is not None:
            return family, spec
    return None, None


def known(arch: str):
    """(family, undivided Spec) of a name.

    Raises:
      ConfigError: there is none; names the nearest three.
    """
    family, spec = _find(arch)
    if spec is None:
        near = sorted(names(), key=lambda name: _distance(name, arch))[:3]
        raise ConfigError(f"arch={arch!r}: unknown; nearest are {', '.join(near)}")
    return family, spec


def _distance(name: str, wanted: str) -> tuple[float, bool, float]:
    """First by the words of a name, then patterns, then by its numbers."""

    def unlike(a: str, b: str) -> float:
        return -difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()

    def words(text: str) -> str:
        return re.sub(r"\{.*?\}|\d+", "0", text.lower())

    return unlike(words(name), words(wanted)), "{" not in name, unlike(name, wanted)
