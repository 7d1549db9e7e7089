"""Cascades: network after network, until what they say together is confident.

An image leaves as soon as the largest probability of the combined answer of the networks that have
seen it reaches a threshold; the last network's combined answer is that of the whole ensemble. Wang
et al., "Wisdom of Committees" (arXiv 2012.01988).

All here are pure functions of logits float[S, N, K] whose first axis is in the order of the
cascade; `compact` runs one. Costs are float[S], the multiply-adds of each network.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scipy.special import log_softmax, logsumexp

from jaxsplit.errors import ConfigError

Costs: TypeAlias = "Sequence[float] | np.ndarray"
ALL = 2.0  # a threshold that no probability reaches: every network sees every image
_POINTS = 200  # thresholds of a curve
_FOLDS = 5
_CHUNK = 2**24  # logits that `steps_in_parts` looks at together

# As `losses.ENSEMBLES`, of any leading axes: a cascade combines batches of every size, for each of
# which jax would compile.
_COMBINED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_logits": lambda z: z.mean(0),
    "mean_probs": lambda z: logsumexp(log_softmax(z, -1), 0) - np.log(len(z)),
    "max_logits": lambda z: z.max(0),
    "max_probs": lambda z: log_softmax(z, -1).max(0),
}


def log_probabilities(
    logits: np.ndarray, how: str = "mean_logits", temperature: float = 1.0
) -> np.ndarray:
    """float64[N, K]: what networks say together; logits float[S, N, K].

    how: a name in `losses.ENSEMBLES`.
    """
    return log_softmax(_COMBINED[how](np.asarray(logits, np.float64)) / temperature, -1)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the first k networks say together, k = 1 ... S.

    confidence: float[S, N], the largest probability; 0 where logits are not finite.
    answer: int[S, N], its class.
    """

    confidence: np.ndarray
    answer: np.ndarray

    def exits(self, threshold: float) -> np.ndarray:
        """int[N]: after how many networks an image leaves, 1 to S."""
        sure = self.confidence >= threshold
        sure[-1] = True
        return sure.argmax(0) + 1

    def part(self, chosen: np.ndarray) -> "Steps":
        """Of some of the images."""
        return Steps(self.confidence[:, chosen], self.answer[:, chosen])


def steps(logits: np.ndarray, how: str = "mean_logits", temperature: float = 1.0) -> Steps:
    """The steps of a cascade of logits float[S, N, K]; arguments as `log_probabilities`."""
    said = [log_probabilities(logits[:k], how, temperature) for k in range(1, len(logits) + 1)]
    answer = np.stack([log_p.argmax(-1) for log_p in said])
    return Steps(np.stack([_confidence(log_p) for log_p in said]), answer)


def steps_in_parts(logits: Sequence[np.ndarray], how: str) -> Steps:
    """`steps` of the logits float[N, K] of each network, part by part, which bounds memory."""
    count, classes = logits[0].shape
    size = max(1, _CHUNK // (classes * len(logits)))
    parts = [
        steps(np.stack([one[at : at + size] for one in logits]), how)
        for at in range(0, count, size)
    ]
    return Steps(
        np.concatenate([part.confidence for part in parts], 1),
        np.concatenate([part.answer for part in parts], 1),
    )


def _confidence(log_p: np.ndarray) -> np.ndarray:
    """float[N]: the largest probability of log-probabilities float[N, K]; 0 where it is NaN."""
    return np.nan_to_num(np.exp(log_p.max(-1)), nan=0.0)


@dataclasses.dataclass(frozen=True)
class Point:
    """A cascade at one threshold.

    accuracy: share of right answers, 0..1.
    cost: mean multiply-adds of an image.
    share: `cost` as a share of that of all networks, 0..1.
    exits: share of the images that leave after 1, 2, ... S networks.
    """

    threshold: float
    accuracy: float
    cost: float
    share: float
    exits: tuple[float, ...]


def point(found: Steps, labels: np.ndarray, costs: Costs, threshold: float) -> Point:
    """The cascade at a threshold; labels int[N], costs float[S]."""
    left = found.exits(threshold)
    answer = np.take_along_axis(found.answer, left[None] - 1, 0)[0]
    spent = np.cumsum(costs)
    counts = np.bincount(left, minlength=len(spent) + 1)[1:]
    cost = float((counts * spent).sum() / len(left))
    return Point(
        threshold=float(threshold),
        accuracy=float((answer == labels).mean()),
        cost=cost,
        share=cost / float(spent[-1]),
        exits=tuple((counts / len(left)).tolist()),
    )


def thresholds(found: Steps, count: int = _POINTS) -> np.ndarray:
    """float[M]: from 0, where one network answers alone, to `ALL`; M is at most count + 2.

    Between are quantiles of the confidences at which an image can leave early.
    """
    early = found.confidence[:-1].ravel()
    inner = np.quantile(early, np.linspace(0, 1, count)) if early.size else np.zeros(0)
    return np.unique(np.concatenate([[0.0], inner, [ALL]]))


def curve(found: Steps, labels: np.ndarray, costs: Costs, count: int = _POINTS) -> list[Point]:
    """Accuracy against multiply-adds, from one network alone to all; costs ascend."""
    made = [point(found, labels, costs, at) for at in thresholds(found, count)]
    return sorted(made, key=lambda p: (p.cost, p.accuracy))


def fit(
    found: Steps,
    labels: np.ndarray,
    costs: Costs,
    *,
    accuracy: float | None = None,
    share: float | None = None,
) -> Point:
    """The threshold for a wanted accuracy, or for a wanted cost.

    Args:
      found: of held-out images.
      labels: int[N].
      costs: float[S].
      accuracy: at least this, 0..1, at the lowest cost.
      share: at most this share of the cost of all networks, with the best accuracy.

    Raises:
      ConfigError: not one of the two is given, it is out of range, or no threshold reaches it.
    """
    if (accuracy is None) == (share is None):
        raise ConfigError("cascade: accuracy or cost must be given, one of them")
    wanted = accuracy if accuracy is not None else share
    name = "accuracy" if accuracy is not None else "cost"
    if wanted is None or not 0 < wanted <= 1:
        raise ConfigError(f"cascade: {name}={wanted}: must be in (0, 1]")
    points = curve(found, labels, costs)
    if accuracy is not None:
        if fine := [p for p in points if p.accuracy >= accuracy]:
            return min(fine, key=lambda p: (p.cost, -p.accuracy))
        best = max(p.accuracy for p in points)
        raise ConfigError(
            f"cascade: accuracy={accuracy}: no threshold reaches it; the highest is {best:.4f}"
        )
    if fine := [p for p in points if p.share <= wanted]:
        return max(fine, key=lambda p: (p.accuracy, -p.cost))
    least = min(p.share for p in points)
    raise ConfigError(
        f"cascade: cost={share}: must be at least {least:.4g}, that of the first network alone"
    )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted threshold, and what it may be expected to give.

    threshold: fitted on all held-out images.
    expected: on images that it was not fitted on: those of a test set, or by cross-fitting.
    """

    threshold: float
    expected: Point


def cross_fitted(
    found: Steps,
    labels: np.ndarray,
    costs: Costs,
    *,
    folds: int = _FOLDS,
    seed: int = 0,
    **wanted: float | None,
) -> Fitted:
    """`fit`, with the accuracy and cost on images that a threshold was not fitted on.

    Each of `folds` random parts is scored at the threshold that the others give; `expected` has
    the threshold of all, and the means over the parts. Other arguments as of `fit`.

    Raises:
      ConfigError: as `fit`; or there are fewer images than folds.
    """
    count = len(labels)
    if count < folds:
        raise ConfigError(f"cascade: {count} images, must be at least {folds} to fit a threshold")
    whole = fit(found, labels, costs, **wanted)
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    parts = np.array_split(order, folds)
    scored = []
    for k, part in enumerate(parts):
        rest = np.concatenate([other for i, other in enumerate(parts) if i != k])
        try:
            at = fit(found.part(rest), labels[rest], costs, **wanted).threshold
        except ConfigError:  # these images alone do not reach it
            at = ALL if wanted.get("accuracy") is not None else 0.0
        scored.append((len(part), point(found.part(part), labels[part], costs, at)))

    def mean(of: Callable[[Point], float]) -> float:
        return sum(n * of(p) for n, p in scored) / count

    expected = Point(
        threshold=whole.threshold,
        accuracy=mean(lambda p: p.accuracy),
        cost=mean(lambda p: p.cost),
        share=mean(lambda p: p.share),
        exits=tuple(mean(lambda p, k=k: p.exits[k]) for k in range(len(costs))),
    )
    return Fitted(whole.threshold, expected)


def order(logits: np.ndarray, labels: np.ndarray) -> list[int]:
    """The networks from the best to the worst by accuracy; of equal ones the first first."""
    right = (np.asarray(logits).argmax(-1) == labels).mean(-1)
    return np.argsort(-right, kind="stable").tolist()


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What a cascade found of N images.

    log_probabilities: float64[N, K] of the combined answer at which each image left.
    used: int[N], networks that saw it.
    logits: float32[S, N, K]; NaN where a network did not see an image.
    """

    log_probabilities: np.ndarray
    used: np.ndarray
    logits: np.ndarray


def compact(
    run: Callable[[int, np.ndarray | None], np.ndarray],
    count: int,
    networks: int,
    threshold: float,
    *,
    how: str = "mean_logits",
    temperature: float = 1.0,
) -> Compacted:
    """Runs a cascade: each network sees only the images that are still in it.

    Args:
      run: (k, rows int[M] among the images of the run before, or None for all) -> logits
        float[M, K] of network k.
      count: N >= 1.
      networks: S.
      threshold, how, temperature: as of `steps`.
    """
    waiting, kept, logits, answer = np.arange(count), None, np.zeros(0), np.zeros(0)
    used = np.zeros(count, np.int64)
    for k in range(networks):
        found = np.asarray(run(k, kept), np.float32)
        if k == 0:
            logits = np.full((networks, count, found.shape[-1]), np.nan, np.float32)
            answer = np.zeros((count, found.shape[-1]))
        logits[k, waiting] = found
        together = log_probabilities(logits[: k + 1, waiting], how, temperature)
        answer[waiting], used[waiting] = together, k + 1
        kept = np.flatnonzero(_confidence(together) < threshold)
        waiting = waiting[kept]
        if not len(waiting):
            break
    return Compacted(answer, used, logits)
