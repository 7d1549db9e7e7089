"""ONE: branches over a shared trunk learn from their own ensemble, which a gate weighs.

Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), Eqs. (4)
to (8). The logits of the ensemble are z_e = sum_i g_i z_i; the gate computes the weights g from the
trunk's last map. The loss is

  sum_i CE_i + CE_e + T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T))

with z_e detached in the KL, so that the gate learns from CE_e only. As in the authors' code, the
gate applies BatchNorm and ReLU between its linear layer and the softmax. The authors raise the
weight of the KL over the first 80 epochs; here it is constant.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from jaxsplit.costs import Networks, map_shape
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss
from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack, top1
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.models.layers import BatchNorm, Dtype, widen
from jaxsplit.stack import Stack


class Gate(nn.Module):
    """Pooled features float[B, C] -> weights of the branches float[B, S]; each row sums to one."""

    branches: int
    axis_name: str | None = None
    dtype: Dtype | None = None  # unused: the layer is small, so it computes in float32 or wider

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(self.branches, name="dense")(widen(x))
        x = BatchNorm(self.axis_name, name="bn")(x, train)
        return jax.nn.softmax(nn.relu(x))


def make(
    stack: Stack, *, distill: Distill, label_loss: LabelLoss = CROSS_ENTROPY, **fields: Any
) -> Method:
    """ONE of a stack with a trunk. Variables: parts `stack`, `trunk` and `gate`; answer `gated`.

    If networks see different views, the gate sees the mean of their features.

    Args:
      stack: S >= 2 branches.
      distill: distillation loss; in the paper KL at temperature 3.
      label_loss: CE, of the branches and of their ensemble.
      **fields: ensemble (see `over_stack`).

    Raises:
      ValueError: the stack has no trunk.
    """
    if not stack.trunk:
        raise ValueError("one: needs a stack with a trunk; this stack has none")

    def gated(this: Pass) -> Array:
        """z_e, float[B, K]."""
        pooled = widen(this.features[stack.trunk]).mean((0, 2, 3))
        weights = this.apply_module("gate", functools.partial(Gate, stack.num_networks), pooled)
        return (weights.T[..., None] * widen(this.logits)).sum(0)

    def exchange(this: Pass) -> dict[str, Array]:
        labels, together = this.batch["labels"], gated(this)[None]
        (own,) = label_loss(together, this.batch)
        by_network = distill(this.logits, together, labels)
        return {
            "exchange": own + by_network.sum(),
            "distill": by_network,
            f"gated/{label_loss.metric}": own,
            "gated/top1": top1(together, labels)[0],
        }

    def answers(this: Pass) -> dict[str, Array]:
        return {"gated": gated(this)}

    return over_stack(
        stack,
        exchange,
        answers=answers,
        answer="gated",
        label_loss=label_loss,
        **fields,
    )


def _costs(networks: Networks) -> dict[str, tuple[int, int]]:
    channels = map_shape(networks.spec, networks.image_shape, networks.trunk)[-1]
    return {"gated": networks.and_module(Gate(networks.num_networks), channels)}


ENTRY = Entry(distilling(make, 3.0), trunk="needed", answer="gated", costs=_costs)
