"""Reading checkpoints by their paths, <workdir>/checkpoints/<step>; nothing is written."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxsplit.checkpoints import integrity, orbax_log
from jaxsplit.checkpoints.folder import FOLDER, steps_in
from jaxsplit.errors import ConfigError
from jaxsplit.state import TrainState
from jaxsplit.workdir import files


@dataclasses.dataclass(frozen=True)
class Reader:
    """The checkpoints of one workdir, as they lie on disk.

    Args:
      workdir: of the run.
      best_metric: the name among the saved metrics whose highest value is the best.
    """

    workdir: str | pathlib.Path
    best_metric: str = ""

    def path(self, step: int) -> pathlib.Path:
        return self._folder / str(step)

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return sorted(steps_in(self._folder))

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def metrics(self, step: int) -> dict | None:
        """Metrics stored at `step`, or None if it was not evaluated."""
        return metrics(self.path(step))

    def best(self) -> tuple[int, dict] | None:
        """(step, its metrics) of the best checkpoint; None if none was evaluated."""
        return best_of({step: self.metrics(step) for step in self.steps()}, self.best_metric)

    def find(self, which: str | int) -> int:
        """The step that 'latest', 'best' or a number stands for.

        Raises:
          ConfigError: there is no such checkpoint; names those that exist.
        """
        steps = self.steps()
        have = ", ".join(map(str, steps)) or "none"
        found = None
        if which == "latest":
            found = self.latest()
        elif which == "best":
            best = self.best()
            if steps and not best:
                raise ConfigError(
                    f"checkpoint='best': none in {self._folder} was evaluated, so none is best; "
                    f"must be latest or one of: {have}"
                )
            found = best[0] if best else None
        elif str(which).isdecimal() and int(which) in steps:
            found = int(which)
        if found is None:
            raise ConfigError(
                f"checkpoint={which!r}: not in {self._folder}; "
                f"must be latest, best or one of: {have}"
            )
        return found

    @property
    def _folder(self) -> pathlib.Path:
        return files.path_of(self.workdir) / FOLDER


def best_of(saved: Mapping[int, dict | None], metric: str) -> tuple[int, dict] | None:
    """(step, metrics) with the highest `metric` of step -> metrics; None if no step has it."""
    rated = [(step, found) for step, found in saved.items() if found and metric in found]
    # The newest of equals, which is also the one that orbax keeps.
    return max(rated, key=lambda r: (r[1][metric], r[0]), default=None)


def metrics(path: pathlib.Path) -> dict | None:
    """Metrics stored in a checkpoint; None if it was not evaluated, or they are damaged."""
    try:
        return integrity.text(path, "metrics")
    except (FileNotFoundError, ValueError):
        return None


def restore(path: pathlib.Path, like: TrainState) -> TrainState:
    """The whole training state, sharded as `like` (ShapeDtypeStructs with shardings).

    Raises:
      DamagedError: it cannot be read, or is not what was saved.
      ConfigError: it does not fit, or is of a newer format.
    """
    wanted = {"model": like.variables, "opt": opt_item(like)}
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        for item, tree in wanted.items():
            # Orbax itself finds some of what does not fit only while it reads, and reads on.
            integrity.check_fits(path, item, tree, sums)
        found = {item: _arrays(path, item, tree) for item, tree in wanted.items()}
        for item in wanted:
            integrity.compare(item, sums, found[item])
    model = found["model"] if like.ema is None else {"ema": found["model"]}
    return TrainState(**model, **found["opt"])


def position(path: pathlib.Path, train_examples: int) -> dict:
    """What was saved beside the arrays: {'bad_records', 'totals', ...} as given to `save`.

    Values that were 0 or None are left out.

    Raises:
      ConfigError: the training set is not as large as when the checkpoint was saved, so that the
        run would resume with other batches.
      DamagedError: it cannot be read.
    """
    with integrity.named_errors(path):
        integrity.checked(path)
        found = integrity.text(path, "data")
        saved = found["train_examples"]
    if saved != train_examples:
        raise ConfigError(
            f"data.dir: the training set has {train_examples} examples, must have {saved} as "
            f"when checkpoint {path.name} was saved"
        )
    return found


def restore_model(path: pathlib.Path, like: TrainState) -> dict:
    """{'params', 'batch_stats'} alone, for evaluation.

    Parts that the method of `like` does not have, such as an auxiliary module, are left out.

    Raises:
      DamagedError: they cannot be read, or are not what was saved.
      ConfigError: they do not fit, or are of a newer format.
    """
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        integrity.check_parts_fit(path, "model", like.variables, sums)
    return restore_some(path, like.variables)


def model_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """'params/stack/head/bias' -> shape, of every array of the item `model`.

    Raises:
      DamagedError: it cannot be read.
      ConfigError: it is of a newer format.
    """
    with integrity.named_errors(path):
        integrity.checked(path)
        return integrity.saved_shapes(path, "model")


def restore_some(path: pathlib.Path, like: dict) -> dict:
    """The arrays of the item `model` that `like`, a part of its tree, has.

    Raises:
      DamagedError: they cannot be read, or are not what was saved.
      ConfigError: they are of a newer format.
    """
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        found = _arrays(path, "model", like)
        integrity.compare("model", sums, found)
        return found


def opt_item(state: TrainState) -> dict:
    """What only training needs; with an average of the weights, the trained weights, too."""
    item = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return item if state.ema is None else item | state.raw


def _arrays(path: pathlib.Path, item: str, like: Any) -> Any:
    """The arrays of an item that `like`, a part of its tree, has."""
    args = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
    )
    # Each process restores alone; Orbax would make healthy ones wait for a failing one.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={jax.process_index()}
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with orbax_log.quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(path / item, args=args)
