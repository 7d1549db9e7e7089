"""Files of PyTorch weights: the tensors of each network that they hold, as numpy arrays.

Files: `.npz` and `.safetensors`, whose keys are names of a `state_dict`. PyTorch, which the extra
`torch` installs, reads all others, without running code that they hold.
Layouts:
  {'state_dict': ..., 'epoch', 'best_acc1'}, names `models.<i>.<name>`   divide and co-training
  {'weight': ...}, one file a network; the leader's holds its trans-fusion module besides   FFSD
  a `state_dict` of one network alone
each in any container and with any prefix that `torch_wrappers` knows, in floating-point numbers of
16 bits (also bfloat16) or more. An .npz with keys `state/<name>` is a test fixture: its other keys
are not weights.
"""

import argparse
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsplit.errors import ConfigError
from jaxsplit.weights import torch_wrappers
from jaxsplit.weights.torch_wrappers import some

TRANS_FUSION = "trans_fusion_module."  # prefix of the module that FFSD's leader holds

State = Mapping[str, np.ndarray]  # a `state_dict`


class Weights(NamedTuple):
    """What checkpoint files hold."""

    networks: list[State]
    trans_fusion: State  # module of FFSD's leader; else empty
    arch: str = ""  # as named in the file; "": not named
    epoch: float | None = None
    top1: float | None = None  # of the ensemble on the test set, 0..1, as named in the file
    notes: tuple[str, ...] = ()  # lines about content that was not taken


def read(paths: Sequence[str | pathlib.Path], *, ema: bool = False) -> Weights:
    """Reads all networks of one file, or one network from each of several files, in their order.

    `ema`: take the averaged weights instead.

    Raises:
      ConfigError: a file is missing, damaged, holds something else, or has no averaged weights.
    """
    files = [_read_file(pathlib.Path(os.path.expanduser(path)), ema) for path in paths]
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


def _read_file(path: pathlib.Path, ema: bool) -> Weights:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory, must be a file of PyTorch weights")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    try:
        content = readers.get(path.suffix, read_torch)(path)
    except ConfigError:
        raise
    except Exception as error:  # libraries raise many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if "PytorchStreamReader" in reason:  # its message for an incomplete file is long
            reason = "it is incomplete or damaged"
        reason = reason if len(reason) <= 200 else f"{reason[:200]} ..."
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    try:
        found, notes = _choose(torch_wrappers.find(content), ema)
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
    found: Sequence[torch_wrappers.Found], ema: bool
) -> tuple[torch_wrappers.Found, Sequence[str]]:
    """(the choice, lines about it); takes an average without `ema` if there is nothing else."""
    wanted = [f for f in found if f.average == ema]
    if ema and not wanted:
        known = ", ".join(torch_wrappers.AVERAGES)
        raise ConfigError(f"holds no averaged weights; searched: {known}")
    taken = (wanted or found)[0]
    others = [f for f in found if f is not taken]
    if others:
        also = ", ".join(map(_described, others))
        if any(f.average for f in others) and not ema:
            also += " (to take that: --ema, or :ema behind the path of init_from)"
        return taken, [f"{_described(taken)} are taken; it also holds {also}"]
    return taken, [f"it holds only {_described(taken)}, taken"] * (taken.average and not ema)


def _described(found: torch_wrappers.Found) -> str:
    kind = "averaged weights" if found.average else "weights"
    return f"{kind} in {found.where!r}" if found.where else kind


def _networks(state: State) -> list[State]:
    """A `state_dict` for each <i> of names `models.<i>.<name>`; else one for one network."""
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
    if not zipfile.is_zipfile(path):  # numpy would report a pickle
        raise ConfigError(f"{path}: cannot be read as a checkpoint (it is no .npz file)")
    with np.load(path, allow_pickle=False) as arrays:
        state = dict(arrays)
    import ml_dtypes  # of jax

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
    # Accuracies are often NumPy scalars, and timm saves its arguments as a Namespace. PyTorch does
    # not list them as safe.
    scalar = np.float64(0).__reduce__()[0]
    known = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, argparse.Namespace]
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


def _to_numpy(name: str, value: Any) -> np.ndarray:
    """Converts an array or tensor; raises ConfigError if numpy cannot hold it."""
    if not isinstance(value, np.ndarray | np.generic):  # a tensor of PyTorch
        try:
            value = value.detach()
            # As float32, which holds all of them: numpy has no bfloat16.
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(f"{name}: is not a dense tensor of numbers ({reason})") from None
    return np.asarray(value)
