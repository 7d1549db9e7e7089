"""Extracts one network of a run, as a Linen module with its variables or as its own workdir."""

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import methods, models
from jaxsplit.checkpoints import integrity, read, store
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.report import following
from jaxsplit.workdir import files, lock

FOLDER = "leader"  # default folder of the leader's workdir, in the run's workdir


def network(
    workdir: str | pathlib.Path, name: str = "net0", which: str | int = "latest"
) -> tuple[nn.Module, dict]:
    """Loads one network of a run, for use without jaxsplit's stack; reads no data set.

    Args:
      workdir: workdir of the run.
      name: 'net0' ... or 'leader'.
      which: the checkpoint: 'latest', 'best' or a step.

    Returns:
      (module, variables {'params', 'batch_stats'} of numpy arrays without a network axis):
      `logits, features = module.apply(variables, images)` for normalised float[B, H, W, C].

    Raises:
      ConfigError: there is no such run, checkpoint or network.
    """
    config = config_lib.load(workdir)
    variables, _, _ = _read(config, workdir, name, which)
    classes = variables["params"]["head"]["bias"].shape[-1]
    spec = config_lib.resolve(config_of(config, name)).spec
    dtype = None if config.dtype == "float32" else config.dtype
    return models.build(spec, classes, dtype=dtype), variables


def alone(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    name: str = "leader",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
) -> str:
    """Makes a workdir that holds only one network, to evaluate it or to start other runs from it.

    Args:
      config: config of the run.
      workdir: workdir of the run.
      name: name of the network: 'leader' or 'net0' ...
      to: the new workdir; None: a folder with this name in the run's workdir.
      which: the checkpoint: 'latest', 'best' or a step.

    Returns:
      Lines of text that say what was done.

    Raises:
      ConfigError: there is no such network or checkpoint, or `to` holds anything.
    """
    to = to or files.path_of(workdir) / name
    if store.exists(to):
        raise ConfigError(f"to={str(to)!r}: holds checkpoints already; choose another")
    there = files.path_of(to)
    if there.is_dir() and any(there.iterdir()):
        raise ConfigError(f"to={str(to)!r}: is not empty; choose another with --to, or empty it")
    variables, step, metrics = _read(config, workdir, name, which)
    own = config_lib.check(config_of(config, name))
    known = facts.of_workdir(workdir, config.data, integrity.shapes(variables))
    with contextlib.ExitStack() as at_end:
        folder = config_lib.prepare_workdir(to, lock.held(at_end))
        facts.write(folder, known)
        origin = {"files": [str(workdir)], "epoch": None, "step": step}
        _write(own, folder, variables, origin, _as_only(metrics, name))
    called = "the leader" if name == "leader" else name
    return (
        f"{called} of checkpoint {step}, {own.arch}, is in {to}\n{following.of_workdir(to, 'eval')}"
    )


def leader(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
) -> str:
    """Makes a workdir that holds only the leader: see `alone`."""
    return alone(config, workdir, FOLDER, to, which)


def _as_only(metrics: dict | None, name: str) -> dict:
    """The metrics of one network of a run, as those of net0: alone, the network has this name."""
    return {
        key.replace(f"/{name}/", "/net0/"): value
        for key, value in (metrics or {}).items()
        if f"/{name}/" in key
    }


def _write(
    own: ConfigDict, folder: pathlib.Path, variables: dict, origin: dict, metrics: dict
) -> None:
    """Writes one network's `variables` as step 0 of a workdir; `metrics` are those of its run."""
    config_lib.save(own, folder)
    best = next((key for key in metrics if key.endswith("/top1")), "")
    checkpoints = store.Checkpoints(folder, best_metric=best)
    stacked = {c: {"stack": jax.tree.map(lambda x: x[None], tree)} for c, tree in variables.items()}
    checkpoints.save_weights(stacked, own, origin, metrics or None)
    checkpoints.close()


def config_of(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one network of a run, trained alone.

    Raises:
      ConfigError: the method has no such network.
    """
    changes = single(config, name).changes
    alone = config.copy_and_resolve_references()
    alone.method, alone.split = methods.ALONE, 1
    alone.trunk = alone.views = config_lib.PAPER
    alone.divide_in = config_lib.resolve(config).divided_in
    alone.mesh.data, alone.mesh.net, alone.init_from = -1, 1, ""  # were the run's or its machine's
    alone.update(changes)
    return alone


def single(config: ConfigDict, name: str) -> methods.Single:
    """Where the variables of one network of a run are.

    Raises:
      ConfigError: the method has no such network.
    """
    networks = methods.METHODS[config.method].networks(config)
    if name not in networks:
        has = ", ".join(networks) or "none that can be taken out"
        raise ConfigError(f"method={config.method!r}: has no network {name!r}; there are {has}")
    return networks[name]


def _read(
    config: ConfigDict, workdir: str | pathlib.Path, name: str, which: str | int
) -> tuple[dict, int, dict[str, Any] | None]:
    """Reads a network: (variables as numpy arrays, the checkpoint's step, its metrics)."""
    if not store.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    best = config_lib.resolve(config).best_metric
    checkpoints = read.Reader(workdir, best)
    step = checkpoints.find(which)
    shapes = read.model_shapes(checkpoints.path(step))
    parts = {integrity.part_of(path) for path in shapes}
    found_in = single(config, name)
    own = found_in.part
    wanted = {"stack", "trunk"} & parts if own in ("stack", methods.MEAN) else {own}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = {
        path: jax.ShapeDtypeStruct(shape, np.float32, sharding=here)
        for path, shape in shapes.items()
        if integrity.part_of(path) in wanted
    }
    some = unflatten_dict(like, sep="/")
    tree = jax.device_get(read.restore_some(checkpoints.path(step), some))
    arrays: dict[str, Any] = flatten_dict(tree, sep="/")
    metrics = checkpoints.metrics(step)
    found = {"params": {}, "batch_stats": {}}
    for path, value in arrays.items():
        collection, part, rest = path.split("/", 2)
        if part == "stack":
            value = value.mean(0) if own == methods.MEAN else value[found_in.index]
        found[collection][rest] = value
    variables: dict[str, Any] = {c: unflatten_dict(tree, sep="/") for c, tree in found.items()}
    if own == "stack":
        plain = config_lib.resolve(config).tying.plain(variables)
        variables = jax.tree.map(np.asarray, jax.device_get(plain))
    return variables, step, metrics
