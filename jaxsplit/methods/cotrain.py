"""Co-training: the S networks learn the labels and learn from each other.

Zhao et al. 2020, "Towards Better Accuracy-efficiency Trade-offs: Divide and Co-training"
(arXiv 2011.14660), Eqs. (1) to (3): sum of the cross-entropies + weight x divergence of the
predictions.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from jax import Array

from jaxsplit import losses
from jaxsplit.losses import distill as distill_lib
from jaxsplit.methods.base import Method, Pass, over_stack
from jaxsplit.methods.entry import Entry
from jaxsplit.section import Section
from jaxsplit.stack import Stack

DISTILL = "distill"  # the loss that `config.distill` describes
LOSSES: dict[str, Callable[[Array], Array] | None] = {
    "js": losses.js_divergence,
    "kl": losses.pairwise_kl,
    "kl_mean": distill_lib.kl_mean,
    "mse": distill_lib.mse,
    "mse_mean": distill_lib.mse_mean,
    "smooth_l1": distill_lib.smooth_l1,
    "smooth_l1_mean": distill_lib.smooth_l1_mean,
    DISTILL: None,
}


def make(
    stack: Stack,
    *,
    loss: str = "js",
    weight: float = 0.5,
    floor: float = 0.005,
    warmup_steps: int = 0,
    distill: distill_lib.Distill | None = None,
    **fields: Any,
) -> Method:
    """Cross-entropy summed over networks + weight x a divergence of their predictions.

    Args:
      stack: S >= 2 networks.
      loss: a name in `LOSSES`. 'js' is the paper's Jensen-Shannon divergence. 'distill' is the sum
        over networks of `distill.pairwise`. The targets of all but 'js' are detached; they are the
        predictions of every other network, or in '..._mean' their mean.
      weight: weight of the divergence, warmed up linearly over `warmup_steps`.
      floor: smallest weight during the warm-up.
      warmup_steps: length of the warm-up; 0: the full weight from the start.
      distill: distillation loss; only used, and then needed, with loss 'distill'.
      **fields: label_loss, ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        w = losses.cotrain_weight(this.progress, warmup_steps, weight, floor)
        of_logits = LOSSES[loss]
        if of_logits is not None:
            term = of_logits(this.logits)
        elif distill is not None:
            term = distill.pairwise(this.logits, this.batch["labels"]).sum()
        else:
            raise ValueError(f"cotrain: loss={loss!r} needs `distill`")
        return {"exchange": w * term, f"cotrain/{loss}": term, "cotrain/weight": w}

    return over_stack(stack, exchange, **fields)


def _make(config, plan, stack: Stack, **fields) -> Method:
    its = config.cotrain
    return make(
        stack,
        loss=its.loss,
        distill=distill_lib.make(config.distill, 1.0),
        weight=its.weight,
        floor=its.floor,
        warmup_steps=plan.method_steps["cotrain.warmup"],
        **fields,
    )


def _check(section: Section) -> None:
    section.one_of("loss", LOSSES)
    section.at_least_zero("weight", "floor")


def _weight(config, plan) -> Callable:
    """A function: steps int[N] -> weight of the divergence float[N]."""
    return functools.partial(
        losses.cotrain_weight,
        warmup=plan.method_steps["cotrain.warmup"],
        weight=config.cotrain.weight,
        floor=config.cotrain.floor,
    )


def _advice(config, plan) -> Iterator[str]:
    its, total = config.cotrain, plan.total_steps
    if plan.method_steps["cotrain.warmup"] <= total:
        return
    first, last = (float(_weight(config, plan)(step)) for step in (0, total - 1))
    what = f"ends at {last:.3g} of cotrain.weight={its.weight:g}"
    if last <= first:
        what = f"never leaves its floor of {first:.3g}, cotrain.weight={its.weight:g}"
    if first < its.weight:
        yield (
            f"cotrain.warmup={its.warmup!r}: longer than the run of {total} steps, so that the "
            f"weight {what}"
        )


ENTRY = Entry(
    _make,
    views="different",
    fields={
        # js | kl | mse | smooth_l1 | kl_mean | mse_mean | smooth_l1_mean | distill (config.distill)
        "loss": "js",
        "weight": 0.5,
        "floor": 0.005,  # smallest weight during the warm-up
        "warmup": "40 epochs",  # linear
    },
    check=_check,
    durations=("warmup",),
    curves=lambda config, plan: {"weight of the co-training loss": _weight(config, plan)},
    advice=_advice,
)
