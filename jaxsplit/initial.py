"""Where a new run starts: weights of another run, or of PyTorch files, as far as they fit."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxsplit import checkpoint, integrity, summary, torch_files, torch_import
from jaxsplit import config as config_lib
from jaxsplit.errors import ConfigError


class Start(NamedTuple):
    """`taken`: a tree like the variables, None where an array is drawn; `note`: what that is."""

    taken: dict
    note: str


def read(config: ConfigDict, like: dict) -> Start:
    """The weights and BatchNorm statistics that `config.init_from` names.

    All of the stack is taken, but a classifier of another number of classes. Other parts of a
    method (auxiliary modules) are taken where both have them.

    Args:
      config: of the new run; init_from is a workdir (its newest checkpoint), its
        checkpoints/<step>, or files of PyTorch weights with commas between them.
      like: {'params', 'batch_stats'} of the new run, ShapeDtypeStructs with shardings.

    Raises:
      ConfigError: nothing there that can be read, or of another architecture or S; both are named.
    """
    paths = [pathlib.Path(path).expanduser() for path in config.init_from.split(",")]
    try:
        if len(paths) > 1 or paths[0].is_file():
            return _from_files(config, paths, like)
        if paths[0].is_dir() or _step(paths[0]):
            return _from_run(config, paths[0], like)
        raise ConfigError("no such workdir, checkpoint or file")
    except ConfigError as error:
        raise ConfigError(f"init_from={config.init_from!r}: {error}") from None


def _from_run(config: ConfigDict, path: pathlib.Path, like: dict) -> Start:
    which = "latest"
    if _step(path):
        path, which = path.parent.parent, path.name
    if not checkpoint.exists(path):
        raise ConfigError("holds no checkpoints; must be a workdir or its checkpoints/<step>")
    other = config_lib.load(path)
    if (config_lib.spec(other), other.split) != (config_lib.spec(config), config.split):
        theirs, ours = (summary.title(c) for c in (other, config))
        raise ConfigError(f"holds {theirs}, config has {ours}")
    checkpoints = checkpoint.Checkpoints(path, read_only=True)
    step = checkpoints.find(which)
    names, differences = _fitting(checkpoints.model_shapes(step), like)
    wanted = flatten_dict(like, sep="/")
    some = unflatten_dict({name: wanted[name] for name in names}, sep="/")
    arrays = flatten_dict(checkpoints.restore_some(step, some), sep="/")
    checkpoints.close()
    return _start(f"checkpoint {step} of {path}", like, arrays, differences)


def _step(path: pathlib.Path) -> bool:
    """Whether a path is a workdir's checkpoints/<step>."""
    return path.parent.name == checkpoint.FOLDER and path.name.isdecimal()


def _from_files(config: ConfigDict, paths: list[pathlib.Path], like: dict) -> Start:
    variables = torch_import.to_variables(config, torch_files.read(paths))
    names, differences = _fitting(integrity.shapes(variables), like)
    have, wanted = (flatten_dict(tree, sep="/") for tree in (variables, like))

    def put(value: np.ndarray, sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    arrays = {name: put(have[name], wanted[name].sharding) for name in names}
    return _start(config.init_from, like, arrays, differences)


def _fitting(have: dict[str, tuple[int, ...]], like: dict) -> tuple[list[str], list[str]]:
    """(names of the arrays to take, what differs in words).

    Raises:
      ConfigError: another array than a classifier's is missing, left over or of another shape.
    """
    need = integrity.shapes(like)
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
    return names, differences


def _layers(shapes: dict[str, tuple[int, ...]], part: str) -> set[str]:
    """Names of the layers of a part."""
    return {name.split("/")[2] for name in shapes if integrity.part_of(name) == part}


def _start(source: str, like: dict, arrays: dict[str, jax.Array], differences: list[str]) -> Start:
    def take(path, _):
        return arrays.get(jax.tree_util.keystr(path, simple=True, separator="/"))

    note = f"weights of {source}: {len(arrays)} arrays taken"
    if differences:
        note += f", not taken: {', '.join(differences)}"
    return Start(jax.tree.map_with_path(take, like), note)
