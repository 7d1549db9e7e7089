"""Reads the arguments of an experiment: --config=cifar100:arch=wide_resnet28_10,split=4."""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxsplit import defaults, models
from jaxsplit.errors import ConfigError
from jaxsplit.recipes import published

KEYS = ("arch", "split", "epochs")
# Architectures whose BatchNorm scales do not decay. The original code leaves layers called `norm`
# out, which only these architectures have.
UNDECAYED_NORM = r"densenet(121|161|169|190|201)|efficientnet.*_(cifar|lightnetpp)"


class Start(NamedTuple):
    """A config with the arguments and the published result applied, for a recipe to complete."""

    config: ConfigDict
    arch: str
    epochs: int
    result: published.Result | None  # published, the nearest in length; None: there is none
    image_size: int  # pixels, as published, else those that the architecture is made for


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
    """Starts a config: arch, split and epochs as given; batch, crop and decay as published.

    Without `epochs=` an experiment runs as long as its shortest published run. A length that was
    not published takes batch, crop and decay of the published run that is nearest in length. What
    was never published keeps its default.

    Args:
      text: the arguments, 'arch=...,split=...,epochs=...'; all optional, in any order.
      dataset: a name in jaxsplit.data.DATASETS.
      arch, split, epochs: the values if none are given; `epochs` if none are published either.
      suffix: appended to `arch` if there is an architecture of that name.
      method: the method, with whole networks. '': cotrain with divided networks; single if S is 1.

    Raises:
      ConfigError: an argument, architecture or split is unknown, or a number is malformed.
    """
    given = parse(text)
    arch = given.get("arch", arch)
    if suffix and arch + suffix in models.names():
        arch += suffix
    split = number("split", given.get("split", split))
    check_split(arch, 1 if method else split)
    divide = not method
    method = method or ("single" if split == 1 else "cotrain")
    results = published.find(dataset=dataset, method=method, arch=arch, split=split)
    shortest = results[0].epochs if results else epochs
    epochs = number("epochs", given.get("epochs", shortest))
    result = min(results, key=lambda r: abs(r.epochs - epochs), default=None)

    config = defaults.get_config()
    config.data.name, config.arch, config.split, config.method = dataset, arch, split, method
    config.duration, config.divide = f"{epochs} epochs", divide
    config.optim.decay_norm = not re.fullmatch(UNDECAYED_NORM, arch)
    if result:
        config.batch_size = result.batch_size
        config.optim.divide_weight_decay = result.divide_weight_decay
    image_size = result.crop if result else models.known(arch)[1].image_size
    return Start(config, arch, epochs, result, image_size)


def check_split(arch: str, split: int) -> None:
    """Raises ConfigError unless there is such an architecture, and a division of it in `split`."""
    models.divided(arch, 1)
    try:
        models.divided(arch, split)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; for whole networks give --config.split={split} --config.divide=False instead"
        ) from None


def share(length: int, of: int, epochs: int) -> str:
    """A duration of `length` epochs; in a run shorter than `of` epochs, that share of the run."""
    return f"{length} epochs" if epochs >= of or not length else f"{100 * length / of:g}%"


def parse(text: str, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Reads arguments: 'arch=...,split=...' -> {'arch': ..., 'split': ...}.

    Args:
      text: the arguments.
      keys: the allowed keys; all are optional, in any order.

    Raises:
      ConfigError: an argument is unknown, given twice or without a value.
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
    """The value of an argument as a whole number above 0; raises ConfigError if it is none."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(f"config argument '{key}={value}': must be a whole number above 0")
    return number
