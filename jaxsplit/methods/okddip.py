"""OKDDip: peers weigh each other's predictions by attention, and all peers teach a leader.

Chen et al. 2020, "Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350). The last of
the S networks is the group leader; the others are peers, with pooled features h:

  weights   alpha_ab = softmax over peers b of L(h_a)^T E(h_b), L and E linear
  peer a    CE + T^2 KL(t_a || q_a), t_a = sum_b alpha_ab q_b, q_b = softmax(z_b / T)
  leader    CE + T^2 KL(t || q_leader), t the mean of the q_b

As in the authors' code, nothing is detached. Gradients flow through the weights into L, E and the
features, and into the peers' predictions where these are targets, also the leader's. The authors'
code averages logits; the paper and this file average predictions. `distill.standardize` applies to
the logits of the weighted mean.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxsplit.costs import Networks
from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, Single, distilling, of_stack
from jaxsplit.models.layers import Dtype, widen
from jaxsplit.section import Section
from jaxsplit.stack import Stack


class Attention(nn.Module):
    """Features float[B, M, C] of M peers -> log alpha_ab, float[B, M, M] indexed [batch, a, b]."""

    features: int  # output features of L and E
    axis_name: str | None = None
    dtype: Dtype | None = None  # unused: the layer is small, so it computes in float32 or wider

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = widen(x)
        left = nn.Dense(self.features, use_bias=False, name="left")(x)
        right = nn.Dense(self.features, use_bias=False, name="right")(x)
        return jax.nn.log_softmax(left @ right.swapaxes(1, 2))


def make(stack: Stack, *, distill: Distill, factor: int = 8, **fields: Any) -> Method:
    """OKDDip of a stack. Its variables have the parts `stack` and `attention`; it answers `leader`.

    Args:
      stack: S >= 3 networks.
      distill: distillation loss; in the paper KL at temperature 3.
      factor: L and E have this many times fewer features than the networks.
      **fields: label_loss, ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        labels, t = this.batch["labels"], distill.temperature
        peers, leader = this.logits[:-1], this.logits[-1:]
        pooled = widen(this.features["final"][:-1]).mean((2, 3)).swapaxes(0, 1)
        attention = functools.partial(Attention, max(1, pooled.shape[-1] // factor))
        weights = this.apply_module("attention", attention, pooled)  # [B, a, b]
        log_q = jax.nn.log_softmax(widen(peers) / t)
        weighted = jnp.moveaxis(weights, 0, -1)[..., None] + log_q[None]  # [a, b, B, K]
        # Targets as logits: softmax(. / T) turns them back into probabilities.
        targets = t * jax.nn.logsumexp(weighted, 1)
        target = t * jax.nn.logsumexp(log_q, 0, keepdims=True)  # softmax turns the sum into a mean
        by_network = jnp.concatenate(
            [
                distill(peers, targets, labels, detach=False),
                distill(leader, target, labels, detach=False),
            ]
        )
        own = jnp.exp(weights).trace(axis1=1, axis2=2).mean() / len(peers)
        return {"exchange": by_network.sum(), "distill": by_network, "okddip/own_weight": own}

    def answers(this: Pass) -> dict[str, Array]:
        return {"leader": this.logits[-1]}

    return over_stack(stack, exchange, answers=answers, answer="leader", **fields)


def _check(section: Section) -> None:
    section.need("factor", "at least 1", section.given["factor"] >= 1)


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    return {"leader": (networks.small.params, networks.small.macs)}


ENTRY = Entry(
    distilling(make, 3.0, lambda config: {"factor": config.okddip.factor}),
    answer="leader",
    whole=True,
    fields={"factor": 8},  # features of the attention = features of the network / factor
    check=_check,
    fixed=("factor",),
    least=3,
    why=", peers and a leader",
    networks=lambda config: of_stack(config) | {"leader": Single(index=config.split - 1)},
    costs=_costs,
)
