"""Grids of tiny runs, and a program that takes the place of `jaxsplit` in their processes."""

import sys
from collections.abc import Callable, Sequence

from jaxsplit.compare import grid
from jaxsplit.hosts import signals
from tests.support.paths import ROOT
from tests.support.runs import tiny

PROGRAM = ROOT / "tests" / "support" / "fake_jaxsplit.py"


def fake(*how: str) -> Callable[[str, Sequence[str]], list[str]]:
    """`Settings.command` of the program; `how`: what it does beside writing its files."""
    return lambda verb, given: [sys.executable, "-S", str(PROGRAM), *how, "--", verb, *given]


def cost(config) -> grid.Cost:
    """Costs that can be told apart, without tracing anything."""
    return grid.Cost(10 * config.split, 100 * config.split, 1000 * config.split)


def planned(workdir, methods=("single", "independent"), splits=(1, 2), seeds=(0, 1), **fields):
    """The plan of a grid of `tiny` runs in a workdir."""
    asked = grid.Grid(tuple(methods), tuple(splits), tuple(seeds), **fields)
    return grid.plan(tiny(arch="wide_resnet10_1"), asked, cost, lambda name: str(workdir / name))


class After(signals.Stop):
    """Asked to stop when `ready` says so."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        super().__init__()
        self._ready = ready

    def after(self, step: int) -> bool:
        if self._ready():
            self.request()
        return super().after(step)
