"""Resumes a run from its newest intact checkpoint, on which all processes agree.

Newer, damaged checkpoints are set aside, so that the run can save their steps again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxsplit.checkpoints import read
from jaxsplit.checkpoints.store import Checkpoints
from jaxsplit.errors import ConfigError, DamagedError
from jaxsplit.hosts import processes
from jaxsplit.state import TrainState
from jaxsplit.workdir import files

_DAMAGED = "damaged-"  # before the step, in the name of a checkpoint that was set aside


class Resumed(NamedTuple):
    """A restored run; `position` is the result of `read.position`."""

    step: int
    state: TrainState
    position: dict


def newest(
    checkpoints: Checkpoints,
    like: TrainState,
    train_examples: int,
    *,
    on_corrupt: str = "previous",
    say: Callable[[str], None] = print,
) -> Resumed:
    """Restores the newest intact checkpoint that process 0 finds. Collective.

    Args:
      checkpoints: the checkpoints of the run.
      like: ShapeDtypeStructs with shardings.
      train_examples: size of the training set.
      on_corrupt: 'previous' sets damaged checkpoints aside; 'error' raises at a damaged one.
      say: gets a line for each damaged checkpoint.

    Raises:
      DamagedError: no checkpoint is intact, or the newest is not and `on_corrupt` is 'error'.
      ConfigError: the checkpoint does not fit, the training set has another size, or a process
        does not see the checkpoint.
    """
    damaged: list[int] = []
    steps = processes.broadcast(checkpoints.steps()[::-1])
    for step, older in zip(steps, [*steps[1:], None], strict=True):
        _check_seen(checkpoints, step)
        found, error = None, None
        try:
            position = read.position(checkpoints.path(step), train_examples)
            found = Resumed(step, read.restore(checkpoints.path(step), like), position)
        except DamagedError as caught:
            error = caught
        failed = processes.total(error is not None)
        if found and not failed:  # otherwise all processes try the one before
            _set_aside(checkpoints, damaged)
            return found
        error = error or DamagedError(f"checkpoint={step}: another process cannot read it")
        damaged.append(step)
        if older is None:
            raise DamagedError(f"{error}; no checkpoint is intact; train again in another workdir")
        if on_corrupt == "error":
            raise DamagedError(
                f"{error}; checkpoint.on_corrupt='previous' resumes from step {older}"
            )
        say(f"{error}; set aside as {_DAMAGED}{step}, resuming from step {older}")
    raise ConfigError(f"{checkpoints.folder}: holds no checkpoint")


def _check_seen(checkpoints: Checkpoints, step: int) -> None:
    """Raises ConfigError unless all processes see a checkpoint that process 0 sees."""
    if blind := processes.total(not processes.wait_until_seen(checkpoints.path(step))):
        raise ConfigError(
            f"workdir={str(checkpoints.folder.parent)!r}: must look the same on all hosts; "
            f"{blind} of the processes do not see checkpoint {step}, which process 0 sees"
        )


def _set_aside(checkpoints: Checkpoints, steps: list[int]) -> None:
    if not steps:
        return
    if jax.process_index() == 0:
        for step in steps:
            aside = checkpoints.folder / f"{_DAMAGED}{step}"
            files.move(checkpoints.path(step), aside)  # replaces a checkpoint set aside earlier
    processes.total(0)  # all wait here, then read the folder
    checkpoints.reload()
