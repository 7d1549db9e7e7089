"""The values of config fields: conversion from NumPy and paths, and checks of their types."""

import math
import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FieldReference

from jaxsplit.errors import ConfigError, short

LARGEST = 2**63 - 1  # the largest integer that a field takes
_LEAST, _MOST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


class Fields(ConfigDict):
    """A ConfigDict that stores paths, NumPy values and arrays as Python values; see `plain`.

    Its groups do the same. Everything else is as in a ConfigDict.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, plain(value))


def plain(value: Any) -> Any:
    """`value` as a Python value.

    A path becomes a str; a NumPy or JAX value becomes int, float, bool or tuple; a list becomes a
    tuple; a ConfigDict becomes `Fields`. Other values are returned as they are.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if type(value) is ConfigDict:
        return Fields(value)  # pyrefly: ignore[bad-argument-type]: its class says Mapping only
    return value


def copy(config: ConfigDict) -> Fields:
    """A copy of a config, not frozen, with all values `plain`.

    Raises:
      ConfigError: `config` is no ConfigDict.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config={config!r}: must be what jaxsplit.defaults.get_config() returns")
    made = Fields()
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            made[key] = copy(value)
        elif config.get_type(key) is object:  # it takes values of several types
            made[key] = FieldReference(plain(value), field_type=object)
        else:
            made[key] = value
    return made


def check_type(field: str, value: Any, default: Any) -> None:
    """Checks that a value has the type of the field's default and fits into int64 or float32.

    Raises:
      ConfigError: it does not; names the field, the value and what is allowed.
    """
    allowed = _wrong(value, default)
    if allowed:
        raise ConfigError(f"{field}={short(value)}: must be {allowed}")


def number_or(word: str) -> FieldReference:
    """The default `word` of a field that takes this word or a number."""
    return FieldReference(word, field_type=object)


def check_number_or(field: str, value: Any, word: str) -> None:
    """Checks that the value of a field with a `number_or` default is the word or a number.

    Raises:
      ConfigError: it is neither; names the field, the value and what is allowed.
    """
    if isinstance(value, str):
        allowed = "a finite number" if value != word else ""
    else:
        allowed = _wrong(value, 1.0)
    if allowed:
        raise ConfigError(f"{field}={short(value)}: must be {word!r} or {allowed}")


def _wrong(value: Any, default: Any) -> str:
    """What a value must be, in words; '' if it is that."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, str):
        if not isinstance(value, str):
            return "a string"
        return "a string without control characters" if any(c < " " for c in value) else ""
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            return "a tuple"
        wrong = [_wrong(v, 1.0) for v in value if _is_number(v) and v == v]
        return next((f"a tuple, each {text}" for text in wrong if text), "")
    if not _is_number(value):
        return "an integer" if isinstance(default, int) else "a finite number"
    if isinstance(default, int):
        if not isinstance(value, int):
            return "an integer"
        return "" if abs(value) <= LARGEST else f"an integer of at most {LARGEST} in size"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a finite number"
    if not math.isfinite(value):
        return "a finite number"
    if abs(value) > _MOST or 0 < abs(value) < _LEAST:
        return f"0 or of {_LEAST:.3g} to {_MOST:.3g} in size (float32)"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
