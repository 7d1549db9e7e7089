"""One network from a PyTorch `state_dict`: the names and layouts of its tensors.

Every tensor is used exactly once, except those on a fixed list of unused tensors. If a tensor is
missing, left over or of another shape, an error names it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxsplit import models
from jaxsplit.errors import ConfigError
from jaxsplit.models import fusion
from jaxsplit.weights import torch_wrappers
from jaxsplit.weights.torch_files import State
from jaxsplit.weights.torch_wrappers import some

DEAD = (r".*\.num_batches_tracked",)  # counters that no computation reads

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    # Arrays that PyTorch code keeps in a module that has other modules.
    "positions": "pos_embed",
    "class_token": "cls_token",
    "layer_scale": "gamma",
}
_STATS = {"mean": "running_mean", "var": "running_var"}
# What a file may differ in from the networks of the config: nothing, or the number of image
# channels and of patches, for which a warm start converts the weights.
Fit = Literal["exact", "convertible"]


def state_dict_names(spec: models.Spec, variables: Mapping[str, Any]) -> Any:
    """A tree like `variables` with the PyTorch names of the arrays as leaves."""
    family, _ = models.known(spec.arch)
    if family.torch_name is None:
        raise ConfigError(
            f"arch={spec.arch!r}: has no PyTorch names, so that its weights cannot be imported"
        )
    return names_of(lambda module: family.torch_name(spec, module), variables)


def names_of(torch_name: Callable[[tuple[str, ...]], str], variables: Mapping[str, Any]) -> Any:
    def name(path, _):
        collection, *module, leaf = (p.key for p in path)
        table = _LEAVES if collection == "params" else _STATS
        return f"{torch_name(tuple(module))}.{table[leaf]}".removeprefix(".")

    return jax.tree.map_with_path(name, variables)


def to_jax(value: np.ndarray, path: Sequence[jax.tree_util.DictKey]) -> np.ndarray:
    """Converts a kernel from PyTorch's layout (OIHW, [out, in]) to JAX's (HWIO, [in, out])."""
    if path[-1].key != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def from_state_dict(
    spec: models.Spec,
    state: State,
    num_classes: int,
    dtype: DTypeLike = np.float32,
    *,
    channels: int = 3,
) -> dict:
    """Variables {'params', 'batch_stats'} of one network from its PyTorch `state_dict`.

    Raises:
      ConfigError: tensors are missing, left over or of another shape; the message names them.
    """
    (variables,) = from_state_dicts(spec, [state], num_classes, dtype, channels=channels)
    return variables


def from_state_dicts(
    spec: models.Spec,
    states: Sequence[State],
    num_classes: int,
    dtype: DTypeLike = np.float32,
    *,
    channels: int = 3,
    image_size: int = 0,
    fit: Fit = "exact",
    what: str = "",
) -> list[dict]:
    """As `from_state_dict`, for several networks of one Spec.

    `image_size`: side of the images in pixels; 0: `spec.image_size`.
    `fit`: what may differ, in all networks alike.
    `what`: what error messages call the networks; '': `spec.arch`.
    """
    size = image_size or spec.image_size
    shapes = shapes_of(models.build(spec, num_classes), size, channels)
    names = state_dict_names(spec, shapes)
    # Unwrap both names, because a module here may have the name of a wrapper.
    states = [torch_wrappers.unwrapped(state) for state in states]
    short = torch_wrappers.unwrapped({name: name for name in jax.tree.leaves(names)})
    short = {name: unwrapped for unwrapped, name in short.items()}
    names = jax.tree.map(short.__getitem__, names)
    dead = (*DEAD, *models.known(spec.arch)[0].torch_dead)
    what = what or spec.arch
    if fit == "convertible":
        shapes = _with_channels_of(states[0], names, shapes, channels)
        shapes = _with_patches_of(states[0], names, shapes)
    return [_take(what, names, shapes, state, dead, dtype) for state in states]


def trans_fusion(state: State, dtype: DTypeLike = np.float32) -> dict:
    """Variables of FFSD's trans-fusion module from its tensors in the leader's file.

    Raises:
      ConfigError: as in `from_state_dict`.
    """
    what = "the trans-fusion module"
    sizes = [value.shape[0] for value in state.values() if np.ndim(value) == 4]
    if len(sizes) != 2:  # one convolution with C channels, one with M * C
        raise ConfigError(f"{what} has {len(sizes)} convolutions, should have 2")
    channels, features = sorted(sizes)
    shapes = shapes_of(fusion.TransFusion(features), 8, channels)
    names = names_of(fusion.trans_fusion_torch_name, shapes)
    return _take(what, names, shapes, state, DEAD, dtype)


def shapes_of(module: Any, size: int, channels: int) -> dict:
    """The shapes of a module's variables for images of `size` pixels."""
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.result_type(float))
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)


def _with_channels_of(state: State, names, shapes, channels: int) -> dict:
    """`shapes`, with the first convolution's for the number of image channels of `state`."""
    other = {}
    for (path, shape), name in zip(
        jax.tree.leaves_with_path(shapes), jax.tree.leaves(names), strict=True
    ):
        if path[-1].key == "kernel" and len(shape.shape) == 4 and name in state:
            have, (*window, inputs, outputs) = np.shape(state[name]), shape.shape
            if inputs == channels and have[1:2] != (inputs,):
                if have == (outputs, *have[1:2], *window):
                    other[name] = jax.ShapeDtypeStruct((*window, have[1], outputs), shape.dtype)
    if len(other) != 1:  # none differs, or `state` is of another architecture
        return shapes
    return jax.tree.map(lambda name, shape: other.get(name, shape), names, shapes)


def _with_patches_of(state: State, names, shapes) -> dict:
    """`shapes`, with as many learned positions as `state` has."""

    def of_file(path, name, shape):
        have = np.shape(state[name]) if name in state else ()
        if path[-1].key != "positions" or len(have) != 3 or have[::2] != shape.shape[::2]:
            return shape
        return jax.ShapeDtypeStruct(have, shape.dtype)

    return jax.tree.map_with_path(of_file, names, shapes)


def _take(what: str, names, shapes, state: State, dead: Sequence[str], dtype) -> dict:
    """The tensors of `state`, arranged as the tree of `names` and `shapes`."""
    wanted = jax.tree.leaves(names)
    assert len(set(wanted)) == len(wanted), "two arrays have the same PyTorch name"
    missing = sorted(set(wanted) - set(state))
    extra = [n for n in set(state) - set(wanted) if not any(re.fullmatch(d, n) for d in dead)]
    if missing and (reason := torch_wrappers.mixed(state, missing)):
        raise ConfigError(f"state_dict does not fit {what}: {reason}")
    if missing or extra:
        raise ConfigError(
            f"state_dict does not fit {what}: missing {some(missing)}, "
            f"left over {some(sorted(extra))}"
        )

    def take(path, name, shape):
        value = np.asarray(state[name])
        if path[-1].key == "kernel" and len(shape.shape) == 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]  # a dense layer that PyTorch code writes as a convolution
        wanted = shape.shape  # below, with its axes in the file's order
        if path[-1].key == "kernel":
            *window, inputs, outputs = wanted
            wanted = (outputs, inputs, *window)
        if value.shape != wanted:
            raise ConfigError(f"{name}: shape {value.shape} where {what} has {wanted}")
        if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.itemsize < 2:
            raise ConfigError(
                f"{name}: {value.dtype} values, must be floating-point numbers of 16 bits or more"
            )
        with np.errstate(over="ignore"):  # a float64 that becomes infinite is reported below
            taken = to_jax(value, path).astype(dtype)
        if not np.isfinite(taken).all():
            raise ConfigError(f"{name}: {value.dtype} values that are not all finite numbers")
        return taken

    return jax.tree.map_with_path(take, names, shapes)
