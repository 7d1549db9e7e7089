"""PyTorch `state_dict`s of the reference systems as variables of our backbones.

Every tensor is consumed exactly once, except the written-down dead ones; anything missing, left
over or of another shape is an error that names it.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit import models
from jaxsplit.errors import ConfigError

DEAD = (r".*\.num_batches_tracked",)  # counters that no computation reads

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STATS = {"mean": "running_mean", "var": "running_var"}


def state_dict_names(spec, variables: Mapping[str, Any]) -> Any:
    """A tree like `variables` whose leaves are the PyTorch names of its leaves."""
    family, _ = models.known(spec.arch)
    if not hasattr(family, "torch_name"):
        raise ConfigError(f"arch={spec.arch!r}: PyTorch has no names for its tensors")

    def name(path, _):
        collection, *module, leaf = (p.key for p in path)
        table = _LEAVES if collection == "params" else _STATS
        return f"{family.torch_name(spec, tuple(module))}.{table[leaf]}"

    return jax.tree.map_with_path(name, variables)


def to_jax(value: np.ndarray, path) -> np.ndarray:
    """From PyTorch's layout (OIHW, [out, in]) to ours (HWIO, [in, out])."""
    if path[-1].key != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def from_state_dict(spec, state: Mapping[str, np.ndarray], num_classes: int, dtype=np.float32):
    """Variables {'params', 'batch_stats'} of one network from its PyTorch `state_dict`.

    Raises:
      ConfigError: tensors missing, left over or of another shape; all are named.
    """
    module = models.build(spec, num_classes)
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.result_type(float))
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    names = state_dict_names(spec, shapes)
    wanted = jax.tree.leaves(names)
    assert len(set(wanted)) == len(wanted), "two of our tensors read the same one"
    missing = sorted(set(wanted) - set(state))
    dead = (*DEAD, *getattr(models.known(spec.arch)[0], "TORCH_DEAD", ()))
    extra = [n for n in set(state) - set(wanted) if not any(re.fullmatch(d, n) for d in dead)]
    if missing or extra:
        raise ConfigError(
            f"state_dict does not fit {spec.arch}: missing {missing}, left over {sorted(extra)}"
        )

    def take(path, name, shape):
        value = to_jax(np.asarray(state[name]), path).astype(dtype)
        if value.shape != shape.shape:
            raise ConfigError(f"{name}: shape {value.shape} where {spec.arch} has {shape.shape}")
        return value

    return jax.tree.map_with_path(take, names, shapes)
