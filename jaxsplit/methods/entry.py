"""What a method declares about itself, so that no other file has to name it."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxsplit.costs import Networks
from jaxsplit.errors import ConfigError
from jaxsplit.losses import distill
from jaxsplit.methods.base import Method
from jaxsplit.section import Section
from jaxsplit.stack import NOTHING, Stack, Tying

VIEWS = ("different", "same")
Curve = Callable[[np.ndarray], Any]  # steps int[N] -> float[N]
MEAN = "mean"  # as a part of the variables: the mean over the networks of the stack
TRUNKS = ("none", "all but the last", "needed", "never")


@dataclasses.dataclass(frozen=True)
class Single:
    """Where the variables of one network are, and the config that describes this network alone."""

    part: str = "stack"
    """Part of the variables; 'stack' means network `index` of the stack, with the trunk, and `MEAN`
    the mean of the stack's variables, with the trunk."""
    index: int = 0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Config field -> value for the network alone, besides the changes that all methods share."""


def of_stack(config: Any) -> dict[str, Single]:
    """The networks of the stack, which every method has, as net0, net1 ..."""
    return {f"net{i}": Single(index=i) for i in range(config.split)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method that `config.method` can name; only `make` has no default.

    In the functions below `config` is the whole ConfigDict and `plan` comes from `durations.plan`.

    Raises:
      ConfigError: `views` or `trunk` is unknown, or a name in `durations` or `fixed` is no field.
    """

    make: Callable[..., Method]
    """(config, plan, stack, label_loss=, ensemble=) -> Method."""
    views: str = "same"
    """With `config.views` 'paper', whether networks see different views: different | same."""
    trunk: str = "none"
    """The stages that networks share with `config.trunk` 'paper': none | all but the last | needed
    (all but the last; the method cannot do without a trunk) | never (none; it cannot have one)."""
    spec: Callable[[Any, int], Any] | None = None
    """(config, number of networks that replace `arch`) -> Spec of one network; None: the division
    of `arch`."""
    tying: Callable[[Any], Tying] = lambda config: NOTHING
    """config -> what networks share besides a trunk."""
    heads: Callable[[Any], int] = lambda config: 1
    """config -> how many of the `config.split` networks are one, which sees as many images side by
    side and has as many outputs; must divide `config.split`."""
    answer: str = "ensemble"
    """Equal to `Method.answer`, but known before a Method is made; see `answer_of`."""
    teacher: tuple[str, ...] = ()
    """Names of two of `fields`: the workdir of a fixed teacher, and its checkpoint; (): none."""
    kept: str = ""
    """The one network that is deployed after training, such as 'net0'; '': the answer is."""
    labels_only: bool = False
    """Whether all losses are `label_loss`, so that none weighs more beside a smaller one."""
    whole: bool = False
    """Whether a comparison at equal cost trains whole networks, not divided ones: one of them is
    deployed, or all together cost about as much as one."""
    optimizers: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda config: {}
    """config -> {label of `Method.group`: the fields of `config.optim` that differ there}."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `config.<method>`: name -> default."""
    check: Callable[[Section], None] = lambda section: None
    """Raises ConfigError for a wrong value of `fields`, which the Section holds."""
    durations: tuple[str, ...] = ()
    """Names of fields that are durations, such as '5 epochs'. The plan has them in steps, as
    `plan.method_steps['<method>.<field>']`."""
    fixed: tuple[str, ...] = ()
    """Names of fields that shape the arrays, so that a resumed run cannot change them."""

    least: int = 2
    """Least number of networks."""
    most: int | None = None
    """Greatest number of networks; None: no limit."""
    why: str = "; one network is method='single'"
    """End of the message that refuses fewer than `least` networks."""
    networks: Callable[[Any], Mapping[str, Single]] = of_stack
    """config -> {name: a single network that can be extracted from a run}."""

    costs: Callable[[Networks], Mapping[str, tuple[int, int]]] = lambda networks: {}
    """networks -> {answer: (parameters, multiply-adds)}, where these are not all networks' sums."""
    curves: Callable[[Any, Any], Mapping[str, Curve]] = lambda config, plan: {}
    """(config, plan) -> {title: curve}; the curves are drawn beside the learning rate."""
    advice: Callable[[Any, Any], Iterable[str]] = lambda config, plan: ()
    """(config, plan) -> a line for each of `fields` that does not have its intended effect."""
    as_published: Callable[[Any], bool] = lambda config: (
        config.divide and config.divide_in in (0, config.split)
    )
    """config -> whether published results of the architecture are of networks like these."""

    @property
    def deployed(self) -> str:
        """The answer that is deployed after training, and that a comparison scores and counts."""
        return self.kept or self.answer

    def __post_init__(self) -> None:
        for field, value, allowed in (("views", self.views, VIEWS), ("trunk", self.trunk, TRUNKS)):
            if value not in allowed:
                raise ConfigError(f"Entry: {field}={value!r}: must be one of {', '.join(allowed)}")
        for field in (*self.durations, *self.fixed, *self.teacher):
            if field not in self.fields:
                has = ", ".join(self.fields) or "none"
                raise ConfigError(f"Entry: {field!r}: must be one of its fields, which are {has}")

    def answer_of(self, num_networks: int) -> str:
        """`answer`, or, if that is the ensemble of one network, this network."""
        return "net0" if num_networks == 1 and self.answer == "ensemble" else self.answer


def distilling(
    make: Callable[..., Method],
    temperature: float,
    own: Callable[[Any], Mapping[str, Any]] = lambda config: {},
) -> Callable[..., Method]:
    """The `Entry.make` of a method whose own `make` takes a `distill.Distill`.

    Args:
      make: (stack, distill=, ...) -> Method.
      temperature: the temperature in the method's paper.
      own: config -> further arguments of `make`.
    """

    def of_config(config: Any, plan: Any, stack: Stack, **fields: Any) -> Method:
        loss = distill.make(config.distill, temperature)
        return make(stack, distill=loss, **own(config), **fields)

    return of_config


def check_split(name: str, entry: Entry, num_networks: int) -> None:
    """Raises ConfigError if a method does not allow this number of networks."""
    if entry.most is not None and num_networks > entry.most:
        allowed = entry.most if entry.most == entry.least else f"at most {entry.most}"
        raise ConfigError(f"split={num_networks}: must be {allowed} with method={name!r}")
    if num_networks < entry.least:
        raise ConfigError(
            f"split={num_networks}: must be {entry.least} or more with method={name!r}{entry.why}"
        )


def all_durations(entries: Mapping[str, Entry]) -> Iterator[str]:
    """'<method>.<field>' of every method field that is a duration."""
    for name, entry in entries.items():
        yield from (f"{name}.{field}" for field in entry.durations)
