"""Training and evaluation of an experiment: the story, in the order in which data flows."""

import collections
import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import early_stop, evaluation, experiment, metrics, origin, rating
from jaxsplit.config import advice
from jaxsplit.errors import NonFiniteLossError, SaveError
from jaxsplit.evaluate import evaluate_checkpoint
from jaxsplit.hooks import Hook
from jaxsplit.hosts import processes, signals
from jaxsplit.report import tables
from jaxsplit.run import Now, Run, open_run, open_workdir, say
from jaxsplit.run_results import RunResults
from jaxsplit.workdir import compile_cache, lock

__all__ = ["evaluate_checkpoint", "train_and_evaluate"]

# Steps that may be queued on the device: enough to keep it busy, few enough to bound memory.
_QUEUE = 2


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    stop: signals.Stop | None = None,
    hooks: Sequence[Hook] = (),
) -> RunResults:
    """Trains a run, or resumes it from `workdir`, then evaluates it.

    Args:
      config: see `jaxsplit/defaults.py`.
      workdir: gets config.json, metrics.jsonl, TensorBoard files and checkpoints/; a directory or
        gs://bucket/folder. All processes share it; process 0 writes everything but checkpoints. It
        is locked: see `lock`.
      stop: entered with `with`. Turns SIGTERM, SIGHUP, SIGINT and calls of its `request` into a
        save and a clean exit. Without it an interrupt, as of a notebook's cell, finishes the step
        and saves before it is raised; runs of several processes still stop together on SIGTERM.
      hooks: functions that process 0 calls with a `hooks.Event` at every log point, evaluation and
        checkpoint of the training; one that returns `hooks.STOP` ends the run. Every process must
        be given as many.

    Returns:
      Metrics of the last step, with the `history` of the run: test/<name>/top1, /top5 (0..1), /nll
      for every network and the ensemble, test/disagreement, /count and, where they are skipped,
      /bad_records (the same under validation/ if images were held out), `step`, and best/step with
      best/<its metric>.

    Raises:
      ConfigError: a wrong value, or a workdir of another experiment or run; before any
        compilation. Also damaged records, when an evaluation finds them.
      NonFiniteLossError: the loss became NaN or infinite; nothing saved was overwritten.
      SaveError: a checkpoint could not be saved, for example on a full disk.
      Stopped: by a signal or `request`; all finished steps are saved.
      KeyboardInterrupt: without `stop`; all finished steps are saved.
    """
    if stop is None:
        with signals.Interrupt() as stop:
            return train_and_evaluate(config, workdir, stop, hooks)
    config_lib.check_same_on_all(config)
    exp = experiment.build(config)
    early = early_stop.make(exp)
    warm = origin.check_new(exp, workdir)
    # Runs on errors and Ctrl-C too: pending saves finish, files close.
    with contextlib.ExitStack() as locked, contextlib.ExitStack() as at_end:
        try:
            folder = processes.shared_workdir(workdir, functools.partial(open_workdir, locked))
            at_end.enter_context(compile_cache.kept(say))
            run, now = open_run(exp, folder, warm, stop, early, hooks, at_end)
            return RunResults(_train(run, now), folder)
        except Exception:
            if processes.is_multiprocess():
                at_end.pop_all()  # closing waits for the others, who may be gone
            raise


# ---- The stages


class Compiled(NamedTuple):
    """(state, totals, resident, batch) -> (state, totals); and empty totals."""

    step: Callable
    empty: metrics.Totals


class Due(NamedTuple):
    """What is to be done after a step."""

    last: bool
    logs: bool
    evaluates: bool
    stops: bool
    saves: bool


def _train(run: Run, now: Now) -> dict[str, float]:
    """Compiles the step unless the run has ended before, trains, evaluates at the end."""
    ended = _catch_up(run, now)
    compiled = None if ended else _compile(run, now)
    run.stop.hold()
    if compiled:
        _fit(run, now, compiled)
    run.checkpoints.wait()
    _check_saved(run, now)
    run.stop.release()
    return _finish(run, now)


def _catch_up(run: Run, now: Now) -> bool:
    """Evaluates a step that was saved but not evaluated; whether no step is left to train."""
    plan, start = run.exp.plan, run.start
    left = start < plan.total_steps
    if left and start and start % plan.eval_every == 0:
        if found := run.ratings.of_resumed(start, now.state.variables):
            run.hooks.call("evaluate", start, evaluation.flatten(found))
            if run.hooks.stop():
                run.progress.line(f"a hook stopped the run at step {start}")
                return True
    stopped = left and run.early.resume(run.workdir, start)
    for line in [run.early.why] if stopped else advice.lines(run.exp.config, plan):
        run.progress.line(line)
    return stopped or not left


def _compile(run: Run, now: Now) -> Compiled:
    """The compiled step; before it, as a trial, the first evaluation of each split."""
    exp = run.exp
    run.ratings.try_first(now.state.variables)
    run.progress.line("compiling the training step")
    began = time.time()
    now.batch = experiment.put_batch(exp, next(run.batches))
    step, empty = experiment.compile_step(exp, now.state, run.resident, now.batch)
    totals = metrics.from_json(run.position.get("totals"), empty)
    now.totals = exp.sharding.put(totals, exp.sharding.replicated)
    run.progress.line(f"compiled the training step in {time.time() - began:.1f} s")
    return Compiled(step, empty)


def _fit(run: Run, now: Now, compiled: Compiled) -> None:
    """Trains up to the last step, or until early stopping or a hook ends the run."""
    queue: collections.deque = collections.deque()
    now.clock.resume()
    for step in range(run.start + 1, run.exp.plan.total_steps + 1):
        now.step = step
        with run.profile.before(step, now.wait):
            _dispatch(run, now, compiled.step)
        run.profile.after(step, now.wait)
        queue.append(now.totals.count)
        if len(queue) > _QUEUE:
            queue.popleft().block_until_ready()
        due = _due(run, step)
        if due.logs or due.evaluates or due.saves:
            _check_finite(run, now)
            now.bad_records = run.position.get("bad_records", 0) + _bad_records(run, now)
        if due.logs:
            _log(run, now)
            now.totals = compiled.empty
        if due.evaluates or due.saves:
            now.clock.pause()
            if _save_and_evaluate(run, now, due):
                break
            now.clock.resume()
        if (due.logs or due.evaluates or due.saves) and not due.last and run.hooks.stop():
            _saver(run, now)()  # if it is not saved
            run.progress.line(f"a hook stopped the run at step {step}")
            break


def _dispatch(run: Run, now: Now, train_step: Callable) -> None:
    """Starts a step; sends the next batch to the devices meanwhile."""
    exp = run.exp
    now.bad_here = exp.feed.bad_records
    now.state, now.totals = train_step(now.state, now.totals, run.resident, now.batch)
    run.progress.advance()
    if now.step < exp.plan.total_steps:
        now.batch = experiment.put_batch(exp, next(run.batches))


def _due(run: Run, step: int) -> Due:
    """What is to be done after `step`. Collective."""
    plan = run.exp.plan
    last = step == plan.total_steps
    logs, evaluates = (last or step % n == 0 for n in (plan.log_every, plan.eval_every))
    stops = run.stop.after(step)
    return Due(last, logs, evaluates, stops, last or stops or step % plan.checkpoint_every == 0)


def _log(run: Run, now: Now) -> None:
    exp, totals = run.exp, now.totals
    run.checkpoints.check()
    values = {f"train/{k}": v for k, v in metrics.means(totals).items()}
    values["lr"] = float(exp.schedule(now.step - 1))
    # The totals may hold steps of a start before this one, which the clock has not seen.
    images = (now.step - now.logged) * exp.config.batch_size
    values["images_per_second"], now.logged = images / now.clock.lap(), now.step
    if rating.skips(exp):
        values["data/bad_records"] = float(now.bad_records)
    run.writer.write(now.step, values)
    run.progress.training(now.step, now.step / exp.plan.steps_per_epoch, values)
    run.hooks.call("log", now.step, values)


def _save_and_evaluate(run: Run, now: Now, due: Due) -> bool:
    """Saves, then evaluates, what is due; whether early stopping ends the run.

    Raises:
      Stopped: the run was asked to stop, and the step is saved.
    """
    exp, step = run.exp, now.step
    save = _saver(run, now)
    if due.saves:  # before it is evaluated, which may fail or take long
        save()
    if due.stops:
        run.checkpoints.wait()
        text = f"step {step} of {exp.plan.total_steps} is saved in {run.workdir}"
        raise run.stop.stopped(f"{text}; {signals.AGAIN}")
    if not due.evaluates:
        return False
    variables = now.state.variables
    if due.saves:
        found = run.ratings.of_saved(step, variables)
    else:
        found = run.ratings.of_unsaved(step, variables, save)
    run.hooks.call("evaluate", step, evaluation.flatten(found))
    if due.last or not run.early.after(step, found):
        return False
    save(metrics=evaluation.flatten(found))  # if it is not saved
    run.progress.line(run.early.why)
    return True


def _saver(run: Run, now: Now) -> Callable[..., None]:
    """A function that saves this step, unless it is saved; it takes the step's `metrics`.

    Raises:
      SaveError: another run has taken the workdir over.
    """
    lock.check(run.workdir)
    save = functools.partial(
        run.checkpoints.save,
        now.state,
        run.exp.config,
        len(run.exp.dataset.train),
        bad_records=now.bad_records,
        totals=metrics.to_json(now.totals),
    )

    def save_and_tell(metrics: dict | None = None) -> None:
        if save(metrics=metrics):
            run.hooks.call("checkpoint", now.step, metrics or {})

    return save_and_tell


def _finish(run: Run, now: Now) -> dict[str, float]:
    """Evaluates what was not evaluated at the last step; prints the tables."""
    exp = run.exp
    results = run.ratings.at_the_end(now.step, now.state.variables)
    run.progress.close()
    flat = evaluation.flatten(results) | {"step": float(now.state.step)}
    best = run.checkpoints.best()
    if run.chief:
        if share := advice.share_of_start(exp.config, now.step):
            print(share)
        line = rating.best_line(exp, best)
        print(tables.tables(exp, results, f"step {now.step}, the last", line), flush=True)
    return flat | rating.flat_best(exp, best)


# ---- Details


def _bad_records(run: Run, now: Now) -> int:
    """The records that all processes have left out of their parts of the batches. Collective."""
    if not rating.skips(run.exp):
        return 0
    return processes.total(now.bad_here if run.exp.sharding.reads_first else 0)


def _check_finite(run: Run, now: Now) -> None:
    bad = int(now.totals.bad_step)
    if bad < 0:
        return
    run.checkpoints.wait()
    good = run.checkpoints.latest()
    kept = f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
    raise NonFiniteLossError(
        f"the loss or the update of the weights is not finite at step {bad + 1}; {kept}"
    )


def _check_saved(run: Run, now: Now) -> None:
    """A run that ends well has its last step on disk, whatever happened to its folder."""
    have = processes.broadcast(run.checkpoints.on_disk())
    if now.step not in have:
        others = ", ".join(map(str, have)) or "none"
        raise SaveError(f"step {now.step}, the last, is not saved; there are {others}")
