"""Where the weights are in what people save: containers, wrapped names, averages beside them.

A file may hold its `state_dict` in a container (`{'model': ..., 'optimizer': ...}`), one of a model
that was compiled, made parallel or averaged has names with prefixes (`module._orig_mod.conv1`), and
an average of the weights (EMA) may lie beside them. Only names are looked at here, no values.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsplit.errors import ConfigError

# Where weights are looked for, in this order; in an average, too.
CONTAINERS = ("state_dict", "model", "net", "model_state_dict", "params", "weight", "module")
AVERAGES = ("state_dict_ema", "model_ema", "ema", "params_ema", "ema_state_dict")
# Modules around a whole network: DataParallel, AveragedModel, ModelEma; Lightning's and others'.
WRAPPERS = ("module", "model", "net")
# Modules that torch.compile, FSDP and checkpointing put around any part: no network's own names.
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "n_averaged"  # of AveragedModel, beside the weights


class Found(NamedTuple):
    """Tensors by name in a file, and where they are."""

    where: str  # keys with dots between them; '': the file itself
    average: bool
    tensors: Mapping[str, Any]


def find(content: Any) -> list[Found]:
    """All that a file holds, in the order looked for; weights and averages may be mixed.

    A container that holds anything but tensors is passed over where there is another.

    Raises:
      ConfigError: there are none; the caller says of which file.
    """
    places = list(_places(content, "", False))
    good = [p for p in places if p.tensors and all(map(is_tensor, p.tensors.values()))]
    if not good:
        tensors = places[0].tensors if places else {}
        odd = [str(name) for name, value in tensors.items() if not is_tensor(value)]
        raise ConfigError("holds no state_dict" + (f": no tensors are {some(odd)}" if odd else ""))
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
    """An average whose names stand among those of the weights (`model_ema.conv1`), for itself."""
    if odd := [name for name in found.tensors if not isinstance(name, str)]:
        raise ConfigError(f"holds no state_dict: no names are {some(odd)}")
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
    """Whether a value of a file is an array; one of PyTorch exists only where it was imported."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray | np.generic) or (
        torch is not None and isinstance(value, torch.Tensor)
    )


def unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by the names that they had before a network was wrapped.

    INSERTED goes wherever it stands; a prefix of WRAPPERS while all names have it, so that a part
    which is called so keeps its name. COUNTER goes where anything else is left.

    Raises:
      ConfigError: two names become the same.
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
    """Why tensors are missing, if some names have a prefix of WRAPPERS and others do not, or ''."""
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
    """The first names of many, for a message."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{names[:6]}{more}"
