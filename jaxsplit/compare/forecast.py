"""The table of `--dry-run`: runs, their costs, their time, and what is left out."""

import dataclasses
import time
from collections.abc import Callable, Mapping

from jaxsplit.compare.grid import Group, Plan
from jaxsplit.durations import in_words
from jaxsplit.errors import ConfigError

PATIENCE = 60.0  # seconds after which no further group is measured


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of training of one run of a group.

    step: of one step. compilation: once for the group. like: the group that was measured instead
    of this one; '': it was measured itself.
    """

    step: float
    compilation: float
    steps: int
    like: str = ""

    @property
    def run(self) -> float:
        return self.step * self.steps


def times(
    plan: Plan,
    measure: Callable[[Group], tuple[float, float, int]],
    steps: Callable[[Group], int],
    patience: float = PATIENCE,
    say: Callable[[str], None] = print,
) -> dict[str, Time]:
    """Name of a group -> its time.

    Groups are measured one after another until `patience` seconds are over. Each of the others
    takes the step of the measured group whose training has the most similar multiply-adds, scaled
    by these.

    Args:
      plan: the groups.
      measure: group -> (seconds of a step, seconds of its compilation, steps of a run); raises
        ConfigError where it cannot.
      steps: group -> steps of a run.
      patience: seconds.
      say: gets a line about each group that is measured.
    """
    began, found = time.monotonic(), {}
    measured: dict[str, Group] = {}
    for group in plan.groups:
        if measured and time.monotonic() - began > patience:
            break
        try:
            step, compilation, count = measure(group)
        except ConfigError:  # such as a teacher that is not trained yet
            continue
        found[group.name] = Time(step, compilation, count)
        measured[group.name] = group
        say(f"{group.name}: {step * 1e3:.1f} ms a step, compiled in {compilation:.1f} s")
    for group in plan.groups:
        if group.name in found or not measured:
            continue
        macs = group.cost.train_macs
        near = min(measured.values(), key=lambda other: abs(other.cost.train_macs - macs))
        ratio, its = macs / max(near.cost.train_macs, 1), found[near.name]
        found[group.name] = Time(its.step * ratio, its.compilation, steps(group), near.name)
    return found


def table(plan: Plan, expected: Mapping[str, Time]) -> str:
    """Rows of text: each group with its costs and the time of one run, the sum, what is left out.

    expected: of `times`; {} if nothing is measured.
    """
    seeds, width = len(plan.grid.seeds), max(len(group.name) for group in plan.groups)
    heads = ("parameters", "mult-adds", "of training", "one run")
    lines = [f"{'':{width}} {heads[0]:>12} {heads[1]:>15} {heads[2]:>15} {heads[3]:>13}"]
    for group in plan.groups:
        of, its = group.cost, expected.get(group.name)
        told = "unknown" if its is None else in_words(its.run) + "*" * bool(its.like)
        lines.append(
            f"{group.name:{width}} {of.params:12,} {of.macs:15,} {of.train_macs:15,} {told:>13}"
        )
    listed = ", ".join(map(str, plan.grid.seeds))
    lines.append(f"{len(plan.runs)} runs: {len(plan.groups)} groups at seeds {listed}")
    if expected:
        total = sum(its.run * seeds + its.compilation for its in expected.values())
        lines.append(f"about {in_words(total)} of training in all, one run after another")
        lines.append("without evaluations, latencies, and the start of each process")
    if any(its.like for its in expected.values()):
        lines.append("* not measured: the step of another group, scaled by its multiply-adds")
    lines += [f"left out: {one.name}: {one.reason}" for one in plan.left_out]
    return "\n".join(lines)
