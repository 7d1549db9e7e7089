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

    Saving is asynchronous: `save` copies the arrays and returns; `wait` waits until it is finished.
    Opening a folder removes what interrupted saves have left. So only one run may write: a second
    one would remove what the first is saving.

    Args:
      workdir: the workdir of the run.
      keep: how many of the newest checkpoints to keep.
      best_metric: the metric whose highest value marks the best checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, best_metric: str = ""):
        self.folder = files.path_of(workdir) / FOLDER
        self._keep, self._best_metric = keep, best_metric
        self._failed = False  # whether a save has failed; then `wait` does nothing
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
        """Saves the state under its step, unless that step is already saved.

        Args:
          state: the training state.
          config: the config of the run.
          train_examples: size of the training set; with seed and step it fixes the next batch.
          metrics: results of an evaluation at this step.
          bad_records: number of bad records left out up to this step.
          totals: `metrics.to_json` of the steps since the last log point.

        Returns:
          Whether this call saved it.

        Raises:
          SaveError: this save failed, or the one before, which was still running.
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
        """`arrays`: item -> its tree of arrays; `texts`: item -> its JSON value."""
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
        """Saves weights that jaxsplit did not train, as step 0 without optimizer state.

        Args:
          variables: {'params', 'batch_stats'}.
          config: a config whose networks have these weights.
          origin: where the weights come from, for people to read.
          metrics: their published or measured metrics, if any.
        """
        texts = {"config": config.to_dict(), "data": {"step": 0, "origin": origin}}
        self._save(0, {"model": variables}, texts, metrics)

    def rate(self, step: int, metrics: dict) -> None:
        """Adds the metrics of an evaluation to a checkpoint that was saved without. Collective.

        It then deletes the checkpoints that are neither among the newest nor the best.

        Raises:
          SaveError: saving the checkpoint or its metrics failed.
        """
        self.wait()
        with self._save_errors():
            if jax.process_index() == 0:
                integrity.add_metrics(self.path(step), metrics)
            processes.total(0)  # all wait here, then read the metrics
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
        """The steps that the folder holds now, including changes by others."""
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
        """Reads the folder again, to see changes by others."""
        self._manager.reload()

    def check(self) -> None:
        """Raises SaveError if a save has failed; does not wait for a running one."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          SaveError: a save failed.
        """
        if not self._failed:
            with self._save_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then ends the threads."""
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
        """None also for damaged metrics: the folder must open so that an error can name them."""
        try:
            return super().metrics(step)
        except ValueError:
            return None
