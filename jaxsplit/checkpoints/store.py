"""Orbax checkpoints: items model, opt, config and data; the newest few and the best are kept.

A fifth item, `checksums`, is of all that the others hold; see `integrity`.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from jaxsplit.checkpoints import integrity, orbax_log
from jaxsplit.checkpoints.folder import FOLDER, exists, steps_in, weights_only
from jaxsplit.errors import ConfigError, DamagedError, SaveError, disk_full
from jaxsplit.hosts import processes
from jaxsplit.state import TrainState
from jaxsplit.workdir import files

__all__ = ["FOLDER", "Checkpoints", "exists", "weights_only"]
_DAMAGED = "damaged-"  # before the step, in the name of a checkpoint that was set aside


class Checkpoints:
    """The checkpoints of one workdir.

    Saving is asynchronous: `save` copies the arrays and returns; `wait` sees it finished.

    Args:
      workdir: of the run.
      keep: how many of the newest stay.
      best_metric: the name among the metrics given to `save` whose highest value is the best.
      read_only: nothing is saved or deleted. Otherwise what an interrupted save left behind is
        removed first, so a second writer would ruin what the first is saving.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int = 2,
        best_metric: str = "",
        read_only: bool = False,
    ):
        self._folder = files.path_of(workdir) / FOLDER
        self._keep, self._best_metric = keep, best_metric
        self._failed = False  # a save; nothing is waited for then
        self._manager = self._open(read_only)

    def _open(self, read_only: bool) -> ocp.CheckpointManager:
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
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,  # else orbax warns that it sets it so
        )
        with orbax_log.quiet():
            return _Manager(
                self._folder,
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
    ) -> None:
        """Saves the state under its step; does nothing where that step is saved already.

        Args:
          state: of training.
          config: of the run.
          train_examples: in the training set; with seed and step it fixes the data position.
          metrics: of an evaluation at this step.
          bad_records: that were left out up to this step.
          totals: `metrics.to_json` of the steps since the last log point.

        Raises:
          SaveError: this save, or the one before, which was still under way, failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        position = {"step": step, "train_examples": train_examples}
        if bad_records:
            position["bad_records"] = bad_records
        if totals and totals["count"]:
            position["totals"] = totals
        self._save(
            step,
            {"model": state.variables, "opt": _opt_item(state)},
            {"config": config.to_dict(), "data": position},
            metrics,
        )

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
                integrity.add_metrics(self._path(step), metrics)
            processes.total(0)  # nobody reads them before
            self._manager.reload()
            best = self.best()
            spare = set(self.steps()[: -self._keep]) - {best and best[0]}
            for old in processes.broadcast(sorted(spare)):
                self._manager.delete(old)

    def metrics(self, step: int) -> dict | None:
        """Those saved with a checkpoint; None: it was not evaluated."""
        return self._manager.metrics(step)

    def steps(self) -> list[int]:
        """Those saved, oldest first."""
        return sorted(self._manager.all_steps())

    def on_disk(self) -> list[int]:
        """Those that lie in the folder now, whatever was done to it meanwhile."""
        return sorted(steps_in(self._folder))

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> tuple[int, dict] | None:
        """(step, its metrics) of the best checkpoint; None: none was evaluated."""
        self.wait()
        rated = [
            (step, metrics)
            for step in self.steps()
            if (metrics := self._manager.metrics(step)) and self._best_metric in metrics
        ]
        # The newest of equals, which is also the one that orbax keeps.
        return max(rated, key=lambda r: (r[1][self._best_metric], r[0]), default=None)

    def find(self, which: str | int) -> int:
        """The step that 'latest', 'best' or a number stands for.

        Raises:
          ConfigError: there is no such checkpoint; names those that exist.
        """
        steps = self.steps()
        found = None
        if which == "latest":
            found = self.latest()
        elif which == "best":
            best = self.best()
            if best is None and steps:
                have = ", ".join(map(str, steps))
                raise ConfigError(
                    f"checkpoint='best': none in {self._folder} was evaluated, so none is best; "
                    f"must be latest or one of: {have}"
                )
            found = best[0] if best else None
        elif str(which).isdecimal() and int(which) in steps:
            found = int(which)
        if found is None:
            have = ", ".join(map(str, steps)) or "none"
            raise ConfigError(
                f"checkpoint={which!r}: not in {self._folder}; "
                f"must be latest, best or one of: {have}"
            )
        return found

    def resume(
        self,
        like: TrainState,
        train_examples: int,
        *,
        on_corrupt: str = "previous",
        say: Callable[[str], None] = print,
    ) -> tuple[int, TrainState, dict]:
        """The newest state that is whole, of those that process 0 finds.

        Damaged checkpoints that are newer are set aside: renamed, so that the run can save those
        steps again. Every process must call it.

        Args:
          like: ShapeDtypeStructs with shardings.
          train_examples: in the training set.
          on_corrupt: 'error' raises at a damaged one instead.
          say: gets a line for each damaged one.

        Returns:
          (step, state, what `check_data` gives).

        Raises:
          DamagedError: no checkpoint is whole, or the newest is not and `on_corrupt` is 'error'.
          ConfigError: it does not fit, the training set is of another size, or a process does
            not see it.
        """
        damaged: list[int] = []
        steps = processes.broadcast(self.steps()[::-1])
        for step, older in zip(steps, [*steps[1:], None], strict=True):
            error = None
            if blind := processes.total(not processes.wait_until_seen(self._path(step))):
                raise ConfigError(
                    f"workdir={str(self._folder.parent)!r}: must look the same on all hosts; "
                    f"{blind} of the processes do not see checkpoint {step}, which process 0 sees"
                )
            try:
                position = self.check_data(step, train_examples)
                state = self.restore(step, like)
            except DamagedError as caught:
                error = caught
            if not processes.total(error is not None):  # else all go on to the one before
                self._set_aside(damaged)
                return step, state, position
            error = error or DamagedError(f"checkpoint={step}: another process cannot read it")
            damaged.append(step)
            if older is None:
                raise DamagedError(f"{error}; none is whole, train anew in another workdir")
            if on_corrupt == "error":
                raise DamagedError(
                    f"{error}; checkpoint.on_corrupt='previous' goes on from step {older}"
                )
            say(f"{error}; set aside as {_DAMAGED}{step}, going on from step {older}")
        raise ConfigError(f"{self._folder}: holds no checkpoint")

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._folder / f"{_DAMAGED}{step}"
                files.move(self._path(step), aside)  # one of an earlier time makes room
        processes.total(0)  # nobody reads the folder before
        self._manager.reload()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state at a step, on the mesh of `like` (ShapeDtypeStructs with shardings).

        Raises:
          DamagedError: it cannot be read, or is not what was saved.
          ConfigError: it does not fit, or is of a newer format.
        """
        wanted = {"model": like.variables, "opt": _opt_item(like)}
        with integrity.named_errors(self._path(step)):
            sums = integrity.checked(self._path(step))
            for item, tree in wanted.items():
                # Orbax itself finds some of what does not fit only while it reads, and reads on.
                integrity.check_fits(self._path(step), item, tree, sums)
            found = {item: self._read(step, item, tree) for item, tree in wanted.items()}
            for item in wanted:
                integrity.compare(item, sums, found[item])
        model = found["model"] if like.ema is None else {"ema": found["model"]}
        return TrainState(**model, **found["opt"])

    def check_data(self, step: int, train_examples: int) -> dict:
        """Makes sure that the training set is as large as when the checkpoint was saved.

        Returns:
          {'bad_records', 'totals', ...} as given to `save`; without those that were 0 or None.

        Raises:
          ConfigError: it is not, so that the run would go on with other batches.
          DamagedError: that cannot be read.
        """
        with integrity.named_errors(self._path(step)):
            integrity.checked(self._path(step))
            position = integrity.text(self._path(step), "data")
            saved = position["train_examples"]
        if saved != train_examples:
            raise ConfigError(
                f"data.dir: the training set has {train_examples} examples, must have {saved} as "
                f"when checkpoint {step} was saved"
            )
        return position

    def restore_model(self, step: int, like: TrainState) -> dict:
        """Only {'params', 'batch_stats'}, for evaluation.

        Parts that the method of `like` does not have, such as an auxiliary module, are left out.

        Raises:
          DamagedError: they cannot be read, or are not what was saved.
          ConfigError: they do not fit, or are of a newer format.
        """
        with integrity.named_errors(self._path(step)):
            sums = integrity.checked(self._path(step))
            integrity.check_fits(self._path(step), "model", like.variables, sums, parts=True)
        return self.restore_some(step, like.variables)

    def model_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """'params/stack/head/bias' -> shape, of all that the item `model` holds.

        Raises:
          DamagedError: it cannot be read.
          ConfigError: it is of a newer format.
        """
        with integrity.named_errors(self._path(step)):
            integrity.checked(self._path(step))
            return integrity.saved_shapes(self._path(step), "model")

    def restore_some(self, step: int, like: dict) -> dict:
        """The arrays of the item `model` that `like`, a part of its tree, has.

        Raises:
          DamagedError: they cannot be read, or are not what was saved.
          ConfigError: they are of a newer format.
        """
        with integrity.named_errors(self._path(step)):
            sums = integrity.checked(self._path(step))
            found = self._read(step, "model", like)
            integrity.compare("model", sums, found)
            return found

    def _read(self, step: int, item: str, like: Any) -> Any:
        """The arrays of an item that `like`, a part of its tree, has."""
        args = ocp.args.PyTreeRestore(
            like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        # Each process reads by itself: orbax would make those that can wait for one that cannot.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with orbax_log.quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(self._path(step) / item, args=args)

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / str(step)

    def check(self) -> None:
        """Raises SaveError where a save has failed meanwhile; waits for nothing."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Until all is saved.

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
                f"saving a checkpoint in {self._folder} failed: {reason}; {kept}"
            ) from error


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> Any:
        """None, too, where they are damaged: the folder must open, so that this can be said."""
        try:
            return super().metrics(step)
        except ValueError:
            return None


def _opt_item(state: TrainState) -> dict:
    """What only training needs; the trained variables, too, where the model is their average."""
    item = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return item if state.ema is None else item | state.raw
