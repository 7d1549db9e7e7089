"""The grid of a comparison: the flags that describe it, and the runs that it stands for.

A group is a method at a number of networks S and at one value of every axis; a run is a group at a
seed. The runs differ from the base config in their `overrides` alone.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import methods, values
from jaxsplit.compare import names
from jaxsplit.config import division
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError


def teacher_field(method: str) -> str:
    """The field with the workdir of a method's fixed teacher; '': it has none."""
    names = methods.METHODS[method].teacher
    return f"{method}.{names[0]}" if names else ""


def teacher_fields() -> tuple[str, ...]:
    """`teacher_field` of all methods that learn from a finished run."""
    return tuple(field for method in methods.METHODS if (field := teacher_field(method)))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of a group.

    params: parameters of what is deployed.
    macs: multiply-adds of one image there.
    train_macs: multiply-adds of one image's forward pass through everything that trains.
    answer_macs: multiply-adds of one image of the method's answer, where that is more than what is
      deployed: all networks of DML answer, one is deployed. 0: it is not more.
    """

    params: int
    macs: int
    train_macs: int
    answer_macs: int = 0

    @property
    def taught(self) -> int:
        """Multiply-adds of one image of what a run of these costs teaches others."""
        return self.answer_macs or self.macs


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the flags ask for.

    axes: field of the config -> its values.
    teacher: (method, S) of the runs that teach others; None: chosen by `_teacher`.
    """

    methods: tuple[str, ...]
    splits: tuple[int, ...]
    seeds: tuple[int, ...]
    axes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    teacher: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """A method at a number of networks and at one value of every axis that applies to it.

    overrides: field -> value, of the fields that differ from the base config, without the seed.
    teacher: the name of the group whose run of the same seed is the teacher; '': none.
    """

    name: str
    method: str
    split: int
    axes: Mapping[str, Any]
    overrides: Mapping[str, Any]
    teacher: str = ""
    cost: Cost = Cost(0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Run:
    """A group at a seed.

    overrides: field -> value, of all fields that differ from the base config.
    teacher: the name of the run that is the teacher; '': none.
    """

    name: str
    group: Group
    seed: int
    overrides: Mapping[str, Any]
    config: ConfigDict
    teacher: str = ""

    @property
    def answer(self) -> str:
        """The answer that the comparison scores, such as 'ensemble'."""
        return config_lib.resolve(self.config).entry.deployed

    @property
    def flags(self) -> list[str]:
        """The overrides as flags of `jaxsplit train`."""
        return [f"--config.{field}={value}" for field, value in self.overrides.items()]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A combination that is not run, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a grid in the order in which they start, and what is left out."""

    grid: Grid
    groups: tuple[Group, ...]
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


def changed(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with these fields.

    Raises:
      ConfigError: a field has a wrong type.
    """
    made = values.copy(config)
    for field, value in overrides.items():
        try:
            made.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError):
            config_lib.check_field(field, value)
            raise ConfigError(f"{field}={value!r}: has a wrong type") from None
    return made


def plan(
    config: ConfigDict,
    grid: Grid,
    cost: Callable[[ConfigDict], Cost],
    path: Callable[[str], str] = lambda name: name,
    known: Mapping[str, Cost] | None = None,
) -> Plan:
    """The runs of a grid.

    Args:
      config: the base config.
      grid: what is asked for.
      cost: counts the costs of a config; of one that learns from a run, without its teacher.
      path: name of a run -> its workdir.
      known: name of a group -> its costs, where they have been counted before.

    Raises:
      ConfigError: no run is left (says why the first one is left out), or no method reads an axis.
    """
    for field in grid.axes:
        if not any(_applies(field, method) for method in grid.methods):
            raise ConfigError(
                f"compare.axis={field!r}: must be read by a method of the grid "
                f"({', '.join(grid.methods)})"
            )
    left_out: list[LeftOut] = []
    groups: list[Group] = []
    wanted = sorted(_groups(config, grid), key=lambda group: bool(teacher_field(group.method)))
    for group in wanted:  # those that are taught come last
        try:
            counted = (known or {}).get(group.name)
            groups.append(_checked(config, grid, group, groups, cost, counted))
        except ConfigError as error:
            left_out.append(LeftOut(group.name, str(error)))
    if not groups:
        first = f": {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        raise ConfigError(f"compare: no run is left{first}")
    runs = [_run(config, group, seed, path) for seed in grid.seeds for group in groups]
    return Plan(grid, tuple(groups), tuple(runs), tuple(left_out))


def _groups(config: ConfigDict, grid: Grid) -> Iterator[Group]:
    """All combinations of methods, numbers of networks and axes that could make sense."""
    for method in grid.methods:
        entry = methods.METHODS[method]
        axes = {f: v for f, v in grid.axes.items() if _applies(f, method)}
        # One network has one place in the grid, whatever numbers are asked for.
        alone = bool(entry.teacher) or entry.most == 1
        for split in (1,) if alone else grid.splits:
            fixed = {"method": method, "split": split, "divide": split > 1 and not entry.whole}
            fixed |= {"divide_in": 0} if config.divide_in else {}
            for combination in itertools.product(*axes.values()):
                chosen = dict(zip(axes, combination, strict=True))
                name = names.of_group(method, split, chosen)
                yield Group(name, method, split, chosen, fixed | chosen)


def _applies(field: str, method: str) -> bool:
    """Whether an axis is of a method: other methods do not read each other's fields."""
    owner = field.partition(".")[0]
    return owner == method or owner not in methods.METHODS


def _checked(
    config: ConfigDict,
    grid: Grid,
    group: Group,
    before: list[Group],
    cost: Callable[[ConfigDict], Cost],
    counted: Cost | None,
) -> Group:
    """The group with its teacher and its costs.

    Raises:
      ConfigError: it cannot be run.
    """
    methods.check_split(group.method, group.split)
    field = teacher_field(group.method)
    given = field and (group.overrides.get(field) or dict(config_lib.flat(config))[field])
    teacher = _teacher(config, grid, before, group) if field and not given else None
    lessons = {field: "not trained yet"} if teacher is not None else {}
    its = config_lib.check(changed(config, {**group.overrides, **lessons}))
    known = facts.of_config(its.data)
    fields = dict(num_classes=known.num_classes, image_shape=known.image_shape)
    division.check(its, **fields)
    if counted is None:
        counted, more = cost(its), 0
        if teacher is not None:  # it answers every training image
            more = teacher.cost.taught
        elif given:
            more = cost(config_lib.load(given)).taught
        counted = dataclasses.replace(counted, train_macs=counted.train_macs + more)
    return dataclasses.replace(group, cost=counted, teacher=teacher.name if teacher else "")


def _teacher(config: ConfigDict, grid: Grid, before: list[Group], group: Group) -> Group:
    """The group that teaches: that of `grid.teacher`, else divided networks, as many as there are.

    The base config's own method goes before the others of the grid. Teacher and pupil have the same
    values of the axes that both have. Of an axis that the teacher alone has, it has the base
    config's value.

    Raises:
      ConfigError: there is none in the grid, or there are several.
    """
    alike = [
        g for g in before if all(group.axes.get(f, value) == value for f, value in g.axes.items())
    ]
    if grid.teacher is not None:
        method, split = grid.teacher
        name = f"compare.teacher={f'{method}:{split}'!r}"
        found = [g for g in alike if (g.method, g.split) == (method, split)]
        if not found:
            there = ", ".join(dict.fromkeys(f"{g.method}:{g.split}" for g in alike)) or "none"
            raise ConfigError(f"{name}: must be in the grid, which has {there}")
    else:
        divided = [g for g in alike if g.split > 1 and not methods.METHODS[g.method].whole]
        own = [g for g in divided if g.method == config.method] or divided
        name = f"{teacher_field(group.method)}=''"
        if not own:
            raise ConfigError(
                f"{name}: must be a workdir, or divided networks must be in the grid, or "
                "--compare.teacher=METHOD:SPLIT"
            )
        best = max(own, key=lambda g: g.split)
        found = [g for g in own if (g.method, g.split) == (best.method, best.split)]
    wanted = {**dict(config_lib.flat(config)), **group.axes}
    usual = [g for g in found if all(wanted[f] == v for f, v in g.axes.items())]
    if len(found) > 1 and len(usual) != 1:
        many = ", ".join(g.name for g in found)
        raise ConfigError(
            f"{name}: several could teach ({many}); the axis must hold the value of the config, "
            "which is the teacher's"
        )
    return (usual or found)[0]


def _run(config: ConfigDict, group: Group, seed: int, path: Callable[[str], str]) -> Run:
    """The run of a group at a seed."""
    overrides = {**group.overrides, "seed": seed}
    teacher = names.of_run(group.teacher, seed) if group.teacher else ""
    if teacher:
        overrides[teacher_field(group.method)] = path(teacher)
    name = names.of_run(group.name, seed)
    return Run(name, group, seed, overrides, changed(config, overrides), teacher)
