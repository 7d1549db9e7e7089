"""Methods: one file each, a factory that takes a stack and returns a `Method`.

To add one: write its file with `make(stack, ...) -> Method`, and add it to `METHODS`.
"""

from collections.abc import Callable

from jaxsplit.errors import ConfigError
from jaxsplit.methods import cotrain, independent, single
from jaxsplit.methods.base import Method
from jaxsplit.stack import Stack

__all__ = ["METHODS", "Method", "check_split", "make"]

# name -> (config, plan, common fields, stack) -> Method
METHODS: dict[str, Callable[..., Method]] = {
    "single": lambda config, plan, stack, **fields: single.make(stack, **fields),
    "independent": lambda config, plan, stack, **fields: independent.make(stack, **fields),
    "cotrain": lambda config, plan, stack, **fields: cotrain.make(
        stack,
        loss=config.cotrain.loss,
        weight=config.cotrain.weight,
        floor=config.cotrain.floor,
        warmup_steps=plan.cotrain_warmup_steps,
        **fields,
    ),
}


def make(config, plan, stack: Stack) -> Method:
    """The method of a config; `plan` is what `jaxsplit.config.plan` derived.

    Raises:
      ConfigError: unknown method, or one that cannot be with so many networks.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method={config.method!r}: must be one of {', '.join(METHODS)}")
    check_split(config.method, config.split)
    return METHODS[config.method](
        config,
        plan,
        stack,
        label_smoothing=config.label_smoothing,
        ensemble=config.eval.ensemble,
    )


def check_split(method: str, num_networks: int) -> None:
    """Raises ConfigError where a method cannot be with so many networks."""
    if method == "single" and num_networks != 1:
        raise ConfigError(f"split={num_networks}: must be 1 with method='single'")
    if method != "single" and num_networks == 1:
        raise ConfigError(f"split=1: must be 2 or more with method={method!r}")
