"""Layer-wise learning rates: a layer learns the more slowly, the nearer it is to the images.

As in BEiT (arXiv 2106.08254) and timm, the learning rate of a layer of depth d in a network of
depth D is multiplied by decay ** (D - d): the head has the rate of the schedule, the stem the
lowest. Fine-tuning uses this, so that general first layers keep what they know.

Depths follow from the names of a network's top-level layers, as its trunk does:

  stem..., class_token, positions    0
  stage<i>_block<j>                  1, 2, ... in order; another word may stand for `block`
  stage<i>_<word>                    as the first block of stage i
  stage<i>_transition                as the first block of stage i + 1; see `models.in_trunk`
  all else, such as the head         D, one more than the last block

So a vision transformer of 12 blocks has D = 13. The norm behind its last block learns as the head,
which is BEiT's choice; in timm it learns as the last block.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from jaxsplit.errors import ConfigError

PyTree = Any
_EMBEDDINGS = ("class_token", "positions")  # arrays beside the layers; they belong to the stem
_NETWORK = ("stack", "trunk")  # the parts that are one network
_STEM, _HEAD = (0, 0), (10**9, 0)  # as a stage and a block in it


def check(layer_decay: float) -> None:
    """Raises ConfigError unless `config.optim.layer_decay` is in (0, 1]."""
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"optim.layer_decay={layer_decay}: must be in (0, 1]; 1: off")


def rates(layers: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Top-level layer of one network -> decay ** (D - d); 1 for all if none belongs to a stage."""
    places = {layer: _place(layer) for layer in layers}
    inside = sorted(set(places.values()) - {_STEM, _HEAD})
    if not inside:
        return dict.fromkeys(places, 1.0)
    from_head = {place: n for n, place in enumerate((_HEAD, *reversed(inside), _STEM))}
    return {layer: layer_decay ** from_head[place] for layer, place in places.items()}


def factors(params: Mapping[str, Mapping[str, Any]], layer_decay: float) -> PyTree:
    """The factor of each parameter's learning rate.

    The parts `stack` and `trunk` are one network: what networks share learns at the rate that it
    has in each of them. Another part with layers of a stage, such as FFSD's leader, is a network
    with depths of its own. All other parts are modules that a method adds on top of the networks.
    They start from random weights, as heads do, and learn at the rate of the heads.

    Args:
        params: {part: {layer: tree of arrays or shapes}}.
        layer_decay: in (0, 1].

    Returns:
        A tree of float like `params`.

    Raises:
        ConfigError: no layer of the stack belongs to a stage, so that their order is unknown.
    """
    stack = [layer for part in _NETWORK for layer in params.get(part, {})]
    if all(_place(layer) in (_STEM, _HEAD) for layer in stack):
        raise ConfigError(
            f"optim.layer_decay={layer_decay}: must be 1 (off) for networks without layers "
            f"stage<i>_block<j>; theirs are {', '.join(sorted(set(stack)))}"
        )

    def of_part(part: str, layers: Mapping[str, Any]) -> dict:
        of = rates(stack if part in _NETWORK else layers, layer_decay)
        return {k: jax.tree.map(lambda _, k=k: of[k], tree) for k, tree in layers.items()}

    return {part: of_part(part, layers) for part, layers in params.items()}


def scaled(optimizer: optax.GradientTransformation, by: PyTree) -> optax.GradientTransformation:
    """An optimizer whose updates are multiplied by the numbers in a tree like the parameters.

    The whole update is, a decoupled weight decay too: as if the learning rate of each parameter
    were multiplied. The state stays that of `optimizer`.
    """

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(lambda x, factor: factor * x, updates, by), state

    return optax.GradientTransformation(optimizer.init, update)


def _place(layer: str) -> tuple[int, int]:
    """(stage, block in it), both counted from 1, of a top-level layer."""
    if layer.startswith("stem") or layer in _EMBEDDINGS:
        return _STEM
    if not (match := re.fullmatch(r"stage(\d+)_(.*?)(\d*)", layer)):
        return _HEAD
    stage, word, number = int(match[1]), match[2], match[3]
    return (stage + 1, 1) if word == "transition" else (stage, int(number or 1))
