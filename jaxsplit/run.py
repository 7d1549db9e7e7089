"""A run while it trains: `Run` holds what does not change, `Now` what changes at each step."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax

from jaxsplit import config as config_lib
from jaxsplit import early_stop, experiment, metrics, origin, rating, teacher, trackers
from jaxsplit.checkpoints import folder as checkpoint_folder
from jaxsplit.checkpoints import store
from jaxsplit.config import history
from jaxsplit.data import facts
from jaxsplit.experiment import Experiment
from jaxsplit.hooks import Hook, Hooks
from jaxsplit.hosts import signals
from jaxsplit.profiling import Profile
from jaxsplit.report.progress import Progress
from jaxsplit.state import TrainState
from jaxsplit.weights import warm_start
from jaxsplit.workdir import files, lock, versions


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last.

    chief: whether this process prints, and writes everything except checkpoints.
    start: the step that the run starts or resumes from; 0: a new run.
    position: what the checkpoint of step `start` holds besides the arrays.
    resident: the constants of all steps on the devices; see `experiment.constants`.
    batches: the host batches of the steps after `start`.
    """

    exp: Experiment
    workdir: pathlib.Path
    stop: signals.Stop
    early: early_stop.EarlyStop
    chief: bool
    start: int
    position: dict
    checkpoints: store.Checkpoints
    resident: dict
    batches: Iterator[dict]
    writer: metrics.Writer
    progress: Progress
    ratings: rating.Rating
    hooks: Hooks
    profile: Profile


class Clock:
    """Measures the seconds of training between two log points, without evaluations and saves."""

    def __init__(self) -> None:
        self._spent, self._since = 0.0, time.time()

    def pause(self) -> None:
        self._spent += time.time() - self._since

    def resume(self) -> None:
        self._since = time.time()

    def lap(self) -> float:
        self.pause()
        spent, self._spent = self._spent, 0.0
        self.resume()
        return max(spent, 1e-9)


@dataclasses.dataclass
class Now:
    """What changes from step to step.

    step: the last step that was dispatched.
    batch: the batch of the next step, on the devices; set when the step is compiled.
    totals: sums of metrics since the last log point; set when the step is compiled.
    logged: the step at the last log point of this start.
    bad_here: damaged records that this process has left out up to `step`, without the next batch.
    bad_records: damaged records that all processes had left out at the last log point or save.
    """

    step: int
    state: TrainState
    clock: Clock
    batch: dict = dataclasses.field(init=False)
    totals: metrics.Totals = dataclasses.field(init=False)
    bad_here: int = 0
    bad_records: int = 0
    logged: int = 0

    def wait(self) -> None:
        """Returns when the devices have finished all steps up to this one."""
        jax.block_until_ready(self.totals.count)


def open_workdir(locked: contextlib.ExitStack, workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes and locks the workdir, and removes what a killed run has left in it."""

    def take(folder: pathlib.Path) -> None:
        locked.callback(lock.take(folder, say, checkpoint_folder.make_room).release)
        checkpoint_folder.make_room(folder)
        files.clear_temporary(folder)

    folder = config_lib.prepare_workdir(workdir, take)
    checkpoint_folder.check(folder)
    return folder


def open_run(
    exp: Experiment,
    workdir: pathlib.Path,
    warm: warm_start.Start | None,
    stop: signals.Stop,
    early: early_stop.EarlyStop,
    hooks: Sequence[Hook],
    at_end: contextlib.ExitStack,
) -> tuple[Run, Now]:
    """Opens what a run reads and writes: checkpoints, data and logs; restores or makes the state.

    `at_end` gets the calls that close them.
    """
    config, chief = exp.config, jax.process_index() == 0
    found = origin.of_workdir(exp, workdir, warm)
    config.resume_with = ""  # a permission for this start only
    checkpoints = store.Checkpoints(
        workdir, keep=config.checkpoint.keep, best_metric=exp.best_metric
    )
    at_end.callback(checkpoints.close)
    start, state, position = origin.restore_or_init(exp, checkpoints, warm, say)
    if chief:  # only now is the step known at which a change begins
        _describe(exp, workdir, start, found.changes)
    resident = experiment.constants(exp)
    batches = exp.feed.batches(start)
    at_end.callback(batches.close)
    writer, progress = _open_logs(exp, workdir, start, at_end)
    progress.line(f"{'resumed at step ' + str(start) if start else 'new run'} in {workdir}")
    for note in origin.notes(exp, found, start):
        progress.line(note)
    profile = Profile(workdir, exp.plan.profile_steps, active=chief, say=progress.line)
    at_end.callback(profile.close)
    run = Run(
        exp=exp,
        workdir=workdir,
        stop=stop,
        early=early,
        chief=chief,
        start=start,
        position=position,
        checkpoints=checkpoints,
        resident=resident,
        batches=batches,
        writer=writer,
        progress=progress,
        ratings=rating.Rating(exp, checkpoints, writer, progress),
        hooks=Hooks(hooks, exp.plan.total_steps, chief),
        profile=profile,
    )
    return run, Now(start, state, Clock(), logged=start)


def _describe(exp: Experiment, workdir: pathlib.Path, start: int, changes: history.Changes) -> None:
    """Writes what the run is: its config, the versions of this start, facts of the data set."""
    more = history.more(workdir / config_lib.CONFIG_FILE, start, changes)
    if exp.teacher is not None:
        teacher.write(workdir, exp.teacher)
    config_lib.save(exp.config, workdir, more)
    versions.record(workdir, start, versions.now(jax.devices()[0].device_kind))
    facts.write(workdir, facts.of_dataset(exp.dataset))


def _open_logs(
    exp: Experiment, workdir: pathlib.Path, start: int, at_end: contextlib.ExitStack
) -> tuple[metrics.Writer, Progress]:
    """The metrics with their trackers, and the progress on the terminal, of process 0 alone."""
    config, chief = exp.config, jax.process_index() == 0
    chosen = config.trackers if chief else ()
    beside = trackers.Group(chosen, workdir, start=start, config=config, say=say)
    at_end.callback(beside.close)
    writer = metrics.Writer(workdir, start=start, active=chief, say=say, beside=beside)
    at_end.callback(writer.close)
    progress = Progress(
        total=exp.plan.total_steps, start=start, active=chief, num_networks=config.split
    )
    at_end.callback(progress.close)
    return writer, progress


def say(text: str) -> None:
    """Prints a line, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)
