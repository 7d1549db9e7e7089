"""Training methods, one file each. Each file makes a `Method` of a stack and ends in its `ENTRY`.

To add a method, write its file, ending in `ENTRY = Entry(...)`, and list it in `METHODS`. A method
outside the package adds itself to `METHODS`: see `docs/extending.md`.
"""

from typing import Any

from jaxsplit.errors import ConfigError
from jaxsplit.losses import LabelLoss
from jaxsplit.methods import (
    batch_ensemble,
    cl_ilr,
    codistill,
    cotrain,
    distill_from,
    dml,
    entry,
    ffsd,
    independent,
    joint,
    kdcl,
    mimo,
    okddip,
    okdph,
    one,
    packed,
    single,
)
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import MEAN, Entry, Single, of_stack
from jaxsplit.stack import Stack

__all__ = [
    "ALONE",
    "MEAN",
    "METHODS",
    "Entry",
    "Method",
    "Pass",
    "Single",
    "check_split",
    "durations",
    "make",
    "of_stack",
    "over_stack",
]

METHODS: dict[str, Entry] = {
    "single": single.ENTRY,
    "independent": independent.ENTRY,
    "cotrain": cotrain.ENTRY,
    "ffsd": ffsd.ENTRY,
    "dml": dml.ENTRY,
    "kdcl": kdcl.ENTRY,
    "one": one.ENTRY,
    "okddip": okddip.ENTRY,
    "cl_ilr": cl_ilr.ENTRY,
    "codistill": codistill.ENTRY,
    "joint": joint.ENTRY,
    "okdph": okdph.ENTRY,
    "distill_from": distill_from.ENTRY,
    "packed": packed.ENTRY,
    "batch_ensemble": batch_ensemble.ENTRY,
    "mimo": mimo.ENTRY,
}

ALONE = "single"  # the method that trains one network alone


def make(config: Any, plan: Any, stack: Stack) -> Method:
    """Makes the method that a config names; `plan` comes from `jaxsplit.durations.plan`.

    Raises:
      ConfigError: the method is unknown or does not allow this number of networks.
      ValueError: the method's answer differs from the one in its Entry.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method={config.method!r}: must be one of {', '.join(METHODS)}")
    check_split(config.method, config.split)
    its = METHODS[config.method]
    loss = LabelLoss(config.label_loss, config.label_smoothing, config.bce_threshold)
    fields = dict(label_loss=loss, ensemble=config.eval.ensemble)
    made = its.make(config, plan, stack, **fields)
    if made.answer != (said := its.answer_of(config.split)):
        raise ValueError(
            f"method={config.method!r}: must answer with {said!r}, as its Entry says, but "
            f"answers with {made.answer!r}"
        )
    return made


def check_split(method: str, num_networks: int) -> None:
    """Raises ConfigError if a method does not allow this number of networks."""
    entry.check_split(method, METHODS[method], num_networks)


def durations() -> tuple[str, ...]:
    """'<method>.<field>' of every method field that is a duration."""
    return tuple(entry.all_durations(METHODS))
