"""Evaluations during a run: when they happen, and where their results go.

If a step is both saved and evaluated, it is saved first, and its checkpoint gets the metrics after
the evaluation. So an evaluation that fails or is killed loses no training. A run that resumes from
a checkpoint without metrics evaluates it first.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxsplit import evaluation, metrics
from jaxsplit.checkpoints import store
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import EXAMPLES, Results, SplitResults
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes
from jaxsplit.report import tables
from jaxsplit.report.progress import Progress


class Rating:
    """Evaluates steps of a run; writes the results to its metrics and checkpoints."""

    def __init__(
        self,
        exp: Experiment,
        checkpoints: store.Checkpoints,
        writer: metrics.Writer,
        progress: Progress,
    ):
        self._exp, self._checkpoints = exp, checkpoints
        self._writer, self._progress = writer, progress
        self._results: Results = {}  # of the last evaluation
        self._step = 0  # of the last evaluation
        best = checkpoints.best()
        self._best = best[1][exp.best_metric] if best else float("-inf")

    def try_first(self, variables: dict) -> None:
        """Evaluates the first batch of each split: a later failure would cost hours of training.

        Raises:
          ConfigError: a record is damaged, or eval.batch_size needs too much memory.
        """
        exp = self._exp
        try:
            for examples in reversed(splits(exp).values()):
                evaluation.try_first(exp.eval_step, variables, examples, eval_pass(exp))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise ConfigError(
                    f"eval.batch_size={exp.plan.eval_batch_size}: is too large for the memory here"
                ) from error
            raise

    def of_saved(self, step: int, variables: dict) -> Results:
        """Evaluates a step whose checkpoint is saved, or being saved; adds the metrics to it."""
        try:
            self._evaluate(step, variables)
        except Exception:
            self._checkpoints.wait()  # the checkpoint is complete although the evaluation failed
            raise
        self._checkpoints.rate(step, evaluation.flatten(self._results))
        return self._results

    def of_resumed(self, step: int, variables: dict) -> Results:
        """Evaluates a saved step if the run stopped between its saving and its evaluation.

        Returns {} if there was nothing to evaluate.
        """
        if self._step == step or processes.broadcast(self._checkpoints.metrics(step)):
            return {}
        return self.of_saved(step, variables)

    def of_unsaved(self, step: int, variables: dict, save: Callable[..., None]) -> Results:
        """Evaluates a step; saves it if it is the best, or if its evaluation fails."""
        before = self._best
        try:
            self._evaluate(step, variables)
        except Exception:
            if not processes.is_multiprocess():  # saving is collective; others may not have failed
                save()
                self._checkpoints.wait()
            raise
        if self._best > before:
            save(metrics=evaluation.flatten(self._results))
        return self._results

    def at_the_end(self, step: int, variables: dict) -> Results:
        """Results of every split at the last step; evaluates the splits that have none."""
        self.of_resumed(step, variables)
        results = dict(self._results) if self._step == step else {}
        for name in splits(self._exp):
            if name not in results:
                results[name] = evaluate_split(self._exp, variables, name)
                self._write(step, {name: results[name]})
        return results

    def _evaluate(self, step: int, variables: dict) -> None:
        name = self._exp.eval_split[0]
        results = {name: evaluate_split(self._exp, variables, name)}
        self._write(step, results)
        self._progress.line(f"step {step}: {tables.brief(self._exp, results)}")
        self._best = max(self._best, evaluation.flatten(results)[self._exp.best_metric])
        self._results, self._step = results, step

    def _write(self, step: int, results: Results) -> None:
        values = evaluation.flatten(results)
        if not self._writer.has(step, values):  # a stopped run may have written them already
            self._writer.write(step, values)


def splits(exp: Experiment) -> dict[str, Any]:
    """{name: examples} of the evaluated splits; the first one selects the best checkpoint."""
    return dict([exp.eval_split]) | {"test": exp.dataset.test}


def evaluate_split(exp: Experiment, variables: dict, name: str) -> SplitResults:
    """Evaluates the split `name`, 'validation' or 'test': see `evaluation.evaluate`."""
    examples = splits(exp)[name]
    return count_bad(
        exp, examples, evaluation.evaluate(exp.eval_step, variables, examples, eval_pass(exp))
    )


def count_bad(exp: Experiment, examples: Any, results: SplitResults) -> SplitResults:
    """Adds the number of bad records to the results if the config skips them."""
    if skips(exp):
        count = results[EXAMPLES]["count"]
        results[EXAMPLES]["bad_records"] = len(examples) - count
    return results


def skips(exp: Experiment) -> bool:
    """Whether evaluations skip and count bad records."""
    return exp.config.data.on_bad_record == "skip"


def eval_pass(exp: Experiment) -> evaluation.EvalPass:
    """How every evaluation of an experiment brings examples to the devices."""
    return evaluation.EvalPass(
        image_shape=exp.dataset.image_shape,
        batch_size=exp.plan.eval_batch_size,
        sharding=exp.sharding,
        threads=exp.config.data.threads,
    )


def best_line(exp: Experiment, best: tuple[int, dict] | None) -> str:
    """A line about `best`, the result of `Checkpoints.best`; '' if no checkpoint was evaluated."""
    return tables.best_line(exp, best[0], best[1][exp.best_metric]) if best else ""


def flat_best(exp: Experiment, best: tuple[int, dict] | None) -> dict[str, float]:
    """best/step and best/<metric> of the best checkpoint; empty if none was evaluated."""
    if best is None:
        return {}
    at, values = best
    return {"best/step": float(at), f"best/{exp.best_metric}": values[exp.best_metric]}
