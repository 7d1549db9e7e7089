"""Saving checkpoints with Orbax; the newest few and the best are kept.

A checkpoint has the items model, opt, config and data, and `checksums` of them: see `integrity`.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from jaxsplit.checkpoints import integrity, orbax_log, read
from jaxsplit.checkpoints.folder import FOLDER, exists, steps_in, weights_only
from jaxsplit.errors import SaveError, disk_full
from jaxsplit.hosts import processes
from jaxsplit.state import TrainState
from jaxsplit.workdir import files

__all__ = ["FOLDER", "Checkpoints", "exists", "steps_in", "weights_only"]


class Checkpoints:
    """Saves the checkpoints of one workdir; `read` reads them.

    Saving is asynchronous: `save` copies the arrays and returns; `wait` sees it finished. What an
    interrupted save left behind is removed first, so a second writer would ruin what the first is
    saving.

    Args:
      workdir: of the run.
      keep: how many of the newest stay.
      best_metric: the name among the metrics given to `save` whose highest value is the best.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, best_metric: str = ""):
        self.folder = files.path_of(workdir) / FOLDER
        self._keep, self._best_metric = keep, best_metric
        self._failed = False  # a save; nothing is waited for then
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        def metric(metrics: dict) -> float:
            return metrics.get(self._best_metric, float("-inf"))

        options = ocp.CheckpointManagerOptions(
            # Without best_fn orbax writes no metrics; without policies it may delete the newest.
            best_fn=metric,
            preservation_policy=preservation.AnyPreservationPolicy(
                [
                    preservation.LatestN(self._keep),
                    preservation.BestN(
                        get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        with orbax_log.quiet():
            return _Manager(
                self.folder,
                options=options,
                item_names=("model", "opt", "config", "data", "checksums"),
            )

    def save(
        self,
        state: TrainState,
        config: ConfigDict,
        train_examples: int,
        metrics: dict | None = None,
        bad_records: int = 0,
        totals: dict | None = None,
    ) -> bool:
        """Saves the state under its step, unless that step is saved already.

        Args:
          state: of training.
          config: of the run.
          train_examples: in the training set; with seed and step it fixes the data position.
          metrics: of an evaluation at this step.
          bad_records: that were left out up to this step.
          totals: `metrics.to_json` of the steps since the last log point.

        Returns:
          Whether it was not saved already.

        Raises:
          SaveError: this save, or the one before, which was still under way, failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        position: dict[str, Any] = {"step": step, "train_examples": train_examples}
        if bad_records:
            position["bad_records"] = bad_records
        if totals and totals["count"]:
            position["totals"] = totals
        self._save(
            step,
            {"model": state.variables, "opt": read.opt_item(state)},
            {"config": config.to_dict(), "data": position},
            metrics,
        )
        return True

    def _save(self, step: int, arrays: dict, texts: dict, metrics: dict | None) -> None:
        """`arrays`: item -> its tree; `texts`: item -> what becomes JSON."""
        texts["data"]["format"] = integrity.FORMAT
        known = texts if metrics is None else texts | {"metrics": metrics}
        sums = integrity.sums_of(arrays, known)
        with self._save_errors(), orbax_log.quiet():
            args = ocp.args.Composite(
                **{item: ocp.args.StandardSave(tree) for item, tree in arrays.items()},
                **{item: ocp.args.JsonSave(text) for item, text in texts.items()},
                checksums=ocp.args.JsonSave(sums),
            )
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def save_weights(
        self, variables: dict, config: ConfigDict, origin: dict, metrics: dict | None = None
    ) -> None:
        """Saves weights that no training here led to, as step 0: no optimizer state.

        Args:
          variables: {'params', 'batch_stats'}.
          config: what they are the networks of.
          origin: where they come from, to be read by people.
          metrics: known of them.
        """
        texts = {"config": config.to_dict(), "data": {"step": 0, "origin": origin}}
        self._save(0, {"model": variables}, texts, metrics)

    def rate(self, step: int, metrics: dict) -> None:
        """Adds the metrics of an evaluation to a checkpoint that was saved before it was evaluated.

        Which checkpoints stay is decided anew. Every process must call it.

        Raises:
          SaveError: the save of that step, or this, failed.
        """
        self.wait()
        with self._save_errors():
            if jax.process_index() == 0:
                integrity.add_metrics(self.path(step), metrics)
            processes.total(0)  # nobody reads them before
            self.reload()
            best = self.best()
            spare = set(self.steps()[: -self._keep]) - {best and best[0]}
            for old in processes.broadcast(sorted(spare)):
                self._manager.delete(old)

    def metrics(self, step: int) -> dict | None:
        """Metrics stored at `step`, or None if it was not evaluated."""
        return self._manager.metrics(step)

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def on_disk(self) -> list[int]:
        """The steps in the folder now, whatever was done to it meanwhile."""
        return sorted(steps_in(self.folder))

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> tuple[int, dict] | None:
        """(step, its metrics) of the best checkpoint; None if none was evaluated."""
        self.wait()
        return read.best_of({step: self.metrics(step) for step in self.steps()}, self._best_metric)

    def path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def reload(self) -> None:
        """Sees what was changed in the folder since it was opened."""
        self._manager.reload()

    def check(self) -> None:
        """Raises SaveError if a save has failed by now; waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          SaveError: it could not be.
        """
        if not self._failed:
            with self._save_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does; ends the threads."""
        self.wait()
        with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
            self._manager.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            good = max(self.on_disk(), default=None)
            kept = "there is no checkpoint yet" if good is None else f"the last good one is {good}"
            reason = str(error).strip().splitlines() or [type(error).__name__]
            reason = "the disk is full" if disk_full(error) else reason[0][:200]
            raise SaveError(
                f"saving a checkpoint in {self.folder} failed: {reason}; {kept}"
            ) from error


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> Any:
        """None, too, where they are damaged: the folder must open, so that this can be said."""
        try:
            return super().metrics(step)
        except ValueError:
            return None
