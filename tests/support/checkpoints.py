"""Small states, and how they are saved and compared."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from jaxsplit.state import TrainState

METRIC = "test/ensemble/top1"


def make_state(step: int, features: int = 4, parts: tuple[str, ...] = ("stack",)) -> TrainState:
    """A small state whose numbers depend on the step."""
    rng = np.random.default_rng(step)

    def array(x):
        return jnp.asarray(x, jnp.float32)

    def tree(*names):
        shape = (2, 3, features)
        return {
            p: {n: jnp.asarray(rng.normal(size=shape), jnp.float32) for n in names} for p in parts
        }

    params = tree("kernel", "bias")
    trace = jax.tree.map(lambda x: x * 2, params)
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats=tree("mean"),
        opt_state=({"trace": trace}, {"count": jnp.int32(step)}),
        key=jnp.asarray([7, 2**32 - 1], jnp.uint32),
    )


def like(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(checkpoints, step: int, top1: float | None = None) -> None:
    metrics = None if top1 is None else {METRIC: top1, "test/count": 8.0}
    checkpoints.save(make_state(step), common.get_config(), 100, metrics)
    checkpoints.wait()
