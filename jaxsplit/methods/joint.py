"""Joint training: the networks learn to be good alone, good together, or something in between.

Jeffares et al. 2023, "Joint Training of Deep Ensembles Fails Due to Learner Collusion"
(arXiv 2301.11323), interpolate between independent training and training of the ensemble's loss:

  L = (1 - w) mean_i CE_i + w CE_e = mean_i CE_i - w D,  D = mean_i CE_i - CE_e

with the cross-entropy CE_e of the ensemble's prediction and the ensemble's diversity D. Here L is
multiplied by S, so that with w = 0 the method is `independent`. The paper finds that networks
trained with a large w inflate D on the training set: single networks become poor, and D is smaller
on test images. Its authors' sweep averages logits; their code can average probabilities instead.
"""

from typing import Any

import jax
from jax import Array

from jaxsplit import losses
from jaxsplit.methods.base import Method, Pass, cross_entropy, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.section import Section
from jaxsplit.stack import Stack

OF = ("mean_logits", "mean_probs")  # of `losses.ENSEMBLES`; a maximum teaches one network only


def make(
    stack: Stack,
    *,
    weight: float = 0.5,
    of: str = "mean_logits",
    label_smoothing: float = 0.0,
    **fields: Any,
) -> Method:
    """(1 - weight) x the summed cross-entropies + weight x S x the ensemble's cross-entropy.

    Args:
      stack: S >= 2 networks.
      weight: w in [0, 1]; with 0 the method is `independent`, to the last bit of its gradients.
      of: a name in `OF`: what the trained ensemble averages.
      label_smoothing: label smoothing of all cross-entropies.
      **fields: ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        # With a weight of 0 nothing may be added to a gradient, not even zeros: -0 + 0 is 0.
        logits = this.logits if weight else jax.lax.stop_gradient(this.logits)
        (own,) = cross_entropy(losses.ensemble(logits, of)[None], this.batch, label_smoothing)
        alone = cross_entropy(this.logits, this.batch, label_smoothing).mean()
        return {
            "exchange": weight * stack.num_networks * own,
            "ensemble/cross_entropy": own,
            "joint/diversity": jax.lax.stop_gradient(alone - own),
        }

    return over_stack(
        stack,
        exchange,
        label_smoothing=label_smoothing,
        label_weight=1 - weight,
        **fields,
    )


def _make(config, plan, stack: Stack, **fields) -> Method:
    return make(stack, weight=config.joint.weight, of=config.joint.of, **fields)


def _check(section: Section) -> None:
    section.need("weight", "in [0, 1]", 0 <= section.given["weight"] <= 1)
    section.one_of("of", OF)


ENTRY = Entry(
    _make,
    fields={
        "weight": 0.5,  # of the ensemble's cross-entropy, in [0, 1]; 0: `independent`
        "of": "mean_logits",  # what the trained ensemble averages: mean_logits | mean_probs
    },
    check=_check,
)
