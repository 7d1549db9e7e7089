"""What a tracker is: it takes the metrics of a run while it trains, beside metrics.jsonl."""

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from ml_collections import ConfigDict


class Tracker(Protocol):
    """Takes the metrics of a run. Only process 0 of a run has trackers."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the values of one step; a step may come twice, with other names."""

    def close(self) -> None:
        """Writes what is left, at the end of a run and after errors."""


class Make(Protocol):
    """A class or function that makes a tracker when a run starts or resumes."""

    def __call__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        config: ConfigDict,
        say: Callable[[str], None],
    ) -> Tracker:
        """Makes a tracker.

        Args:
          workdir: the folder of the run, which exists.
          start: the step that the run starts or resumes from; 0: a new run. The tracker drops, or
            marks, the later steps that an interrupted run wrote.
          config: the config of the run.
          say: prints a line.
        """


class Entry(NamedTuple):
    """A tracker in `jaxsplit.trackers.TRACKERS`.

    module: the module that a run cannot be tracked without; '': none.
    install: what to give to `pip install` for it.
    """

    make: Make
    module: str = ""
    install: str = ""
