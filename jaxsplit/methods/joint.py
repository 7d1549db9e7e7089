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
from jaxsplit.losses import CROSS_ENTROPY, LabelLoss
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.section import Section
from jaxsplit.stack import Stack

OF = ("mean_logits", "mean_probs")  # of `losses.ENSEMBLES`; a maximum teaches one network only


def make(
    stack: Stack,
    *,
    weight: float = 0.5,
    of: str = "mean_logits",
    label_loss: LabelLoss = CROSS_ENTROPY,
    **fields: Any,
) -> Method:
    """(1 - weight) x the summed cross-entropies + weight x S x the ensemble's cross-entropy.

    Args:
      stack: S >= 2 networks.
      weight: w in [0, 1]; with 0 the method is `independent`, to the last bit of its gradients.
      of: a name in `OF`: what the trained ensemble averages.
      label_loss: CE, of the networks and of the ensemble.
      **fields: ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        # With a weight of 0 nothing may be added to a gradient, not even zeros: -0 + 0 is 0.
        logits = this.logits if weight else jax.lax.stop_gradient(this.logits)
        (own,) = label_loss(losses.ensemble(logits, of)[None], this.batch)
        alone = label_loss(this.logits, this.batch).mean()
        return {
            "exchange": weight * stack.num_networks * own,
            f"ensemble/{label_loss.metric}": own,
            "joint/diversity": jax.lax.stop_gradient(alone - own),
        }

    return over_stack(
        stack,
        exchange,
        label_loss=label_loss,
        label_weight=1 - weight,
        **fields,
    )


def _make(config, plan, stack: Stack, **fields) -> Method:
    return make(stack, weight=config.joint.weight, of=config.joint.of, **fields)


def _check(section: Section) -> None:
    section.need("weight", "in [0, 1]", 0 <= section.given["weight"] <= 1)
    section.one_of("of", OF)
    loss = section.config.label_loss
    if section.config.method == section.group and loss != "cross_entropy":
        of_logits = f"mean_logits with label_loss={loss!r}"
        section.need("of", of_logits, section.given["of"] == "mean_logits")


ENTRY = Entry(
    _make,
    labels_only=True,
    fields={
        "weight": 0.5,  # of the ensemble's cross-entropy, in [0, 1]; 0: `independent`
        "of": "mean_logits",  # what the trained ensemble averages: mean_logits | mean_probs
    },
    check=_check,
)
