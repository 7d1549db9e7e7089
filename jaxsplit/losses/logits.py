"""Pure losses and scores over the logits of S networks.

Every function takes `logits: float[S, B, K]`, network axis first, and computes in the dtype of its
input, but at least in float32. Nothing here knows about meshes or methods. Logarithms are natural.
Probabilities are kept as logarithms, so that values and gradients stay finite for any finite
logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsplit.models.layers import widen

Array = jax.Array


def _log_mean_exp(log_p: Array) -> Array:
    """Log of the mean over networks of exp(log_p): float[S, B, K] -> float[B, K]."""
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.asarray(log_p.shape[0], log_p.dtype))


def js_divergence(logits: Array) -> Array:
    """Jensen-Shannon divergence between the predictions of S networks.

    Batch mean of H(mean_s p_s) - mean_s H(p_s) with p_s = softmax(z_s) (arXiv 2011.14660). It is
    computed in the equal form mean_s KL(p_s || m), with m = mean_s p_s and log m a logsumexp over
    networks. This form is non-negative up to rounding. It and its gradient stay finite if a class
    underflows in every network, where m * log(m) is NaN.

    Args:
        logits: float[S, B, K].

    Returns:
        float[]: in [0, log S]; 0 for S = 1.
    """
    logits = widen(logits)
    if logits.shape[0] == 1:
        return jnp.zeros((), logits.dtype)
    log_p = jax.nn.log_softmax(logits)
    ratio = log_p - _log_mean_exp(log_p)[None]
    return (jnp.exp(log_p) * ratio).sum(-1).mean()


def pairwise_kl(logits: Array) -> Array:
    """Mutual learning between S networks with detached targets (arXiv 1706.00384).

    1 / (S - 1) * sum over ordered pairs (i, j), j != i, of the batch mean of
    KL(stop_gradient(p_j) || p_i): gradients flow into i only. For a given i the KL is linear in
    the targets, so one product with sum_{j != i} p_j replaces a loop over pairs.

    Args:
        logits: float[S, B, K].

    Returns:
        float[]: a sum over networks, as the cross-entropies are; 0 for S = 1.
    """
    logits = widen(logits)
    networks = logits.shape[0]
    if networks == 1:
        return jnp.zeros((), logits.dtype)
    log_p = jax.nn.log_softmax(logits)
    fixed = jax.lax.stop_gradient(log_p)
    p = jnp.exp(fixed)
    others = p.sum(0, keepdims=True) - p
    # Each p_j is the target of S - 1 networks, so its entropy counts S - 1 times.
    total = (networks - 1) * (p * fixed).sum((0, 2)) - (others * log_p).sum((0, 2))
    return total.mean() / (networks - 1)


ENSEMBLES: dict[str, Callable[[Array], Array]] = {
    "mean_logits": lambda z: z.mean(0),
    "mean_probs": lambda z: _log_mean_exp(jax.nn.log_softmax(z)),
    "max_logits": lambda z: z.max(0),
    "max_probs": lambda z: jax.nn.log_softmax(z).max(0),
}


def ensemble(logits: Array, how: str = "mean_logits") -> Array:
    """Combines the logits of S networks to those of their ensemble.

    Args:
        logits: float[S, B, K].
        how: a name in `ENSEMBLES`: the mean or the maximum over networks, of logits or of
            probabilities. Probabilities are returned as logarithms.

    Returns:
        float[B, K]: logits of the ensemble. Their argmax is its answer, their log_softmax its
        log-probabilities.

    Raises:
        ValueError: `how` is not in `ENSEMBLES`.
    """
    if how not in ENSEMBLES:
        raise ValueError(f"ensemble: {how!r} is not one of {', '.join(ENSEMBLES)}")
    return ENSEMBLES[how](widen(logits))


def cotrain_weight(
    progress: Array | float,
    warmup: Array | float,
    weight: float = 0.5,
    floor: float = 0.005,
) -> Array:
    """Weight of the co-training loss (arXiv 2011.14660).

    max(weight * progress / warmup, floor) while progress < warmup, then `weight`. The floor never
    exceeds `weight`, so that a weight of 0 switches co-training off.

    Args:
        progress: length of the run so far, in the unit of `warmup`. May be traced.
        warmup: length of the warm-up; 0: none. May be traced.
        weight: final weight.
        floor: smallest weight during the warm-up.

    Returns:
        float[].
    """
    progress, warmup = jnp.asarray(progress), jnp.asarray(warmup)
    share = progress / jnp.where(warmup > 0, warmup, 1)  # the value is unused where warmup is 0
    rising = jnp.maximum(weight * share, min(floor, weight))
    return jnp.where(progress < warmup, rising, weight)


def pairwise_disagreement(logits: Array) -> Array:
    """Share of the network pairs whose top-1 answers differ, for every example.

    Args:
        logits: float[S, B, K].

    Returns:
        float[B] in [0, 1]; 0 for S = 1.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    networks, _, classes = logits.shape
    if networks == 1:
        return jnp.zeros(logits.shape[1], dtype)
    votes = jax.nn.one_hot(logits.argmax(-1), classes, dtype=dtype).sum(0)
    agreeing = (votes * (votes - 1)).sum(-1)  # ordered pairs
    pairs = networks * (networks - 1)
    return (pairs - agreeing) / pairs  # 1 - agreeing / pairs may round to less than 0
