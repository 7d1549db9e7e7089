"""The training state, and the sharding of each of its parts."""

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
    """Everything that changes from step to step, and the random key of the run.

    `ema` is the exponential moving average of parameters and BatchNorm statistics over the steps,
    a tree {'params', 'batch_stats'}; None if `config.ema` is 0.
    """

    step: Array  # int32[], number of steps done
    params: dict
    batch_stats: dict
    opt_state: Any
    key: Array  # uint32[2], raw key data; constant
    ema: dict | None = None

    @property
    def raw(self) -> dict:
        """The trained variables {'params', 'batch_stats'}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict:
        """The variables to evaluate and to save as the networks: the average if there is one."""
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
    """Makes a new state on the mesh; its values do not depend on the mesh.

    Args:
      method: makes the parameters and statistics.
      optimizer: makes its own part of the state.
      seed: of all randomness of the run.
      image_shape: (H, W, C).
      sharding: the mesh.
      taken: arrays to start from; None leaves are initialised at random.
      averaged: whether the state has an `ema`, which starts as a copy of the variables.
    """

    def make(taken: dict | None) -> TrainState:
        return _make(method, optimizer, seed, image_shape, averaged, taken)

    out = shardings(jax.eval_shape(make, taken), optimizer, sharding)
    options = compiler.fast_options(sharding.platform)
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
        # Copies, because the state is donated to the step, and no array can be donated twice.
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
    """The state as ShapeDtypeStructs with shardings; computes nothing. Arguments as of `init`."""

    state = jax.eval_shape(lambda: _make(method, optimizer, 0, image_shape, averaged))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, optimizer, sharding),
    )


def shardings(
    state: TrainState, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """Shardings of a state: the stack and its optimizer state along `net`, the rest replicated."""
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
            # `optax.partition` masks the parameters of the other groups.
            lambda x, s: x if isinstance(x, optax.MaskedNode) else s,
            state.opt_state,
            raw["params"],
            transform_non_params=lambda _: everywhere,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        ),
        key=everywhere,
        ema=None if state.ema is None else raw,
    )
