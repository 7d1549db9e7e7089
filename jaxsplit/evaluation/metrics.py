"""The metrics of an evaluation: `METRICS`. The step sums what stands there, tables show it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit import losses


class Metric(NamedTuple):
    """A mean over the examples of a split.

    total: (logits, labels int[B], mask float[B]) -> sum over the examples whose mask is 1. Logits
      are float[B, K] of one answer, or float[S, B, K] of all networks where `of_networks`.
    title: in a table.
    text: the mean as a table shows it.
    of_networks: a number of all networks together, in evaluations of several only; else one of
      every answer.
    least_classes: a table of fewer classes leaves it out, as it says nothing there.
    """

    total: Callable[[Array, Array, Array], Array]
    title: str
    text: Callable[[float], str]
    of_networks: bool = False
    least_classes: int = 0


def rank(logits: Array, labels: Array) -> Array:
    """int[B]: how many classes come before the true one; K where a logit is NaN.

    Of equal logits the first counts as higher, as in argmax. logits: float[B, K], labels: int[B].
    """
    true = jnp.take_along_axis(logits, labels[:, None], 1)
    earlier = jnp.arange(logits.shape[1])[None] < labels[:, None]
    before = ((logits > true) | ((logits == true) & earlier)).sum(1)
    return jnp.where(jnp.isnan(logits).any(1), logits.shape[1], before)


def hits(k: int) -> Callable[[Array, Array, Array], Array]:
    """The `total` of top-k accuracy."""
    return lambda logits, labels, mask: ((rank(logits, labels) < k) * mask).sum()


def nll(logits: Array, labels: Array, mask: Array) -> Array:
    """Negative log-likelihood of the true class, in nats."""
    log_p = jax.nn.log_softmax(logits)
    own = -jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
    return jnp.where(mask > 0, own, 0.0).sum()


def disagreement(logits: Array, labels: Array, mask: Array) -> Array:
    """Share of pairs of networks that answer differently."""
    return (losses.pairwise_disagreement(logits) * mask).sum()


def oracle(logits: Array, labels: Array, mask: Array) -> Array:
    """Whether any network is right."""
    right = (logits.argmax(-1) == labels[None]).any(0)
    return (right * mask).sum()


def _percent(mean: float) -> str:
    return f"{100 * mean:.2f}"


METRICS: dict[str, Metric] = {
    "top1": Metric(hits(1), "top-1 %", _percent),
    "top5": Metric(hits(5), "top-5 %", _percent, least_classes=6),
    "nll": Metric(nll, "NLL", lambda mean: f"{mean:.4f}"),
    "disagreement": Metric(
        disagreement, "mean pairwise disagreement of the networks", "{:.2%}".format, True
    ),
    "oracle": Metric(oracle, "any of them right (oracle)", "{:.2%}".format, True),
}
