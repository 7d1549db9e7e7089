"""Reads the texts of the flags of `jaxsplit compare`."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import methods
from jaxsplit.compare.grid import Grid, teacher_field
from jaxsplit.config import limits
from jaxsplit.config.checks import NUMBER_OR_PAPER
from jaxsplit.errors import ConfigError

_SECONDS = {"s": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_SECONDS |= {"d": 86400, "day": 86400, "sec": 1}
# Fields that the grid sets itself, and the flag that does.
_OWN = {"method": "methods", "split": "splits", "seed": "seeds"}
_MOST_SEEDS = 1000


def grid(
    config: ConfigDict,
    *,
    methods: str,
    splits: str,
    seeds: str,
    axes: Sequence[str] = (),
    teacher: str | None = None,
) -> Grid:
    """The grid that the flags describe; `config` is the base config.

    Args:
      methods: names with commas between them.
      splits: numbers of networks, likewise.
      seeds: how many there are from the base config's seed on, or a list with commas.
      axes: each 'field=value,value'; if a value has commas, ';' stands between the values.
      teacher: 'METHOD:SPLIT'; None or '': chosen.

    Raises:
      ConfigError: names the flag, its value and what is allowed.
    """
    return Grid(
        _methods(methods),
        _splits(splits),
        _seeds(seeds, config.seed),
        _axes(config, axes),
        _teacher(teacher) if teacher else None,
    )


def budget(text: str | None) -> float | None:
    """Seconds of '3 hours', '40 minutes' or '90'; None: no limit.

    Raises:
      ConfigError: it is no such text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    unit = match[2] if match else ""
    unit = unit[:-1] if len(unit) > 1 and unit.endswith("s") else unit
    seconds = float(match[1]) * _SECONDS.get(unit or "s", 0) if match else 0.0
    if not seconds > 0:
        raise ConfigError(
            f"compare.budget={text!r}: must be a time such as '3 hours', '40 minutes' or '90 "
            "seconds'"
        )
    return seconds


def batches(text: str) -> tuple[int, ...]:
    """Batch sizes with commas between them; '': none.

    Raises:
      ConfigError: one is no number of 1 or more.
    """
    return _numbers("latency", text, 1) if text.strip() else ()


def _methods(text: str) -> tuple[str, ...]:
    found = _words("methods", text)
    for name in found:
        if name not in methods.METHODS:
            raise ConfigError(f"compare.methods={name!r}: must be of {', '.join(methods.METHODS)}")
    return found


def _splits(text: str) -> tuple[int, ...]:
    return _numbers("splits", text, 1)


def _seeds(text: str, base: int) -> tuple[int, ...]:
    if "," in text:
        found = _numbers("seeds", text.rstrip(" ,"), 0)
    else:
        (count,) = _numbers("seeds", text, 1)
        if count > _MOST_SEEDS:
            raise ConfigError(
                f"compare.seeds={text!r}: must be at most {_MOST_SEEDS} seeds; '{text},' is one "
                "seed"
            )
        found = tuple(range(base, base + count))
    if max(found) >= limits.SEEDS:
        raise ConfigError(f"compare.seeds={text!r}: must be below {limits.SEEDS:,} each")
    return found


def _teacher(text: str) -> tuple[str, int]:
    method, _, split = text.partition(":")
    known = method in methods.METHODS and not teacher_field(method)
    if not known or not split.isdecimal():
        raise ConfigError(f"compare.teacher={text!r}: must be METHOD:SPLIT, such as cotrain:4")
    return method, int(split)


def _axes(config: ConfigDict, texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    fields, found = dict(config_lib.flat(config)), {}
    for text in texts:
        field, equals, listed = text.partition("=")
        flag = f"compare.axis={text!r}"
        if not equals or not listed.strip():
            raise ConfigError(f"{flag}: must be FIELD=VALUE,VALUE,...")
        if field in _OWN:
            raise ConfigError(f"{flag}: {field} is set by --compare.{_OWN[field]}")
        if field in found:
            raise ConfigError(f"{flag}: {field} is an axis already")
        if field not in fields:
            try:
                config_lib.check_field(field, listed)
            except ConfigError as error:
                raise ConfigError(f"compare.axis: {error}") from None
            raise ConfigError(f"{flag}: must be a field, is a group of fields")
        default = fields[field]
        whole = isinstance(default, tuple) or ";" in listed
        parts = [part.strip() for part in listed.split(";" if whole else ",")]
        kind = "number or word" if field in NUMBER_OR_PAPER else default
        values = [_value(flag, part, kind) for part in parts]
        if len(set(values)) < len(values):
            raise ConfigError(f"{flag}: lists a value twice")
        found[field] = tuple(values)
    return found


def _value(flag: str, text: str, default: Any) -> Any:
    """A text as a value of the type of `default`, or as a 'number or word'."""
    try:
        if default == "number or word":
            return _number_or_word(text)
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int | float):
            return type(default)(text)
        if isinstance(default, tuple):
            return _tuple(text)
    except (KeyError, ValueError):
        kinds = {bool: "True or False", int: "an integer", float: "a number", tuple: "a tuple"}
        raise ConfigError(f"{flag}: {text!r} must be {kinds[type(default)]}") from None
    return text


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _tuple(text: str) -> tuple[Any, ...]:
    """'(0.1, 0.2)' as Python writes it, or words with commas: '50%,75%'."""
    try:
        made = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(word.strip() for word in text.strip("()").split(",") if word.strip())
    return _hashable(made) if isinstance(made, tuple | list) else (_hashable(made),)


def _hashable(value: Any) -> Any:
    """Lists become tuples; ValueError for what no config holds, such as a dict."""
    if isinstance(value, tuple | list):
        return tuple(map(_hashable, value))
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError


def _words(flag: str, text: str) -> tuple[str, ...]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ConfigError(f"compare.{flag}={text!r}: must be a list with commas, without gaps")
    if len(set(found)) < len(found):
        raise ConfigError(f"compare.{flag}={text!r}: lists a value twice")
    return tuple(found)


def _numbers(flag: str, text: str, least: int) -> tuple[int, ...]:
    found = _words(flag, text)
    for word in found:
        if not word.isdecimal() or int(word) < least:
            raise ConfigError(
                f"compare.{flag}={text!r}: must be whole numbers of {least} or more with commas"
            )
    return tuple(map(int, found))
