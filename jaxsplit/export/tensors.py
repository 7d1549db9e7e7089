"""Weights as a `.safetensors` file; `weights.native` has its names."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit.data import facts
from jaxsplit.export import target
from jaxsplit.inference.predictor import Predictor, load
from jaxsplit.weights import extract, native

SUFFIX = ".safetensors"


def write(
    workdir: str | pathlib.Path,
    of: str = "",
    to: str | pathlib.Path | None = None,
    which: str | int = "latest",
    *,
    config: ConfigDict | None = None,
    say: Callable[[str], None] = print,
) -> target.Written:
    """Writes the file and its description; arguments and errors as `export`.

    A single network stands in the file as net0. Any other answer stands for all that the
    checkpoint holds: all networks, what they share and the method's own modules.
    """
    predictor = load(workdir, which, config=config, say=say)
    of = target.answer(predictor, of)
    own, variables = _chosen(predictor, of)
    arrays = jax.tree.map(np.asarray, jax.device_get(variables))
    description = target.described(predictor, of, "safetensors")
    description |= {"arch": own.arch, "split": own.split, "method": own.method}
    header = {key: str(description[key]) for key in ("of", "arch", "split", "method", "step")}
    header["dataset"] = facts.to_json(predictor.restored.facts)
    path = target.new_file(predictor, of, to, SUFFIX)
    data = native.to_bytes(arrays, header)
    description["tensors"] = len(flatten_dict(arrays))
    target.write_with_description(path, data, description)
    count = config_lib.resolve(own).num_networks
    what = "1 network" if count == 1 else f"{count} networks"
    return target.Written(
        path,
        (
            f"{of} of checkpoint {predictor.step}, {what} of {own.arch}: {path} "
            f"({target.size(len(data))}), and {path.name}.json",
            f"start a run from it: jaxsplit train --init_from={path} --config=... --workdir=...",
        ),
    )


def _chosen(predictor: Predictor, of: str) -> tuple[ConfigDict, dict]:
    """(config of the networks, their variables by part)."""
    restored = predictor.restored
    if of not in restored.singles:
        return restored.config, restored.variables
    own = extract.config_of(restored.config, of)
    network = restored.network(of)
    return own, {c: {"stack": jax.tree.map(lambda x: x[None], t)} for c, t in network.items()}
