"""What stands behind the colon in --config=configs/cifar100.py:arch=wide_resnet28_10,split=4."""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxsplit import defaults, models
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published

KEYS = ("arch", "split", "epochs")
# Networks whose BatchNorm scales do not decay. The original code tells by the name `norm` of the
# layers, which only these have.
UNDECAYED_NORM = r"densenet(121|161|169|190|201)|efficientnet.*_(cifar|lightnetpp)"


class Start(NamedTuple):
    """Where a recipe begins: a config with what the arguments and the published result tell."""

    config: ConfigDict
    arch: str
    epochs: int
    result: published.Result | None  # None: nothing was published of that experiment
    image_size: int  # pixels of the result, else those that the architecture was made for


def start(
    text: str,
    dataset: str,
    *,
    arch: str,
    split: int,
    epochs: int,
    suffix: str = "",
    method: str = "",
) -> Start:
    """A config of arch, split and epochs; batch, crop and decay as published, else the defaults.

    Without `epochs=` a published experiment runs for as long as its shortest published run.

    Args:
      text: 'arch=...,split=...,epochs=...', any of them, in any order.
      dataset: name in jaxsplit.data.DATASETS.
      arch, split, epochs: what holds where nothing is given or published.
      suffix: <arch><suffix> is meant by `arch`, where there is such an architecture.
      method: '': cotrain of divided networks, single where it is one; another trains whole ones.

    Raises:
      ConfigError: an unknown argument, architecture or split, or a number that is none.
    """
    given = parse(text)
    arch = given.get("arch", arch)
    if suffix and arch + suffix in models.names():
        arch += suffix
    split = number("split", given.get("split", split))
    models.divided(arch, 1 if method else split)
    divide = not method
    method = method or ("single" if split == 1 else "cotrain")
    results = published.find(dataset=dataset, method=method, arch=arch, split=split)
    shortest = results[0].epochs if results else epochs
    epochs = number("epochs", given.get("epochs", shortest))
    result = next((r for r in results if r.epochs == epochs), None)

    config = defaults.get_config()
    config.data.name, config.arch, config.split, config.method = dataset, arch, split, method
    config.duration, config.divide = f"{epochs} epochs", divide
    config.optim.decay_norm = not re.fullmatch(UNDECAYED_NORM, arch)
    if result:
        config.batch_size = result.batch_size
        config.optim.divide_weight_decay = result.divide_weight_decay
    image_size = result.crop if result else models.known(arch)[1].image_size
    return Start(config, arch, epochs, result, image_size)


def share(length: int, of: int, epochs: int) -> str:
    """A duration: `length` of at least `of` epochs; in a shorter run the same share of it."""
    return f"{length} epochs" if epochs >= of or not length else f"{100 * length / of:g}%"


def parse(text: str, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """'arch=...,split=...' -> {'arch': ..., 'split': ...}; any of `keys`, in any order.

    Raises:
      ConfigError: an argument that is unknown, given twice or without a value.
    """
    given = {}
    for argument in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            meant = f", such as {near[0]}=..." if near else ""
            raise ConfigError(
                f"config argument {argument!r}: must be one of {', '.join(keys)}{meant}"
            )
        if key in given:
            raise ConfigError(f"config argument {argument!r}: {key} is given twice")
        if not (equals and value):
            raise ConfigError(f"config argument {argument!r}: must be {key}=VALUE")
        given[key] = value
    return given


def number(key: str, value: str | int) -> int:
    """A whole number above 0, else a ConfigError."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(f"config argument '{key}={value}': must be a whole number above 0")
    return number
