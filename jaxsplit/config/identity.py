"""Which fields make an experiment: a workdir is refused to a config that differs in one of them."""

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
    "checkpoint",
    "data.dir",
    "data.download",
    "data.resident",
    "data.resident_limit",
    "data.on_bad_record",
    "data.threads",
    "duration",  # it may only grow
    "init_from",  # not read again; the run's own checkpoints go on
    "stop",
    "resume_with",
    "divide_anyway",  # asked for where a run begins
)


def check_identity(
    old: ConfigDict, new: ConfigDict, workdir: str | pathlib.Path, *, evaluating: bool = False
) -> history.Changes:
    """Refuses a workdir to a config of another experiment.

    `best` is chosen by what the networks answer together, so that only an evaluation may change
    `eval.ensemble`.

    Returns:
      field -> (before, after) of what `resume_with='changed'` lets change.

    Raises:
      ConfigError: fields of identity differ; all are named.
    """
    free = (*RUNTIME, "eval.ensemble") if evaluating else RUNTIME
    before, after = dict(flat(old)), dict(flat(new))
    for fields in (before, after):
        renamed.translate(fields)
    changed = {
        field: (before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
        and not any(field == r or field.startswith(r + ".") for r in free)
    }
    return history.allowed(changed, workdir, new.resume_with, evaluating=evaluating)
