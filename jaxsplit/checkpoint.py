"""Orbax checkpoints: items model, opt, config and data; the newest few and the best are kept."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from jaxsplit.errors import ConfigError
from jaxsplit.state import TrainState

FOLDER = "checkpoints"


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
        self._folder = pathlib.Path(workdir).expanduser().absolute() / FOLDER
        self._keep, self._best_metric = keep, best_metric
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
        )
        return ocp.CheckpointManager(
            self._folder,
            options=options,
            item_names=("model", "opt", "config", "data"),
        )

    def save(
        self,
        state: TrainState,
        config: ConfigDict,
        train_examples: int,
        metrics: dict | None = None,
        bad_records: int = 0,
    ) -> None:
        """Saves the state under its step; does nothing where that step is saved already.

        Args:
          state: of training.
          config: of the run.
          train_examples: in the training set; with seed and step it fixes the data position.
          metrics: of an evaluation at this step.
          bad_records: that were left out up to this step.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        position = {"step": step, "train_examples": train_examples}
        if bad_records:
            position["bad_records"] = bad_records
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(state.variables),
            opt=ocp.args.StandardSave(_opt_item(state)),
            config=ocp.args.JsonSave(config.to_dict()),
            data=ocp.args.JsonSave(position),
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
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(variables),
            config=ocp.args.JsonSave(config.to_dict()),
            data=ocp.args.JsonSave({"step": 0, "origin": origin}),
        )
        self._manager.save(0, args=args, metrics=metrics, force=True)

    def metrics(self, step: int) -> dict | None:
        """Those saved with a checkpoint; None: it was not evaluated."""
        return self._manager.metrics(step)

    def steps(self) -> list[int]:
        """Those saved, oldest first."""
        return sorted(self._manager.all_steps())

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

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state at a step, on the mesh of `like` (ShapeDtypeStructs with shardings).

        Raises:
          ConfigError: it does not fit, or cannot be read.
        """
        items = self._restore(
            step,
            model=ocp.args.StandardRestore(like.variables),
            opt=ocp.args.StandardRestore(_opt_item(like)),
        )
        model = items.model if like.ema is None else {"ema": items.model}
        return TrainState(**model, **items.opt)

    def check_data(self, step: int, train_examples: int) -> int:
        """Makes sure that the training set is as large as when the checkpoint was saved.

        Returns:
          How many bad records had been left out.

        Raises:
          ConfigError: it is not, so that the run would go on with other batches.
        """
        position = self._restore(step, data=ocp.args.JsonRestore()).data
        saved = position["train_examples"]
        if saved != train_examples:
            raise ConfigError(
                f"data.dir: the training set has {train_examples} examples, must have {saved} as "
                f"when checkpoint {step} was saved"
            )
        return position.get("bad_records", 0)

    def restore_model(self, step: int, like: TrainState) -> dict:
        """Only {'params', 'batch_stats'}, for evaluation.

        Parts that the method of `like` does not have, such as an auxiliary module, are left out.

        Raises:
          ConfigError: they do not fit, or cannot be read.
        """
        with self._named_errors(step):
            self._check_fits(step, "model", like.variables, parts=True)
        return self.restore_some(step, like.variables)

    def model_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """'params/stack/head/bias' -> shape, of all that the item `model` holds.

        Raises:
          ConfigError: it cannot be read.
        """
        with self._named_errors(step):
            return self._saved_shapes(step, "model")

    def restore_some(self, step: int, like: dict) -> dict:
        """The arrays of the item `model` that `like`, a part of its tree, has.

        Raises:
          ConfigError: they do not fit, or cannot be read.
        """
        args = ocp.args.PyTreeRestore(
            like,
            restore_args=ocp.checkpoint_utils.construct_restore_args(like),
            partial_restore=True,
        )
        with (
            self._named_errors(step),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
        ):
            return reader.restore(self._folder / str(step) / "model", args=args)

    def _restore(self, step: int, **items: Any) -> Any:
        with self._named_errors(step):
            # Orbax itself finds some of what does not fit only while it reads, and reads on.
            for name, args in items.items():
                if isinstance(args, ocp.args.StandardRestore):
                    self._check_fits(step, name, args.item)
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _named_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax raises bare Exception for damaged files
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"checkpoint={step} in {self._folder}: is damaged or of another architecture "
                f"({reason[0][:200]})"
            ) from error

    def _saved_shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
        with ocp.StandardCheckpointer() as reader:
            return shapes(reader.metadata(self._folder / str(step) / item).item_metadata.tree)

    def _check_fits(self, step: int, item: str, like: Any, parts: bool = False) -> None:
        """`parts`: what is saved may hold more parts (params/<part>/...) than `like`."""
        have, need = self._saved_shapes(step, item), shapes(like)
        if parts:
            wanted = {part_of(path) for path in need}
            have = {path: shape for path, shape in have.items() if part_of(path) in wanted}
        for path in sorted(have.keys() | need.keys()):
            if have.get(path) != need.get(path):
                raise ValueError(f"{path} has shape {have.get(path)}, should be {need.get(path)}")

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def _opt_item(state: TrainState) -> dict:
    """What only training needs; the trained variables, too, where the model is their average."""
    item = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    return item if state.ema is None else item | state.raw


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """'params/stack/head/bias' -> shape."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def part_of(path: str) -> str:
    """'stack' of 'params/stack/head/bias': which of a method's modules the array belongs to."""
    return path.split("/")[1]


def exists(workdir: str | pathlib.Path) -> bool:
    """Whether a workdir holds a checkpoint."""
    folder = pathlib.Path(workdir).expanduser() / FOLDER
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def weights_only(workdir: str | pathlib.Path) -> bool:
    """Whether the newest checkpoint of a workdir lacks what training goes on from."""
    folder = pathlib.Path(workdir).expanduser() / FOLDER
    newest = max((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    return not (newest / "opt").is_dir()
