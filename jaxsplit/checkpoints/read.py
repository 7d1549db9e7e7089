"""Reads checkpoints by their paths, <workdir>/checkpoints/<step>; writes nothing."""

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
      workdir: the workdir of the run.
      best_metric: the saved metric whose highest value marks the best checkpoint.
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
          ConfigError: there is no such checkpoint; the error names those that exist.
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
    """The (step, metrics) in `saved` with the highest `metric`; None if no step has it."""
    rated = [(step, found) for step, found in saved.items() if found and metric in found]
    # Of equals the newest, as orbax keeps it.
    return max(rated, key=lambda r: (r[1][metric], r[0]), default=None)


def metrics(path: pathlib.Path) -> dict | None:
    """Metrics stored in a checkpoint; None if it was not evaluated or its metrics are damaged."""
    try:
        return integrity.text(path, "metrics")
    except (FileNotFoundError, ValueError):
        return None


def restore(path: pathlib.Path, like: TrainState) -> TrainState:
    """The whole training state, sharded as `like` (ShapeDtypeStructs with shardings).

    Raises:
      DamagedError: the checkpoint cannot be read, or differs from what was saved.
      ConfigError: the checkpoint does not fit, or has a newer format.
    """
    wanted = {"model": like.variables, "opt": opt_item(like)}
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        for item, tree in wanted.items():
            # Orbax notices some misfits only while it reads, and then continues.
            integrity.check_fits(path, item, tree, sums)
        found = {item: _arrays(path, item, tree) for item, tree in wanted.items()}
        for item in wanted:
            integrity.compare(item, sums, found[item])
    model = found["model"] if like.ema is None else {"ema": found["model"]}
    return TrainState(**model, **found["opt"])


def position(path: pathlib.Path, train_examples: int) -> dict:
    """What `Checkpoints.save` stored beside the arrays: {'bad_records', 'totals', ...}.

    Values that were 0 or None are missing.

    Raises:
      ConfigError: the training set has another size than when the checkpoint was saved, so the run
        would resume with other batches.
      DamagedError: the checkpoint cannot be read.
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
    """Restores only {'params', 'batch_stats'}, for evaluation.

    It leaves out parts that `like` does not have, such as auxiliary modules.

    Raises:
      DamagedError: the arrays cannot be read, or differ from what was saved.
      ConfigError: the arrays do not fit, or the checkpoint has a newer format.
    """
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        integrity.check_parts_fit(path, "model", like.variables, sums)
    return restore_some(path, like.variables)


def model_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the item `model`, by path ('params/stack/head/bias').

    Raises:
      DamagedError: the checkpoint cannot be read.
      ConfigError: the checkpoint has a newer format.
    """
    with integrity.named_errors(path):
        integrity.checked(path)
        return integrity.saved_shapes(path, "model")


def restore_some(path: pathlib.Path, like: dict) -> dict:
    """Restores those arrays of the item `model` that are in `like`, a part of its tree.

    Raises:
      DamagedError: the arrays cannot be read, or differ from what was saved.
      ConfigError: the checkpoint has a newer format.
    """
    with integrity.named_errors(path):
        sums = integrity.checked(path)
        found = _arrays(path, "model", like)
        integrity.compare("model", sums, found)
        return found


def opt_item(state: TrainState) -> dict:
    """The item `opt`, which only training needs; with weight averaging also the trained weights."""
    item = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return item if state.ema is None else item | state.raw


def _arrays(path: pathlib.Path, item: str, like: Any) -> Any:
    """Restores those arrays of an item that are in `like`, a part of its tree."""
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
