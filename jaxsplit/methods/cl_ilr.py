"""Collaborative learning (CL-ILR): heads on a shared intermediate-level representation.

Song & Chai 2018, "Collaborative Learning for Deep Neural Networks" (arXiv 1805.11761): head h
minimises beta CE(label) + (1 - beta) T^2 CE(q_h). The target q_h is the softmax, at temperature T,
of the mean of the other heads' logits, and is detached. This file uses KL(q_h) instead of CE(q_h);
both have the same gradient. The gradient of the shared layers is divided by the number of heads
("backpropagation rescaling").
"""

from typing import Any

from jax import Array

from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.models.layers import widen
from jaxsplit.section import Section
from jaxsplit.stack import Stack


def make(stack: Stack, *, distill: Distill, label_weight: float = 0.5, **fields: Any) -> Method:
    """CL-ILR for a stack with a trunk; without a trunk, the paper's "simultaneous" learning.

    Args:
      stack: S >= 2 heads.
      distill: distillation loss; in the paper KL at temperature 2.
      label_weight: beta, in [0, 1].
      **fields: label_loss, ensemble (see `over_stack`).
    """
    heads = stack.num_networks

    def exchange(this: Pass) -> dict[str, Array]:
        logits = widen(this.logits)
        others = (logits.sum(0, keepdims=True) - logits) / (heads - 1)
        by_network = distill(logits, others, this.batch["labels"])
        return {"exchange": (1 - label_weight) * by_network.sum(), "distill": by_network}

    return over_stack(
        stack, exchange, label_weight=label_weight, trunk_gradient=1 / heads, **fields
    )


def _check(section: Section) -> None:
    section.need("label_weight", "in [0, 1]", 0 <= section.given["label_weight"] <= 1)


ENTRY = Entry(
    distilling(make, 2.0, lambda config: {"label_weight": config.cl_ilr.label_weight}),
    trunk="all but the last",
    kept="net0",
    whole=True,
    fields={"label_weight": 0.5},  # weight of the cross-entropy; the distillation has 1 - this
    check=_check,
)
