"""The state of training, and where each part of it lives on the mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsplit import compiler
from jaxsplit.methods.base import Method
from jaxsplit.sharding import Sharding


class TrainState(flax.struct.PyTreeNode):
    """All that changes from step to step, and the key that all randomness is folded from.

    `ema`: an exponential moving average of parameters and BatchNorm statistics over the steps, a
    tree {'params', 'batch_stats'}, or None where none is kept.
    """

    step: Array  # int32[], steps done
    params: dict
    batch_stats: dict
    opt_state: Any
    key: Array  # uint32[2], raw key data; constant
    ema: dict | None = None

    @property
    def raw(self) -> dict:
        """The variables that are trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict:
        """What is evaluated, and saved as the networks: the average where one is kept."""
        return self.raw if self.ema is None else self.ema


def init(
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    sharding: Sharding,
    taken: dict | None = None,
    *,
    averaged: bool = False,
) -> TrainState:
    """A new state on the mesh, for images of (H, W, C); the same on any mesh.

    `taken`: a tree like the variables that holds arrays to start from, and None for those to draw.
    `averaged`: with an `ema`, which starts as the variables.
    """

    def make(taken: dict | None) -> TrainState:
        return _make(method, optimizer, seed, image_shape, averaged, taken)

    out = shardings(jax.eval_shape(make, taken), optimizer, sharding)
    options = compiler.options(sharding.platform, once=True)
    return jax.jit(make, out_shardings=out, compiler_options=options)(taken)


def _make(method, optimizer, seed, image_shape, averaged, taken=None) -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = method.init(init_key, image_shape)
    if taken is not None:
        variables = jax.tree.map(lambda drawn, t: drawn if t is None else t, variables, taken)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        key=jax.random.key_data(key),
        # Arrays of their own: a state is donated to the step, and none can be given twice.
        ema=jax.tree.map(jnp.copy, variables) if averaged else None,
    )


def shapes(
    method: Method,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    sharding: Sharding,
    *,
    averaged: bool = False,
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings; nothing is computed."""

    state = jax.eval_shape(lambda: _make(method, optimizer, 0, image_shape, averaged))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, optimizer, sharding),
    )


def shardings(
    state: TrainState, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """A state of shardings: the stack and its momenta over `net`, the rest everywhere."""
    everywhere = sharding.named(sharding.replicated)

    def of_parts(tree: dict) -> dict:
        out = {}
        for part, leaves in tree.items():
            where = sharding.named(sharding.networks) if part == "stack" else everywhere
            out[part] = jax.tree.map(lambda _, where=where: where, leaves)
        return out

    raw = {collection: of_parts(tree) for collection, tree in state.raw.items()}
    return state.replace(
        step=everywhere,
        **raw,
        opt_state=optax.tree_utils.tree_map_params(
            optimizer.init,
            # What another group's optimizer keeps is masked.
            lambda x, s: x if isinstance(x, optax.MaskedNode) else s,
            state.opt_state,
            raw["params"],
            transform_non_params=lambda _: everywhere,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        ),
        key=everywhere,
        ema=None if state.ema is None else raw,
    )
