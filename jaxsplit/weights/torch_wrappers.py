"""Finds the weights in saved files: in containers, under wrapped names, beside averages.

A file may hold its `state_dict` in a container (`{'model': ..., 'optimizer': ...}`). Models that
were compiled, made parallel or averaged have names with prefixes (`module._orig_mod.conv1`). The
file may also hold an average of the weights (EMA). This module reads only names, no values.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsplit.errors import ConfigError

# Keys of containers, in the order of the search, which also looks inside an average.
CONTAINERS = ("state_dict", "model", "net", "model_state_dict", "params", "weight", "module")
AVERAGES = ("state_dict_ema", "model_ema", "ema", "params_ema", "ema_state_dict")
# Names of modules that wrap a whole network (DataParallel, AveragedModel, ModelEma, Lightning).
WRAPPERS = ("module", "model", "net")
# Names of modules that torch.compile, FSDP and checkpointing insert anywhere; no network uses them.
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "n_averaged"  # a counter that AveragedModel stores beside the weights


class Found(NamedTuple):
    """Tensors by name, and their place in the file."""

    where: str  # the keys to them, joined by dots; '': the top level of the file
    average: bool
    tensors: Mapping[str, Any]


def find(content: Any) -> list[Found]:
    """All weights and averages in a file, in the order of the search.

    Skips a container that holds anything but tensors if there is another one.

    Raises:
      ConfigError: the file has no weights; the caller adds the file's name.
    """
    places = list(_places(content, "", False))
    good = [p for p in places if p.tensors and all(map(is_tensor, p.tensors.values()))]
    if not good:
        tensors = places[0].tensors if places else {}
        odd = [str(name) for name, value in tensors.items() if not is_tensor(value)]
        raise ConfigError("holds no state_dict" + (f": not tensors: {some(odd)}" if odd else ""))
    return [found for place in good for found in _parted(place)]


def _places(content: Any, where: str, average: bool) -> Iterable[Found]:
    if not isinstance(content, Mapping):
        return
    inner = [
        place
        for key in (*CONTAINERS, *AVERAGES)
        if isinstance(content.get(key), Mapping)
        for place in _places(content[key], f"{where}.{key}".strip("."), average or key in AVERAGES)
    ]
    yield from inner or [Found(where, average, content)]


def _parted(found: Found) -> list[Found]:
    """Separates an average whose names are mixed with those of the weights (`model_ema.conv1`)."""
    if odd := [name for name in found.tensors if not isinstance(name, str)]:
        raise ConfigError(f"holds no state_dict: not names: {some(odd)}")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in unwrapped(found.tensors).items():
        first, _, rest = name.partition(".")
        key, name = (first, rest) if first in AVERAGES and rest else ("", name)
        parts.setdefault(key, {})[name] = value
    return [
        Found(f"{found.where}.{key}".strip("."), found.average or bool(key), unwrapped(tensors))
        for key, tensors in sorted(parts.items())  # '' first
    ]


def is_tensor(value: Any) -> bool:
    """Whether a value is an array of NumPy or, if PyTorch was imported, of PyTorch."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray | np.generic) or (
        torch is not None and isinstance(value, torch.Tensor)
    )


def unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Gives tensors the names that they had before the network was wrapped.

    It removes INSERTED anywhere in a name, a prefix of WRAPPERS if all names have it (otherwise it
    names a part of the network), and COUNTER unless it is the only tensor.

    Raises:
      ConfigError: two names become equal.
    """
    names = {}
    for name in tensors:
        short = ".".join(part for part in name.split(".") if part not in INSERTED)
        if names.setdefault(short, name) != name:
            raise ConfigError(f"two names for one tensor: {names[short]!r} and {name!r}")
    while True:
        if len(names) > 1:
            names.pop(COUNTER, None)
        prefix = next((f"{w}." for w in WRAPPERS if all(n.startswith(f"{w}.") for n in names)), "")
        if not names or not prefix:
            return {short: tensors[name] for short, name in names.items()}
        names = {short.removeprefix(prefix): name for short, name in names.items()}


def mixed(names: Iterable[str], missing: Iterable[str]) -> str:
    """Explains missing tensors if only some names have a prefix of WRAPPERS; else ''."""
    names, missing = sorted(names), set(missing)
    for prefix in (f"{wrapper}." for wrapper in WRAPPERS):
        having = [name for name in names if name.startswith(prefix)]
        if any(name.removeprefix(prefix) in missing for name in having):
            others = [name for name in names if name not in having]
            return f"some names have the prefix {prefix!r}, {some(having)}, and some do not, " + (
                f"{some(others)}"
            )
    return ""


def some(names: list[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{names[:6]}{more}"
