"""Codistillation: mutual learning in which the networks meet only every K steps.

Anil et al. 2018 (arXiv 1804.03235), Algorithm 1: networks that are trained apart need each other's
predictions only now and then, as stale ones teach nearly as well. There every network reads old
weights of the others at any time. Here their predictions are exchanged in one step of K, weighted
K-fold, so that the exchange weighs as much over the run as in `dml`; in the other steps no network
learns anything of the others. No parameter and no gradient ever crosses: targets are detached.

A K-fold gradient in one step can throw the networks back: `optim.clip_norm` helps (two WRN-10-1 on
digits, K = 10, 20 epochs: 97.2 % without it, 99.2 % with 2).
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.section import Section
from jaxsplit.stack import Stack


def make(stack: Stack, *, distill: Distill, every: int = 10, **fields: Any) -> Method:
    """As `dml.make` in steps 0, K, 2 K ..., its second term K-fold; else cross-entropy only.

    Args:
      stack: S >= 2 networks.
      distill: KL in the paper.
      every: K >= 1; 1 is `dml`.
      **fields: label_smoothing, ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        def present(logits: Array) -> Array:
            return every * distill.pairwise(logits, this.batch["labels"])

        if every == 1:
            by_network = present(this.logits)
        else:
            # A condition, not a factor of 0: other steps compute no loss of other networks' logits.
            absent = jax.eval_shape(present, this.logits)
            by_network = jax.lax.cond(
                this.progress % every == 0,
                present,
                lambda _: jnp.zeros(absent.shape, absent.dtype),
                this.logits,
            )
        return {"exchange": by_network.sum(), "distill": by_network}

    return over_stack(stack, exchange, **fields)


def _check(section: Section) -> None:
    every = section.given["every"]
    section.need("every", "at least 1, in whole steps", every >= 1 and every % 1 == 0)


def _advice(config, plan) -> Iterator[str]:
    every, total = config.codistill.every, plan.total_steps
    if 1 < every >= total:
        yield (
            f"codistill.every={every}: not less than the run of {total} steps, so that the "
            "networks learn from each other in the first one only"
        )


ENTRY = Entry(
    distilling(make, 1.0, lambda config: {"every": config.codistill.every}),
    fields={"every": 10},  # steps; the exchange is present in one of them, times as many
    check=_check,
    advice=_advice,
)
