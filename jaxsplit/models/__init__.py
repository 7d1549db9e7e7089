"""Backbones: a file for each family, with frozen Specs, the divide rule and the module.

Each file ends in one `Family`, which `FAMILIES` lists; `register` adds one of your own.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike

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
from jaxsplit.models.family import AnySpec, Family, ModuleFields, Spec

FAMILIES: dict[str, Family[Any]] = {
    "resnet": resnet.FAMILY,
    "senet": senet.FAMILY,
    "resnest": resnest.FAMILY,
    "resnexst": resnexst.FAMILY,
    "densenet": densenet.FAMILY,
    "efficientnet": efficientnet.FAMILY,
    "googlenet": googlenet.FAMILY,
    "shake_shake": shake_shake.FAMILY,
    "pyramidnet": pyramidnet.FAMILY,
    "ffsd_resnet": ffsd_resnet.FAMILY,
    "ffsd_wide_resnet": ffsd_wide_resnet.FAMILY,
}


def register(
    spec: AnySpec,
    divide: Callable[[AnySpec, int], AnySpec],
    build: Callable[..., nn.Module],
    *,
    num_stages: int = 0,
) -> None:
    """Adds a backbone of your own under `spec.arch`; see docs/extending.md for an example.

    Args:
      spec: frozen dataclass of the undivided network, with `arch`, `splits`, `image_size`; 1 is
        among its splits.
      divide: (spec, S) -> spec of one of the S networks.
      build: (spec, num_classes, axis_name=, dtype=) -> Linen module with the field `axis_name`, the
        mesh axis of synchronised BatchNorm; it is called as
        (images float[B, H, W, C], train, example_ids) and returns (logits float[B, K], features:
        name -> float[B, h, w, c], the last of them `final`). Fine-tuning with other classes
        renews the layer `head`, which `layers.classify` makes.
      num_stages: that `config.remat` and `config.trunk` can choose from; layers are named as
        `in_trunk` says, and `build` takes remat=.

    Raises:
      ValueError: there is another architecture of that name, or the spec lacks something.
    """
    if missing := [name for name in ("arch", "splits", "image_size") if not hasattr(spec, name)]:
        raise ValueError(f"{spec}: must have {', '.join(missing)}")
    if 1 not in spec.splits:
        raise ValueError(f"arch={spec.arch!r}: splits={spec.splits} must hold 1, the undivided")
    key = f"own/{spec.arch}"  # arch may be called as a family is
    # Registering again is what running a notebook's cell again does.
    if key not in FAMILIES and _find(spec.arch) is not None:
        raise ValueError(f"arch={spec.arch!r}: there is one of that name already")
    FAMILIES[key] = Family({spec.arch: spec}, divide, build, num_stages=lambda _: num_stages)


def names() -> list[str]:
    """Every architecture, and the patterns of those with free numbers."""
    return [
        name for family in FAMILIES.values() for name in (*family.specs, family.pattern) if name
    ]


def divided(arch: str, num_networks: int) -> Spec:
    """The Spec of one of the S networks that replace `arch`.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    family, spec = known(arch)
    if num_networks not in spec.splits:
        splits = ", ".join(map(str, spec.splits))
        raise ConfigError(f"split={num_networks}: {arch} can be divided in {splits}")
    return family.divide(spec, num_networks)


def build(
    spec: Spec,
    num_classes: int,
    *,
    axis_name: str | None = None,
    dtype: DTypeLike | None = None,
    remat: tuple[str, ...] = (),
) -> nn.Module:
    """The Linen module of a Spec: images float[B, H, W, C] -> (logits float[B, K], features).

    `remat`: of `remat_stages`; a backbone that has not heard of it is built without.
    """
    family, _ = known(spec.arch)
    fields: ModuleFields = {"axis_name": axis_name, "dtype": dtype}
    if remat:
        fields["remat"] = remat
    return family.build(spec, num_classes, **fields)


def _stages(spec: Spec) -> tuple[str, ...]:
    family, _ = known(spec.arch)
    return tuple(f"stage{i + 1}" for i in range(family.num_stages(spec)))


def remat_stages(spec: Spec, text: str) -> tuple[str, ...]:
    """Names of the stages to recompute: '' none, 'all', or some of them, as 'stage1,stage2'.

    Raises:
      ConfigError: not of that form, or a stage that the architecture has not.
    """
    if text == "":
        return ()
    stages = _stages(spec)
    if not stages:
        raise ConfigError(f"remat={text!r}: must be ''; {spec.arch} cannot recompute its stages")
    if text == "all":
        return stages
    chosen = {part.strip() for part in str(text).split(",")}
    if not chosen <= set(stages):
        raise ConfigError(
            f"remat={text!r}: must be '', 'all' or, with commas, some of {', '.join(stages)} "
            f"of {spec.arch}"
        )
    return tuple(stage for stage in stages if stage in chosen)


def trunk_stage(spec: Spec, text: str, *, default: str = "none") -> str:
    """The last stage that networks of a Spec share, or '' if they share none.

    Args:
      spec: of each network.
      text: 'none', a stage, as 'stage1', or '', which means `default`.
      default: 'none' or 'all but the last' (stage).

    Raises:
      ConfigError: `text` is no stage, or the architecture has no stages; also if it has only one
        and all but the last are to be shared.
    """
    stages = _stages(spec)
    if text == "none" or (text == "" and default == "none"):
        return ""
    if not stages:
        raise ConfigError(f"trunk={text!r}: must be 'none'; {spec.arch} has no stages to share")
    if text == "" and len(stages) > 1:
        return stages[-2]
    if text not in stages:
        allowed = ", ".join(("none", *stages))
        raise ConfigError(f"trunk={text!r}: must be one of {allowed} with {spec.arch}")
    return text


def in_trunk(layer: str, stage: str) -> bool:
    """Whether an outermost layer of a backbone comes before the end of a stage.

    Layers are named `stem...`, `stage<k>_...`, `stage<k>_transition` (between stage k and the
    next), and otherwise where they come after the last stage.
    """
    if layer.startswith("stem"):
        return stage != ""
    match = re.fullmatch(r"stage(\d+)_(.*)", layer)
    if not match or not stage:
        return False
    last = int(stage.removeprefix("stage"))
    return int(match[1]) + (match[2] == "transition") <= last


def _find(arch: str) -> tuple[Family[Any], Spec] | None:
    for family in FAMILIES.values():
        if (spec := family.find(arch)) is not None:
            return family, spec
    return None


def known(arch: str) -> tuple[Family[Any], Spec]:
    """(family, undivided Spec) of a name.

    Raises:
      ConfigError: there is none; names the nearest three.
    """
    if (found := _find(arch)) is None:
        near = sorted(names(), key=lambda name: _distance(name, arch))[:3]
        raise ConfigError(f"arch={arch!r}: unknown; nearest are {', '.join(near)}")
    return found


def _distance(name: str, wanted: str) -> tuple[float, bool, float]:
    """First by the words of a name, then patterns, then by its numbers."""

    def unlike(a: str, b: str) -> float:
        return -difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()

    def words(text: str) -> str:
        return re.sub(r"\{.*?\}|\d+", "0", text.lower())

    return unlike(words(name), words(wanted)), "{" not in name, unlike(name, wanted)
