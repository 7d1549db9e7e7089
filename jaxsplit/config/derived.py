"""What follows from a config: its networks, views, trunk and the metric of `best`."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import methods, models
from jaxsplit.errors import ConfigError

PAPER = "paper"  # value of a field: as in the method's paper


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a config stands for, worked out once; no data and no device is needed for it."""

    entry: methods.Entry
    """Of the method."""
    num_networks: int
    """S."""
    divided_in: int
    """In how many networks `arch` is divided; 1: not at all."""
    spec: Any
    """Of one of the networks."""
    trunk: str
    """The last stage that the networks share; '' where they share none."""
    shared_view: bool
    """Whether all networks see one view of an image."""
    best_metric: str
    """What makes a checkpoint the best one: top-1 of the answer, on held-out data if there is."""

    @property
    def num_views(self) -> int:
        """Of every image."""
        return 1 if self.shared_view else self.num_networks


def resolve(config: ConfigDict) -> Resolved:
    """Everything that follows from a config alone; the config stays as it is.

    Raises:
      ConfigError: an unknown method or architecture, one that is not divided in that many, no such
        stage, or none where the method needs one.
    """
    if config.method not in methods.METHODS:
        names = ", ".join(methods.METHODS)
        raise ConfigError(f"method={config.method!r}: must be one of {names}")
    entry = methods.METHODS[config.method]
    of_one = spec(config)
    # A config that was not checked may have '', which meant PAPER.
    views = entry.views if config.views in ("", PAPER) else config.views
    text = "" if config.trunk == PAPER else config.trunk
    try:
        default = "none" if entry.trunk == "none" else "all but the last"
        stage = models.trunk_stage(of_one, text, default=default)
    except ConfigError as error:
        named = str(error).replace("trunk='':", f"trunk={config.trunk!r}:")
        raise ConfigError(named) from None
    if entry.trunk == "needed" and not stage:
        raise ConfigError(f"trunk={config.trunk!r}: must be a stage with method={config.method!r}")
    split = "validation" if config.data.validation else "test"
    return Resolved(
        entry=entry,
        num_networks=config.split,
        divided_in=divided_in(config),
        spec=of_one,
        trunk=stage,
        shared_view=config.split == 1 or views == "same",
        best_metric=f"{split}/{entry.answer}/top1",
    )


def spec(config: ConfigDict) -> Any:
    """The Spec of one of the networks, of a config for which there is no Experiment.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    return models.divided(config.arch, divided_in(config))


def divided_in(config: ConfigDict) -> int:
    """In how many networks `arch` is divided; 1: not at all."""
    return (config.divide_in or config.split) if config.divide else 1


def shared_view(config: ConfigDict) -> bool:
    """Whether all networks see one view of an image."""
    return resolve(config).shared_view


def trunk(config: ConfigDict) -> str:
    """The last stage that the networks share; see `resolve`."""
    return resolve(config).trunk


def best_metric(config: ConfigDict) -> str:
    """What makes a checkpoint the best one; see `Resolved`."""
    return resolve(config).best_metric
