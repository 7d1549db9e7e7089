"""Extracts one network of a run, as a Linen module with its variables or as its own workdir."""

import contextlib
import pathlib
from collections.abc import Mapping
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
    spec = config_lib.resolve(_alone(config, name)).spec
    dtype = None if config.dtype == "float32" else config.dtype
    return models.build(spec, classes, dtype=dtype), variables


def leader(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
) -> str:
    """Makes a workdir that holds only the leader, to evaluate it or to start other runs from it.

    Args:
      config: config of the run.
      workdir: workdir of the run.
      to: the new workdir; None: the folder `leader` in the run's workdir.
      which: the checkpoint: 'latest', 'best' or a step.

    Returns:
      Lines of text that say what was done.

    Raises:
      ConfigError: the method has no leader, there is no such checkpoint, or `to` holds checkpoints.
    """
    to = to or files.path_of(workdir) / FOLDER
    if store.exists(to):
        raise ConfigError(f"to={str(to)!r}: holds checkpoints already; choose another")
    variables, step, metrics = _read(config, workdir, "leader", which)
    alone = _alone(config, "leader")
    alone = config_lib.check(alone)
    known = facts.of_workdir(workdir, config.data, integrity.shapes(variables))
    with contextlib.ExitStack() as at_end:
        folder = config_lib.prepare_workdir(to, lock.held(at_end))
        facts.write(folder, known)
        _write(
            alone,
            folder,
            variables,
            {"files": [str(workdir)], "epoch": None, "step": step},
            metrics,
        )
    return (
        f"the leader of checkpoint {step}, {alone.arch}, is in {to}\n"
        f"{following.of_workdir(to, 'eval')}"
    )


def _write(
    alone: ConfigDict, folder: pathlib.Path, variables: dict, origin: dict, metrics: dict | None
) -> None:
    """Writes one network's `variables` as step 0 of a workdir; `metrics` are those of its run."""
    config_lib.save(alone, folder)
    # In the new workdir the leader is the only network, so its metrics are those of net0.
    known = {
        key.replace("/leader/", "/net0/"): value
        for key, value in (metrics or {}).items()
        if "/leader/" in key
    }
    best = next((key for key in known if key.endswith("/top1")), "")
    checkpoints = store.Checkpoints(folder, best_metric=best)
    stacked = {c: {"stack": jax.tree.map(lambda x: x[None], tree)} for c, tree in variables.items()}
    checkpoints.save_weights(stacked, alone, origin, known or None)
    checkpoints.close()


def _alone(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one network of a run, trained alone."""
    alone = config.copy_and_resolve_references()
    alone.method, alone.split = methods.ALONE, 1
    alone.trunk = alone.views = config_lib.PAPER
    alone.divide_in = config_lib.resolve(config).divided_in
    alone.mesh.data, alone.mesh.net, alone.init_from = -1, 1, ""  # were the run's or its machine's
    alone.update(_networks(config)[name].changes)
    return alone


def _networks(config: ConfigDict) -> Mapping[str, methods.Single]:
    return methods.METHODS[config.method].networks(config)


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
    networks = _networks(config)
    if name not in networks:
        has = ", ".join(networks)
        raise ConfigError(f"method={config.method!r}: has no network {name!r}; there are {has}")
    single = networks[name]
    wanted = {"stack", "trunk"} & parts if single.part == "stack" else {single.part}
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
        found[collection][rest] = value[single.index] if part == "stack" else value
    return {c: unflatten_dict(tree, sep="/") for c, tree in found.items()}, step, metrics
