"""The command that trains a run again, and the fields in which configs differ."""

import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import defaults
from jaxsplit.recipes import experiments
from jaxsplit.report.runs import Run, differing
from jaxsplit.workdir import versions as trained_with

# Where data lies, where metrics go and what a run starts from are said by those who train it again,
# or below.
_NOT_GIVEN = ("data.dir", "init_from", "resume_with", "trackers")


def command(run: Run) -> str:
    """`jaxsplit train ...`: the nearest built-in experiment, and what differs from it."""
    name, others = nearest(run.config)
    words = ["jaxsplit", "train", f"--config={name}", f"--workdir=runs/{run.path.name}"]
    words += [f"--config.{field}={_flag(value)}" for field, value in others.items()]
    return shlex.join(words)


def nearest(config: ConfigDict) -> tuple[str, dict[str, Any]]:
    """(built-in experiment, field -> value where the config differs from it), the fewest such."""
    wanted = command_fields(config)
    found: dict[str, dict[str, Any]] = {}
    for name, made in _experiments(config).items():
        fields = command_fields(made)
        found[name] = {k: v for k, v in wanted.items() if k not in fields or fields[k] != v}
    best = min(found, key=lambda name: (len(found[name]), name))
    return best, found[best]


def _experiments(config: ConfigDict) -> dict[str, ConfigDict]:
    found = {}
    arguments = {"folder": f"name={config.data.name}"}  # which cannot do without
    for name in experiments.names():
        given = arguments.get(name, "")
        try:
            found[f"{name}:{given}" if given else name] = experiments.get_config(name, given)
        except Exception:  # an experiment that this config cannot be
            continue
    return found


def command_fields(config: ConfigDict) -> dict[str, Any]:
    """Field -> value of what `command` gives."""
    return {k: v for k, v in config_lib.flat(config) if k not in _NOT_GIVEN}


def _flag(value: Any) -> str:
    """As a flag of ml_collections takes it."""
    return repr(value) if isinstance(value, tuple) else str(value)


def differences(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): the fields that differ between runs; of one run, from the defaults."""
    fields = [run.flat for run in runs]
    heads = [run.name for run in runs]
    if len(runs) == 1:
        fields.append(dict(config_lib.flat(defaults.get_config())))
        heads.append("default")
    rows = [[name, *(_shown(one.get(name)) for one in fields)] for name in differing(fields)]
    return ["field", *heads], rows


def _shown(value: Any) -> str:
    text = "''" if value == "" else str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def versions(run: Run) -> dict[str, str]:
    """What the run was trained and evaluated with, by what it is a version of."""
    found: dict[str, str] = {}
    starts = trained_with.read(run.path)
    for name, value in (starts[-1] if starts else {}).items():
        if name != "step":
            found[name] = str(value)
    for name, value in (run.evaluation.get("versions") or {}).items():
        if name not in found:
            found[name] = str(value)
        elif found[name] != str(value):
            found[name] += f", evaluated with {value}"
    found.setdefault("jaxsplit", run.written_by.removeprefix("jaxsplit ") or "unknown")
    return found
