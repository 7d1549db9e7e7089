"""What a method says of itself, so that nothing outside its file has to name it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxsplit.costs import Networks
from jaxsplit.errors import ConfigError
from jaxsplit.losses import distill
from jaxsplit.methods.base import Method
from jaxsplit.section import Section
from jaxsplit.stack import Stack

VIEWS = ("different", "same")
Curve = Callable[[np.ndarray], Any]  # steps int[N] -> float[N]
TRUNKS = ("none", "all but the last", "needed")


@dataclasses.dataclass(frozen=True)
class Single:
    """Where the variables of one network lie, and what the config of it alone changes."""

    part: str = "stack"
    """Of the variables; 'stack': the network at `index` of the stack, with its trunk."""
    index: int = 0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Field -> value in the config of the network alone, besides what all methods change."""


def of_stack(config: Any) -> dict[str, Single]:
    """net0, net1 ...: the networks of the stack, which every method has."""
    return {f"net{i}": Single(index=i) for i in range(config.split)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method as `config.method` names it; only `make` has no default.

    `config` is the whole ConfigDict, `plan` what `durations.plan` derived from it.

    Raises:
      ConfigError: an unknown value of `views` or `trunk`, or a duration that is no field.
    """

    make: Callable[..., Method]
    """(config, plan, stack, label_smoothing=, ensemble=) -> Method."""
    views: str = "same"
    """What the networks see of an image where `config.views` is 'paper': different | same."""
    trunk: str = "none"
    """The stages that they share where `config.trunk` is 'paper': none | all but the last |
    needed (all but the last, and the method is refused without a trunk)."""
    answer: str = "ensemble"
    """That of the Method, to be known without networks."""
    optimizers: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda config: {}
    """config -> label of `Method.group` -> fields of `config.optim` that differ there."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name -> default of the fields of `config.<method>`."""
    check: Callable[[Section], None] = lambda section: None
    """Raises ConfigError for a wrong value; the Section is of `fields`."""
    durations: tuple[str, ...] = ()
    """The fields that are durations, such as '5 epochs'; `plan.method_steps['<method>.<field>']`
    has them in steps."""
    fixed: tuple[str, ...] = ()
    """The fields that arrays depend on: they cannot change when a run is resumed."""

    least: int = 2
    """Networks that it needs."""
    most: int | None = None
    """Networks that it can have; None: any number."""
    why: str = "; one network is method='single'"
    """Ends the sentence that refuses fewer than `least`."""
    networks: Callable[[Any], Mapping[str, Single]] = of_stack
    """config -> name -> a single network that can be taken from a run."""

    costs: Callable[[Networks], Mapping[str, tuple[int, int]]] = lambda networks: {}
    """Answer -> (parameters, multiply-adds), where it is not those of all networks."""
    curves: Callable[[Any, Any], Mapping[str, Curve]] = lambda config, plan: {}
    """(config, plan) -> title -> curve, drawn with the learning rate."""
    advice: Callable[[Any, Any], Iterable[str]] = lambda config, plan: ()
    """(config, plan) -> a line for each own field that does not do what it is there for."""
    as_published: Callable[[Any], bool] = lambda config: (
        config.divide and config.divide_in in (0, config.split)
    )
    """config -> whether its networks are those of published results of the same architecture."""

    def __post_init__(self) -> None:
        for field, value, allowed in (("views", self.views, VIEWS), ("trunk", self.trunk, TRUNKS)):
            if value not in allowed:
                raise ConfigError(f"Entry: {field}={value!r}: must be one of {', '.join(allowed)}")
        for field in (*self.durations, *self.fixed):
            if field not in self.fields:
                has = ", ".join(self.fields) or "none"
                raise ConfigError(f"Entry: {field!r}: must be one of its fields, which are {has}")


def distilling(
    make: Callable[..., Method],
    temperature: float,
    own: Callable[[Any], Mapping[str, Any]] = lambda config: {},
) -> Callable[..., Method]:
    """The `make` of an Entry, from one that takes a `distill.Distill`.

    Args:
      make: (stack, distill=, ...) -> Method.
      temperature: that of its paper.
      own: config -> further arguments of `make`.
    """

    def of_config(config: Any, plan: Any, stack: Stack, **fields: Any) -> Method:
        loss = distill.make(config.distill, temperature)
        return make(stack, distill=loss, **own(config), **fields)

    return of_config


def check_split(name: str, entry: Entry, num_networks: int) -> None:
    """Raises ConfigError where a method cannot have so many networks."""
    if entry.most is not None and num_networks > entry.most:
        allowed = entry.most if entry.most == entry.least else f"at most {entry.most}"
        raise ConfigError(f"split={num_networks}: must be {allowed} with method={name!r}")
    if num_networks < entry.least:
        raise ConfigError(
            f"split={num_networks}: must be {entry.least} or more with method={name!r}{entry.why}"
        )


def all_durations(entries: Mapping[str, Entry]) -> Iterator[str]:
    """'<method>.<field>' of the fields of all methods that are durations."""
    for name, entry in entries.items():
        yield from (f"{name}.{field}" for field in entry.durations)
