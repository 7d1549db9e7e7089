"""What follows from a config: its networks, views, trunk and the metric of `best`."""

from ml_collections import ConfigDict

from jaxsplit import methods, models
from jaxsplit.errors import ConfigError


def spec(config: ConfigDict):
    """The Spec of one of the networks that a config trains: `arch` divided, or whole.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    return models.divided(config.arch, divided_in(config))


def divided_in(config: ConfigDict) -> int:
    """In how many networks `arch` is divided; 1: not at all."""
    return (config.divide_in or config.split) if config.divide else 1


def shared_view(config: ConfigDict) -> bool:
    """Whether all networks see one view of an image."""
    views = config.views or methods.METHODS[config.method].views
    return config.split == 1 or views == "same"


def trunk(config: ConfigDict) -> str:
    """The last stage that the networks share; '' where they share none.

    Raises:
      ConfigError: no such stage, or none where the method needs one.
    """
    default = methods.METHODS[config.method].trunk
    stage = models.trunk_stage(spec(config), config.trunk, default=default)
    if config.method == "one" and not stage:
        raise ConfigError(f"trunk={config.trunk!r}: must be a stage with method='one'")
    return stage


def best_metric(config: ConfigDict) -> str:
    """What makes a checkpoint the best one: accuracy of the method's answer, held out if can be."""
    split = "validation" if config.data.validation else "test"
    return f"{split}/{methods.METHODS[config.method].answer}/top1"
