"""Methods: one file each, a factory that takes a stack and returns a `Method`.

To add one: write its file with `make(stack, ...) -> Method`, and add it to `METHODS`; see README.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsplit.errors import ConfigError
from jaxsplit.methods import cotrain, independent, single
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.stack import Stack

__all__ = ["METHODS", "Entry", "Method", "Pass", "check_split", "make", "over_stack"]


class Entry(NamedTuple):
    """A method as `config.method` names it.

    make: (config, plan, stack, label_smoothing=, ensemble=) -> Method.
    views: 'different' or 'same', what the networks see of one image unless `config.views` says.
    trunk: whether the networks share all stages but the last unless `config.trunk` says.
    optimizers: config -> label of `Method.group` -> fields of `config.optim` that differ there.
    """

    make: Callable[..., Method]
    views: str = "same"
    trunk: bool = False
    optimizers: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda config: {}


def _cotrain(config, plan, stack: Stack, **fields) -> Method:
    return cotrain.make(
        stack,
        loss=config.cotrain.loss,
        weight=config.cotrain.weight,
        floor=config.cotrain.floor,
        warmup_steps=plan.cotrain_warmup_steps,
        **fields,
    )


METHODS: dict[str, Entry] = {
    "single": Entry(lambda config, plan, stack, **fields: single.make(stack, **fields)),
    "independent": Entry(
        lambda config, plan, stack, **fields: independent.make(stack, **fields), views="different"
    ),
    "cotrain": Entry(_cotrain, views="different"),
}


def make(config, plan, stack: Stack) -> Method:
    """The method of a config; `plan` is what `jaxsplit.durations.plan` derived.

    Raises:
      ConfigError: unknown method, or one that cannot be with so many networks.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method={config.method!r}: must be one of {', '.join(METHODS)}")
    check_split(config.method, config.split)
    return METHODS[config.method].make(
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
