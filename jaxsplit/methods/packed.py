"""Packed-Ensembles: M narrow networks that are the groups of one network's convolutions.

Laurent et al. 2023, "Packed-Ensembles for Efficient Uncertainty Estimation" (arXiv 2210.09184),
Eqs. (5) and (6). Every layer of the network that they replace gets alpha times as many channels,
which are shared out to M members: a member has alpha / M times the channels of `arch` (rounded up).
So M members have about alpha^2 / M times its parameters and multiply-adds. Inside a member the
convolutions are cut into gamma further groups of channels, unless a group would have fewer than 64
input channels; a ResNet's first convolution of each block is not cut, as in the authors' code.

Here the members are a stack, one network each. `lowering='grouped'` computes each layer of the
stack as the one grouped convolution of the paper; other lowerings give the same numbers. Members
see the same views, learn the labels only, and their probabilities or logits are averaged
(`eval.ensemble`; the paper averages probabilities).
"""

from typing import Any

from jaxsplit import models
from jaxsplit.errors import ConfigError
from jaxsplit.methods.base import Method, over_stack
from jaxsplit.methods.entry import Entry, Single
from jaxsplit.section import Section
from jaxsplit.stack import Stack


def make(stack: Stack, **fields: Any) -> Method:
    """Cross-entropy summed over members; `fields`: label_loss, ensemble."""
    return over_stack(stack, **fields)


def _spec(config: Any, members: int) -> models.Spec:
    its = config.packed
    return models.packed(
        config.arch, its.alpha / members, gamma=its.gamma, least=its.least_channels
    )


def _check(section: Section) -> None:
    for field in ("gamma", "least_channels"):
        section.need(field, "at least 1", section.given[field] >= 1)
    alpha, config = section.given["alpha"], section.config
    section.need("alpha", "above 0", alpha > 0)
    if config.method != section.group:
        return
    if not config.divide:
        raise ConfigError(
            f"divide=False: must be True with method={config.method!r}, which divides arch by its "
            "own rule"
        )
    members = config.divide_in or config.split
    most = f"at most {members}, the number of members; they would be wider than arch"
    section.need("alpha", most, alpha <= members)


def _networks(config: Any) -> dict[str, Single]:
    """Each member alone is one of as many members."""
    alone = dict(method=config.method)
    return {f"net{i}": Single(index=i, changes=alone) for i in range(config.split)}


ENTRY = Entry(
    lambda config, plan, stack, **fields: make(stack, **fields),
    labels_only=True,
    fields={
        "alpha": 2.0,  # channels of all members over those of arch; at most M
        "gamma": 2,  # groups within a member's convolutions
        "least_channels": 64,  # input channels of such a group at least; else gamma is lowered
    },
    check=_check,
    fixed=("alpha", "gamma", "least_channels"),
    spec=_spec,
    least=1,
    why="",
    networks=_networks,
    as_published=lambda config: False,
)
