"""Where a run starts: at random weights, at the weights of another run, or at its checkpoint."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import durations, state, teacher
from jaxsplit.checkpoints import resume, store
from jaxsplit.config import division, history, limits
from jaxsplit.errors import ConfigError
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes
from jaxsplit.weights import warm_start


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run finds in its workdir when it starts.

    warm: the weights that a new run starts from; None: random weights, or the run is resumed.
    old: the config in the workdir; None: the run is new.
    changes: fields that differ from `old`, as `resume_with` allows.
    """

    warm: warm_start.Start | None
    old: ConfigDict | None
    changes: history.Changes


def check_new(exp: Experiment, workdir: str | pathlib.Path) -> warm_start.Start | None:
    """Checks a new run before anything is written, and reads the weights of `config.init_from`.

    For a run that is resumed it does nothing.

    Returns:
      The weights to start from; None: there are none.

    Raises:
      ConfigError: a value would ruin the run silently, or the weights do not fit.
    """
    # Process 0 decides: other hosts may see a stale file system.
    if processes.broadcast(store.exists(workdir)):
        return None
    config, dataset = exp.config, exp.dataset
    limits.check_new_run(config, dataset.image_shape, crops_on=exp.feed.crops_on)
    warning = division.check(
        config, num_classes=dataset.num_classes, image_shape=dataset.image_shape
    )
    warm = None
    if config.init_from:
        warm = warm_start.read(config, exp.state_shapes().variables)
    if warning and jax.process_index() == 0:
        print(warning, flush=True)
    return warm


def of_workdir(exp: Experiment, workdir: pathlib.Path, warm: warm_start.Start | None) -> Origin:
    """Compares the experiment with the run in `workdir`, if there is one.

    Raises:
      ConfigError: the workdir holds another experiment, or a run that cannot be resumed.
    """
    # Process 0 decides, here and below: other hosts may see a stale file system.
    if not processes.broadcast(store.exists(workdir)):
        return Origin(warm, None, {})
    if processes.broadcast(store.weights_only(workdir)):
        raise ConfigError(
            f"workdir={str(workdir)!r}: holds weights only, no training state; to start from them, "
            f"choose another workdir and give --init_from={workdir}"
        )
    old = config_lib.load(workdir)
    history.adopt(exp.config, workdir / config_lib.CONFIG_FILE)
    changes = config_lib.check_identity(old, exp.config, workdir)
    _check_longer(old, exp, workdir)
    if exp.teacher is not None:
        teacher.check_same(workdir, exp.teacher)
    exp.config.init_from = old.init_from  # keep the weights that the run started from
    return Origin(warm, old, changes)


def restore_or_init(
    exp: Experiment,
    checkpoints: store.Checkpoints,
    warm: warm_start.Start | None,
    say: Callable[[str], None],
) -> resume.Resumed:
    """The newest undamaged checkpoint; if there is none, a new state, with `warm`'s weights."""
    config = exp.config
    if processes.broadcast(checkpoints.latest() or 0):
        return resume.newest(
            checkpoints,
            exp.state_shapes(),
            len(exp.dataset.train),
            on_corrupt=config.checkpoint.on_corrupt,
            say=say,
        )
    made = state.init(
        exp.method,
        exp.optimizer,
        config.seed,
        exp.dataset.image_shape,
        exp.sharding,
        warm.taken if warm else None,
        averaged=config.ema > 0,
    )
    return resume.Resumed(0, made, {})


def notes(exp: Experiment, found: Origin, step: int) -> Iterator[str]:
    """Lines to print before training starts or resumes at `step`."""
    if found.warm:
        yield found.warm.note
    if found.changes:
        yield f"from step {step} on: {history.in_words(found.changes)}"
    if idle := jax.device_count() - exp.sharding.mesh.size:
        yield f"the mesh leaves {idle} of {jax.device_count()} devices idle"
    old = found.old
    if old is None or not 0 < step < exp.plan.total_steps:
        return
    plan = durations.plan(old, exp.feed.steps_per_epoch)
    if plan.total_steps < exp.plan.total_steps:
        rates = plan.schedule(old)(step - 1), exp.schedule(step)
        yield (
            f"duration={exp.config.duration!r}, was {old.duration!r}: the learning rate goes from "
            f"{float(rates[0]):.4g} at step {step} to {float(rates[1]):.4g} at step {step + 1}"
        )


def _check_longer(old: ConfigDict, exp: Experiment, workdir: pathlib.Path) -> None:
    before = durations.plan(old, exp.feed.steps_per_epoch).total_steps
    if exp.plan.total_steps < before:
        raise ConfigError(
            f"duration={exp.config.duration!r}: must not be shorter than the {old.duration!r} of "
            f"the run in workdir={str(workdir)!r}"
        )
