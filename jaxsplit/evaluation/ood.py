"""Telling images of another data set from the test set's by how uncertain the answers are.

An uncertainty is higher for images that look foreign. An image whose logits hold NaN is the most
uncertain of all.
"""

from typing import NamedTuple

import numpy as np

from jaxsplit.evaluation import diversity, scores


class Detection(NamedTuple):
    """How well an uncertainty separates the test set from foreign images; NaN where one is empty.

    auroc: the probability that a foreign image is more uncertain than one of the test set; a tie
      counts half.
    aupr_out, aupr_in: average precision, with the foreign images, or the test set, as positive.
    fpr95: the share of foreign images that pass where at least 95 % of the test set pass, so the
      test set is positive (arXiv 1706.02690).
    """

    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95: float


def detection(inside: np.ndarray, outside: np.ndarray) -> Detection:
    """Scores of uncertainties, float[N] of the test set and float[M] of foreign images."""
    known, foreign = (np.where(np.isnan(u), np.inf, u) for u in (inside, outside))
    return Detection(
        auroc(foreign, known),
        average_precision(foreign, known),
        average_precision(-known, -foreign),
        fpr_at_tpr(-known, -foreign),
    )


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the curve of true against false positive rate; NaN where one is empty.

    It is P(positive > negative) + P(equal) / 2, of values float[P] and float[N].
    """
    hits, alarms = _curve(positive, negative)
    if not (len(positive) and len(negative)):
        return float("nan")
    heights = (hits[1:] + hits[:-1]) / 2
    return float((np.diff(alarms) * heights).sum() / (len(positive) * len(negative)))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Sum of precision times the gain in recall over all thresholds; NaN where one is empty.

    positive: float[P], negative: float[N]. Equal values pass a threshold together.
    """
    hits, alarms = _curve(positive, negative)
    if not (len(positive) and len(negative)):
        return float("nan")
    precision = hits[1:] / (hits[1:] + alarms[1:])
    return float((np.diff(hits) * precision).sum() / len(positive))


def fpr_at_tpr(positive: np.ndarray, negative: np.ndarray, tpr: float = 0.95) -> float:
    """The least false positive rate of a threshold that `tpr` of the positive values reach.

    positive: float[P], negative: float[N]; NaN where one is empty. Nothing is interpolated.
    """
    hits, alarms = _curve(positive, negative)
    if not (len(positive) and len(negative)):
        return float("nan")
    return float(alarms[np.argmax(hits >= tpr * len(positive))] / len(negative))


def _curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of each reach a threshold, from none to all: int64[T + 1] each."""
    values, at = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    counts = (
        np.bincount(part, minlength=len(values))[::-1].cumsum()
        for part in (at[: len(positive)], at[len(positive) :])
    )
    hits, alarms = (np.concatenate([[0], count]) for count in counts)
    return hits, alarms


# ---- Uncertainties


def max_probability(log_p: np.ndarray) -> np.ndarray:
    """float64[N]: minus the log of the highest probability (arXiv 1610.02136); log_p [N, K].

    The log ranks as the probability itself, and keeps apart what rounds to 1.
    """
    return -log_p.max(-1)


def mutual_information(log_p: np.ndarray) -> np.ndarray:
    """float64[N]: entropy of the networks' mean less their mean entropy; log_p [S, N, K].

    What the networks disagree about (arXiv 1112.5745, 1612.01474).
    """
    mean = diversity.mean_probabilities(log_p)
    return scores.entropy(mean) - scores.entropy(log_p).mean(0)


# Of one answer; all take log-probabilities [N, K] and give float64[N].
UNCERTAINTIES = {"max_probability": max_probability, "entropy": scores.entropy}
