"""Backbones: one file per family, with its frozen Specs, divide rule and Linen module.

Each file ends in one `Family`, which `FAMILIES` lists. `register` adds a backbone of your own.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike

from jaxsplit.errors import ConfigError
from jaxsplit.models import (
    convnext,
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
    subgroups,
    vit,
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
    "vit": vit.FAMILY,
    "convnext": convnext.FAMILY,
}


# Fields of some Specs: rates at which a network drops values and residual branches.
RATES = ("dropout", "drop_path")


def register(
    spec: AnySpec,
    divide: Callable[[AnySpec, int], AnySpec],
    build: Callable[..., nn.Module],
    *,
    num_stages: int = 0,
    pack: Callable[[AnySpec, float], AnySpec] | None = None,
) -> None:
    """Adds a backbone of your own under `spec.arch`; see docs/extending.md for an example.

    Args:
      spec: frozen dataclass that describes the undivided network. It has the fields `arch`,
        `splits` (which includes 1) and `image_size`.
      divide: (spec, S) -> Spec of one of the S networks.
      build: (spec, num_classes, axis_name=, dtype=) -> Linen module. Its field `axis_name` is the
        mesh axis of synchronised BatchNorm. It is called as (images float[B, H, W, C], train,
        example_ids) and returns (logits float[B, K], features: name -> float[B, h, w, c], of which
        `final` is the last). Fine-tuning with other classes replaces the layer `head`, which
        `layers.classify` makes.
      num_stages: number of stages that `config.remat` and `config.trunk` can choose from. If it is
        not 0, `in_trunk` says how to name the layers, and `build` also takes remat=.
      pack: see `family.Family`.

    Raises:
      ValueError: the name belongs to another architecture, or the spec lacks a field or split 1.
    """
    if missing := [name for name in ("arch", "splits", "image_size") if not hasattr(spec, name)]:
        raise ValueError(f"{spec}: must have {', '.join(missing)}")
    if 1 not in spec.splits:
        raise ValueError(
            f"arch={spec.arch!r}: splits={spec.splits} must include 1, the undivided network"
        )
    key = f"own/{spec.arch}"  # the prefix keeps it apart from a family of the same name
    # A notebook cell that runs again registers its architecture again.
    if key not in FAMILIES and _find(spec.arch) is not None:
        raise ValueError(f"arch={spec.arch!r}: another architecture has this name already")
    its = Family({spec.arch: spec}, divide, build, num_stages=lambda _: num_stages, pack=pack)
    FAMILIES[key] = its


def names() -> list[str]:
    """The names of all architectures, and the patterns that stand for many names."""
    return [
        name for family in FAMILIES.values() for name in (*family.specs, family.pattern) if name
    ]


def divided(arch: str, num_networks: int) -> Spec:
    """The Spec of one of the S networks that replace `arch`.

    Raises:
      ConfigError: the architecture is unknown or cannot be divided into S networks.
    """
    family, spec = known(arch)
    if num_networks not in spec.splits:
        splits = ", ".join(map(str, spec.splits))
        raise ConfigError(f"split={num_networks}: {arch} can be divided into {splits}")
    return family.divide(spec, num_networks)


def with_rates(spec: Any, divided_in: int, rates: Mapping[str, float]) -> Any:
    """A Spec with other `RATES`, given for the undivided network: each divided by sqrt(S).

    Raises:
      ConfigError: the architecture has no such rate.
    """
    if isinstance(spec, subgroups.Member):
        return dataclasses.replace(spec, spec=with_rates(spec.spec, divided_in, rates))
    for name, rate in rates.items():
        if not hasattr(spec, name):
            raise ConfigError(f"{name}={rate}: must be 'paper' with {spec.arch}, which has none")
    return dataclasses.replace(spec, **{n: x / divided_in**0.5 for n, x in rates.items()})


def without_rates(spec: Any) -> Any:
    """A Spec without `RATES`, to compare what networks compute in evaluation."""
    plain = subgroups.plain(spec)
    return with_rates(spec, 1, {name: 0.0 for name in RATES if hasattr(plain, name)})


def packed(arch: str, factor: float, *, gamma: int = 1, least: int = 64) -> Spec:
    """The Spec of one member of a Packed-Ensemble (arXiv 2210.09184).

    Args:
      arch: the undivided network.
      factor: channels of a member over those of `arch`: alpha / M in the paper.
      gamma: groups of channels within a member's convolutions.
      least: input channels of such a group at least; see `subgroups.Subgroups`.

    Raises:
      ConfigError: the architecture is unknown or cannot be packed.
    """
    family, spec = known(arch)
    if family.pack is None:
        raise ConfigError(f"arch={arch!r}: cannot be packed; its family has no rule for it")
    member = family.pack(spec, factor)
    if gamma == 1:
        return member
    return subgroups.Member(member, subgroups.Subgroups(gamma, least, family.whole(spec)))


def build(
    spec: Spec,
    num_classes: int,
    *,
    axis_name: str | None = None,
    dtype: DTypeLike | None = None,
    remat: tuple[str, ...] = (),
) -> nn.Module:
    """The Linen module of a Spec: images float[B, H, W, C] -> (logits float[B, K], features).

    `remat`: stages to recompute, from `remat_stages`. A family without stages never gets it.
    """
    family, _ = known(spec.arch)
    fields: ModuleFields = {"axis_name": axis_name, "dtype": dtype}
    if remat:
        fields["remat"] = remat
    module = family.build(subgroups.plain(spec), num_classes, **fields)
    if isinstance(spec, subgroups.Member):
        module = subgroups.applied(module, spec.subgroups)
    return module


def _stages(spec: Spec) -> tuple[str, ...]:
    family, _ = known(spec.arch)
    return tuple(f"stage{i + 1}" for i in range(family.num_stages(subgroups.plain(spec))))


def remat_stages(spec: Spec, text: str) -> tuple[str, ...]:
    """Names of the stages to recompute, from `text`: '' (none), 'all', or such as 'stage1,stage2'.

    Raises:
      ConfigError: `text` has another form or names a stage that the architecture does not have.
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
            f"remat={text!r}: must be '', 'all' or stages of {spec.arch}, separated by commas: "
            f"{', '.join(stages)}"
        )
    return tuple(stage for stage in stages if stage in chosen)


def trunk_stage(spec: Spec, text: str, *, default: str = "none") -> str:
    """The last stage that networks of a Spec share, or '' if they share none.

    Args:
      spec: Spec of each network.
      text: 'none', a stage such as 'stage1', or '', which means `default`.
      default: 'none' or 'all but the last' (stage).

    Raises:
      ConfigError: `text` is no stage, the architecture has no stages, or it has only one and
        networks should share all but the last.
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
    """Whether a top-level layer of a backbone comes before the end of a stage.

    The names say so: `stem...`, `stage<k>_...`, and `stage<k>_transition` for a layer between stage
    k and the next. A layer with any other name comes after the last stage.
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
    """(family, undivided Spec) of an architecture's name.

    Raises:
      ConfigError: the name is unknown; the message lists the three nearest names.
    """
    if (found := _find(arch)) is None:
        near = sorted(names(), key=lambda name: _distance(name, arch))[:3]
        raise ConfigError(f"arch={arch!r}: unknown; nearest are {', '.join(near)}")
    return found


def _distance(name: str, wanted: str) -> tuple[float, bool, float]:
    """Sort key of similar names: by words, then patterns before names, then by numbers."""

    def unlike(a: str, b: str) -> float:
        return -difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()

    def words(text: str) -> str:
        return re.sub(r"\{.*?\}|\d+", "0", text.lower())

    return unlike(words(name), words(wanted)), "{" not in name, unlike(name, wanted)
