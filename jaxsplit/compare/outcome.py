"""What became of a run, read from the files in its own folder."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxsplit import durations
from jaxsplit.checkpoints.folder import FOLDER, steps_in
from jaxsplit.compare import record
from jaxsplit.compare.grid import Run
from jaxsplit.data import stand_in
from jaxsplit.errors import ConfigError

EVALUATED, PREDICTIONS, LATENCY, LOG = "eval.json", "predictions.npz", "latency.json", "log.txt"


def finished(folder: pathlib.Path, run: Run) -> bool:
    """Whether a run is trained to its end and evaluated there.

    Its checkpoints may have been removed since, if compare_run.json says that it has finished.
    Without compare_run.json the last checkpoint must be that of the last step.
    """
    step = _evaluated_step(folder)
    newest = max(steps_in(folder / FOLDER), default=None)
    if step is None or newest not in (None, step) or not (folder / PREDICTIONS).is_file():
        return False
    status = record.read_status(folder)
    if status.status == record.FINISHED and status.step == step:
        return True
    return newest is not None and newest == last_step(run.config)


def last_step(config: ConfigDict) -> int | None:
    """The number of steps of a run; None: its data set is not known yet."""
    try:
        examples = stand_in.train_examples(config.data)
        steps = (examples or 0) // config.batch_size
        return durations.plan(config, steps).total_steps if steps else None
    except ConfigError:
        return None


def accuracy(folder: pathlib.Path, answer: str) -> float | None:
    """Test accuracy of an answer, 0..1; None: it is not in eval.json."""
    found = _evaluation(folder)
    for key in ("splits", "test", "answers", answer, "top1"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, float | int) else None


def evaluated(folder: pathlib.Path) -> int:
    """The step that was evaluated; 0: none."""
    return _evaluated_step(folder) or 0


def last_error(log: pathlib.Path, start: int) -> str:
    """The last line of a log that begins with 'error:', else its last line; one line, shortened.

    start: the byte at which the log of this start begins.
    """
    try:
        with log.open("rb") as file:
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    line = (errors or lines or [""])[-1].removeprefix("error:").strip()
    return line if len(line) <= 300 else f"{line[:297]}..."


def _evaluated_step(folder: pathlib.Path) -> int | None:
    found = _evaluation(folder)
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) else None


def _evaluation(folder: pathlib.Path) -> Any:
    try:
        return json.loads((folder / EVALUATED).read_text())
    except (OSError, ValueError, RecursionError):
        return None
