"""Weights in `.safetensors` files with jaxsplit's own names; `docs/export.md` describes the format.

A tensor's name joins the network or part, the collection and the path in the network by dots:
`net0.params.stage1_block1.conv1.kernel`. The networks of a stack are net0, net1, ...; their shared
layers are `trunk`; other parts (`leader`, auxiliary modules) have the method's names. Layouts are
the same as in checkpoints: HWIO for convolutions, [inputs, outputs] for dense layers. All values of
the header are text:

  format         jaxsplit
  version        1
  arch, method   of the run
  step           of the checkpoint
  split          number of networks net0, net1, ...
  dataset        JSON: the contents of the workdir's `dataset.json`
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsplit.errors import ConfigError

FORMAT = "jaxsplit"
VERSION = 1
STACK = "stack"
_COLLECTIONS = ("params", "batch_stats")


class Weights(NamedTuple):
    """The contents of a file.

    variables: {'params', 'batch_stats'} of {part: tree}, as in `Method`.
    header: the file's metadata.
    """

    variables: dict
    header: Mapping[str, str]


def to_bytes(variables: Mapping[str, Mapping[str, Any]], header: Mapping[str, str]) -> bytes:
    """The file's bytes; `variables` are numpy arrays, as in `Weights`.

    Raises:
      ConfigError: the library safetensors is missing.
    """
    tensors: dict[str, np.ndarray] = {}
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(variables))
    for path, value in flat.items():
        collection, part, *rest = path
        if part == STACK:
            for i, one in enumerate(value):
                tensors[".".join((f"net{i}", collection, *rest))] = np.ascontiguousarray(one)
        else:
            tensors[".".join((part, collection, *rest))] = np.ascontiguousarray(value)
    own = {"format": FORMAT, "version": str(VERSION)}
    return _library("write such a file").save(tensors, metadata=own | dict(header))


def read(path: pathlib.Path) -> Weights | None:
    """Reads a file; None: it is no `.safetensors` file, or it has other names.

    Raises:
      ConfigError: the file is damaged, has another version of the format or lacks networks.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    header = _header(path)
    if header.get("format") != FORMAT:
        return None
    if header.get("version") != str(VERSION):
        version = header.get("version")
        raise ConfigError(f"{path}: version={version!r} of its names: must be {VERSION}")
    try:
        tensors = _library(f"read {path}").load(path.read_bytes())
    except Exception as error:  # the library raises its own kinds of errors for damaged files
        raise ConfigError(f"{path}: cannot be read ({_short(error)})") from None
    return Weights(_variables(path, tensors), header)


def _header(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a file; {}: it has none or is damaged, an error that other readers report."""
    try:
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(min(count, 100_000_000))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _variables(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> dict:
    networks: dict[str, dict[int, np.ndarray]] = {}
    flat: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        collection, _, rest = rest.partition(".")
        if collection not in _COLLECTIONS or not rest:
            raise ConfigError(f"{path}: {name!r} is no name of this format")
        if part.removeprefix("net").isdecimal() and part.startswith("net"):
            key = f"{collection}.{STACK}.{rest}"
            networks.setdefault(key, {})[int(part.removeprefix("net"))] = value
        else:
            flat[f"{collection}.{part}.{rest}"] = value
    count = max((len(found) for found in networks.values()), default=0)
    for key, found in networks.items():
        if sorted(found) != list(range(count)):
            name = key.replace(f".{STACK}.", ".", 1)
            raise ConfigError(f"{path}: {name} is of networks {sorted(found)}, must be of {count}")
        shapes = {value.shape for value in found.values()}
        if len(shapes) > 1:
            raise ConfigError(f"{path}: {key} has shapes {sorted(shapes)}, must have one")
        flat[key] = np.stack([found[i] for i in range(count)])
    if not networks:
        raise ConfigError(f"{path}: holds no networks net0, ...")
    tree = unflatten_dict(flat, sep=".")
    return {collection: tree.get(collection, {}) for collection in _COLLECTIONS}


def _library(what: str):
    try:
        import safetensors.numpy
    except ImportError:
        raise ConfigError(
            f"to {what} install safetensors, which the extra `torch` brings "
            "(pip install -e '.[torch]')"
        ) from None
    return safetensors.numpy


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
