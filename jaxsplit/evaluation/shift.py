"""Evaluation of a test set under every corruption, at every severity, in one pass over it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsplit import augment, data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import corruptions
from jaxsplit.evaluation.corruptions import KINDS, SEVERITIES
from jaxsplit.evaluation.metrics import METRICS
from jaxsplit.evaluation.results import answers
from jaxsplit.evaluation.run import EvalPass
from jaxsplit.evaluation.scores import BINS
from jaxsplit.methods.base import Method

_METRICS = ("top1", "nll")
SCORES = ("top1", "nll", "ece")
_Sums = dict[str, dict[str, np.ndarray]]


def make_step(
    method: Method, mean: Sequence[float], std: Sequence[float], how: EvalPass, options: Any = None
) -> Callable[[dict, dict], dict[str, dict[str, Array]]]:
    """Jitted (variables, batch) -> name -> 'top1', 'nll', 'bins' -> sums over the real examples.

    'bins' is float32[BINS, 2]: of each bin of `scores.reliability` the sum of confidence less
    whether the answer is right, and the number of examples. A batch is that of `make_eval_step`.
    options: of the compiler.
    """

    def step(variables: dict, batch: dict) -> dict[str, dict[str, Array]]:
        images = augment.eval_view(batch["images"], mean, std)
        labels, mask = batch["labels"], batch["mask"]
        sums = {}
        for name, logits in method.predict(variables, images).items():
            its = {metric: METRICS[metric].total(logits, labels, mask) for metric in _METRICS}
            sums[name] = its | {"bins": _bins(logits.astype(jnp.float32), labels, mask)}
        return sums

    everywhere = how.sharding.named(how.sharding.replicated)
    return jax.jit(step, out_shardings=everywhere, compiler_options=options)


def _bins(logits: Array, labels: Array, mask: Array) -> Array:
    no_answer = jnp.isnan(logits).any(1)
    sure = jnp.where(no_answer, 0, jax.nn.softmax(logits).max(1))
    right = (logits.argmax(1) == labels) & ~no_answer
    at = (jnp.ceil(sure * BINS).astype(jnp.int32) - 1).clip(0, BINS - 1)
    values = jnp.stack([sure - right, jnp.ones_like(sure)], 1) * mask[:, None]
    return jax.nn.one_hot(at, BINS).T @ values


def evaluate(
    step: Callable,
    variables: dict,
    split: data.Arrays | data.Stream,
    how: EvalPass,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """The section `corruptions` of eval.json; docs/evaluation.md describes it. Collective.

    Args:
      step: of `make_step`.
      variables: {'params', 'batch_stats'} on the devices.
      split: the examples; read once.
      how: they come to the devices.
      advance: called after each batch.

    Raises:
      ConfigError: every example is bad and was skipped.
    """
    totals: dict[tuple[str, int], _Sums] = {}
    pending: dict[tuple[str, int], dict] = {}
    part, _ = how.sharding.part
    with how.batches(split) as batches:
        for k, batch in enumerate(batches):
            rows = len(batch["labels"])
            index = k * how.rows + part * rows + np.arange(rows, dtype=np.int32)
            placed = how.put(batch | {"index": index})
            for kind in KINDS:
                queued: dict[tuple[str, int], dict] = {}
                for severity in SEVERITIES:
                    images = corruptions.corrupt(kind, placed["images"], severity, placed["index"])
                    queued[kind, severity] = step(variables, placed | {"images": images})
                # Those of the kind before, so that the device always has one queued.
                _add(totals, pending)
                pending = queued
            advance()
    _add(totals, pending)
    count = _count(totals)
    if not count:
        raise ConfigError("data.on_bad_record='skip': leaves no example to evaluate; all are bad")
    return _section(totals, count)


def _count(totals: dict[tuple[str, int], _Sums]) -> float:
    """The examples, which every answer's bins hold."""
    return float(next(iter(next(iter(totals.values())).values()))["bins"][:, 1].sum())


def _add(totals: dict[tuple[str, int], _Sums], pending: dict[tuple[str, int], dict]) -> None:
    for case, sums in jax.device_get(pending).items():
        its = jax.tree.map(np.float64, sums)
        totals[case] = jax.tree.map(np.add, totals[case], its) if case in totals else its


def _section(totals: dict[tuple[str, int], _Sums], count: float) -> dict[str, Any]:
    names = answers(next(iter(totals.values())))
    kinds: dict[str, Any] = {}
    for kind, its in KINDS.items():
        by_severity = {
            name: {
                metric: [_score(totals[kind, s][name], metric, count) for s in SEVERITIES]
                for metric in SCORES
            }
            for name in names
        }
        kinds[kind] = {"definition": its.definition, "answers": by_severity}
    means = {
        name: {
            metric: float(np.mean([kinds[kind]["answers"][name][metric] for kind in KINDS]))
            for metric in SCORES
        }
        for name in names
    }
    for its in means.values():
        its["mean_corruption_error"] = 1 - its["top1"]
    return {"count": int(count), "answers": means, "kinds": kinds}


def _score(sums: dict[str, np.ndarray], metric: str, count: float) -> float:
    if metric == "ece":
        return float(np.abs(sums["bins"][:, 0]).sum() / count)
    return float(sums[metric] / count)
