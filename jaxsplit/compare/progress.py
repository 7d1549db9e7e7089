"""The lines that a comparison prints about its runs, with the time that is left."""

from collections.abc import Mapping

from jaxsplit.compare.grid import Plan, Run
from jaxsplit.durations import in_words


class Progress:
    """Counts runs and estimates the rest.

    A run takes as long as the mean of its group so far; a group without a run, as long per
    multiply-add of its training as the mean of all.

    Args:
      plan: all runs.
      processes: how many run at the same time.
      done: name -> seconds of training, of the runs that are finished.
    """

    def __init__(self, plan: Plan, processes: int, done: Mapping[str, float]) -> None:
        self._runs, self._processes = plan.runs, processes
        self._seconds = dict(done)
        self._failed: set[str] = set()

    def starts(self, run: Run) -> str:
        return f"{self._number(run)} {run.name}: starts"

    def ends(self, run: Run, accuracy: float, seconds: float) -> str:
        self._seconds[run.name] = seconds
        return (
            f"{self._number(run)} {run.name}: {accuracy:.2%} in {in_words(seconds)}{self._rest()}"
        )

    def fails(self, run: Run) -> None:
        self._failed.add(run.name)

    def expected(self, run: Run) -> float:
        """Seconds; 0 if nothing is finished."""
        mine = [self._seconds[r.name] for r in self._known() if r.group.name == run.group.name]
        if mine:
            return sum(mine) / len(mine)
        work = sum(r.group.cost.train_macs for r in self._known())
        spent = sum(self._seconds[r.name] for r in self._known())
        return spent / work * run.group.cost.train_macs if work else 0.0

    def _known(self) -> list[Run]:
        return [run for run in self._runs if run.name in self._seconds]

    def _number(self, run: Run) -> str:
        return f"[{self._runs.index(run) + 1}/{len(self._runs)}]"

    def _rest(self) -> str:
        left = [r for r in self._runs if r.name not in self._seconds | dict.fromkeys(self._failed)]
        if not left:
            return ""
        seconds = sum(map(self.expected, left)) / min(self._processes, len(left))
        return f"; {len(left)} left, about {in_words(seconds)} of training"
