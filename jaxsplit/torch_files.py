"""Files of PyTorch weights: the tensors of each network that they hold, as numpy arrays.

Files: `.npz` and `.safetensors`, whose keys are names of a `state_dict`; anything else is read by
PyTorch, which the extra `torch` installs, and without running code that it holds.
Layouts:
  {'state_dict': ..., 'epoch', 'best_acc1'}, names `models.<i>.<name>`   divide and co-training
  {'weight': ...}, one file a network; the leader's holds its trans-fusion module besides   FFSD
  a `state_dict` of one network alone
each with or without the prefix `module.` of DataParallel. An .npz that has keys `state/<name>` is a
test fixture: its other keys are no weights.
"""

import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsplit.errors import ConfigError

TRANS_FUSION = "trans_fusion_module."  # prefix of the module that FFSD's leader holds

State = Mapping[str, np.ndarray]  # a `state_dict`


class Weights(NamedTuple):
    """What checkpoint files hold."""

    networks: list[State]
    trans_fusion: State  # of FFSD's leader; else empty
    arch: str = ""  # as the file says; "": it does not
    epoch: float | None = None
    top1: float | None = None  # share of the test set that they answer right together


def read(paths: Sequence[str | pathlib.Path]) -> Weights:
    """The networks of one file; of several that hold one network each, in their order.

    Raises:
      ConfigError: a file that is missing, damaged or holds something else.
    """
    files = [_read_file(pathlib.Path(path).expanduser()) for path in paths]
    if len(files) == 1:
        return files[0]
    for path, file in zip(paths, files, strict=True):
        if len(file.networks) != 1 or file.trans_fusion:
            holds = "a leader" if file.trans_fusion else f"{len(file.networks)} networks"
            raise ConfigError(f"{path}: holds {holds}; each of several files must hold one network")
    archs = {file.arch for file in files}
    if len(archs) > 1:
        raise ConfigError(f"the files hold networks of different kinds: {', '.join(sorted(archs))}")
    return Weights([file.networks[0] for file in files], {}, files[0].arch)


def _read_file(path: pathlib.Path) -> Weights:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory, must be a file of PyTorch weights")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    try:
        content = readers.get(path.suffix, _read_torch)(path)
    except ConfigError:
        raise
    except Exception as error:  # libraries raise many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if "PytorchStreamReader" in reason:  # of a file that is not complete it writes much more
            reason = "it is incomplete or damaged"
        reason = reason if len(reason) <= 200 else f"{reason[:200]} ..."
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    facts = content if isinstance(content, Mapping) else {}
    for key in ("state_dict", "weight"):
        if isinstance(facts.get(key), Mapping):
            content = facts[key]
            break
    else:
        facts = {}
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{path}: holds no state_dict")
    if odd := [str(k) for k, v in content.items() if not hasattr(v, "shape")]:
        raise ConfigError(f"{path}: holds no state_dict: no tensors are {some(odd)}")
    state = {name: _to_numpy(value) for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    leader = {n: v for n, v in state.items() if n.startswith(TRANS_FUSION)}
    networks = _networks(path, {n: v for n, v in state.items() if n not in leader})
    return Weights(
        networks,
        leader,
        arch=str(facts.get("arch") or ""),
        epoch=_number(facts.get("epoch")),
        top1=None if (percent := _number(facts.get("best_acc1"))) is None else percent / 100,
    )


def _networks(path: pathlib.Path, state: State) -> list[State]:
    """One `state_dict` a network of names `models.<i>.<name>`; else the whole is one network."""
    networks: dict[int, dict[str, np.ndarray]] = {}
    outside = []
    for name, value in state.items():
        if match := re.fullmatch(r"models\.(\d+)\.(.+)", name):
            networks.setdefault(int(match[1]), {})[match[2]] = value
        else:
            outside.append(name)
    if not networks:
        return [state]
    if outside:
        raise ConfigError(f"{path}: tensors that belong to no models.<i>: {some(outside)}")
    if sorted(networks) != list(range(len(networks))):
        raise ConfigError(f"{path}: networks are numbered {sorted(networks)}, should be from 0")
    return [networks[i] for i in range(len(networks))]


def _read_npz(path: pathlib.Path) -> State:
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle, and say so
        raise ConfigError(f"{path}: cannot be read as a checkpoint (it is no .npz file)")
    with np.load(path, allow_pickle=False) as arrays:
        state = dict(arrays)
    fixture = {k.removeprefix("state/"): v for k, v in state.items() if k.startswith("state/")}
    return fixture or state


def _read_safetensors(path: pathlib.Path) -> State:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise _needs(path, "safetensors", "or convert it to .npz") from None
    return load_file(path)


def _read_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise _needs(path, "PyTorch", "or convert it to .npz or .safetensors") from None
    # Accuracies are often scalars of numpy, which PyTorch does not know to be harmless.
    scalar = np.float64(0).__reduce__()[0]
    known = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype]
    known += [type(np.dtype(t)) for t in (np.float32, np.float64, np.int64)]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it holds {found[1]}, and only tensors are loaded: save its state_dict alone"
        else:
            reason = "PyTorch did not write it, or it is damaged"
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def _needs(path: pathlib.Path, library: str, other: str) -> ConfigError:
    return ConfigError(
        f"{path}: to read it install {library}, which the extra `torch` brings "
        f"(pip install -e '.[torch]'), {other}"
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last: a tensor of several
        return None


def _to_numpy(value) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch; numpy has no bfloat16
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def some(names: list[str]) -> str:
    """The first names of many, for a message."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{names[:6]}{more}"
