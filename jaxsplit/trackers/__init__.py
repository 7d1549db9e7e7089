"""Trackers: where the metrics of a run go beside metrics.jsonl; `config.trackers` names them.

To add one of your own, call `register`: see `docs/monitoring.md`.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit.errors import ConfigError, short
from jaxsplit.trackers import csv_file, tensorboard, wandb_run
from jaxsplit.trackers.base import Entry, Make, Tracker

__all__ = ["TRACKERS", "Entry", "Group", "Make", "Tracker", "check", "names", "register"]

TRACKERS: dict[str, Entry] = {
    "tensorboard": Entry(tensorboard.Board.of_run),  # it says so where TensorFlow is missing
    "csv": Entry(csv_file.CsvFile),
    "wandb": Entry(wandb_run.WandbRun, module="wandb", install="'jaxsplit[wandb]'"),
}

_BUILT_IN = frozenset(TRACKERS)


def register(name: str, make: Make, *, module: str = "", install: str = "") -> None:
    """Adds a tracker under a name that `config.trackers` may contain; replaces one of one's own.

    Args:
      name: letters, digits and other characters without a comma.
      make: makes the tracker; see `Make`.
      module: a module that it needs. A run that names the tracker is refused where it is missing.
      install: what to give to `pip install` for this module; '': its name.

    Raises:
      ValueError: the name is empty, contains a comma or spaces, or is one of jaxsplit's own.
    """
    if not name or "," in name or name.split() != [name]:
        raise ValueError(f"tracker {name!r}: must have a name without commas and spaces")
    if name in _BUILT_IN:
        raise ValueError(f"tracker {name!r}: must have another name; jaxsplit has one of this name")
    TRACKERS[name] = Entry(make, module, install)


def names(given: Sequence[Any]) -> tuple[str, ...]:
    """The names in `config.trackers`, each once; 'csv,wandb' of a command line is two names.

    Raises:
      ConfigError: one is no string.
    """
    if not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"trackers={short(given)}: must be names, such as ('tensorboard', 'csv'); () for none"
        )
    parts = (part.strip() for name in given for part in name.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def check(chosen: Sequence[str]) -> None:
    """Checks that trackers exist and that their libraries can be imported.

    Raises:
      ConfigError: one does not, or a library is missing; names it and what to install.
    """
    for name in chosen:
        if name not in TRACKERS:
            raise ConfigError(
                f"trackers={short(tuple(chosen))}: must be names out of {', '.join(TRACKERS)}; "
                "() for none"
            )
        entry = TRACKERS[name]
        if entry.module and (why := _missing(entry.module)):
            raise ConfigError(
                f"trackers={short(tuple(chosen))}: {name!r} needs the library {entry.module} "
                f"({why}); pip install {entry.install or entry.module}"
            )


def _missing(module: str) -> str:
    """Why a module cannot be imported; '': it can be."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return _reason(error)
    # A folder of this name, such as the one that wandb itself makes, can be imported as well.
    return "" if getattr(found, "__file__", None) else f"No module named {module!r}"


class Group:
    """The trackers of a run. One that fails while the run trains is left out from then on.

    Args:
      chosen: names in `TRACKERS`.
      workdir, start, config, say: see `Make`.

    Raises:
      ConfigError: a tracker of a new run cannot start. A run that resumes goes on without it.
    """

    def __init__(
        self,
        chosen: Sequence[str],
        workdir: pathlib.Path,
        *,
        start: int,
        config: ConfigDict,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in chosen:
            try:
                made = TRACKERS[name].make(workdir, start=start, config=config, say=say)
            except Exception as error:  # libraries raise many kinds
                if not start:
                    self.close()
                    raise ConfigError(
                        f"trackers={short(tuple(chosen))}: {name!r} cannot start ({_reason(error)})"
                    ) from error
                self._warn(name, f"cannot start ({_reason(error)})")
            else:
                self._open[name] = made

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Gives the values of one step to all trackers."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.write(step, scalars)
            except Exception as error:
                self._warn(name, f"failed at step {step} ({_reason(error)})")
                del self._open[name]
                self._close(name, tracker)

    def close(self) -> None:
        """Closes all trackers; a second call does nothing."""
        while self._open:
            self._close(*self._open.popitem())

    def _close(self, name: str, tracker: Tracker) -> None:
        try:
            tracker.close()
        except Exception as error:
            self._say(f"warning: tracker {name}: the end may be missing ({_reason(error)})")

    def _warn(self, name: str, what: str) -> None:
        self._say(f"warning: tracker {name}: {what}; the run goes on without it")


def _reason(error: BaseException) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
