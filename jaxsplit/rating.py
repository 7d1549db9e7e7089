"""Evaluations of a run: when they come, and what becomes of what they find.

A step is saved before it is evaluated, wherever both are due, and its checkpoint gets the metrics
afterwards: an evaluation that fails, or is killed, costs no training. A run that goes on from such
a checkpoint evaluates it first.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxsplit import metrics
from jaxsplit.checkpoints import store
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import evaluate
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes
from jaxsplit.report import tables


class Rating:
    """Evaluations of a run: what they find goes into its metrics and checkpoints."""

    def __init__(
        self,
        exp: Experiment,
        checkpoints: store.Checkpoints,
        writer: metrics.Writer,
        progress: tables.Progress,
    ):
        self._exp, self._checkpoints = exp, checkpoints
        self._writer, self._progress = writer, progress
        self._results: dict[str, float] = {}  # of the last one
        self._step = 0  # at which that was
        best = checkpoints.best()
        self._best = best[1][exp.best_metric] if best else float("-inf")

    def try_first(self, variables: dict) -> None:
        """Evaluates the first batch of each split: what fails later would cost hours of training.

        Raises:
          ConfigError: a damaged record, or no memory for eval.batch_size.
        """
        exp = self._exp
        try:
            for split in {"test": exp.dataset.test, exp.eval_split[0]: exp.eval_split[1]}.items():
                evaluation(exp, variables, split, first_only=True)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise ConfigError(
                    f"eval.batch_size={exp.plan.eval_batch_size}: is too large for the memory here"
                ) from error
            raise

    def of_saved(self, step: int, variables: dict) -> dict[str, float]:
        """Evaluates a step whose checkpoint is saved, or being saved; adds the metrics to it."""
        try:
            self._evaluate(step, variables)
        except Exception:
            self._checkpoints.wait()  # costs no checkpoint
            raise
        self._checkpoints.rate(step, self._results)
        return self._results

    def of_resumed(self, step: int, variables: dict) -> None:
        """Evaluates a step that was saved before it was evaluated, where a run stopped between."""
        if self._step != step and not processes.broadcast(self._checkpoints.metrics(step)):
            self.of_saved(step, variables)

    def of_unsaved(self, step: int, variables: dict, save: Callable[..., None]) -> dict[str, float]:
        """Evaluates a step, and saves it where it is the best, or its evaluation fails."""
        before = self._best
        try:
            self._evaluate(step, variables)
        except Exception:
            if not processes.is_multiprocess():  # the others would not save with this one
                save()
                self._checkpoints.wait()
            raise
        if self._best > before:
            save(metrics=self._results)
        return self._results

    def at_the_end(self, step: int, variables: dict) -> dict[str, float]:
        """What was found at the last step, and what was not asked there."""
        exp = self._exp
        self.of_resumed(step, variables)
        results = dict(self._results) if self._step == step else {}
        splits = {exp.eval_split[0]: exp.eval_split[1], "test": exp.dataset.test}
        for split in splits.items():
            if f"{split[0]}/count" not in results:
                values = evaluation(exp, variables, split)
                self._write(step, values)
                results |= values
        return results

    def _evaluate(self, step: int, variables: dict) -> None:
        values = evaluation(self._exp, variables, self._exp.eval_split)
        self._write(step, values)
        self._progress.line(f"step {step}: {tables.brief(self._exp, values)}")
        self._best = max(self._best, values[self._exp.best_metric])
        self._results, self._step = values, step

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._writer.has(step, values):  # as where it was stopped right here
            self._writer.write(step, values)


def evaluation(
    exp: Experiment, variables: dict, split: tuple[str, Any], first_only: bool = False
) -> dict[str, float]:
    """Evaluates a split, (name, examples): <name>/net0/top1 ...; see `evaluation.evaluate`."""
    name, examples = split
    values = evaluate(
        exp.eval_step,
        variables,
        examples,
        image_shape=exp.dataset.image_shape,
        batch_size=exp.plan.eval_batch_size,
        sharding=exp.sharding,
        threads=exp.config.data.threads,
        first_only=first_only,
    )
    if skips(exp) and not first_only:
        values["bad_records"] = len(examples) - values["count"]
    return {f"{name}/{k}": v for k, v in values.items()}


def skips(exp: Experiment) -> bool:
    """Whether bad records are left out and counted."""
    return exp.config.data.on_bad_record == "skip"
