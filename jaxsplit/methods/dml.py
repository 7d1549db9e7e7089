"""Deep mutual learning: every network learns the labels and what each of the others predicts.

Zhang et al. 2018 (arXiv 1706.00384), Eqs. (5) and (8): the loss of network i is CE_i +
1 / (S - 1) * sum_{j != i} KL(p_j || p_i), with p_j detached and temperature 1.
"""

from typing import Any

from jax import Array

from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.stack import Stack


def make(stack: Stack, *, distill: Distill, **fields: Any) -> Method:
    """Cross-entropy summed over networks + every network's mean distillation from the others.

    Args:
      stack: S >= 2 networks.
      distill: distillation loss; in the paper KL.
      **fields: label_loss, ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        by_network = distill.pairwise(this.logits, this.batch["labels"])
        return {"exchange": by_network.sum(), "distill": by_network}

    return over_stack(stack, exchange, **fields)


ENTRY = Entry(distilling(make, 1.0), kept="net0", whole=True)
