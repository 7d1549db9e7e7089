"""Losses and scores of logits; `losses.distill` and `losses.attention` hold further losses."""

from jaxsplit.losses.labels import (
    CROSS_ENTROPY,
    LABEL_LOSSES,
    LabelLoss,
    binary_cross_entropy,
    cross_entropy,
)
from jaxsplit.losses.logits import (
    ENSEMBLES,
    cotrain_weight,
    ensemble,
    js_divergence,
    pairwise_disagreement,
    pairwise_kl,
)

__all__ = [
    "CROSS_ENTROPY",
    "ENSEMBLES",
    "LABEL_LOSSES",
    "LabelLoss",
    "binary_cross_entropy",
    "cotrain_weight",
    "cross_entropy",
    "ensemble",
    "js_divergence",
    "pairwise_disagreement",
    "pairwise_kl",
]
