"""Losses on logits, and of several networks on each other; `distill` and `attention` beside."""

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
