"""Temperature scaling: logits / T, with the T of least NLL (Guo et al. 2017, arXiv 1706.04599).

It changes no answer, only the confidence. Ensembles are compared fairly after it only, each with a
temperature of its own that is fitted on other examples than it is scored on (arXiv 2002.06470).
"""

from typing import NamedTuple

import numpy as np

from jaxsplit.evaluation import scores

LEAST, MOST = 0.05, 100.0
_SEED = 1706  # of the halves
CHUNK = 2**17  # logits that are looked at together


class Scaled(NamedTuple):
    """The temperatures by which the logits of N examples are to be divided.

    each: float64[N], of each example.
    temperature: the one that was fitted, with `folds` empty, or the geometric mean of `folds`.
    """

    each: np.ndarray
    temperature: float
    folds: tuple[float, ...]


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least mean NLL, at most MOST; 1 if it would be below LEAST.

    The NLL is convex in b = 1 / T; its derivative, the mean of (E_p[z] - z_label), grows with b,
    and Brent's method finds its root in log b. Examples with logits that are not finite are left
    out. T is 1 where there is nothing to fit: where no example is left, all logits are equal, or
    the NLL falls without end as T falls, since every answer is right. A T so small would make the
    first wrong answer among other examples cost hundreds of nats.

    Args:
      logits: float[N, K].
      labels: int[N].
    """
    from scipy import optimize

    finite = np.isfinite(logits).all(1)
    logits, labels = logits[finite], labels[finite]
    if not (np.ptp(logits, axis=1) > 0).any():  # also of no example
        return 1.0
    low, high = -np.log(MOST), -np.log(LEAST)
    if _slope(logits, labels, low) >= 0:
        return MOST
    if _slope(logits, labels, high) <= 0:
        return 1.0
    found = optimize.root_scalar(
        lambda at: _slope(logits, labels, at), bracket=(low, high), method="brentq", xtol=1e-9
    )
    return float(np.exp(-found.root))


def from_validation(count: int, logits: np.ndarray, labels: np.ndarray) -> Scaled:
    """Of `count` examples the temperature that fits others, those held out (logits, labels)."""
    found = fit(logits, labels)
    return Scaled(np.full(count, found), found, ())


def cross_fitted(logits: np.ndarray, labels: np.ndarray) -> Scaled:
    """Of each random half of logits float[N, K] the temperature that fits the other half.

    So no example is scored by what was fitted on it (arXiv 2002.06470). A single example is its own
    other half: nothing is fitted, T is 1.
    """
    count = len(labels)
    order = np.random.Generator(np.random.Philox(_SEED)).permutation(count)
    halves = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    each, folds = np.ones(count), []
    for mine, other in (halves, halves[::-1]):
        folds.append(fit(logits[other], labels[other]) if count > 1 else 1.0)
        each[mine] = folds[-1]
    return Scaled(each, float(np.exp(np.mean(np.log(folds)))), tuple(folds))


def _slope(logits: np.ndarray, labels: np.ndarray, log_b: float) -> float:
    """The derivative by b of the NLL at b = exp(log_b), summed over logits [N, K]."""
    total, b = 0.0, np.exp(log_b)
    for rows in scores.chunks(len(labels), logits.shape[1], CHUNK):
        z = np.asarray(logits[rows], np.float64)
        z = z - np.take_along_axis(z, labels[rows, None], 1)  # that of the label is 0
        weights = np.exp(b * (z - z.max(1, keepdims=True)))
        total += float(((weights * z).sum(1) / weights.sum(1)).sum())
    return total
