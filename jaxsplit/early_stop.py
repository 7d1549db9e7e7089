"""Early stopping: a run ends when its evaluations have not improved for long enough.

Earlier evaluations are read from metrics.jsonl. So a resumed run stops where an uninterrupted run
would, and a run that has already stopped is recognized, even if `config.stop` has changed.
"""

import json
import math
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jaxsplit import evaluation, metrics
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import Results
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes

LOSSES = ("nll",)  # metrics for which lower is better; the others are in 0..1


class EarlyStop:
    """Counts the evaluations in a row that did not improve on the best one.

    Args:
      metric: the flat name of an evaluated metric, such as 'test/net0/top1'.
      patience: the number of such evaluations after which the run ends; 0: never.
      min_delta: an improvement must be larger than this.
    """

    def __init__(self, metric: str, patience: int, min_delta: float = 0.0) -> None:
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self._sign = -1 if metric.rpartition("/")[2] in LOSSES else 1
        self._best: tuple[float, int] | None = None  # value, step
        self._waited = 0

    def seen(self, step: int, value: float | None) -> None:
        """Counts one evaluation; None and what is not finite are no improvement."""
        value = math.nan if value is None else value
        first = self._best is None and math.isfinite(value)
        if first or self._best and self._sign * (value - self._best[0]) > self.min_delta:
            self._best, self._waited = (value, step), 0
        else:
            self._waited += 1

    @property
    def ended(self) -> bool:
        """Whether the run ends."""
        return 0 < self.patience <= self._waited

    @property
    def why(self) -> str:
        """One line that says why the run has `ended`."""
        than = "no number"
        if self._best:
            by = f" by more than {self.min_delta:g}" if self.min_delta else ""
            than = f"not better than {self._best[0]:.4f} of step {self._best[1]}{by}"
        return (
            f"stopped early: {self.metric} was {than} in {self._waited} evaluations "
            f"(stop.patience={self.patience}; with a larger one, or 0, the run resumes)"
        )

    def resume(self, workdir: pathlib.Path, start: int) -> bool:
        """Counts the evaluations up to step `start`; returns whether the run has ended by then.

        Process 0 reads. Collective.
        """
        if not self.patience:
            return False
        if jax.process_index() == 0 and start:
            for step, value in evaluated(workdir / metrics.JSONL, self.metric, start):
                self.seen(step, value)
        return processes.broadcast(self.ended)

    def after(self, step: int, results: Results) -> bool:
        """Counts this evaluation; returns whether the run ends after it. Collective."""
        if not self.patience:
            return False
        self.seen(step, evaluation.flatten(results)[self.metric])
        return processes.broadcast(self.ended)


def make(exp: Experiment) -> EarlyStop:
    """The early stopping of `config.stop`.

    Raises:
      ConfigError: no metric of that name is evaluated, or no value can improve by `min_delta`.
    """
    its = exp.config.stop
    if its.metric and its.metric not in (names := _names(exp)):
        raise ConfigError(f"stop.metric={its.metric!r}: must be one of {', '.join(names)}")
    metric = its.metric or exp.best_metric
    if its.min_delta >= 1 and metric.rpartition("/")[2] not in LOSSES:
        raise ConfigError(f"stop.min_delta={its.min_delta:g}: must be below 1, {metric} is in 0..1")
    return EarlyStop(metric, its.patience, its.min_delta)


def _names(exp: Experiment) -> list[str]:
    """Flat names of the metrics that early stopping can follow."""
    images = jax.ShapeDtypeStruct(
        (exp.sharding.data_devices, *exp.dataset.image_shape), jnp.float32
    )
    named = jax.eval_shape(exp.method.predict, exp.state_shapes().variables, images)
    split, kinds = exp.eval_split[0], ("top1", "top5", *LOSSES)
    names = [f"{split}/{name}/{kind}" for name in named for kind in kinds]
    return names + ([f"{split}/oracle"] if exp.config.split > 1 else [])


def evaluated(file: pathlib.Path, metric: str, upto: int) -> Iterable[tuple[int, float | None]]:
    """(step, value) of every evaluation up to step `upto` in metrics.jsonl, one per step."""
    found = {}
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            if values["step"] <= upto and isinstance(values[metric], float | int | None):
                found[int(values["step"])] = values[metric]
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(found.items())
