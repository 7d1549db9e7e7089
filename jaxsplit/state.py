"""The state of training, and where each part of it lives on the mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsplit.methods.base import Method
from jaxsplit.sharding import Sharding

# Networks are initialised once: a fast compilation is worth more there than a fast program.
_FAST_COMPILE = {
    "cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
}


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step, and the key that all randomness is folded from."""

    step: Array  # int32[], steps done
    params: dict
    batch_stats: dict
    opt_state: Any
    key: Array  # uint32[2], raw key data; constant

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


def init(
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    sharding: Sharding,
    taken: dict | None = None,
) -> TrainState:
    """A new state on the mesh, for images of (H, W, C); the same on any mesh.

    `taken`: a tree like the variables that holds arrays to start from, and None for those to draw.
    """

    def make(taken: dict | None) -> TrainState:
        return _make(method, optimizer, seed, image_shape, taken)

    options = _FAST_COMPILE.get(jax.default_backend())
    out = shardings(jax.eval_shape(make, taken), optimizer, sharding)
    return jax.jit(make, out_shardings=out, compiler_options=options)(taken)


def _make(method, optimizer, seed, image_shape, taken=None) -> TrainState:
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
    )


def shapes(
    method: Method,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    sharding: Sharding,
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings; nothing is computed."""

    state = jax.eval_shape(lambda: _make(method, optimizer, 0, image_shape))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, optimizer, sharding),
    )


def shardings(
    state: TrainState, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """Shardings of a state: the stack and its momenta over `net`, the rest everywhere."""
    everywhere = sharding.named(sharding.replicated)

    def of_parts(tree: dict) -> dict:
        out = {}
        for part, leaves in tree.items():
            where = sharding.named(sharding.networks) if part == "stack" else everywhere
            out[part] = jax.tree.map(lambda _, where=where: where, leaves)
        return out

    params = of_parts(state.params)
    return TrainState(
        step=everywhere,
        params=params,
        batch_stats=of_parts(state.batch_stats),
        opt_state=optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, s: s,
            state.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        ),
        key=everywhere,
    )
