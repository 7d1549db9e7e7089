"""What PyTorch would hold: networks of ours as `state_dict`s, by the inverse of the import."""

import jax
import numpy as np

from jaxsplit import models
from jaxsplit.weights import torch_network


def random_variables(spec, num_classes: int, channels: int = 3, seed: int = 0) -> dict:
    """Variables of one network, all of them random; variances are positive."""
    module = models.build(spec, num_classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), "float32")
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (rng.uniform(size=s.shape) + 0.1).astype(np.float32), shapes)


def state_of(spec, variables: dict) -> dict[str, np.ndarray]:
    """The `state_dict` of one network."""
    state = {}
    names = torch_network.state_dict_names(spec, variables)
    for name, value in zip(jax.tree.leaves(names), jax.tree.leaves(variables), strict=True):
        # ndim alone tells the layouts: kernels of convolutions have 4 axes, that of the head 2.
        if value.ndim == 4:
            value = np.einsum("hwio->oihw", value)
        elif value.ndim == 2:
            value = np.einsum("io->oi", value)
        state[name] = np.array(value, order="C")
    assert len(state) == len(jax.tree.leaves(variables))
    return state


def numbered(states: list[dict], prefix: str = "") -> dict[str, np.ndarray]:
    """The layout of divide and co-training: models.<i>.<name>."""
    return {
        f"{prefix}models.{i}.{name}": value
        for i, state in enumerate(states)
        for name, value in state.items()
    }
