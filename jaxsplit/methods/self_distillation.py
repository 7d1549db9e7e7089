"""FFSD's self-distillation: a module predicts a network's earlier maps from its last map.

`jaxsplit.methods.ffsd` names the paper.
"""

import functools
import operator
from collections.abc import Callable, Iterable

import jax
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.losses import attention
from jaxsplit.methods.base import Pass
from jaxsplit.models import fusion


def maps_of(features: dict[str, Array]) -> list[Array]:
    """The maps that are distilled, finest first: one per stage but the last, then `final`.

    Raises:
      ConfigError: the network has fewer than two stages.
    """
    if len(features) < 3:
        names = ", ".join(features)
        raise ConfigError(f"method='ffsd': needs maps of two stages and `final`, not only {names}")
    *stages, _, final = features.values()
    return [*stages, final]


def _module(maps: list[Array]) -> Callable[..., fusion.SelfDistillation]:
    """Makes the module that predicts maps of the shapes of maps[:-1], the coarsest first."""
    earlier = jax.tree.map(lambda m: m.shape[1:], maps[-2::-1])
    return functools.partial(
        fusion.SelfDistillation,
        tuple(shape[-1] for shape in earlier),
        tuple(tuple(shape[:2]) for shape in earlier),
    )


def total(terms: Iterable[Array]) -> Array:
    """Sum of one or more terms."""
    return functools.reduce(operator.add, terms)


def teach(this: Pass, part: str, maps: list[Array], x: Array) -> Array:
    """Attention loss of the earlier maps towards the frozen module's output on `x`."""
    wanted = jax.lax.stop_gradient(this.apply_frozen(part, _module(maps), x))
    pairs = zip(maps[:-1], wanted[::-1], strict=True)
    return total(
        attention.attention_loss(attention.attention(m), attention.attention(y)) for m, y in pairs
    )


def learn(this: Pass, part: str, maps: list[Array]) -> tuple[Array, Array]:
    """The module's two losses: of its maps against the network's, and of their attention maps."""
    maps = jax.lax.stop_gradient(maps)
    predicted = this.apply_module(part, _module(maps), maps[-1])
    pairs = list(zip(predicted[::-1], maps[:-1], strict=True))
    by_map = total(attention.attention_loss(y, m) for y, m in pairs)
    by_attention = total(
        attention.attention_loss(attention.attention(y), attention.attention(m)) for y, m in pairs
    )
    return by_map, by_attention
