"""Which fields may change when a run is resumed, and the record of changes in config.json.

A workdir is resumed with its own config. `resume_with='changed'` also allows changes of fields on
which neither the arrays of the training state nor the order of the data depend; the optimizer
keeps its state.
"""

import json
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxsplit import methods
from jaxsplit.errors import ConfigError

KEY = "history"  # in config.json: [{"step": int, "changed": {field: [before, after]}}, ...]
CHANGEABLE = (
    "optim",
    "schedule",
    "augment",
    "data.scale_min",
    "label_loss",
    "bce_threshold",
    "label_smoothing",
    "views",
    "dtype",
    "batch_norm",
    "distill",
)  # and the fields of methods, except those in `fixed` of their Entry
# Fields of these groups that must not change, because arrays of the state or the order of the data
# depend on them.
FIXED = ("optim.name", "augment.repeats")
# These must not change between 0 (False) and another value: the optimizer's arrays would differ.
ON_OR_OFF = ("optim.momentum", "optim.clip_norm", "optim.centered")
# Fields added after the first runs, with the value that these runs used. A run whose config.json
# lacks such a field keeps that value.
LATER = {"ema_warmup": False}

Changes = dict[str, tuple[Any, Any]]


class More(NamedTuple):
    """What config.json holds besides the config."""

    history: list[dict]
    lacking: tuple[str, ...] = ()  # of LATER

    def add_to(self, fields: dict) -> dict:
        kept = {k: v for k, v in fields.items() if k not in self.lacking}
        return kept | ({KEY: self.history} if self.history else {})


def may_change(field: str, before: Any, after: Any) -> bool:
    """Whether `resume_with='changed'` allows this change of a field."""
    if field in FIXED or (field in ON_OR_OFF and bool(before) != bool(after)):
        return False
    group, _, name = field.partition(".")
    if group in methods.METHODS:
        entry = methods.METHODS[group]
        return name in entry.fields and name not in entry.fixed
    return any(field == c or field.startswith(c + ".") for c in CHANGEABLE)


def allowed(changed: Changes, workdir: str | pathlib.Path, resume_with: str) -> Changes:
    """Returns the changes if a run may be resumed with them.

    Raises:
      ConfigError: it may not; names the fields and what to do.
    """
    refused = {f: values for f, values in changed.items() if not may_change(f, *values)}
    if resume_with == "changed":
        if refused:
            raise ConfigError(
                f"workdir={str(workdir)!r}: resume_with='changed' does not allow changes of "
                f"{in_words(refused)}. {_WAY_ON}"
            )
    elif refused:
        refuse(changed, workdir)
    else:
        refuse(changed, workdir, "; or resume with the new values: --config.resume_with=changed")
    return changed


_WAY_ON = "Choose another workdir, or the old values"


def refuse(changed: Changes, workdir: str | pathlib.Path, another_way: str = "") -> None:
    """Raises ConfigError if anything changed; names all of it and what to do."""
    if changed:
        raise ConfigError(
            f"workdir={str(workdir)!r}: holds another experiment; changed are "
            f"{in_words(changed)}. {_WAY_ON}{another_way}"
        )


def in_words(changes: Changes) -> str:
    """'optim.lr: 0.1 -> 0.01; ...'."""
    return "; ".join(f"{field}: {a!r} -> {b!r}" for field, (a, b) in changes.items())


def more(file: pathlib.Path, step: int, changes: Changes) -> More:
    """What a new config.json holds besides the config.

    Args:
      file: the config.json that it replaces; need not exist.
      step: the step from which the changes hold; 0: a new run, which ignores an older file.
      changes: the fields that this start changes.
    """
    known = _read(file) if step else {}
    past = known.get(KEY, [])
    now = [{"step": step, "changed": {f: list(v) for f, v in changes.items()}}] if changes else []
    lacking = tuple(f for f in LATER if known and f not in known)
    return More(past + now if isinstance(past, list) else now, lacking)


def only_config(fields: Any) -> Any:
    """The config in config.json; fields of LATER that it lacks have the value that the run used."""
    if not isinstance(fields, dict):
        return fields
    return LATER | {k: v for k, v in fields.items() if k != KEY}


def adopt(config: ConfigDict, file: pathlib.Path) -> None:
    """Sets the fields of LATER that this config.json lacks to the value that the run used."""
    known = _read(file)
    for field, value in LATER.items():
        if known and field not in known:
            config[field] = value


def _read(file: pathlib.Path) -> dict:
    """The file's fields; {} if it cannot be read: `config.load` reports what is wrong with it."""
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
