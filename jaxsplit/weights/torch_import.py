"""Imports PyTorch weights of the reference systems into jaxsplit's networks.

python -m jaxsplit.torch_import CHECKPOINT... --config=configs/<name>.py --workdir=runs/<name>

This makes a workdir that `jaxsplit eval` evaluates and `--init_from` starts from.
`--ema` takes the averaged weights (EMA) that a file holds beside the weights.

`torch_files` describes the files and layouts.

`torch_network` turns the tensors of one network into variables.
"""

import contextlib
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import data, models, stack
from jaxsplit.checkpoints import integrity, store
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.report import summary
from jaxsplit.weights import native, torch_files, torch_network, torch_wrappers
from jaxsplit.weights.torch_files import State
from jaxsplit.workdir import lock

# FFSD's names of some networks -> jaxsplit's names.
FFSD_NAMES = {
    "wideresnet1602": "ffsd_wide_resnet16_2",
    "wideresnet4002": "ffsd_wide_resnet40_2",
    "wideresnet2810": "ffsd_wide_resnet28_10",
    "densenet": "densenet40_12",
    "resnet18": "ffsd_resnet18",
    "resnet34": "ffsd_resnet34",
}

# ---- All networks of a config


def to_variables(
    config: ConfigDict,
    weights: torch_files.Weights,
    num_classes: int | None = None,
    *,
    fit: torch_network.Fit = "exact",
) -> dict:
    """{'params', 'batch_stats'} of {part: tree}: `stack` [S, ...] and a leader's `trans_fusion`.

    `num_classes` None: as many classes as the weights have. `fit`: what may differ.

    Raises:
      ConfigError: the weights are of another architecture or S, or for another number of classes or
        image channels.
    """
    resolved, source = config_lib.resolve(config), data.source(config.data)
    spec = resolved.spec
    if resolved.tying is not stack.NOTHING or resolved.heads > 1:
        raise ConfigError(
            f"method={config.method!r}: must be a method of whole networks, which the files hold"
        )
    _check_networks(config, weights)
    classes = _num_classes(spec, weights.networks[0])
    if num_classes is not None and classes not in (None, num_classes):
        raise ConfigError(
            f"the checkpoint's networks have {classes} classes, data.name={config.data.name!r} has "
            f"{num_classes}; import with a config of {classes} classes, then use --init_from"
        )
    size, _, channels = source.shape(config.data)
    fields = dict(channels=channels, image_size=size, fit=fit, what=summary.title(config))
    classes = classes or source.num_classes
    try:
        networks = torch_network.from_state_dicts(spec, weights.networks, classes, **fields)
    except ConfigError as error:
        if _fits(spec, weights.networks[0], classes, **fields | {"fit": "convertible"}):
            if fit == "exact":
                raise ConfigError(
                    f"{error}; data.name={config.data.name!r} has images of {size} x {size} pixels "
                    f"with {channels} channel{'s' * (channels > 1)}: give the file to --init_from, "
                    "which takes weights for another number of channels or of patches"
                ) from None
            raise
        whole = models.divided(config.arch, 1)
        if spec == whole or not _fits(whole, weights.networks[0], classes, **fields):
            raise
        raise ConfigError(
            f"{error}; it holds undivided networks of {config.arch}: use --config.divide=False"
        ) from None
    parts = {"stack": jax.tree.map(lambda *x: np.stack(x), *networks)}
    if weights.trans_fusion:
        parts["trans_fusion"] = torch_network.trans_fusion(weights.trans_fusion)
    return {
        collection: {part: tree.get(collection, {}) for part, tree in parts.items()}
        for collection in ("params", "batch_stats")
    }


def check_native(config: ConfigDict, own: native.Weights) -> None:
    """Checks that a file in jaxsplit's own format has the config's architecture and S.

    Raises:
      ConfigError: one of them differs; the message names both.
    """
    arch, split = own.header.get("arch", ""), own.header.get("split", "")
    if (arch, split) != (config.arch, str(config.split)):
        raise ConfigError(
            f"holds {split} network{'s' * (split != '1')} of {arch}, "
            f"config has split={config.split}, arch={config.arch!r}"
        )


def _of_native(config: ConfigDict, own: native.Weights, path: str) -> dict:
    """The variables of a file in jaxsplit's own format, checked against the networks of the config.

    Raises:
      ConfigError: as in `to_variables`.
    """
    try:
        check_native(config, own)
        source = data.source(config.data)
        resolved = config_lib.resolve(config)
        module = models.build(resolved.spec, resolved.heads * source.num_classes)
        size = source.shape(config.data)
        need = integrity.shapes(torch_network.shapes_of(module, size[0], resolved.heads * size[2]))
        have = integrity.shapes(_of_one(own.variables, resolved.tying))
        for name in sorted(have.keys() | need.keys()):
            if have.get(name) != need.get(name):
                raise ConfigError(
                    f"{name} has shape {have.get(name)}, should be {need.get(name)}: another "
                    "architecture, or another number of image channels or classes"
                )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return own.variables


def _of_one(variables: dict, tying: stack.Tying) -> dict:
    """Shapes of the variables of a network of a file, as its module takes them."""

    def one(variables: dict) -> dict:
        own = {
            c: jax.tree.map(lambda x: x[0], t.get(native.STACK, {})) for c, t in variables.items()
        }
        return tying.plain(stack.merge(own, {c: t.get("trunk", {}) for c, t in variables.items()}))

    return jax.eval_shape(one, variables)


def _fits(spec, state: State, num_classes: int, **fields) -> bool:
    try:
        torch_network.from_state_dicts(spec, [state], num_classes, **fields)
    except ConfigError:
        return False
    return True


def _check_networks(config: ConfigDict, weights: torch_files.Weights) -> None:
    n = len(weights.networks)
    # Other programs have names of their own: of these, the tensors alone say what they are.
    other = _is_known(weights.arch) and config.arch not in _names_here(weights.arch)
    if n != config.split or other:
        of = f" of {weights.arch}" if weights.arch else ""
        raise ConfigError(
            f"the checkpoint holds {n} network{'s' * (n > 1)}{of}, "
            f"config has split={config.split}, arch={config.arch!r}"
        )
    if weights.trans_fusion and config.split != 1:
        raise ConfigError(
            f"the checkpoint holds one network, a leader with its trans-fusion module; "
            f"config has split={config.split}"
        )


def _names_here(arch: str) -> set[str]:
    """The names here that a reference's `arch` may mean; it may stand for several networks."""
    variants = {f"{arch}{suffix}" for suffix in ("", "_cifar", "_lightnetpp", "_plain")}
    return variants | {f"ffsd_{arch}", FFSD_NAMES.get(arch, arch)}


def _is_known(arch: str) -> bool:
    """Whether a reference's `arch` may mean a network here."""
    families = models.FAMILIES.values()
    return any(family.find(name) for name in _names_here(arch) for family in families)


def _num_classes(spec, state: State) -> int | None:
    """Number of classes; None: there is no classifier, an error that `from_state_dict` reports."""
    head = torch_network.state_dict_names(spec, {"params": {"head": {"bias": 0}}})["params"][
        "head"
    ]["bias"]
    if head not in state:  # its name may begin with the name of a wrapper, which was removed
        (head,) = torch_wrappers.unwrapped({head: 0})
    return len(state[head]) if np.ndim(state.get(head, 0)) == 1 else None


def import_checkpoint(
    config: ConfigDict,
    paths: Sequence[str | pathlib.Path],
    workdir: str | pathlib.Path,
    *,
    take: torch_files.Take = "weights",
) -> torch_files.Weights:
    """Makes a workdir whose checkpoint, step 0, holds the weights of PyTorch files.

    If the file states its accuracy on the test set, the checkpoint stores it and is the best one.
    Training cannot resume from this checkpoint, because it has no optimizer state, but it can start
    from it with `config.init_from`.

    Args:
      config: the networks and data set of the weights.
      paths: one file, or one file per network, in their order.
      workdir: the new workdir.
      take: the weights of the files as trained, or the average that they hold.

    Returns:
      The contents of the files.

    Raises:
      ConfigError: a file or the config is bad, or the workdir holds checkpoints.
    """
    config_lib.check(config)
    if store.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds checkpoints already; choose another")
    own = native.read(pathlib.Path(os.path.expanduser(paths[0]))) if len(paths) == 1 else None
    if own is None:
        weights = torch_files.read(paths, take=take)
        variables = to_variables(config, weights, data.source(config.data).num_classes)
    else:
        if take == "average":
            raise ConfigError(f"{paths[0]}: holds no averaged weights")
        weights = torch_files.Weights([], {}, arch=own.header.get("arch", ""))
        variables = _of_native(config, own, str(paths[0]))
    metrics = {}
    if weights.top1 is not None:
        metrics[f"test/{'ensemble' if config.split > 1 else 'net0'}/top1"] = weights.top1
    origin = {"files": [str(path) for path in paths], "epoch": weights.epoch}
    with contextlib.ExitStack() as at_end:
        folder = config_lib.prepare_workdir(workdir, lock.held(at_end))
        config_lib.save(config, folder)
        facts.write(folder, facts.of_config(config.data))
        checkpoints = store.Checkpoints(folder, best_metric=next(iter(metrics), ""))
        checkpoints.save_weights(variables, config, origin, metrics or None)
        checkpoints.close()
    return weights
