"""Losses of logits on labels; `LabelLoss` is the one that a config names.

Every function takes `logits: float[S, B, K]` of S networks and computes in at least float32. The
target of an example is t = (1 - e) * onehot(label) + e / K with e = `label_smoothing` (arXiv
1512.00567). Of mixed images (mixup, arXiv 1710.09412) both losses would be lam * loss(label) +
(1 - lam) * loss(partner); they are linear in t, so the targets are mixed instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.models.layers import widen

OFF = 1.0  # the threshold that leaves targets as they are


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    partner: Array | None = None,
    lam: Array | float | None = None,
) -> Array:
    """Mean cross-entropy of every network: -sum_k t_k log softmax(z)_k.

    Args:
        logits: float[S, B, K].
        labels: int[B], shared by the networks.
        label_smoothing: e, in [0, 1].
        partner: int[B], labels of the images mixed in; together with `lam` or not at all.
        lam: scalar share of `labels`, in [0, 1].

    Returns:
        float[S]: the mean over the batch.

    Raises:
        ValueError: only one of `partner` and `lam` is given.

    Example:
        >>> float(cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([0, 3]))[0])  # log 4
        1.3862943649291992
    """
    log_p = jax.nn.log_softmax(widen(logits))
    target = _targets(log_p, labels, label_smoothing, partner, lam)
    return -(target[None] * log_p).sum(-1).mean(-1)


def binary_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    partner: Array | None = None,
    lam: Array | float | None = None,
    threshold: float = OFF,
) -> Array:
    """Mean over the batch of the binary cross-entropies, summed over the classes.

    sum_k -t_k log sigmoid(z_k) - (1 - t_k) log sigmoid(-z_k): each class is a question of its own,
    and mixed images may have two answers (Wightman et al. 2021, arXiv 2110.00476, section 2.2).
    Divided by K it is the mean over all elements that timm and DeiT III take.

    Args:
        logits, labels, label_smoothing, partner, lam: as of `cross_entropy`.
        threshold: in [0, 1): targets above it become 1 and the others 0, after smoothing and
            mixing, as in timm; 1: they stay as they are.

    Returns:
        float[S].

    Raises:
        ValueError: as of `cross_entropy`.

    Example:
        >>> float(binary_cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([0, 3]))[0])  # 4 log 2
        2.7725887298583984
    """
    logits = widen(logits)
    target = _targets(logits, labels, label_smoothing, partner, lam)
    if threshold < OFF:
        target = (target > threshold).astype(target.dtype)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(target[None] * yes + (1 - target)[None] * no).sum(-1).mean(-1)


def _targets(
    like: Array,
    labels: Array,
    label_smoothing: float,
    partner: Array | None,
    lam: Array | float | None,
) -> Array:
    """t, float[B, K] of the dtype and K of `like`."""
    if (partner is None) != (lam is None):
        raise ValueError("labels: partner and lam must be given together or not at all")
    classes, dtype = like.shape[-1], like.dtype
    target = jax.nn.one_hot(labels, classes, dtype=dtype)
    if partner is not None:
        lam = jnp.asarray(lam, dtype)
        target = lam * target + (1 - lam) * jax.nn.one_hot(partner, classes, dtype=dtype)
    return (1 - label_smoothing) * target + label_smoothing / classes


LABEL_LOSSES = ("cross_entropy", "bce", "bce_sum")


@dataclass(frozen=True)
class LabelLoss:
    """The loss on labels of every network and of whatever else answers with logits.

    Attributes:
        name: a name in `LABEL_LOSSES`; `bce` is `binary_cross_entropy` / K, `bce_sum` is it whole.
        smoothing: of the labels, in [0, 1).
        threshold: of `binary_cross_entropy`.
    """

    name: str = "cross_entropy"
    smoothing: float = 0.0
    threshold: float = OFF

    def __call__(self, logits: Array, batch: Mapping[str, Array]) -> Array:
        """Logits float[S, B, K] and a batch -> float[S], the mean over the batch.

        The batch has `labels`, int[B], and, of mixed images, `partner`, int[B], and `lam`.
        """
        fields = dict(
            label_smoothing=self.smoothing, partner=batch.get("partner"), lam=batch.get("lam")
        )
        if self.name == "cross_entropy":
            return cross_entropy(logits, batch["labels"], **fields)
        total = binary_cross_entropy(logits, batch["labels"], threshold=self.threshold, **fields)
        return total / logits.shape[-1] if self.name == "bce" else total

    @property
    def metric(self) -> str:
        """What the loss is called among the metrics: `cross_entropy` or `bce`."""
        return self.name.removesuffix("_sum")


CROSS_ENTROPY = LabelLoss()
