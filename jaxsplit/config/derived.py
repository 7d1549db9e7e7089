"""What follows from a config alone: networks, views, trunk, metric of the best checkpoint."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import methods, models, stack
from jaxsplit.errors import ConfigError

PAPER = "paper"  # the value of a field that means: as in the method's paper


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a config means, worked out once, without data and devices."""

    entry: methods.Entry
    """The facts of the method."""
    num_networks: int
    """S: the number of networks that are trained, each with `heads` inputs and outputs."""
    heads: int
    """The number of images that a network sees side by side, and of its outputs."""
    divided_in: int
    """The number of small networks that replace `arch`; 1: the networks are whole."""
    spec: Any
    """The Spec of one network."""
    trunk: str
    """The last stage that the networks share; '': they share none."""
    tying: stack.Tying
    """What the networks share besides."""
    shared_view: bool
    """Whether all networks see the same view of an image."""
    best_metric: str
    """Metric that selects the best checkpoint: the answer's top-1, on validation data if any."""

    @property
    def unrolls(self) -> bool:
        """Whether the lowering 'unrolled' differs from 'dense'."""
        return not (self.trunk or self.tying.joint_norm)

    @property
    def num_views(self) -> int:
        """Number of views of each image."""
        return 1 if self.shared_view else self.num_networks


def resolve(config: ConfigDict) -> Resolved:
    """Everything that follows from a config alone. The config is not changed.

    Raises:
      ConfigError: the method or architecture is unknown, the architecture has no division into so
        many networks or no rate that is given, the stage of `trunk` is unknown, or the method needs
        a trunk and has none, or has one and cannot.
    """
    if config.method not in methods.METHODS:
        names = ", ".join(methods.METHODS)
        raise ConfigError(f"method={config.method!r}: must be one of {names}")
    entry = methods.METHODS[config.method]
    entry = dataclasses.replace(entry, answer=entry.answer_of(config.split))
    heads = entry.heads(config)
    networks = config.split // heads
    parts = (config.divide_in or networks) if config.divide else 1
    make = entry.spec or (lambda config, parts: models.divided(config.arch, parts))
    rates = {field: config[field] for field in models.RATES if config[field] != PAPER}
    of_one = models.with_rates(make(config, parts), parts, rates)
    # An unchecked config may still have '', the old value that means PAPER.
    views = entry.views if config.views in ("", PAPER) else config.views
    text = "" if config.trunk == PAPER else config.trunk
    try:
        default = "none" if entry.trunk in ("none", "never") else "all but the last"
        stage = models.trunk_stage(of_one, text, default=default)
    except ConfigError as error:
        named = str(error).replace("trunk='':", f"trunk={config.trunk!r}:")
        raise ConfigError(named) from None
    if entry.trunk == "needed" and not stage:
        raise ConfigError(f"trunk={config.trunk!r}: must be a stage with method={config.method!r}")
    if entry.trunk == "never" and stage:
        raise ConfigError(f"trunk={config.trunk!r}: must be none with method={config.method!r}")
    split = "validation" if config.data.validation else "test"
    return Resolved(
        entry=entry,
        num_networks=networks,
        heads=heads,
        divided_in=parts,
        spec=of_one,
        trunk=stage,
        tying=entry.tying(config),
        shared_view=networks == 1 or views == "same",
        best_metric=f"{split}/{entry.answer}/top1",
    )
