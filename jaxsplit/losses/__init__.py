"""Losses and scores of logits; `losses.distill` and `losses.attention` hold further losses."""

from jaxsplit.losses.logits import (
    ENSEMBLES,
    cotrain_weight,
    cross_entropy,
    ensemble,
    js_divergence,
    pairwise_disagreement,
    pairwise_kl,
)

__all__ = [
    "ENSEMBLES",
    "cotrain_weight",
    "cross_entropy",
    "ensemble",
    "js_divergence",
    "pairwise_disagreement",
    "pairwise_kl",
]
