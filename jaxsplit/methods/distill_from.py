"""Distillation from a fixed teacher: networks learn the labels and what a finished run answers.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2:
the loss of network i is

  lambda CE_i + T^2 KL(softmax(z_t / T) || softmax(z_i / T))

with the logits z_t of the teacher's answer on the view that the network sees. The teacher is any
run of jaxsplit: an ensemble, a leader or one network, of any architecture. It normalises by its
running statistics and does not learn. `config.distill` chooses another loss between logits
(decoupled distillation, arXiv 2203.08679; standardised logits, arXiv 2403.01427). So an ensemble
becomes one network again, which costs as much as one.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxsplit.losses.distill import Distill
from jaxsplit.methods.base import Method, Pass, over_stack, top1
from jaxsplit.methods.entry import Entry, distilling
from jaxsplit.section import Section
from jaxsplit.stack import Stack


def make(stack: Stack, *, distill: Distill, **fields: Any) -> Method:
    """Weighted cross-entropy summed over networks + every network's distillation.

    In training a batch has `teacher`, float[B, V, K]: the teacher's logits on each of V views, one
    for each network or one for all.

    Args:
      stack: S >= 1 networks, which exchange nothing.
      distill: distillation loss; in the paper T^2 KL, here with T = 4.
      **fields: label_weight, label_loss, ensemble (see `over_stack`).
    """

    def exchange(this: Pass) -> dict[str, Array]:
        labels = this.batch["labels"]
        teacher = jnp.moveaxis(this.batch["teacher"], 1, 0)
        by_network = distill(this.logits, teacher, labels)
        return {
            "exchange": by_network.sum(),
            "distill": by_network,
            "teacher/top1": top1(teacher, labels).mean(),
        }

    # The loss needs no modules, and a dry run that looks for them would have no teacher.
    return over_stack(stack, exchange, **fields)._replace(init=over_stack(stack).init)


def _check(section: Section) -> None:
    section.at_least_zero("label_weight")
    if section.config.method == section.group:
        named = "the workdir of a finished run"
        section.need("teacher", named, bool(section.given["teacher"]))
    which = str(section.given["checkpoint"])
    fine = which in ("latest", "best") or which.isdecimal()
    section.need("checkpoint", "latest, best or a step", fine)


ENTRY = Entry(
    distilling(make, 4.0, lambda config: {"label_weight": config.distill_from.label_weight}),
    fields={
        "teacher": "",  # workdir of the run whose answer is taught
        "checkpoint": "latest",  # of the teacher: latest | best | a step
        "label_weight": 1.0,  # weight of the cross-entropy; that of the loss is distill.weight
    },
    check=_check,
    teacher=("teacher", "checkpoint"),
    least=1,
)
