"""Warm starts from another run or from PyTorch files."""

import dataclasses
import functools
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import models, stack, values
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
    parts of a method (auxiliary modules) if both runs have them. Whole networks
    (config.divide=False) all start from the same weights where the source has one network.
    `_for_channels` and `_for_patches` say what happens if images have another number of channels,
    or of the patches that a Vision Transformer cuts.

    Args:
      config: config of the new run. init_from is a workdir (its newest checkpoint is read),
        WORKDIR/checkpoints/<step>, a `.safetensors` file of an export, or files of PyTorch weights,
        separated by commas; `:ema` after the files takes their averaged weights.
      like: {'params', 'batch_stats'} of the new run, ShapeDtypeStructs with shardings.

    Raises:
      ConfigError: nothing there can be read, or the architecture or S differs.
    """
    paths, take = _sources(config.init_from)
    try:
        if len(paths) > 1 or paths[0].is_file():
            return _from_files(config, paths, take, like)
        if paths[0].is_dir() or _step(paths[0]):
            if take == "average":
                raise ConfigError(
                    ":ema is for PyTorch files only; the checkpoint of a run with config.ema holds "
                    "the average as its weights"
                )
            return _from_run(config, paths[0], like)
        raise ConfigError("no such workdir, checkpoint or file")
    except ConfigError as error:
        raise ConfigError(f"init_from={config.init_from!r}: {error}") from None


def _sources(text: str) -> tuple[list[pathlib.Path], torch_files.Take]:
    """(paths in `init_from`, which weights it asks for); a path may contain commas."""

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
    return paths, "average" if ema else "weights"


def _from_run(config: ConfigDict, path: pathlib.Path, like: dict) -> Start:
    which = "latest"
    if _step(path):
        path, which = path.parent.parent, path.name
    if not store.exists(path):
        raise ConfigError("holds no checkpoints; must be a workdir or its checkpoints/<step>")
    other = config_lib.load(path)
    has, wants = config_lib.resolve(other), config_lib.resolve(config)
    kinds = [(models.without_rates(its.spec), its.num_networks, its.heads) for its in (has, wants)]
    one = has.num_networks == has.heads == 1
    copied = one and _takes_copies(wants) and kinds[0][0] == kinds[1][0]
    if kinds[0] != kinds[1] and not copied:
        theirs, ours = (summary.title(c) for c in (other, config))
        raise ConfigError(f"holds {theirs}, config has {ours}")
    checkpoints = reading.Reader(path)
    step = checkpoints.find(which)
    fit = _fitting(reading.model_shapes(checkpoints.path(step)), like)
    some = {name: fit.read_as(name) for name in fit.wanted}
    tree = reading.restore_some(checkpoints.path(step), unflatten_dict(some, sep="/"))
    arrays: dict[str, Any] = flatten_dict(tree, sep="/")
    return _start(config, [f"checkpoint {step} of {path}"], like, arrays, fit)


def _step(path: pathlib.Path) -> bool:
    """Whether a path is a workdir's checkpoints/<step>."""
    return path.parent.name == store.FOLDER and path.name.isdecimal()


def _takes_copies(resolved: config_lib.Resolved) -> bool:
    """Whether all networks may start from one: whole networks, which share nothing."""
    return (
        resolved.divided_in == 1
        and resolved.num_networks > 1
        and resolved.heads == 1
        and resolved.tying is stack.NOTHING
        and not resolved.trunk
    )


def _of_source(config: ConfigDict, is_one: bool) -> ConfigDict:
    """The config that the files fit: with S = 1 if they hold one network, for all to start from."""
    if not is_one or not _takes_copies(config_lib.resolve(config)):
        return config
    one = values.copy(config)
    one.split = 1
    return one


def _from_files(
    config: ConfigDict, paths: list[pathlib.Path], take: torch_files.Take, like: dict
) -> Start:
    own = native.read(paths[0]) if len(paths) == 1 else None
    if own is None:
        weights = torch_files.read(paths, take=take)
        source = _of_source(config, len(weights.networks) == 1)
        variables = torch_import.to_variables(source, weights, fit="convertible")
        notes = weights.notes
    else:
        if take == "average":
            raise ConfigError(f":ema is for PyTorch files only; this file is of {native.FORMAT}")
        torch_import.check_native(_of_source(config, own.header.get("split") == "1"), own)
        variables, notes = own.variables, ()
    fit = _fitting(integrity.shapes(variables), like)
    have: dict[str, Any] = flatten_dict(variables, sep="/")

    def put(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    arrays = {name: put(have[name], fit.read_as(name).sharding) for name in fit.wanted}
    return _start(config, [*notes, config.init_from], like, arrays, fit)


class _Fit(NamedTuple):
    wanted: dict[str, jax.ShapeDtypeStruct]  # of the arrays to take, with their shardings
    have: dict[str, tuple[int, ...]]  # their shapes in the source
    differences: list[str]  # descriptions of what is not taken
    with_token: frozenset[str]  # learned positions of which the first is a class token's

    def read_as(self, name: str) -> jax.ShapeDtypeStruct:
        """How an array is read: where it will lie, or, to be converted, on every device."""
        want, have = self.wanted[name], self.have[name]
        sharding = want.sharding
        if have != want.shape and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(have, want.dtype, sharding=sharding)


def _fitting(have: dict[str, tuple[int, ...]], like: dict) -> _Fit:
    """Chooses the arrays of a checkpoint to take.

    Raises:
      ConfigError: an array is missing, left over or of another shape. The classifier may differ,
        the first convolution if the images have another number of channels, the positions of
        another number of patches, and the number of networks where the checkpoint has one.
    """
    need = integrity.shapes(like)
    first_kernels = _first_kernels(have, need)
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
        if old and new and old[:1] == (1,) and integrity.part_of(name) == "stack":
            old = new[:1] + old[1:]  # one network, which all start from
        if old == new or name in first_kernels or _other_patches(name, old, new):
            names.append(name)
        elif old and new and "head" in name.split("/") and old[:-1] == new[:-1]:
            differences.append(f"{name} {list(have[name])} -> {list(new)}")
        else:
            raise ConfigError(
                f"{name} has shape {have.get(name)}, should be {new}: another architecture, or "
                "images of another number of channels"
            )
    wanted: dict[str, Any] = flatten_dict(like, sep="/")
    token = {name for name in names if name.replace("positions", "class_token") in have}
    return _Fit(
        {n: wanted[n] for n in names}, {n: have[n] for n in names}, differences, frozenset(token)
    )


def _first_kernels(have: dict, need: dict) -> set[str]:
    """The kernel of each part's first convolution, if it is for another number of channels.

    Only if one of the two numbers is 1 (gray images).
    """
    found: dict[str, list[str]] = {}
    for name in have.keys() & need.keys():
        old, new = have[name], need[name]  # [..., height, width, inputs, outputs]
        if name.endswith("/kernel") and len(old) >= 4 and old[-2] != new[-2]:
            if old[-4:-2] + old[-1:] == new[-4:-2] + new[-1:] and 1 in (old[-2], new[-2]):
                found.setdefault(integrity.part_of(name), []).append(name)
    # If a part has several such kernels, its architecture differs.
    return {name for part in found.values() if len(part) == 1 for name in part}


def _other_patches(name: str, old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> bool:
    """Whether two shapes [..., patches, C] of learned positions differ in their number alone."""
    both = old is not None and new is not None and name.endswith("/positions")
    return both and old != new and old[:-2] + old[-1:] == new[:-2] + new[-1:]


def _for_channels(kernel: jax.Array, channels: int) -> jax.Array:
    """Converts a first kernel [..., inputs, outputs] to another number of image channels.

    From one channel to several, the kernel is divided by their number and repeated. From several to
    one, it is summed over the channels. Either way the outputs for a gray image are those for the
    same image in equal channels.
    """
    if channels == 1:
        return kernel.sum(-2, keepdims=True)
    return jnp.repeat(kernel / channels, channels, axis=-2)


def _for_patches(positions: jax.Array, number: int, tokens: int) -> jax.Array:
    """Resizes learned positions [..., tokens + h * h, C] to [..., number, C], bicubically.

    The patches form squares; the first `tokens` positions are of class tokens, which stay.
    """
    *lead, had, c = positions.shape
    old, new = (math.isqrt(n - tokens) for n in (had, number))
    first, grid = positions[..., :tokens, :], positions[..., tokens:, :]
    grid = grid.reshape(*lead, old, old, c)
    grid = jax.image.resize(grid, (*lead, new, new, c), "cubic")
    return jnp.concatenate([first, grid.reshape(*lead, new * new, c)], -2)


def _layers(shapes: dict[str, tuple[int, ...]], part: str) -> set[str]:
    """The layers of a part."""
    return {name.split("/")[2] for name in shapes if integrity.part_of(name) == part}


def _converted(
    name: str, array: jax.Array, want: jax.ShapeDtypeStruct, tokens: int
) -> tuple[jax.Array, str]:
    """(the array in the shape that is wanted, a line that says how; '': no more than copied)."""
    old, new = array.shape, want.shape
    note, convert = "", lambda x: x
    if _other_patches(name, old[1:], new[1:]):
        for number in (old[-2], new[-2]):
            if math.isqrt(number - tokens) ** 2 != number - tokens:
                raise ConfigError(f"{name}: {number - tokens} patches form no square")
        note = f"{name}: resized from {old[-2] - tokens} patches to {new[-2] - tokens}, bicubic"
        convert = functools.partial(_for_patches, number=new[-2], tokens=tokens)
    elif old[1:] != new[1:]:
        how = "summing over them" if new[-2] == 1 else f"dividing by {new[-2]} and repeating"
        channels = f"{old[-2]} image channel{'s' * (old[-2] > 1)}"
        note = f"{name}: converted from {channels} to {new[-2]} by {how}"
        convert = functools.partial(_for_channels, channels=new[-2])
    copied = jax.jit(
        lambda x: jnp.broadcast_to(convert(x), new).astype(want.dtype),
        out_shardings=want.sharding,
    )
    return copied(array), note


def _stay_equal(config: ConfigDict, copies: int, fit: _Fit) -> str:
    """A warning that copies of one network learn the same; '': something makes them differ."""
    resolved = config_lib.resolve(config)
    heads = [name for name in fit.wanted if name.startswith("params/stack/head/")]
    if not copies or not heads or not resolved.shared_view:
        return ""
    spec = dataclasses.asdict(resolved.spec)
    if any(isinstance(rate, float) and rate > 0 for name, rate in spec.items() if "drop" in name):
        return ""
    rates = [f" or --config.{name}=0.1" for name in models.RATES if name in spec]
    return (
        f"warning: all {copies} networks start equal, see the same view and drop nothing, so that "
        f"they may stay equal for ever; --config.views=different{''.join(rates[-1:])} helps"
    )


def _start(
    config: ConfigDict, sources: list[str], like: dict, arrays: dict[str, jax.Array], fit: _Fit
) -> Start:
    """Makes the `Start`. `sources` are lines of its note; the last will say what was taken."""
    *notes, source = sources
    copies = 0
    for name, want in fit.wanted.items():
        have = fit.have[name]
        if have != want.shape:
            copies = want.shape[0] if have[0] != want.shape[0] else copies
            tokens = int(name in fit.with_token)
            arrays[name], note = _converted(name, arrays[name], want, tokens)
            notes += [note] * bool(note)
    warning = _stay_equal(config, copies, fit)
    notes += [warning] * bool(warning)

    def take(path, _):
        return arrays.get(jax.tree_util.keystr(path, simple=True, separator="/"))

    note = f"weights of {source}: {len(arrays)} arrays taken"
    note += f", each for {copies} networks" * bool(copies)
    if fit.differences:
        note += f", not taken: {', '.join(fit.differences)}"
    return Start(jax.tree.map_with_path(take, like), "\n".join([*notes, note]))
