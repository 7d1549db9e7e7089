"""The fields that identify an experiment: a workdir is refused to a config that differs in one."""

import pathlib

from ml_collections import ConfigDict

from jaxsplit.config import history, renamed
from jaxsplit.config.fields import flat

# Fields, or groups of them, that may change when a workdir is resumed.
RUNTIME = (
    "lowering",
    "remat",
    "mesh",
    "eval.batch_size",
    "eval.every",
    "eval.ood",
    "eval.corruptions",
    "log_every",
    "profile",
    "trackers",
    "checkpoint",
    "data.dir",
    "data.download",
    "data.resident",
    "data.resident_limit",
    "data.on_bad_record",
    "data.threads",
    "duration",  # it may only grow
    "init_from",  # read by a new run only; a resumed run starts from its own checkpoints
    "stop",
    "resume_with",
    "divide_anyway",  # checked at the start of a new run only
)


def check_identity(
    old: ConfigDict, new: ConfigDict, workdir: str | pathlib.Path
) -> history.Changes:
    """Refuses to resume a workdir with the config of another experiment.

    Args:
      old: the config of the workdir.
      new: the config to resume with.
      workdir: named in the error.

    Returns:
      field -> (before, after), for the fields that differ as `resume_with='changed'` allows.

    Raises:
      ConfigError: other fields differ; all are named.
    """
    return history.allowed(_changes(old, new, RUNTIME), workdir, new.resume_with)


def check_evaluation(old: ConfigDict, new: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Refuses to evaluate a workdir with the config of another experiment.

    An evaluation may change `eval.ensemble`. A resumed run may not, because that field decides
    which checkpoint is the best one. Arguments as of `check_identity`.

    Raises:
      ConfigError: other fields differ; all are named.
    """
    history.refuse(_changes(old, new, (*RUNTIME, "eval.ensemble")), workdir)


def _changes(old: ConfigDict, new: ConfigDict, free: tuple[str, ...]) -> history.Changes:
    """field -> (before, after) of the fields that differ, without those of `free`."""
    before, after = dict(flat(old)), dict(flat(new))
    for fields in (before, after):
        renamed.translate(fields)
    return {
        field: (before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
        and not any(field == r or field.startswith(r + ".") for r in free)
    }
