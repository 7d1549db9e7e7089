"""Temperature scaling: logits / T, with the T of least NLL (Guo et al. 2017, arXiv 1706.04599).

It changes no answer, only the confidence. Ensembles are compared fairly after it only, each with a
temperature of its own that is fitted on other examples than it is scored on (arXiv 2002.06470).
"""

from typing import NamedTuple

import numpy as np

from jaxsplit.evaluation import scores

LEAST, MOST = 0.01, 100.0  # where the NLL falls without end, as where every answer is right
_SEED = 1706  # of the halves
CHUNK = 2**20  # logits that are looked at together


class Scaled(NamedTuple):
    """Log-probabilities float64[N, K] after scaling, and the temperatures that were fitted.

    temperature: the one, or the geometric mean of those of `folds`, which is empty then.
    """

    log_p: np.ndarray
    temperature: float
    folds: tuple[float, ...]


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least mean NLL, in LEAST..MOST.

    The NLL is convex in b = 1 / T; its derivative, the mean of (E_p[z] - z_label), grows with b,
    and Brent's method finds its root in log b. Examples with logits that are not finite are left
    out. T is 1 where it changes nothing, as where all logits are equal or no example is left.

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
        return LEAST
    found = optimize.root_scalar(
        lambda at: _slope(logits, labels, at), bracket=(low, high), method="brentq", xtol=1e-9
    )
    return float(np.exp(-found.root))


def from_validation(
    logits: np.ndarray, labels: np.ndarray, held_logits: np.ndarray, held_labels: np.ndarray
) -> Scaled:
    """Scales logits float[N, K] by the temperature that fits other examples, those held out."""
    found = fit(held_logits, held_labels)
    return Scaled(scores.log_softmax(np.asarray(logits, np.float64) / found), found, ())


def cross_fitted(logits: np.ndarray, labels: np.ndarray) -> Scaled:
    """Scales each random half of logits float[N, K] by the temperature that fits the other half.

    So no example is scored by what was fitted on it (arXiv 2002.06470). A single example is its own
    other half: nothing is fitted, T is 1.
    """
    count = len(labels)
    order = np.random.Generator(np.random.Philox(_SEED)).permutation(count)
    halves = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    log_p = np.empty(logits.shape)
    folds = []
    for mine, other in (halves, halves[::-1]):
        folds.append(fit(logits[other], labels[other]) if count > 1 else 1.0)
        log_p[mine] = scores.log_softmax(np.asarray(logits[mine], np.float64) / folds[-1])
    return Scaled(log_p, float(np.exp(np.mean(np.log(folds)))), tuple(folds))


def _slope(logits: np.ndarray, labels: np.ndarray, log_b: float) -> float:
    """The derivative by b of the NLL at b = exp(log_b), summed over logits [N, K]."""
    total, b = 0.0, np.exp(log_b)
    size = max(1, CHUNK // logits.shape[1])
    for at in range(0, len(labels), size):
        z = np.asarray(logits[at : at + size], np.float64)
        z = z - np.take_along_axis(z, labels[at : at + size, None], 1)  # that of the label is 0
        p = np.exp(scores.log_softmax(b * z))
        total += float((p * z).sum())
    return total
