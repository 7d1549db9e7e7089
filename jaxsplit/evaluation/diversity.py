"""How several networks differ over a whole split, in float64.

Means over examples leave out those for which any network has NaN; they are NaN if none is left.
Classes of -1, as `scores.predicted` gives for NaN, are wrong and differ from every other class.
"""

from collections.abc import Iterator

import numpy as np

from jaxsplit.evaluation import scores

CHUNK = 2**17  # logits of one network that are looked at together


def pairwise_disagreement(predicted: np.ndarray) -> np.ndarray:
    """float64[S, S]: the share of examples that two networks answer differently.

    predicted: int[S, N].
    """
    return np.stack([(one[None] != predicted).mean(1) for one in predicted])


def mean_of_pairs(matrix: np.ndarray) -> float:
    """The mean of [S, S] off its diagonal, without NaN; NaN if nothing is left."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    off = off[~np.isnan(off)]
    return float(off.mean()) if len(off) else float("nan")


def pairwise_kl(logits: np.ndarray) -> np.ndarray:
    """float64[S, S]: the mean over examples of KL(p_i || p_j) in nats, i the row.

    logits: float[S, N, K].
    """
    sums, count = np.zeros((len(logits), len(logits))), 0
    for log_p in _finite_chunks(logits):
        count += log_p.shape[1]
        p = np.exp(log_p)
        if np.isfinite(log_p).all():
            flat = log_p.reshape(len(log_p), -1)
            cross = p.reshape(flat.shape) @ flat.T
            sums += np.diag(cross)[:, None] - cross
            continue
        for i, j in np.ndindex(sums.shape):
            with np.errstate(invalid="ignore"):  # 0 * (-inf + inf)
                terms = p[i] * (log_p[i] - log_p[j])
            sums[i, j] += np.where(p[i] == 0, 0.0, terms).sum()
    return np.maximum(sums, 0.0) / count if count else np.full_like(sums, np.nan)


def error_correlation(right: np.ndarray) -> np.ndarray:
    """float64[S, S]: Pearson's correlation of the errors, 0 or 1, of two networks.

    NaN where one of them is always right or always wrong. right: bool[S, N].
    """
    errors = 1.0 - right
    errors -= errors.mean(1, keepdims=True)
    covariance = errors @ errors.T
    deviation = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore"):  # 0 / 0
        return covariance / np.outer(deviation, deviation)


def uncertainty(logits: np.ndarray) -> tuple[float, float]:
    """(entropy, mutual information) in nats, means over the examples.

    The entropy is that of the mean of the networks' probabilities; it is the predictive uncertainty
    of arXiv 1612.01474. Less the mean entropy of the networks it is the mutual information of
    answer and network (BALD, arXiv 1112.5745): what they disagree about.

    logits: float[S, N, K].
    """
    of_mean = of_each = 0.0
    count = 0
    for log_p in _finite_chunks(logits):
        count += log_p.shape[1]
        of_mean += scores.entropy(mean_probabilities(log_p)).sum()
        of_each += scores.entropy(log_p).mean(0).sum()
    if not count:
        return float("nan"), float("nan")
    return float(of_mean / count), float(max(0.0, of_mean - of_each) / count)


def mean_probabilities(log_p: np.ndarray) -> np.ndarray:
    """Logarithms of the mean over networks of exp(log_p): float[S, N, K] -> float[N, K]."""
    highest = log_p.max(0)
    shift = np.where(np.isneginf(highest), 0.0, highest)
    with np.errstate(divide="ignore"):  # a class that no network gives any probability
        return shift + np.log(np.exp(log_p - shift).mean(0))


def oracle(right: np.ndarray) -> float:
    """The share of examples that any network answers right; right: bool[S, N]."""
    return float(right.any(0).mean())


def _finite_chunks(logits: np.ndarray) -> Iterator[np.ndarray]:
    """Log-probabilities float64[S, n, K] of the examples without NaN, part by part."""
    _, count, classes = logits.shape
    for rows in scores.chunks(count, classes, CHUNK):
        log_p = scores.log_softmax(logits[:, rows])
        bad = np.isnan(log_p[..., 0]).any(0)  # all classes are, or none
        yield log_p[:, ~bad] if bad.any() else log_p
