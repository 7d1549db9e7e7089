"""Self-distillation of FFSD: a module gives a network's earlier maps from its last one.

See `jaxsplit.methods.ffsd` for the paper.
"""

import functools
import operator
from collections.abc import Iterable

import jax
from jax import Array

from jaxsplit.errors import ConfigError
from jaxsplit.losses import attention
from jaxsplit.methods.base import Pass
from jaxsplit.models import fusion


def maps_of(features: dict[str, Array]) -> list[Array]:
    """Maps that are distilled, finest first: one of each stage but the last, then `final`.

    Raises:
      ConfigError: the network has fewer than two stages.
    """
    if len(features) < 3:
        names = ", ".join(features)
        raise ConfigError(f"method='ffsd': needs maps of two stages and `final`, there are {names}")
    *stages, _, final = features.values()
    return [*stages, final]


def _module(this: Pass, part: str, maps: list[Array], x: Array, **fields) -> list[Array]:
    """Output of a self-distillation module on `x`: maps shaped as maps[:-1], finest first."""
    earlier = jax.tree.map(lambda m: m.shape[1:], maps[-2::-1])
    make = functools.partial(
        fusion.SelfDistillation,
        tuple(shape[-1] for shape in earlier),
        tuple(tuple(shape[:2]) for shape in earlier),
    )
    return this.apply_module(part, make, x, **fields)[::-1]


def total(terms: Iterable[Array]) -> Array:
    """Sum of one term or more."""
    return functools.reduce(operator.add, terms)


def teach(this: Pass, part: str, maps: list[Array], x: Array) -> Array:
    """Attention loss of the earlier maps; the targets are the frozen module's output on `x`."""
    wanted = jax.lax.stop_gradient(_module(this, part, maps, x, train=False, frozen=True))
    pairs = zip(maps[:-1], wanted, strict=True)
    return total(
        attention.attention_loss(attention.attention(m), attention.attention(y)) for m, y in pairs
    )


def learn(this: Pass, part: str, maps: list[Array]) -> tuple[Array, Array]:
    """Losses of the module: between its maps and the true ones, and between their attention."""
    maps = jax.lax.stop_gradient(maps)
    pairs = list(zip(_module(this, part, maps, maps[-1]), maps[:-1], strict=True))
    by_map = total(attention.attention_loss(y, m) for y, m in pairs)
    by_attention = total(
        attention.attention_loss(attention.attention(y), attention.attention(m)) for y, m in pairs
    )
    return by_map, by_attention
