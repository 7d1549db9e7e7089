"""Training and evaluation of an experiment: the story, in the order in which data flows."""

import collections
import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxsplit import (
    checkpoint,
    compile_cache,
    distributed,
    division,
    durations,
    evaluate,
    experiment,
    initial,
    limits,
    metrics,
    report,
    signals,
    state,
)
from jaxsplit import config as config_lib
from jaxsplit.errors import ConfigError, NonFiniteLossError
from jaxsplit.experiment import Experiment

# Steps that may be queued on the device: enough to keep it busy, few enough to bound memory.
_QUEUE = 2


def train_and_evaluate(
    config: ConfigDict, workdir: str | pathlib.Path, stop: signals.Stop | None = None
) -> dict[str, float]:
    """Trains, or goes on with what `workdir` holds, and evaluates.

    A new run starts from the weights that `config.init_from` names, if any: see `initial.read`.

    Args:
      config: see `configs/common.py`.
      workdir: gets config.json, metrics.jsonl, TensorBoard files, checkpoints/ and compiled
        programs. Several processes must share it; only the first one writes but for checkpoints.
      stop: entered with `with`, ends the run in good order at SIGTERM and SIGINT. Without it they
        do what Python does; but several processes always stop together at SIGTERM.

    Returns:
      Final metrics: test/<name>/top1, /top5 (0..1), /nll for every network and the ensemble,
      test/disagreement, /count and, where they are skipped, /bad_records (the same under
      validation/ if some was held out), `step`, and best/step with best/<its metric>.

    Raises:
      ConfigError: a wrong value, or a workdir of another experiment; before any compilation.
      NonFiniteLossError: the loss became NaN or infinite; nothing saved was overwritten.
      SaveError: a checkpoint could not be saved, as where the disk is full.
      Stopped: by a signal; what was done is saved.
    """
    stop = stop or signals.Stop()
    config_lib.check_same_on_all(config)
    exp = experiment.build(config)
    config, start = exp.config, None
    if not distributed.of_first(checkpoint.exists(workdir)):
        # Before anything is written; a run that is resumed no longer needs it.
        warning = _check_new(exp)
        if config.init_from:
            start = initial.read(config, exp.state_shapes().variables)
        if warning and jax.process_index() == 0:
            print(warning, flush=True)
    # Closed at an error or Ctrl-C, too: what is being saved is finished, files are whole.
    with contextlib.ExitStack() as at_end:
        try:
            folder = distributed.shared_workdir(workdir, config_lib.prepare_workdir)
            at_end.enter_context(compile_cache.inside(folder))
            return _train(exp, folder, start, stop, at_end.callback)
        except Exception:
            if distributed.several():
                at_end.pop_all()  # closing waits for the others, who may be gone
            raise


def _train(
    exp: Experiment,
    workdir: pathlib.Path,
    init_from: initial.Start | None,
    stop: signals.Stop,
    at_end: Callable[[Callable[[], None]], Any],
) -> dict[str, float]:
    config = exp.config
    # Process 0 decides, here and below: a file system may show another one what was, not what is.
    if distributed.of_first(checkpoint.exists(workdir)):
        if distributed.of_first(checkpoint.weights_only(workdir)):
            raise ConfigError(
                f"workdir={str(workdir)!r}: holds weights only, no state of training; start from "
                f"them in another workdir with --init_from={workdir}"
            )
        old = config_lib.load(workdir)
        config_lib.check_identity(old, config, workdir)
        _check_longer(old, exp, workdir)
        config.init_from = old.init_from  # what the run did start from
    plan, mesh = exp.plan, exp.sharding
    chief = jax.process_index() == 0
    if chief:
        config_lib.save(config, workdir)

    # ---- State: new, perhaps with weights of another run, or the newest checkpoint
    checkpoints = checkpoint.Checkpoints(
        workdir, keep=config.checkpoint.keep, best_metric=exp.best_metric
    )
    at_end(checkpoints.close)
    start = distributed.of_first(checkpoints.latest() or 0)
    position: dict = {}  # what was saved beside the arrays
    if start:
        start, train_state, position = checkpoints.resume(
            exp.state_shapes(),
            len(exp.dataset.train),
            on_corrupt=config.checkpoint.on_corrupt,
            say=lambda text: chief and print(text, flush=True),
        )
    else:
        train_state = state.init(
            exp.method,
            exp.optimizer,
            config.seed,
            exp.dataset.image_shape,
            mesh,
            init_from.taken if init_from else None,
            averaged=config.ema > 0,
        )

    # ---- Data: small sets lie on the device, large ones stream
    streamed = exp.feed.resident is None
    resident = {}
    if not streamed:
        arrays = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
        resident = mesh.put(arrays, mesh.replicated)
    batches = exp.feed.batches(start)
    at_end(batches.close)

    # ---- The step, compiled
    writer = metrics.Writer(workdir, start=start, active=chief)
    at_end(writer.close)
    progress = report.Progress(total=plan.total_steps, start=start, active=chief)
    at_end(progress.close)
    progress.line(f"{'resumed at step ' + str(start) if start else 'new run'} in {workdir}")
    if init_from:
        progress.line(init_from.note)
    if idle := jax.device_count() - mesh.mesh.size:
        progress.line(f"the mesh leaves {idle} of {jax.device_count()} devices idle")
    if start < plan.total_steps:
        progress.line("compiling the training step")
        began = time.time()
        batch = experiment.put(exp, next(batches))
        train_step, empty = experiment.compile_step(exp, train_state, resident, batch)
        totals = mesh.put(metrics.from_json(position.get("totals"), empty), mesh.replicated)
        progress.line(f"compiled the training step in {time.time() - began:.1f} s")

    # ---- Train
    bad_before = position.get("bad_records", 0)
    best = checkpoints.best()
    best_value = best[1][exp.best_metric] if best else float("-inf")
    results: dict[str, float] = {}
    queue: collections.deque = collections.deque()
    clock = _Clock()
    stop.hold()
    for done in range(start + 1, plan.total_steps + 1):
        bad_here = exp.feed.bad_records  # up to this step's batch; the next one is taken ahead
        train_state, totals = train_step(train_state, totals, resident, batch)
        progress.advance()
        last = done == plan.total_steps
        if not last:
            batch = experiment.put(exp, next(batches))
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
            if _skips(exp):
                values["data/bad_records"] = float(bad_records)
            writer.write(done, values)
            progress.training(done, done / plan.steps_per_epoch, values)
            totals = empty
        if not (evaluates or saves):
            continue
        clock.pause()
        if evaluates:
            results = _evaluate(exp, train_state.variables, exp.eval_split)
            writer.write(done, results)
            progress.line(f"step {done}: {report.brief(exp, results)}")
            saves |= results[exp.best_metric] > best_value
            best_value = max(best_value, results[exp.best_metric])
        if saves:
            checkpoints.save(
                train_state,
                config,
                len(exp.dataset.train),
                results if evaluates else None,
                bad_records,
                metrics.to_json(totals),
            )
        if stops:
            checkpoints.wait()
            text = f"step {done} of {plan.total_steps} is saved in {workdir}"
            raise stop.stopped(f"{text}; {signals.AGAIN}")
        clock.resume()
    checkpoints.wait()
    stop.release()

    # ---- Report
    splits = {exp.eval_split[0]: exp.eval_split[1], "test": exp.dataset.test}
    for split in splits.items():
        if f"{split[0]}/count" not in results:
            values = _evaluate(exp, train_state.variables, split)
            if not writer.has(plan.total_steps, values):  # as where it was stopped right here
                writer.write(plan.total_steps, values)
            results |= values
    progress.close()
    results["step"] = float(train_state.step)
    results |= _best(exp, checkpoints)
    if chief:
        print(report.tables(exp, results, f"step {plan.total_steps}, the last"), flush=True)
    return results


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
    workdir = pathlib.Path(workdir).expanduser()
    config_lib.check_same_on_all(config)
    if not checkpoint.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    config_lib.check_identity(config_lib.load(workdir), config, workdir, evaluating=True)
    exp = experiment.build(config, training=False)
    checkpoints = checkpoint.Checkpoints(workdir, best_metric=exp.best_metric, read_only=True)
    found = checkpoints.find(which)
    variables = checkpoints.restore_model(found, exp.state_shapes())
    results: dict[str, float] = {"step": float(found)}
    if exp.dataset.validation is not None:
        results |= _evaluate(exp, variables, exp.eval_split)
    results |= _evaluate(exp, variables, ("test", exp.dataset.test))
    results |= _best(exp, checkpoints)
    checkpoints.close()
    if jax.process_index() == 0:
        kind = which if which in ("latest", "best") else "chosen"
        imported = checkpoint.weights_only(workdir)
        text = report.tables(exp, results, f"step {found}, the {kind}", imported=imported)
        print(text, flush=True)
    return results


def _check_new(exp: Experiment) -> str:
    """Refuses values that ruin a run in silence; a line on a division that does not divide."""
    config, dataset = exp.config, exp.dataset
    limits.check_new_run(config, dataset.image_shape, cropped=exp.feed.cropped)
    fields = dict(num_classes=dataset.num_classes, image_shape=dataset.image_shape)
    return division.check(config, **fields)


def _skips(exp: Experiment) -> bool:
    """Whether bad records are left out and counted."""
    return exp.config.data.on_bad_record == "skip"


def _over_processes(exp: Experiment, bad_records: int) -> int:
    """The sum of what each process has left out of its part of the batches."""
    if not _skips(exp):
        return 0
    return distributed.total(bad_records, counts=exp.sharding.reads_first)


def _check_longer(old: ConfigDict, exp: Experiment, workdir: pathlib.Path) -> None:
    before = durations.plan(old, exp.feed.steps_per_epoch).total_steps
    if exp.plan.total_steps < before:
        raise ConfigError(
            f"duration={exp.config.duration!r}: must not be shorter than the {old.duration!r} of "
            f"the run in workdir={str(workdir)!r}"
        )


def _check_finite(totals: metrics.Totals, checkpoints: checkpoint.Checkpoints) -> None:
    bad = int(totals.bad_step)
    if bad < 0:
        return
    checkpoints.wait()
    good = checkpoints.latest()
    kept = f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
    raise NonFiniteLossError(
        f"the loss or the update of the weights is not finite at step {bad + 1}; {kept}"
    )


def _evaluate(exp: Experiment, variables: dict, split: tuple[str, Any]) -> dict[str, float]:
    name, examples = split
    values = evaluate.evaluate(
        exp.eval_step,
        variables,
        examples,
        image_shape=exp.dataset.image_shape,
        batch_size=exp.plan.eval_batch_size,
        sharding=exp.sharding,
        threads=exp.config.data.threads,
    )
    if _skips(exp):
        values["bad_records"] = len(examples) - values["count"]
    return {f"{name}/{k}": v for k, v in values.items()}


def _best(exp: Experiment, checkpoints: checkpoint.Checkpoints) -> dict[str, float]:
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
