"""Reads files of PyTorch weights: the tensors of each network in them, as numpy arrays.

Files: `.npz` and `.safetensors` with the names of a `state_dict` as keys. PyTorch reads all other
files, without running code in them; the extra `torch` installs it.
Layouts:
  {'state_dict': ..., 'epoch', 'best_acc1'}, names `models.<i>.<name>`   divide and co-training
  {'weight': ...}, one file per network; the leader's also has its trans-fusion module   FFSD
  a `state_dict` of one network
Each layout may be in any container and with any prefix that `torch_wrappers` knows. Tensors are
floating-point numbers of at least 16 bits (also bfloat16). In an .npz with keys `state/<name>`, a
test fixture, the other keys are not weights.
"""

import argparse
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxsplit.errors import ConfigError
from jaxsplit.weights import torch_wrappers
from jaxsplit.weights.torch_wrappers import some

Take: TypeAlias = Literal["weights", "average"]
TRANS_FUSION = "trans_fusion_module."  # prefix of that module's tensors in FFSD's leader

State = Mapping[str, np.ndarray]  # a `state_dict`


class Weights(NamedTuple):
    """The contents of checkpoint files."""

    networks: list[State]
    trans_fusion: State  # tensors of that module, if the file is of FFSD's leader; else empty
    arch: str = ""  # the file's name of the architecture; "": the file has none
    epoch: float | None = None
    top1: float | None = None  # the file's accuracy on the test set, 0..1, of the ensemble
    notes: tuple[str, ...] = ()  # lines about contents that were not taken


def read(paths: Sequence[str | pathlib.Path], *, take: Take = "weights") -> Weights:
    """Reads all networks of one file, or one network from each of several files, in their order.

    `take`: the weights as trained, or their average.

    Raises:
      ConfigError: a file is missing, damaged, holds something else, or has no averaged weights.
    """
    files = [_read_file(pathlib.Path(os.path.expanduser(path)), take) for path in paths]
    if len(files) == 1:
        return files[0]
    for path, file in zip(paths, files, strict=True):
        if len(file.networks) != 1 or file.trans_fusion:
            holds = "a leader" if file.trans_fusion else f"{len(file.networks)} networks"
            raise ConfigError(f"{path}: holds {holds}; each of several files must hold one network")
    archs = {file.arch for file in files}
    if len(archs) > 1:
        raise ConfigError(f"the files hold networks of different kinds: {', '.join(sorted(archs))}")
    notes = tuple(note for file in files for note in file.notes)
    return Weights([file.networks[0] for file in files], {}, files[0].arch, notes=notes)


def _read_file(path: pathlib.Path, take: Take) -> Weights:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory, must be a file of PyTorch weights")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    try:
        content = readers.get(path.suffix, read_torch)(path)
    except ConfigError:
        raise
    except Exception as error:  # libraries raise many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if "PytorchStreamReader" in reason:  # PyTorch's message for an incomplete file is long
            reason = "it is incomplete or damaged"
        reason = reason if len(reason) <= 200 else f"{reason[:200]} ..."
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    try:
        found, notes = _choose(torch_wrappers.find(content), take)
        state = {name: _to_numpy(name, value) for name, value in found.tensors.items()}
        leader = {n: v for n, v in state.items() if n.startswith(TRANS_FUSION)}
        networks = _networks({n: v for n, v in state.items() if n not in leader})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    facts = content if found.where else {}
    return Weights(
        networks,
        leader,
        arch=str(facts.get("arch") or ""),
        epoch=_number(facts.get("epoch")),
        top1=None if (percent := _number(facts.get("best_acc1"))) is None else percent / 100,
        notes=tuple(f"{path}: {note}" for note in notes),
    )


def _choose(
    found: Sequence[torch_wrappers.Found], take: Take
) -> tuple[torch_wrappers.Found, Sequence[str]]:
    """(the choice, lines about it). An average is also taken if there is nothing else."""
    average = take == "average"
    wanted = [f for f in found if f.average == average]
    if average and not wanted:
        known = ", ".join(torch_wrappers.AVERAGES)
        raise ConfigError(f"holds no averaged weights; searched: {known}")
    taken = (wanted or found)[0]
    others = [f for f in found if f is not taken]
    if others:
        also = ", ".join(map(_described, others))
        if any(f.average for f in others) and not average:
            also += " (to take these: --ema, or :ema after the path of init_from)"
        return taken, [f"{_described(taken)} are taken; it also holds {also}"]
    only = f"it holds only {_described(taken)}, which are taken"
    return taken, [only] * (taken.average and not average)


def _described(found: torch_wrappers.Found) -> str:
    kind = "averaged weights" if found.average else "weights"
    return f"{kind} in {found.where!r}" if found.where else kind


def _networks(state: State) -> list[State]:
    """One `state_dict` for each <i> of names `models.<i>.<name>`; without such names, only one."""
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
        raise ConfigError(f"tensors that belong to no models.<i>: {some(outside)}")
    if sorted(networks) != list(range(len(networks))):
        raise ConfigError(f"networks are numbered {sorted(networks)}, should be from 0")
    return [torch_wrappers.unwrapped(networks[i]) for i in range(len(networks))]


def _read_npz(path: pathlib.Path) -> State:
    if not zipfile.is_zipfile(path):  # numpy's message would speak of a pickle
        raise ConfigError(f"{path}: cannot be read as a checkpoint (it is no .npz file)")
    with np.load(path, allow_pickle=False) as arrays:
        state = dict(arrays)
    import ml_dtypes  # a dependency of jax

    # NumPy has no bfloat16 and reads it as two raw bytes.
    state = {k: v.view(ml_dtypes.bfloat16) if v.dtype == "V2" else v for k, v in state.items()}
    fixture = {k.removeprefix("state/"): v for k, v in state.items() if k.startswith("state/")}
    return fixture or state


def _read_safetensors(path: pathlib.Path) -> State:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise _needs(path, "safetensors", "or convert it to .npz") from None
    return load_file(path)


def read_torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise _needs(path, "PyTorch", "or convert it to .npz or .safetensors") from None
    # Accuracies are often NumPy scalars, and timm saves its arguments as a Namespace. PyTorch's
    # list of safe types lacks both.
    scalar = np.float64(0).__reduce__()[0]
    known = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, argparse.Namespace]
    known += [type(np.dtype(t)) for t in (np.float32, np.float64, np.int64)]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it holds {found[1]}, but only tensors are loaded: save its state_dict alone"
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
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return None


def _to_numpy(name: str, value: Any) -> np.ndarray:
    """Converts an array or tensor; raises ConfigError if numpy cannot hold it."""
    if not isinstance(value, np.ndarray | np.generic):  # a tensor of PyTorch
        try:
            value = value.detach()
            # NumPy has no bfloat16; float32 holds all its values.
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"{name}: is not a dense tensor of numbers ({reason})") from None
    return np.asarray(value)
