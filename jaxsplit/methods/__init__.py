"""Methods: one file each, a factory that takes a stack and returns a `Method`.

To add one: write its file with `make(stack, ...) -> Method`, and add it to `METHODS`; see README.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsplit.errors import ConfigError
from jaxsplit.losses import distill
from jaxsplit.methods import (
    cl_ilr,
    codistill,
    cotrain,
    dml,
    ffsd,
    independent,
    kdcl,
    okddip,
    one,
    single,
)
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.stack import Stack

__all__ = ["METHODS", "Entry", "Method", "Pass", "check_split", "make", "over_stack"]


class Entry(NamedTuple):
    """A method as `config.method` names it.

    make: (config, plan, stack, label_smoothing=, ensemble=) -> Method.
    views: 'different' or 'same', what the networks see of one image unless `config.views` says.
    trunk: whether the networks share all stages but the last unless `config.trunk` says.
    answer: that of the Method, to be known without networks.
    optimizers: config -> label of `Method.group` -> fields of `config.optim` that differ there.
    """

    make: Callable[..., Method]
    views: str = "same"
    trunk: bool = False
    answer: str = "ensemble"
    optimizers: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda config: {}


def _cotrain(config, plan, stack: Stack, **fields) -> Method:
    return cotrain.make(
        stack,
        loss=config.cotrain.loss,
        distill=distill.make(config.distill, 1.0),
        weight=config.cotrain.weight,
        floor=config.cotrain.floor,
        warmup_steps=plan.cotrain_warmup_steps,
        **fields,
    )


def _distilling(module, temperature: float, own=lambda config: {}):
    """(config, plan, stack, ...) -> Method of a module that takes a `distill.Distill`.

    Args:
      module: has `make(stack, distill=, ...)`.
      temperature: that of its paper.
      own: config -> further arguments of `make`.
    """

    def make(config, plan, stack: Stack, **fields) -> Method:
        loss = distill.make(config.distill, temperature)
        return module.make(stack, distill=loss, **own(config), **fields)

    return make


METHODS: dict[str, Entry] = {
    "single": Entry(
        lambda config, plan, stack, **fields: single.make(stack, **fields), answer="net0"
    ),
    "independent": Entry(
        lambda config, plan, stack, **fields: independent.make(stack, **fields), views="different"
    ),
    "cotrain": Entry(_cotrain, views="different"),
    "ffsd": Entry(ffsd.from_config, answer="leader", optimizers=ffsd.optimizers),
    "dml": Entry(_distilling(dml, 1.0)),
    "kdcl": Entry(
        _distilling(kdcl, 2.0, lambda config: {"teacher": config.kdcl.teacher}), views="different"
    ),
    "one": Entry(_distilling(one, 3.0), trunk=True, answer="gated"),
    "okddip": Entry(
        _distilling(okddip, 3.0, lambda config: {"factor": config.okddip.factor}), answer="leader"
    ),
    "cl_ilr": Entry(
        _distilling(cl_ilr, 2.0, lambda config: {"label_weight": config.cl_ilr.label_weight}),
        trunk=True,
    ),
    "codistill": Entry(
        _distilling(codistill, 1.0, lambda config: {"every": config.codistill.every})
    ),
}


def make(config, plan, stack: Stack) -> Method:
    """The method of a config; `plan` is what `jaxsplit.durations.plan` derived.

    Raises:
      ConfigError: unknown method, or one that cannot be with so many networks.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method={config.method!r}: must be one of {', '.join(METHODS)}")
    check_split(config.method, config.split)
    entry = METHODS[config.method]
    fields = dict(label_smoothing=config.label_smoothing, ensemble=config.eval.ensemble)
    made = entry.make(config, plan, stack, **fields)
    if made.answer != entry.answer:
        raise ValueError(
            f"method {config.method}: answers with {made.answer!r}, its Entry says {entry.answer!r}"
        )
    return made


def check_split(method: str, num_networks: int) -> None:
    """Raises ConfigError where a method cannot be with so many networks."""
    if method == "single" and num_networks != 1:
        raise ConfigError(f"split={num_networks}: must be 1 with method='single'")
    if method != "single" and num_networks == 1:
        raise ConfigError(
            f"split=1: must be 2 or more with method={method!r}; one network is method='single'"
        )
    if method == "okddip" and num_networks < 3:
        raise ConfigError(
            f"split={num_networks}: must be 3 or more with method='okddip', peers and a leader"
        )
