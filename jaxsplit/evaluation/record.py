"""What `eval.json` holds: every score of a checkpoint, in dicts, lists and numbers."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import numpy as np

from jaxsplit.evaluation import diversity, scores, temperature
from jaxsplit.evaluation.metrics import METRICS
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions
from jaxsplit.evaluation.results import EXAMPLES, NETWORKS, Results, SplitResults, answers
from jaxsplit.workdir.versions import of_libraries

T = TypeVar("T")
FILE = "eval.json"
FORMAT = 1  # of the file; grows where a key changes its meaning
TRAIN = "train"  # the name of the sample of the training set
MOST_CONFUSION = 200  # classes; of more, `predictions.npz` gives the matrix
_POINTS = 100  # of the risk-coverage curve
_GAPS = ("disagreement", "pairwise_kl", "error_correlation", "mutual_information", "oracle")
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "scipy")


def of_splits(results: Results, found: Predictions) -> dict[str, dict]:
    """split -> {'count', 'answers': name -> scores, 'networks': scores of several}.

    results: the means of METRICS; they get every score that is one number, so that the flat form
      has them, too.
    """
    return {split: _of_split(results[split], its) for split, its in found.splits.items()}


def _of_split(means: SplitResults, its: SplitPredictions) -> dict[str, Any]:
    def of(name: str) -> tuple[dict[str, float], dict[str, Any]]:
        return of_answer(its.logits[name], its.labels)

    named = {}
    for name, (numbers, more) in _map(of, answers(means)).items():
        # A jitted function sorts the metrics.
        means[name] = {m: means[name][m] for m in METRICS if m in means[name]} | numbers
        named[name] = means[name] | more
    out: dict[str, Any] = {name: int(value) for name, value in means[EXAMPLES].items()}
    out["answers"] = named
    if NETWORKS in means:
        numbers, more = of_networks(its)
        gains = {
            f"ensemble_gain_{metric}": sign
            * (means["ensemble"][metric] - _mean_of_networks(means, metric))
            for metric, sign in (("top1", 1), ("nll", -1))
        }
        means[NETWORKS] |= numbers | gains
        out["networks"] = means[NETWORKS] | more
    return out


def of_answer(logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
    """(scores that are numbers, the others) of one answer; `docs/evaluation.md` defines them.

    logits: float[N, K]; labels: int[N].
    """
    each, classes = scores.of_each(logits, labels), logits.shape[1]
    numbers, more = _confidence_scores(each, labels)
    coverage, risk = scores.risk_coverage(each.confidence, each.predicted == labels)
    at = np.unique(np.ceil(len(risk) * np.arange(1, _POINTS + 1) / _POINTS).astype(int) - 1)
    numbers |= {
        "aurc": float(risk.mean()),
        "confidence": float(each.confidence.mean()),
        "entropy": _mean(each.entropy),
    }
    more |= {
        "per_class": scores.per_class(each.predicted, labels, classes),
        "risk_coverage": {"coverage": coverage[at], "risk": risk[at]},
    }
    if classes <= MOST_CONFUSION:
        more["confusion"] = scores.confusion(each.predicted, labels, classes)
    return numbers, more


def of_networks(found: SplitPredictions) -> tuple[dict[str, float], dict[str, Any]]:
    """(scores that are numbers, matrices [S, S]) of several networks together."""
    logits = found.networks()
    answer = scores.predicted(logits)
    matrices = {
        "disagreement_matrix": diversity.pairwise_disagreement(answer),
        "pairwise_kl_matrix": diversity.pairwise_kl(logits),
        "error_correlation_matrix": diversity.error_correlation(answer == found.labels),
    }
    entropy, information = diversity.uncertainty(logits)
    return {
        "pairwise_kl": diversity.mean_of_pairs(matrices["pairwise_kl_matrix"]),
        "error_correlation": diversity.mean_of_pairs(matrices["error_correlation_matrix"]),
        "entropy": entropy,
        "mutual_information": information,
    }, matrices


def scaled(results: Results, found: Predictions) -> dict[str, Any]:
    """Scores of the test set before and after temperature scaling, of every answer.

    The temperatures come from the split `validation` where there is one, else from the test set by
    cross-fitting. Their numbers are added to `results`, too.
    """
    test, held = found.splits["test"], found.splits.get("validation")
    labels, named = test.labels, {}

    def fit(name: str) -> tuple[temperature.Scaled, scores.Each]:
        logits = test.logits[name]
        if held is not None:
            fitted = temperature.from_validation(len(labels), held.logits[name], held.labels)
        else:
            fitted = temperature.cross_fitted(logits, labels)
        return fitted, scores.of_each(logits, labels, fitted.each)

    for name, (fitted, after) in _map(fit, list(test.logits)).items():
        numbers, more = _confidence_scores(after, labels)
        numbers = {"nll": float(after.nll.mean())} | numbers
        mine = results["test"][name]
        named[name] = {
            "temperature": fitted.temperature,
            "folds": list(fitted.folds),
            "before": {metric: mine[metric] for metric in numbers},
            "after": numbers | more,
        }
        mine["temperature"] = fitted.temperature
        mine |= {f"{metric}_scaled": numbers[metric] for metric in ("nll", "ece")}
    return {
        "fitted_on": "validation" if held is not None else "test halves",
        "fitted_examples": len(labels if held is None else held.labels),
        "scored_on": "test",
        "answers": named,
    }


def gap(results: Results) -> dict[str, dict[str, float]]:
    """metric -> {'train', 'test', 'gap': test - train}, of the diversity of several networks."""
    if NETWORKS not in results["test"]:
        return {}
    train, test = results[TRAIN][NETWORKS], results["test"][NETWORKS]
    return {
        name: {"train": train[name], "test": test[name], "gap": test[name] - train[name]}
        for name in _GAPS
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that the numbers come from."""
    return of_libraries(_LIBRARIES)


def text(record: Mapping[str, Any]) -> str:
    """The record as JSON: a line for each entry, null for what is not finite."""
    return _json(_plain(record), 0) + "\n"


def _map(do: Callable[[str], T], names: Sequence[str]) -> dict[str, T]:
    """`do` of every answer, several at a time: NumPy's loops run in threads."""
    with futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(do, names), strict=True))


def _confidence_scores(
    each: scores.Each, labels: np.ndarray
) -> tuple[dict[str, float], dict[str, Any]]:
    """Those that temperature scaling changes."""
    sure, right = each.confidence, each.predicted == labels
    numbers = {
        "brier": float(each.brier.mean()),
        "ece": scores.ece(sure, right),
        "adaptive_ece": scores.adaptive_ece(sure, right),
    }
    return numbers, {"reliability": scores.reliability(sure, right)._asdict()}


def _mean_of_networks(means: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return float(np.mean([means[name][metric] for name in means if name.startswith("net")]))


def _mean(values: np.ndarray) -> float:
    """The mean of those that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any, depth: int) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    pad = "  " * (depth + 1)
    lines = (f"{pad}{json.dumps(key)}: {_json(of, depth + 1)}" for key, of in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + pad[2:] + "}"
