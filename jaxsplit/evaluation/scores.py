"""Scores of a whole split, in float64: calibration, ranking by confidence, classes.

An example whose logits hold NaN has no answer: its predicted class is -1, it counts as wrong, and
its confidence is 0, below every other. Scores of several networks stand in `diversity`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BINS = 15
CHUNK = 2**17  # logits that are looked at together: they stay in a processor's cache


class Bins(NamedTuple):
    """A reliability diagram: of each bin the examples, their mean confidence, the share right.

    count: int64[bins]. confidence, accuracy: float64[bins], NaN where a bin is empty.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


class Each(NamedTuple):
    """What is computed of single examples; float64[N] each but `predicted`.

    predicted: int64[N]. brier, nll, entropy: the terms of their means.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    entropy: np.ndarray


def of_each(logits: np.ndarray, labels: np.ndarray, temperature: np.ndarray | float = 1.0) -> Each:
    """The scores of each example, part by part, which takes little memory.

    Args:
      logits: float[N, K].
      labels: int[N].
      temperature: by which the logits are divided; float or float[N], one for each example.
    """
    divisors = np.broadcast_to(np.asarray(temperature, np.float64), labels.shape)
    parts = []
    for rows in chunks(len(labels), logits.shape[1], CHUNK):
        log_p = log_softmax(logits[rows] / divisors[rows, None])
        p = np.exp(log_p)
        parts.append(
            Each(
                predicted(log_p),
                confidence(log_p),
                _brier(p, labels[rows]),
                -np.take_along_axis(log_p, labels[rows, None], 1)[:, 0],
                _entropy(p, log_p),
            )
        )
    return Each(*map(np.concatenate, zip(*parts, strict=True)))


def chunks(count: int, num_classes: int, size: int) -> Iterator[slice]:
    """The rows of [count, num_classes] in parts of about `size` entries."""
    rows = max(1, size // num_classes)
    return (slice(at, at + rows) for at in range(0, count, rows))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64[..., K]; all NaN where a logit is NaN or plus infinity."""
    shifted = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted = shifted - shifted.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def predicted(log_p: np.ndarray) -> np.ndarray:
    """int64[...]: the class with the highest of log_p [..., K], the first of equals; -1: NaN.

    Of logits, too; -1 where their probabilities would be NaN.
    """
    return np.where(np.isfinite(log_p.max(-1)), log_p.argmax(-1), -1)


def confidence(log_p: np.ndarray) -> np.ndarray:
    """float64[...]: the highest probability of log_p [..., K]; 0 where it is NaN."""
    return np.nan_to_num(np.exp(log_p.max(-1)), nan=0.0)


def brier(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Mean of sum_k (p_k - [k is the label])^2, in 0..2 (Brier 1950).

    Where log_p is NaN every p_k counts as 0, so that the example adds 1.

    Args:
      log_p: float[N, K].
      labels: int[N].
    """
    return float(_brier(np.exp(log_p), labels).mean())


def nll(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; NaN where any of log_p float[N, K] is."""
    return float(-np.take_along_axis(log_p, labels[:, None], 1).mean())


def entropy(log_p: np.ndarray) -> np.ndarray:
    """float64[...]: -sum_k p_k log p_k in nats, of log_p [..., K]; NaN where it is."""
    return _entropy(np.exp(log_p), log_p)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """The bins ((b - 1) / bins, b / bins] of confidence (Guo et al. 2017, arXiv 1706.04599).

    A confidence of 0 is in the first bin.

    Args:
      confidence: float[N] in 0..1.
      right: bool[N].
      bins: of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    sums = (np.bincount(at, values, bins) for values in (confidence, right))
    with np.errstate(invalid="ignore"):  # 0 / 0
        return Bins(count, *(total / count for total in sums))


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: sum_b n_b / N |accuracy_b - confidence_b| (arXiv 1706.04599).

    Arguments as of `reliability`.
    """
    count, mean_confidence, accuracy = reliability(confidence, right, bins)
    full = count > 0
    gaps = np.abs(accuracy[full] - mean_confidence[full])
    return float((count[full] * gaps).sum() / count.sum())


def adaptive_ece(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """ECE over bins of equal numbers of examples, by confidence (arXiv 1904.01685).

    Sizes differ by one at most. Examples of equal confidence each count as right by their mean, so
    that the order of the examples changes nothing. Arguments as of `reliability`.
    """
    order, right = _by_confidence(confidence, right)
    parts = zip(np.array_split(confidence[order], bins), np.array_split(right, bins), strict=True)
    return float(sum(abs(c.sum() - r.sum()) for c, r in parts) / len(order))


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk), float64[N] each: the share wrong among the n most confident (1805.08206).

    Of equally confident examples each counts by their mean, the expected value over their orders.

    Args:
      confidence: float[N].
      right: bool[N].
    """
    _, right = _by_confidence(confidence, right)
    counts = np.arange(1, len(right) + 1)
    return counts / len(right), np.cumsum(1 - right[::-1]) / counts


def aurc(confidence: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean of its risks (arXiv 1805.08206)."""
    return float(risk_coverage(confidence, right)[1].mean())


def per_class(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """float64[K]: the share right of each class; NaN of a class without examples.

    predicted, labels: int[N].
    """
    right = np.bincount(labels, predicted == labels, num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return right / np.bincount(labels, minlength=num_classes)


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int64[K, K]: examples by true class (row) and predicted class (column).

    An example without an answer (-1) stands in no column. predicted, labels: int[N].
    """
    given = predicted >= 0
    cells = labels[given].astype(np.int64) * num_classes + predicted[given]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _brier(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(p, labels[:, None], 1)[:, 0]
    return np.nan_to_num((p * p).sum(1) - 2 * own + 1, nan=1.0)


def _entropy(p: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # 0 * -inf
        terms = p * log_p
    terms[p == 0] = 0.0
    return -terms.sum(-1)


def _by_confidence(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, share right in that order): least confident first, equals by their mean."""
    order = np.argsort(confidence, kind="stable")
    _, group = np.unique(confidence, return_inverse=True)
    means = np.bincount(group, right) / np.bincount(group)
    return order, means[group][order]
