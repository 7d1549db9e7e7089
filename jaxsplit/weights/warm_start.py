"""Warm starts from another run or from PyTorch files."""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit.checkpoints import integrity, store
from jaxsplit.checkpoints import read as reading
from jaxsplit.errors import ConfigError
from jaxsplit.report import summary
from jaxsplit.weights import native, torch_files, torch_import


class Start(NamedTuple):
    """`taken`: a tree like the variables; leaves that are None are initialised at random. `note`:
    lines of text that describe it."""

    taken: dict
    note: str


def read(config: ConfigDict, like: dict) -> Start:
    """Reads the weights and BatchNorm statistics that `config.init_from` names.

    It takes the whole stack, except a classifier for another number of classes. It takes other
    parts of a method (auxiliary modules) if both runs have them. `_for_channels` says what happens
    if images have another number of channels.

    Args:
      config: config of the new run. init_from is a workdir (its newest checkpoint is read),
        WORKDIR/checkpoints/<step>, a `.safetensors` file of an export, or files of PyTorch weights,
        separated by commas; `:ema` after the files takes their averaged weights.
      like: {'params', 'batch_stats'} of the new run, ShapeDtypeStructs with shardings.

    Raises:
      ConfigError: nothing there can be read, or the architecture or S differs.
    """
    paths, ema = _sources(config.init_from)
    try:
        if len(paths) > 1 or paths[0].is_file():
            return _from_files(config, paths, ema, like)
        if paths[0].is_dir() or _step(paths[0]):
            if ema:
                raise ConfigError(
                    ":ema is for PyTorch files only; the checkpoint of a run with config.ema holds "
                    "the average as its weights"
                )
            return _from_run(config, paths[0], like)
        raise ConfigError("no such workdir, checkpoint or file")
    except ConfigError as error:
        raise ConfigError(f"init_from={config.init_from!r}: {error}") from None


def _sources(text: str) -> tuple[list[pathlib.Path], bool]:
    """(paths in `init_from`, whether it asks for averages); a path may contain commas."""

    def exists(text: str) -> bool:
        path = os.path.expanduser(text)
        # A step that does not exist is reported later.
        return os.path.exists(path) or bool(_step(pathlib.Path(path)))

    ema = text.endswith(":ema") and not exists(text)
    parts, paths = text.removesuffix(":ema" * ema).split(","), []
    while parts:
        # Join as many parts as possible to an existing path.
        n = next((n for n in range(len(parts), 0, -1) if exists(",".join(parts[:n]))), 1)
        paths.append(pathlib.Path(os.path.expanduser(",".join(parts[:n]))))
        parts = parts[n:]
    return paths, ema


def _from_run(config: ConfigDict, path: pathlib.Path, like: dict) -> Start:
    which = "latest"
    if _step(path):
        path, which = path.parent.parent, path.name
    if not store.exists(path):
        raise ConfigError("holds no checkpoints; must be a workdir or its checkpoints/<step>")
    other = config_lib.load(path)
    has, wants = config_lib.resolve(other), config_lib.resolve(config)
    kinds = [(its.spec, its.num_networks, its.heads) for its in (has, wants)]
    if kinds[0] != kinds[1]:
        theirs, ours = (summary.title(c) for c in (other, config))
        raise ConfigError(f"holds {theirs}, config has {ours}")
    checkpoints = reading.Reader(path)
    step = checkpoints.find(which)
    have = reading.model_shapes(checkpoints.path(step))
    fit = _fitting(have, like)
    wanted: dict[str, Any] = flatten_dict(like, sep="/")
    some = {
        name: jax.ShapeDtypeStruct(have[name], wanted[name].dtype, sharding=wanted[name].sharding)
        for name in fit.names
    }
    tree = reading.restore_some(checkpoints.path(step), unflatten_dict(some, sep="/"))
    arrays: dict[str, Any] = flatten_dict(tree, sep="/")
    return _start([f"checkpoint {step} of {path}"], like, arrays, fit)


def _step(path: pathlib.Path) -> bool:
    """Whether a path is a workdir's checkpoints/<step>."""
    return path.parent.name == store.FOLDER and path.name.isdecimal()


def _from_files(config: ConfigDict, paths: list[pathlib.Path], ema: bool, like: dict) -> Start:
    own = native.read(paths[0]) if len(paths) == 1 else None
    if own is None:
        weights = torch_files.read(paths, ema=ema)
        variables = torch_import.to_variables(config, weights, any_channels=True)
        notes = weights.notes
    else:
        if ema:
            raise ConfigError(f":ema is for PyTorch files only; this file is of {native.FORMAT}")
        torch_import.check_native(config, own)
        variables, notes = own.variables, ()
    fit = _fitting(integrity.shapes(variables), like)
    have: dict[str, Any] = flatten_dict(variables, sep="/")
    wanted: dict[str, Any] = flatten_dict(like, sep="/")

    def put(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    arrays = {name: put(have[name], wanted[name].sharding) for name in fit.names}
    return _start([*notes, config.init_from], like, arrays, fit)


class _Fit(NamedTuple):
    names: list[str]  # of the arrays to take
    differences: list[str]  # descriptions of what is not taken
    channels: dict[str, tuple[int, int]]  # arrays to convert from images of a to b channels


def _fitting(have: dict[str, tuple[int, ...]], like: dict) -> _Fit:
    """Chooses the arrays of a checkpoint to take.

    Raises:
      ConfigError: an array is missing, left over or of another shape. The classifier may differ,
        and the first convolution if the images have another number of channels.
    """
    need = integrity.shapes(like)
    channels = _other_channels(have, need)
    have = have | {name: need[name] for name in channels}
    have_parts, need_parts = ({integrity.part_of(name) for name in x} for x in (have, need))
    names = []
    differences = [f"{part} (not in this run)" for part in sorted(have_parts - need_parts)]
    differences += [f"{part} (not in the checkpoint)" for part in sorted(need_parts - have_parts)]
    shared = have_parts & need_parts
    if _layers(have, "trunk") != _layers(need, "trunk"):
        raise ConfigError("its networks share other stages than those of this run (config.trunk)")
    for part in sorted(shared - {"stack", "trunk"}):
        both = ({n: x[n] for n in x if integrity.part_of(n) == part} for x in (have, need))
        if next(both) != next(both):
            shared.remove(part)
            differences.append(f"{part} (of another shape)")
    for name in sorted(have.keys() | need.keys()):
        if integrity.part_of(name) not in shared:
            continue
        old, new = have.get(name), need.get(name)
        if old == new:
            names.append(name)
        elif old and new and "head" in name.split("/") and old[:-1] == new[:-1]:
            differences.append(f"{name} {list(old)} -> {list(new)}")
        else:
            raise ConfigError(
                f"{name} has shape {old}, should be {new}: another architecture, or images of "
                "another number of channels"
            )
    return _Fit(names, differences, {n: pair for n, pair in channels.items() if n in names})


def _other_channels(have: dict, need: dict) -> dict[str, tuple[int, int]]:
    """{kernel of a part's first convolution: (image channels it has, image channels needed)}.

    Only if one of the two is 1 (gray images).
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name in have.keys() & need.keys():
        old, new = have[name], need[name]  # [..., height, width, inputs, outputs]
        if name.endswith("/kernel") and len(old) >= 4 and old != new:
            if old[:-2] + old[-1:] == new[:-2] + new[-1:] and 1 in (old[-2], new[-2]):
                found.setdefault(integrity.part_of(name), {})[name] = (old[-2], new[-2])
    # If a part has several such kernels, its architecture differs.
    return {name: x for part in found.values() if len(part) == 1 for name, x in part.items()}


def _for_channels(kernel: jax.Array, channels: int) -> jax.Array:
    """Converts a first kernel [..., inputs, outputs] to another number of image channels.

    From one channel to several, the kernel is divided by their number and repeated. From several to
    one, it is summed over the channels. Either way the outputs for a gray image are those for the
    same image in equal channels.
    """
    if channels == 1:
        return kernel.sum(-2, keepdims=True)
    return jnp.repeat(kernel / channels, channels, axis=-2)


def _layers(shapes: dict[str, tuple[int, ...]], part: str) -> set[str]:
    """The layers of a part."""
    return {name.split("/")[2] for name in shapes if integrity.part_of(name) == part}


def _start(sources: list[str], like: dict, arrays: dict[str, jax.Array], fit: _Fit) -> Start:
    """Makes the `Start`. `sources` are lines of its note; the last one will say what was taken."""
    *notes, source = sources
    for name, (old, new) in fit.channels.items():
        array = arrays[name]
        change = jax.jit(_for_channels, static_argnums=1, out_shardings=array.sharding)
        arrays[name] = change(array, new)
        how = "summing over them" if new == 1 else f"dividing by {new} and repeating"
        plural = "s" * (old > 1)
        notes.append(f"{name}: converted from {old} image channel{plural} to {new} by {how}")

    def take(path, _):
        return arrays.get(jax.tree_util.keystr(path, simple=True, separator="/"))

    note = f"weights of {source}: {len(arrays)} arrays taken"
    if fit.differences:
        note += f", not taken: {', '.join(fit.differences)}"
    return Start(jax.tree.map_with_path(take, like), "\n".join([*notes, note]))
