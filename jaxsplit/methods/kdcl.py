"""Collaborative learning (KDCL): all networks learn from one teacher, made of their own logits.

Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning" (CVPR 2020): the loss of
network i is CE_i + T^2 KL(softmax(z_t / T) || softmax(z_i / T)). Section 3.2 defines the teacher's
logits z_t: here the mean of the networks' logits, or KDCL-MinLogit.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.stack import Stack


def mean(logits: Array, labels: Array) -> Array:
    """Mean of the logits: float[S, B, K], int[B] -> float[1, B, K]."""
    return logits.mean(0, keepdims=True)


def min_logit(logits: Array, labels: Array) -> Array:
    """For every class, the least logit of any network relative to that network's label logit.

    z_t[k] = min_i (z_i[k] - z_i[label]): each wrong class gets the logit of the network that is
    most certain against it. With mixup the label is that of the image before mixing.

    Args:
      logits: float[S, B, K].
      labels: int[B].

    Returns:
      float[1, B, K]; 0 at the label.
    """
    own = jnp.take_along_axis(logits, labels[None, :, None], axis=-1)
    return (logits - own).min(0, keepdims=True)


TEACHERS: dict[str, Callable[[Array, Array], Array]] = {"min_logit": min_logit, "mean": mean}


def make(stack: Stack, *, distill: Distill, teacher: str = "min_logit", **fields: Any) -> Method:
    """Cross-entropy summed over networks + every network's distillation from their teacher.

    Args:
      stack: S >= 2 networks.
      distill: distillation loss, with a detached teacher; in the paper KL at temperature 2.
      teacher: a name in `TEACHERS`.
      **fields: label_loss, ensemble (see `over_stack`).
    """
    together = TEACHERS[teacher]

    def exchange(this: Pass) -> dict[str, Array]:
        labels = this.batch["labels"]
        by_network = distill(this.logits, together(this.logits, labels), labels)
        return {"exchange": by_network.sum(), "distill": by_network}

    return over_stack(stack, exchange, **fields)


ENTRY = Entry(
    distilling(make, 2.0, lambda config: {"teacher": config.kdcl.teacher}),
    views="different",
    kept="net0",
    whole=True,
    fields={"teacher": "min_logit"},  # min_logit | mean
    check=lambda section: section.one_of("teacher", TEACHERS),
)
