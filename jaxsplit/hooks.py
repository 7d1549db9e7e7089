"""Functions of the user that a run calls at its log points, evaluations and checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxsplit.hosts import processes

STOP = "stop"
"""A hook returns this to end the run: the step is saved and evaluated, and the results returned."""


@dataclasses.dataclass(frozen=True)
class Event:
    """What has just happened in a run.

    kind: 'log' (a line of training metrics), 'evaluate' or 'checkpoint' (a step is being saved).
    step: the number of finished steps.
    total_steps: the number of steps of the whole run.
    values: metrics by the names that metrics.jsonl has; of a checkpoint those it was saved with.
    """

    kind: str
    step: int
    total_steps: int
    values: Mapping[str, float]


Hook = Callable[[Event], Any]


class Hooks:
    """Calls the hooks of a run, and remembers whether one of them asked to stop.

    Process 0 calls them and decides for all processes, each of which must be given as many hooks.
    """

    def __init__(self, functions: Sequence[Hook], total_steps: int, active: bool):
        self._functions, self._total_steps, self._active = tuple(functions), total_steps, active
        self._stop = False

    def call(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Calls every hook with an event. An exception of a hook ends the run as any error does."""
        if self._active:
            for function in self._functions:
                answer = function(Event(kind, step, self._total_steps, dict(values)))
                self._stop = self._stop or (isinstance(answer, str) and answer == STOP)

    def stop(self) -> bool:
        """Whether a hook has asked to stop. Collective where there are hooks."""
        return bool(self._functions) and processes.broadcast(self._stop)
