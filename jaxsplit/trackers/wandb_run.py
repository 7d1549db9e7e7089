"""The tracker 'wandb': a run of Weights & Biases, which the extra `wandb` installs.

Its own environment variables hold: WANDB_MODE=offline, WANDB_PROJECT, WANDB_NAME, WANDB_ENTITY ...
"""

import os
import pathlib
import re
import secrets
import sys
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from jaxsplit.workdir import files

ID_FILE = "wandb_id"  # in the workdir: the id of the wandb run, which a resumed run goes on with
STEP, RESUMED_AT = "step", "resumed_at"


class WandbRun:
    """Logs to a run of wandb: project `jaxsplit-<data set>`, name of the workdir.

    wandb's own step never goes back, but steps come again when a run resumes from a checkpoint. So
    the step is logged as the metric `step`, over which wandb draws all others. Rows cannot be
    deleted in wandb; each row has `resumed_at`, the step that its part of the run started from.
    Of several rows of one step the one with the largest `resumed_at` counts. Arguments as of
    `Make`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        config: ConfigDict,
        say: Callable[[str], None],
    ) -> None:
        import wandb

        self._start, self._before = start, sys.exc_info()[1]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _project(config.data.name),
            name=os.environ.get("WANDB_NAME") or workdir.name,
            id=_id(workdir, start),
            resume="allow",
            # In a bucket wandb cannot write; its folder lies in the current one then.
            dir=None if files.is_remote(workdir) else os.fspath(workdir),
        )
        # A resumed run may have other runtime fields.
        self._run.config.update(config.to_dict(), allow_val_change=True)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs a row."""
        self._run.log({**scalars, STEP: step, RESUMED_AT: self._start})

    def close(self) -> None:
        """Ends the wandb run: as finished, or as failed if an error or a signal ends ours."""
        error = sys.exc_info()[1]
        self._run.finish(exit_code=int(error is not None and error is not self._before))


def _project(name: str) -> str:
    """The project of a data set, in at most 128 characters that wandb takes."""
    return f"jaxsplit-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"[:128]


def _id(workdir: pathlib.Path, start: int) -> str:
    """The id of the wandb run of this workdir; a new one for a new run, or if it is no id."""
    path = workdir / ID_FILE
    if start:
        try:
            found = path.read_text().strip()
        except (OSError, ValueError):
            found = ""
        if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
            return found
    made = secrets.token_hex(4)
    files.write_text(path, f"{made}\n")
    return made
