"""Backbones: one family a file, a frozen Spec per architecture, `divide(spec, S)`, the module.

A family is a module with `SPECS` (name -> Spec), `PATTERNS` (names that stand for many),
`find(arch)`, `divide(spec, S)` and `build(spec, num_classes, axis_name=, dtype=)`.
"""

from flax import linen as nn

from jaxsplit.errors import ConfigError
from jaxsplit.models import resnet, senet

FAMILIES = {"resnet": resnet, "senet": senet}


def names() -> list[str]:
    """Every architecture, and the patterns of those with free numbers."""
    return [n for family in FAMILIES.values() for n in (*family.SPECS, *family.PATTERNS)]


def divided(arch: str, num_networks: int):
    """The Spec of one of the S networks that replace `arch`.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    family, spec = _find(arch)
    return family.divide(spec, num_networks)


def build(spec, num_classes: int, *, axis_name: str | None = None, dtype=None) -> nn.Module:
    """The Linen module of a Spec: images float[B, H, W, C] -> (logits float[B, K], features)."""
    family, _ = _find(spec.arch)
    return family.build(spec, num_classes, axis_name=axis_name, dtype=dtype)


def _find(arch: str):
    for family in FAMILIES.values():
        spec = family.find(arch)
        if spec is not None:
            return family, spec
    raise ConfigError(f"arch={arch!r}: unknown; known are {', '.join(names())}")
