"""Times of programs that take turns, each within a budget."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

_LEAST = 3  # runs of a program whose first fits the budget
_MOST = 200


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one call: the median, the quartiles, the least; and how many calls were timed."""

    median: float
    lower: float
    upper: float
    least: float
    calls: int


def of(seconds: list[float]) -> Times:
    """The summary of single times."""
    lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Times(median, lower, upper, min(seconds), len(seconds))


def alternating(programs: Mapping[str, Callable[[], object]], budget: float) -> dict[str, Times]:
    """Times programs in turns, so that what else the machine does falls on all of them.

    Args:
      programs: name -> a call that returns when all is done. The first call of each, which may
        compile, is not timed.
      budget: seconds of each program in all; one whose single call takes longer is called once.

    Returns:
      name -> its times.
    """
    for run in programs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in programs}
    waiting = dict(programs)
    while waiting:
        for name, run in list(waiting.items()):
            began = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - began)
            if _enough(found[name], budget):
                del waiting[name]
    return {name: of(seconds) for name, seconds in found.items()}


def _enough(seconds: list[float], budget: float) -> bool:
    spent = math.fsum(seconds)
    return (
        len(seconds) >= _MOST
        or spent + seconds[-1] > budget
        and (len(seconds) >= _LEAST or seconds[0] > budget)
    )
