"""ONE: branches over a shared trunk, taught by an ensemble of themselves that a gate weighs.

Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), Eqs. (4)
to (8): logits of the ensemble z_e = sum_i g_i z_i with g the gate's answer to the trunk's last map;
loss sum_i CE_i + CE_e + T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T)), z_e detached in the KL,
so that the gate learns from CE_e only. The authors' gate (which this is) normalises and rectifies
what its linear layer gives before the softmax. They raise the weight of the KL over the first 80
epochs; here it is constant.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from jaxsplit.costs import Networks, map_shape
from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, cross_entropy, over_stack, top1
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.models.layers import BatchNorm, Dtype, widen
from jaxsplit.stack import Stack


class Gate(nn.Module):
    """Pooled features float[B, C] -> weights of the branches float[B, S], which sum to one."""

    branches: int
    axis_name: str | None = None
    dtype: Dtype | None = None  # not used: these are few numbers

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(self.branches, name="dense")(widen(x))
        x = BatchNorm(self.axis_name, name="bn")(x, train)
        return jax.nn.softmax(nn.relu(x))


def make(stack: Stack, *, distill: Distill, label_smoothing: float = 0.0, **fields: Any) -> Method:
    """ONE over a stack with a trunk; variables: parts `stack`, `trunk`, `gate`, answer `gated`.

    Where the networks see different views, the gate sees the mean of the features of all.

    Args:
      stack: S >= 2 branches.
      distill: KL at temperature 3.
      label_smoothing: of all cross-entropies.
      **fields: ensemble (see `over_stack`).

    Raises:
      ValueError: the stack has no trunk.
    """
    if not stack.trunk:
        raise ValueError("one: needs a stack with a trunk, this one has none")

    def gated(this: Pass) -> Array:
        """z_e, float[B, K]."""
        pooled = widen(this.features[stack.trunk]).mean((0, 2, 3))
        weights = this.apply_module("gate", functools.partial(Gate, stack.num_networks), pooled)
        return (weights.T[..., None] * widen(this.logits)).sum(0)

    def exchange(this: Pass) -> dict[str, Array]:
        labels, together = this.batch["labels"], gated(this)[None]
        (own,) = cross_entropy(together, this.batch, label_smoothing)
        by_network = distill(this.logits, together, labels)
        return {
            "exchange": own + by_network.sum(),
            "distill": by_network,
            "gated/cross_entropy": own,
            "gated/top1": top1(together, labels)[0],
        }

    def answers(this: Pass) -> dict[str, Array]:
        return {"gated": gated(this)}

    return over_stack(
        stack,
        exchange,
        answers=answers,
        answer="gated",
        label_smoothing=label_smoothing,
        **fields,
    )


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    channels = map_shape(networks.spec, networks.image_shape, networks.trunk)[-1]
    return {"gated": networks.and_module(Gate(networks.num_networks), channels)}


ENTRY = Entry(distilling(make, 3.0), trunk="needed", answer="gated", costs=_costs)
