"""Writes and reads `config.json` of a workdir; reports what is wrong with it in one line."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import __version__, defaults
from jaxsplit.config import history, renamed
from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files

NAME = "config.json"
_WRITER = "written_by"  # an entry beside the fields; files from before 0.1.0 lack it
_DEPTH = 8  # most levels of nesting that are read; configs have two


def write(config: ConfigDict, folder: pathlib.Path, more: history.More | None = None) -> None:
    """Writes the fields, the version of jaxsplit, and the record of changes in `more`."""
    fields = json.loads(config.to_json())
    if more is not None:
        fields = more.add_to(fields)
    fields |= {_WRITER: f"jaxsplit {__version__}"}
    files.write_text(folder / NAME, json.dumps(fields, indent=2) + "\n")


def read(workdir: str | pathlib.Path) -> ConfigDict:
    """The config saved in a workdir; fields added since take their defaults.

    Raises:
      ConfigError: there is no config, or a field does not fit; names the file, the field and the
        version of jaxsplit that wrote it.
    """
    folder = files.path_of(workdir)
    try:
        fields = json.loads((folder / NAME).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"workdir={str(workdir)!r}: holds no readable {NAME} of a run ({_reason(error)})"
        ) from None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"workdir={str(workdir)!r}: {NAME} must hold the fields of a config, holds "
            f"{_short(fields)}"
        )
    writer = fields.pop(_WRITER, None)
    fields = history.only_config(fields)
    renamed.move(fields)
    renamed.translate(fields)
    config = defaults.get_config()
    try:
        _fill(config, fields, "")
    except _FieldError as error:
        known = isinstance(writer, str) and len(writer) < 50
        raise ConfigError(
            f"workdir={str(workdir)!r}: {NAME} does not fit jaxsplit/defaults.py: {error} (written "
            f"by {writer if known else 'an unknown version'}, this is jaxsplit {__version__})"
        ) from None
    return config


class _FieldError(Exception):
    pass


def _fill(config: ConfigDict, fields: dict[str, Any], prefix: str) -> None:
    for name, value in fields.items():
        field = f"{prefix}{name}"
        if name not in config:
            raise _FieldError(f"{field}={_short(value)}: no such field")
        now = config[name]
        if isinstance(now, ConfigDict) != isinstance(value, dict):
            kind = "a group of fields" if isinstance(now, ConfigDict) else f"as {_short(now)}"
            raise _FieldError(f"{field}={_short(value)}: must be {kind}")
        if isinstance(value, dict):
            _fill(config[name], value, f"{field}.")
            continue
        if value is None and now is not None:
            raise _FieldError(f"{field}=null: must be as {_short(now)}")
        try:
            config[name] = _tuples(value)
        except (TypeError, ValueError, RecursionError):
            raise _FieldError(f"{field}={_short(value)}: must be as {_short(now)}") from None


def _tuples(value: Any, depth: int = 0) -> Any:
    """Turns the lists of JSON into the tuples of a config."""
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return tuple(_tuples(item, depth + 1) for item in value)
    if isinstance(value, dict):
        raise ValueError("no field holds groups in a list")
    return value


def _short(value: Any) -> str:
    """A value as text of at most 60 characters."""
    try:
        text = json.dumps(value) if isinstance(value, dict | list) or value is None else repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
