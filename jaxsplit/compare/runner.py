"""Runs a comparison: each run in processes of its own, in order, resumable at any point.

A run is `jaxsplit train`, then `jaxsplit eval`. When all runs of a seed have ended, the first
finished run of each group is timed by `jaxsplit latency`, with nothing else running. Where nothing
is left to be timed, the runs of the next seed start as soon as a device is free. What is
finished is read from the runs' own files, so a start after a SIGKILL goes on with the run that was
cut and repeats none.
"""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxsplit.compare import outcome, record, runs
from jaxsplit.compare.child import Child, of_program
from jaxsplit.compare.grid import Plan, Run
from jaxsplit.compare.progress import Progress
from jaxsplit.hosts import signals

_POLL = 0.1  # seconds between two looks at the processes
_BEAT = 10.0  # seconds between two updates of compare_run.json
_BUSY = "another run is at work there"  # what `workdir.lock` says
_AGAIN, _TRIES = 3.0, 60  # seconds after which a busy folder is tried again, and how often
_ASKED = frozenset(signals.STATUS.values())  # exit statuses of a run that was asked to stop
_SECONDS = 0.5  # for `jaxsplit latency`, for one program at one batch size


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the runs are started.

    config: the flags of the base config, as --config=NAME and --config.FIELD=VALUE.
    environments: variables of each process that may run at the same time.
    budget: seconds after which nothing more starts and what runs is stopped; None: no limit.
    batches: batch sizes of the latency; (): it is not measured.
    command: (verb, its arguments) -> the command of a process.
    after_run: called with the workdir after every run that ends, and after every latency.
    """

    config: Sequence[str]
    environments: Sequence[Mapping[str, str]] = ({},)
    budget: float | None = None
    batches: Sequence[int] = ()
    command: Callable[[str, Sequence[str]], Sequence[str]] = of_program
    after_run: Callable[[pathlib.Path], object] = lambda workdir: None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the runs, by name.

    failed: name -> one line. left: not finished, and not failed. why: what ended the comparison
    before its end; '': nothing.
    """

    finished: tuple[str, ...]
    failed: Mapping[str, str]
    left: tuple[str, ...]
    why: str = ""


@dataclasses.dataclass
class _Work:
    """A run on one of the devices, and the commands that are left of it.

    commands: (verb, its own arguments), one after another; of several `latency`, each is tried if
      the one before it failed.
    status: of the run before the process started.
    """

    run: Run
    device: int
    commands: list[tuple[str, list[str]]]
    status: record.Status
    child: Child
    tries: int = 0

    @property
    def verb(self) -> str:
        return self.commands[0][0]


def run(
    plan: Plan,
    workdir: pathlib.Path,
    settings: Settings,
    stop: signals.Stop,
    say: Callable[[str], None],
) -> Outcome:
    """Runs what is not finished; returns when everything has ended or is stopped.

    Args:
      plan: the runs; compare.json is written.
      workdir: the folder of their folders.
      settings: how they are started.
      stop: asked after every look at the processes. They are stopped in order before it returns.
      say: gets a line when a run starts or ends.
    """
    return _Runner(plan, workdir, settings, stop, say).all()


class _Runner:
    """The state of a comparison while it runs; `run` describes the arguments."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        settings: Settings,
        stop: signals.Stop,
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._workdir, self._settings = plan, workdir, settings
        self._stop, self._say = stop, say
        self._began = self._beat = time.monotonic()
        self._works: list[_Work] = []
        self._finished = {r.name for r in plan.runs if self._is_finished(r)}
        self._failed: dict[str, str] = {}
        self._timed: set[str] = set()  # groups whose latency was tried in this start
        self._waiting: collections.deque[Run] = collections.deque()
        self._later: list[tuple[float, _Work]] = []  # tried again at that time
        self._why, self._told = "", False
        done = {name: record.read_status(workdir / name).seconds for name in self._finished}
        self._progress = Progress(plan, len(settings.environments), done)

    def all(self) -> Outcome:
        """Runs everything, seed after seed."""
        if self._finished:
            self._say(f"{len(self._finished)} of {len(self._plan.runs)} runs are finished already")
        try:
            for seed in dict.fromkeys(run.seed for run in self._plan.runs):
                of_seed = [run for run in self._plan.runs if run.seed == seed]
                self._waiting.extend(r for r in of_seed if r.name not in self._finished)
                if self._untimed(of_seed):
                    self._work(self._next_training)
                    finished = [run for run in of_seed if run.name in self._finished]
                    self._waiting.extend(self._untimed(finished) if not self._why else [])
                    self._work(self._next_latency)
            self._work(self._next_training)
        finally:
            for work in self._works:
                work.child.stop()
            for work in self._works:
                work.child.wait()
        if not self._told:
            self._tell()
        left = [
            run.name
            for run in self._plan.runs
            if run.name not in self._finished and run.name not in self._failed
        ]
        return Outcome(tuple(self._finished), dict(self._failed), tuple(left), self._why)

    # ---- The loop

    def _work(self, start_next: Callable[[], bool]) -> None:
        """Starts what waits, and looks after the processes until none is left."""
        while True:
            self._look_for_the_end()
            while not self._why and start_next():
                pass
            if self._why:
                for _, work in self._later:
                    self._write(work, record.STOPPED)
                self._waiting.clear()
                self._later.clear()
            if not (self._works or self._later or self._waiting):
                return
            time.sleep(_POLL)
            self._again()
            for work in list(self._works):
                if (status := work.child.status()) is not None:
                    self._works.remove(work)
                    self._after(work, status)
            self._write_beats()

    def _look_for_the_end(self) -> None:
        if self._why:
            return
        spent = time.monotonic() - self._began
        if self._stop.after(0):
            self._why = "a signal"
        elif self._settings.budget is not None and spent >= self._settings.budget:
            self._why = "the budget"
            if self._works:
                names = ", ".join(work.run.name for work in self._works)
                self._say(f"the budget is spent; stopping {names}")
        if self._why:
            for work in self._works:
                work.child.stop()

    def _free(self) -> int | None:
        """A device on which nothing runs or waits to be tried again."""
        busy = {work.device for work in (*self._works, *(work for _, work in self._later))}
        return next((i for i in range(len(self._settings.environments)) if i not in busy), None)

    def _next_training(self) -> bool:
        """Starts the next run whose teacher is there; whether there was one and a free device."""
        device = self._free()
        if device is None:
            return False
        for one in list(self._waiting):
            if one.teacher and one.teacher not in self._finished:
                at_work = (*self._works, *(work for _, work in self._later))
                busy = any(work.run.name == one.teacher for work in at_work)
                if not busy and one.teacher not in {run.name for run in self._waiting}:
                    self._waiting.remove(one)
                    self._fail(one, f"its teacher {one.teacher} is not finished")
                continue
            self._waiting.remove(one)
            self._train(one, device)
            return True
        return False

    def _next_latency(self) -> bool:
        """Starts the next measurement, with nothing beside it; whether there was one."""
        if not self._waiting or self._works or self._later:
            return False
        one = self._waiting.popleft()
        self._timed.add(one.group.name)
        commands = [("latency", arguments) for arguments in self._latencies(one)]
        self._start(one, 0, commands, record.read_status(self._folder(one)))
        self._say(f"{one.name}: measuring its latency")
        return True

    # ---- One run

    def _is_finished(self, one: Run) -> bool:
        """Whether a run has finished before; repairs its compare_run.json."""
        folder = self._folder(one)
        if not outcome.finished(folder, one):
            return False
        status, step = record.read_status(folder), outcome.evaluated(folder)
        if (status.status, status.step) != (record.FINISHED, step):
            status = dataclasses.replace(status, status=record.FINISHED, error="", step=step)
            record.write_status(folder, status)
        return True

    def _folder(self, run: Run) -> pathlib.Path:
        return self._workdir / run.name

    def _train(self, one: Run, device: int) -> None:
        folder = self._folder(one)
        folder.mkdir(parents=True, exist_ok=True)
        before = record.read_status(folder)
        status = dataclasses.replace(
            before, status=record.RUNNING, error="", starts=before.starts + 1, step=0
        )
        record.write_status(folder, status)
        alone = ["--num_processes=1"]  # whatever cluster this process may be part of
        self._say(self._progress.starts(one))
        self._start(one, device, [("train", alone), ("eval", alone)], status)

    def _start(
        self, one: Run, device: int, commands: list[tuple[str, list[str]]], status: record.Status
    ) -> None:
        child = self._child(one, device, commands[0])
        self._works.append(_Work(one, device, commands, status, child))

    def _child(self, one: Run, device: int, command: tuple[str, list[str]]) -> Child:
        folder, (verb, more) = self._folder(one), command
        given = [*self._settings.config, *one.flags, f"--workdir={folder}", *more]
        environment = self._settings.environments[device]
        return Child(self._settings.command(verb, given), folder, environment)

    def _after(self, work: _Work, status: int) -> None:
        """Goes on after a process has ended: with the next one of the run, or with its end."""
        if work.verb == "latency":
            self._after_latency(work, status)
            return
        spent = work.child.seconds if work.verb == "train" else 0.0
        work.status = dataclasses.replace(work.status, seconds=work.status.seconds + spent)
        if status == 0 and not work.child.stopped and len(work.commands) > 1:
            del work.commands[0]
            self._restart(work)
        elif status == 0 and len(work.commands) == 1:
            self._evaluated(work)
        elif work.child.stopped or status in _ASKED:
            self._write(work, record.STOPPED)
            self._say(f"{work.run.name}: stopped")
            self._tell()
        elif _BUSY in (error := work.child.error()) and work.tries < _TRIES:
            if not work.tries:  # a process of a killed start may still save
                self._say(f"{work.run.name}: waits for a process that is at work in its folder")
            work.tries += 1
            self._later.append((time.monotonic() + _AGAIN, work))
        else:
            self._fail(work.run, error, work.status)

    def _restart(self, work: _Work) -> None:
        work.child = self._child(work.run, work.device, work.commands[0])
        self._works.append(work)

    def _again(self) -> None:
        for at, work in list(self._later):
            if time.monotonic() >= at:
                self._later.remove((at, work))
                self._restart(work)

    def _evaluated(self, work: _Work) -> None:
        folder = self._folder(work.run)
        right = outcome.accuracy(folder, work.run.answer)
        if right is None:
            error = f"{outcome.EVALUATED} has no test accuracy of {work.run.answer}"
            self._fail(work.run, error, work.status)
            return
        status = dataclasses.replace(work.status, step=outcome.evaluated(folder))
        record.write_status(folder, dataclasses.replace(status, status=record.FINISHED))
        self._finished.add(work.run.name)
        self._say(self._progress.ends(work.run, right, work.status.seconds))
        self._tell()

    def _fail(self, one: Run, error: str, status: record.Status | None = None) -> None:
        folder = self._folder(one)
        folder.mkdir(parents=True, exist_ok=True)
        status = record.read_status(folder) if status is None else status
        status = dataclasses.replace(status, status=record.FAILED, error=error)
        record.write_status(folder, status)
        self._failed[one.name] = error
        self._progress.fails(one)
        self._say(f"{one.name}: failed: {error}")
        self._tell()

    def _write(self, work: _Work, status: str) -> None:
        record.write_status(self._folder(work.run), dataclasses.replace(work.status, status=status))

    def _write_beats(self) -> None:
        """Keeps the seconds of training on disk, in case that this process is killed."""
        if time.monotonic() - self._beat < _BEAT:
            return
        self._beat = time.monotonic()
        for work in self._works:
            if work.verb == "train":
                seconds = work.status.seconds + work.child.seconds
                status = dataclasses.replace(work.status, seconds=seconds)
                record.write_status(self._folder(work.run), status)

    def _tell(self) -> None:
        """Writes the tables; a grid of hours does not end because one of them fails."""
        self._told = True
        try:
            self._settings.after_run(self._workdir)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            self._say(f"warning: the comparison's tables are not written: {text}")

    # ---- Latency

    def _untimed(self, of_seed: Sequence[Run]) -> list[Run]:
        """Those of a seed's runs whose group has no latency yet."""
        if not self._settings.batches:
            return []
        timed = {
            run.group.name
            for run in self._plan.runs
            if (self._folder(run) / outcome.LATENCY).is_file()
        }
        return [run for run in of_seed if run.group.name not in timed | self._timed]

    def _latencies(self, one: Run) -> Iterator[list[str]]:
        """Arguments of `jaxsplit latency`: as the cascade that the tables show; without, else."""
        sizes = ",".join(map(str, self._settings.batches))
        plain = [f"--batches={sizes}", f"--seconds={_SECONDS}", "--lowerings=auto"]
        cascade = runs.cascade_of(self._workdir, record.entry_of(one))
        if cascade is not None:
            yield [*plain, f"--cascade={cascade.threshold!r}"]
        yield plain

    def _after_latency(self, work: _Work, status: int) -> None:
        del work.commands[0]
        if status == 0:
            self._tell()
        elif work.child.stopped or status in _ASKED:
            self._say(f"{work.run.name}: its latency is not measured: stopped")
        elif work.commands:
            self._restart(work)
        else:
            self._say(f"{work.run.name}: its latency is not measured: {work.child.error()}")
