"""Training and evaluation of an experiment: the story, in the order in which data flows."""

import collections
import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import durations, early_stop, experiment, metrics, rating, state
from jaxsplit.checkpoints import folder as checkpoint_folder
from jaxsplit.checkpoints import store
from jaxsplit.config import advice, division, history, limits
from jaxsplit.errors import ConfigError, NonFiniteLossError, SaveError
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes, signals
from jaxsplit.report import tables
from jaxsplit.weights import warm_start
from jaxsplit.workdir import compile_cache, files, lock

# Steps that may be queued on the device: enough to keep it busy, few enough to bound memory.
_QUEUE = 2


def train_and_evaluate(
    config: ConfigDict, workdir: str | pathlib.Path, stop: signals.Stop | None = None
) -> dict[str, float]:
    """Trains, or goes on with what `workdir` holds, and evaluates.

    A new run starts from the weights that `config.init_from` names, if any: see `initial.read`.

    Args:
      config: see `jaxsplit/defaults.py`.
      workdir: gets config.json, metrics.jsonl, TensorBoard files and checkpoints/; a directory or
        gs://bucket/folder. Several processes must share it; only the first one writes but for
        checkpoints. It is locked: see `lock`.
      stop: entered with `with`, ends the run in good order at SIGTERM, SIGHUP and SIGINT, and
        whenever its `request` is called. Without one an interrupt, as of a notebook's cell,
        finishes the step and saves before it is raised; several processes always stop together at
        SIGTERM.

    Returns:
      Final metrics: test/<name>/top1, /top5 (0..1), /nll for every network and the ensemble,
      test/disagreement, /count and, where they are skipped, /bad_records (the same under
      validation/ if some was held out), `step`, and best/step with best/<its metric>. Of a run
      that `config.stop` ended early, those of its last step.

    Raises:
      ConfigError: a wrong value, or a workdir of another experiment or run; before any
        compilation. Also records that are damaged, where an evaluation finds them.
      NonFiniteLossError: the loss became NaN or infinite; nothing saved was overwritten.
      SaveError: a checkpoint could not be saved, as where the disk is full.
      Stopped: by a signal or `request`; what was done is saved.
      KeyboardInterrupt: without `stop`; what was done is saved.
    """
    if stop is None:
        with signals.Interrupt() as stop:
            return train_and_evaluate(config, workdir, stop)
    config_lib.check_same_on_all(config)
    exp = experiment.build(config)
    config, early, start = exp.config, early_stop.make(exp), None
    if not processes.broadcast(store.exists(workdir)):
        # Before anything is written; a run that is resumed no longer needs it.
        warning = _check_new(exp)
        if config.init_from:
            start = warm_start.read(config, exp.state_shapes().variables)
        if warning and jax.process_index() == 0:
            print(warning, flush=True)
    # Closed at an error or Ctrl-C, too: what is being saved is finished, files are whole.
    with contextlib.ExitStack() as locked, contextlib.ExitStack() as at_end:
        try:
            folder = processes.shared_workdir(workdir, functools.partial(_prepare, locked))
            at_end.enter_context(compile_cache.kept(_say))
            return _train(exp, folder, start, stop, early, at_end.callback)
        except Exception:
            if processes.is_multiprocess():
                at_end.pop_all()  # closing waits for the others, who may be gone
            raise


def _prepare(locked: contextlib.ExitStack, workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes and locks the workdir; removes what a run that was killed has left in it."""

    def take(folder: pathlib.Path) -> None:
        locked.callback(lock.take(folder, _say, checkpoint_folder.make_room).release)
        checkpoint_folder.make_room(folder)
        files.clear_temporary(folder)

    folder = config_lib.prepare_workdir(workdir, take)
    checkpoint_folder.check(folder)
    return folder


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _train(
    exp: Experiment,
    workdir: pathlib.Path,
    init_from: warm_start.Start | None,
    stop: signals.Stop,
    early: early_stop.EarlyStop,
    at_end: Callable[[Callable[[], None]], Any],
) -> dict[str, float]:
    config, plan, mesh = exp.config, exp.plan, exp.sharding
    chief = jax.process_index() == 0
    old, changes = _same_experiment(exp, workdir)
    config.resume_with = ""  # said once: not every later start may change something

    # ---- State: new, perhaps with weights of another run, or the newest checkpoint
    checkpoints = store.Checkpoints(
        workdir, keep=config.checkpoint.keep, best_metric=exp.best_metric
    )
    at_end(checkpoints.close)
    start, train_state, position = _state(exp, checkpoints, init_from)
    if chief:  # not before: it holds the step from which a change holds
        more = history.more(workdir / config_lib.CONFIG_FILE, start, changes)
        config_lib.save(config, workdir, more)

    # ---- Data: small sets lie on the device, large ones stream
    streamed = exp.feed.resident is None
    resident = {}
    if not streamed:
        arrays = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
        resident = mesh.put(arrays, mesh.replicated)
    batches = exp.feed.batches(start)
    at_end(batches.close)

    # ---- What is written; the first evaluation, as a trial; the step, compiled
    writer = metrics.Writer(workdir, start=start, active=chief, say=_say)
    at_end(writer.close)
    progress = tables.Progress(
        total=plan.total_steps, start=start, active=chief, num_networks=config.split
    )
    at_end(progress.close)
    progress.line(f"{'resumed at step ' + str(start) if start else 'new run'} in {workdir}")
    for note in _notes(exp, start, old, changes, init_from):
        progress.line(note)
    ratings = rating.Rating(exp, checkpoints, writer, progress)
    if 0 < start < plan.total_steps and start % plan.eval_every == 0:
        ratings.of_resumed(start, train_state.variables)  # it may have been stopped before
    ended = start < plan.total_steps and early.resume(workdir, start)
    for line in [early.why] if ended else advice.lines(config, plan):
        progress.line(line)
    if start < plan.total_steps and not ended:
        ratings.try_first(train_state.variables)
        progress.line("compiling the training step")
        began = time.time()
        batch = experiment.put_batch(exp, next(batches))
        train_step, empty = experiment.compile_step(exp, train_state, resident, batch)
        totals = mesh.put(metrics.from_json(position.get("totals"), empty), mesh.replicated)
        progress.line(f"compiled the training step in {time.time() - began:.1f} s")

    # ---- Train
    bad_before = position.get("bad_records", 0)
    queue: collections.deque = collections.deque()
    clock = _Clock()
    done = start
    stop.hold()
    for done in range(start + 1, start if ended else plan.total_steps + 1):
        bad_here = exp.feed.bad_records  # up to this step's batch; the next one is taken ahead
        train_state, totals = train_step(train_state, totals, resident, batch)
        progress.advance()
        last = done == plan.total_steps
        if not last:
            batch = experiment.put_batch(exp, next(batches))
        queue.append(totals.count)
        if len(queue) > _QUEUE:
            queue.popleft().block_until_ready()

        logs, evaluates = (last or done % n == 0 for n in (plan.log_every, plan.eval_every))
        stops = stop.after(done)
        saves = last or stops or done % plan.checkpoint_every == 0
        if logs or evaluates or saves:
            _check_finite(totals, checkpoints)
            bad_records = bad_before + _over_processes(exp, bad_here)
        if logs:
            checkpoints.check()
            values = {f"train/{k}": v for k, v in metrics.means(totals).items()}
            values["lr"] = float(exp.schedule(done - 1))
            values["images_per_second"] = int(totals.count) * config.batch_size / clock.lap()
            if rating.skips(exp):
                values["data/bad_records"] = float(bad_records)
            writer.write(done, values)
            progress.training(done, done / plan.steps_per_epoch, values)
            totals = empty
        if not (evaluates or saves):
            continue
        clock.pause()
        lock.check(workdir)
        save = functools.partial(
            checkpoints.save,
            train_state,
            config,
            len(exp.dataset.train),
            bad_records=bad_records,
            totals=metrics.to_json(totals),
        )
        if saves:  # before it is evaluated, which may fail or last
            save()
        if stops:
            checkpoints.wait()
            text = f"step {done} of {plan.total_steps} is saved in {workdir}"
            raise stop.stopped(f"{text}; {signals.AGAIN}")
        if evaluates:
            variables = train_state.variables
            if saves:
                found = ratings.of_saved(done, variables)
            else:
                found = ratings.of_unsaved(done, variables, save)
            ended = not last and early.after(done, found)
        if ended:
            save(metrics=found)  # if it is not saved
            progress.line(early.why)
            break
        clock.resume()
    checkpoints.wait()
    _check_saved(done, checkpoints)
    stop.release()

    # ---- Report
    results = ratings.at_the_end(done, train_state.variables)
    progress.close()
    results["step"] = float(train_state.step)
    results |= _best(exp, checkpoints)
    if chief:
        if share := advice.share_of_start(config, done):
            print(share)
        print(tables.tables(exp, results, f"step {done}, the last"), flush=True)
    return results


def _same_experiment(
    exp: Experiment, workdir: pathlib.Path
) -> tuple[ConfigDict | None, history.Changes]:
    """The config of the run that `workdir` holds, None: it holds none; and what changes in it.

    Raises:
      ConfigError: it is another experiment's, or cannot be gone on with.
    """
    # Process 0 decides, here and below: a file system may show another one what was, not what is.
    if not processes.broadcast(store.exists(workdir)):
        return None, {}
    if processes.broadcast(store.weights_only(workdir)):
        raise ConfigError(
            f"workdir={str(workdir)!r}: holds weights only, no state of training; start from "
            f"them in another workdir with --init_from={workdir}"
        )
    old = config_lib.load(workdir)
    history.adopt(exp.config, workdir / config_lib.CONFIG_FILE)
    changes = config_lib.check_identity(old, exp.config, workdir)
    _check_longer(old, exp, workdir)
    exp.config.init_from = old.init_from  # what the run did start from
    return old, changes


def _state(
    exp: Experiment, checkpoints: store.Checkpoints, init_from: warm_start.Start | None
) -> tuple[int, state.TrainState, dict]:
    """(steps done, state, what was saved beside the arrays)."""
    config = exp.config
    if processes.broadcast(checkpoints.latest() or 0):
        return checkpoints.resume(
            exp.state_shapes(),
            len(exp.dataset.train),
            on_corrupt=config.checkpoint.on_corrupt,
            say=_say,
        )
    made = state.init(
        exp.method,
        exp.optimizer,
        config.seed,
        exp.dataset.image_shape,
        exp.sharding,
        init_from.taken if init_from else None,
        averaged=config.ema > 0,
    )
    return 0, made, {}


def _notes(
    exp: Experiment,
    start: int,
    old: ConfigDict | None,
    changes: history.Changes,
    init_from: warm_start.Start | None,
) -> Iterator[str]:
    """What is to be said before training."""
    if init_from:
        yield init_from.note
    if changes:
        yield f"from step {start} on: {history.in_words(changes)}"
    if idle := jax.device_count() - exp.sharding.mesh.size:
        yield f"the mesh leaves {idle} of {jax.device_count()} devices idle"
    if old is None or not 0 < start < exp.plan.total_steps:
        return
    before = durations.plan(old, exp.feed.steps_per_epoch)
    if before.total_steps < exp.plan.total_steps:
        rates = before.schedule(old)(start - 1), exp.schedule(start)
        yield (
            f"duration={exp.config.duration!r}, was {old.duration!r}: the learning rate goes from "
            f"{float(rates[0]):.4g} at step {start} to {float(rates[1]):.4g} at step {start + 1}"
        )


def evaluate_checkpoint(
    config: ConfigDict, workdir: str | pathlib.Path, which: str | int = "latest"
) -> dict[str, float]:
    """Restores the networks of a checkpoint, evaluates them and prints the table.

    Args:
      config: of the run; `config.load(workdir)` gives it.
      workdir: of the run.
      which: 'latest', 'best' or a step.

    Returns:
      test/<name>/top1 ... as `train_and_evaluate`, and `step`.

    Raises:
      ConfigError: no such checkpoint, or a config that does not fit the workdir.
    """
    workdir = files.path_of(workdir)
    config_lib.check_same_on_all(config)
    if not store.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    history.adopt(config, workdir / config_lib.CONFIG_FILE)
    config_lib.check_identity(config_lib.load(workdir), config, workdir, evaluating=True)
    exp = experiment.build(config, training=False)
    checkpoints = store.Checkpoints(workdir, best_metric=exp.best_metric, read_only=True)
    found = checkpoints.find(which)
    variables = checkpoints.restore_model(found, exp.state_shapes())
    results: dict[str, float] = {"step": float(found)}
    if exp.dataset.validation is not None:
        results |= rating.evaluation(exp, variables, exp.eval_split)
    results |= rating.evaluation(exp, variables, ("test", exp.dataset.test))
    results |= _best(exp, checkpoints)
    checkpoints.close()
    if jax.process_index() == 0:
        kind = which if which in ("latest", "best") else "chosen"
        imported = store.weights_only(workdir)
        text = tables.tables(exp, results, f"step {found}, the {kind}", imported=imported)
        print(text, flush=True)
    return results


def _check_new(exp: Experiment) -> str:
    """Refuses values that ruin a run in silence; a line on a division that does not divide."""
    config, dataset = exp.config, exp.dataset
    limits.check_new_run(config, dataset.image_shape, cropped=exp.feed.cropped)
    fields = dict(num_classes=dataset.num_classes, image_shape=dataset.image_shape)
    return division.check(config, **fields)


def _over_processes(exp: Experiment, bad_records: int) -> int:
    """The sum of what each process has left out of its part of the batches."""
    if not rating.skips(exp):
        return 0
    return processes.total(bad_records, counts=exp.sharding.reads_first)


def _check_longer(old: ConfigDict, exp: Experiment, workdir: pathlib.Path) -> None:
    before = durations.plan(old, exp.feed.steps_per_epoch).total_steps
    if exp.plan.total_steps < before:
        raise ConfigError(
            f"duration={exp.config.duration!r}: must not be shorter than the {old.duration!r} of "
            f"the run in workdir={str(workdir)!r}"
        )


def _check_finite(totals: metrics.Totals, checkpoints: store.Checkpoints) -> None:
    bad = int(totals.bad_step)
    if bad < 0:
        return
    checkpoints.wait()
    good = checkpoints.latest()
    kept = f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
    raise NonFiniteLossError(
        f"the loss or the update of the weights is not finite at step {bad + 1}; {kept}"
    )


def _check_saved(last: int, checkpoints: store.Checkpoints) -> None:
    """A run that has ended well has its last step on disk, whoever was at its folder meanwhile."""
    have = processes.broadcast(checkpoints.on_disk())
    if last not in have:
        raise SaveError(
            f"step {last}, the last, is not saved; there are {', '.join(map(str, have)) or 'none'}"
        )


def _best(exp: Experiment, checkpoints: store.Checkpoints) -> dict[str, float]:
    """best/step and best/<its metric>; empty where no checkpoint was evaluated."""
    best = checkpoints.best()
    if best is None:
        return {}
    at, values = best
    return {"best/step": float(at), f"best/{exp.best_metric}": values[exp.best_metric]}


class _Clock:
    """Seconds of training between two log points; evaluation and saving do not count."""

    def __init__(self):
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
