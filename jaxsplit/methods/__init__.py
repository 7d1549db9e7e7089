"""Methods: one file each, which makes a `Method` of a stack and ends in its `ENTRY`.

To add one: write its file, ending in `ENTRY = Entry(...)`, and list it in `METHODS`. A method of
one's own outside the package adds itself: see `docs/extending.md`.
"""

from typing import Any

from jaxsplit.errors import ConfigError
from jaxsplit.methods import (
    cl_ilr,
    codistill,
    cotrain,
    dml,
    entry,
    ffsd,
    independent,
    kdcl,
    okddip,
    one,
    single,
)
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, Single, of_stack
from jaxsplit.stack import Stack

__all__ = [
    "ALONE",
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
}

ALONE = "single"  # the method of one network


def make(config: Any, plan: Any, stack: Stack) -> Method:
    """The method of a config; `plan` is what `jaxsplit.durations.plan` derived.

    Raises:
      ConfigError: unknown method, or one that cannot be with so many networks.
    """
    if config.method not in METHODS:
        raise ConfigError(f"method={config.method!r}: must be one of {', '.join(METHODS)}")
    check_split(config.method, config.split)
    its = METHODS[config.method]
    fields = dict(label_smoothing=config.label_smoothing, ensemble=config.eval.ensemble)
    made = its.make(config, plan, stack, **fields)
    if made.answer != its.answer:
        raise ValueError(
            f"method {config.method}: answers with {made.answer!r}, its Entry says {its.answer!r}"
        )
    return made


def check_split(method: str, num_networks: int) -> None:
    """Raises ConfigError where a method cannot be with so many networks."""
    entry.check_split(method, METHODS[method], num_networks)


def durations() -> tuple[str, ...]:
    """'<method>.<field>' of the fields of all methods that are durations."""
    return tuple(entry.all_durations(METHODS))
