"""What may change in a run that goes on, and config.json's record of what did.

A workdir is resumed with the config that it was begun with. `resume_with='changed'` lets those
fields change that leave the arrays of the state and the order of the data as they are; the
optimizer goes on with its state.
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
    "label_smoothing",
    "views",
    "dtype",
    "batch_norm",
    "distill",
)  # and the fields of methods, unless their Entry says that arrays depend on them
# But not this one, on which arrays depend,
FIXED = ("optim.name",)
# nor these from 0 (False) to another value, or back: the optimizer has other arrays then.
ON_OR_OFF = ("optim.momentum", "optim.clip_norm", "optim.centered")
# Fields that came after the first runs, and what those were made with. A run whose config.json
# lacks one goes on so.
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
    """Whether `resume_with='changed'` lets a field go from one value to another."""
    if field in FIXED or (field in ON_OR_OFF and bool(before) != bool(after)):
        return False
    group, _, name = field.partition(".")
    if group in methods.METHODS:
        entry = methods.METHODS[group]
        return name in entry.fields and name not in entry.fixed
    return any(field == c or field.startswith(c + ".") for c in CHANGEABLE)


def allowed(
    changed: Changes, workdir: str | pathlib.Path, resume_with: str, *, evaluating: bool = False
) -> Changes:
    """The changes, where all of them may be made.

    Raises:
      ConfigError: some may not; names them and the way on.
    """
    may = {field for field, values in changed.items() if may_change(field, *values)}
    goes_on = resume_with == "changed" and not evaluating
    refused = {f: v for f, v in changed.items() if not (goes_on and f in may)}
    if not refused:
        return changed
    if goes_on:
        raise ConfigError(
            f"workdir={str(workdir)!r}: resume_with='changed' does not let change "
            f"{in_words(refused)}. Choose another workdir, or these values"
        )
    way = "Choose another workdir, or these values"
    if len(may) == len(changed) and not evaluating:
        way += "; or --config.resume_with=changed, which goes on with the new ones"
    raise ConfigError(
        f"workdir={str(workdir)!r}: holds another experiment; changed are {in_words(refused)}. "
        f"{way}"
    )


def in_words(changes: Changes) -> str:
    """'optim.lr: 0.1 -> 0.01; ...'."""
    return "; ".join(f"{field}: {a!r} -> {b!r}" for field, (a, b) in changes.items())


def more(file: pathlib.Path, step: int, changes: Changes) -> More:
    """What a config.json is to hold besides the config; `file` is the one that it replaces.

    Args:
      file: need not exist.
      step: from which the changes hold; 0: a new run, which has nothing of an older file.
      changes: of this start.
    """
    known = _read(file) if step else {}
    past = known.get(KEY, [])
    now = [{"step": step, "changed": {f: list(v) for f, v in changes.items()}}] if changes else []
    lacking = tuple(f for f in LATER if known and f not in known)
    return More(past + now if isinstance(past, list) else now, lacking)


def only_config(fields: Any) -> Any:
    """What config.json holds of the config, with the fields that came later as runs had them."""
    if not isinstance(fields, dict):
        return fields
    return LATER | {k: v for k, v in fields.items() if k != KEY}


def adopt(config: ConfigDict, file: pathlib.Path) -> None:
    """Sets the fields of LATER that the run of that config.json was begun without."""
    known = _read(file)
    for field, value in LATER.items():
        if known and field not in known:
            config[field] = value


def _read(file: pathlib.Path) -> dict:
    """Empty where there is no such file; `config.load` says what is wrong with one."""
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
