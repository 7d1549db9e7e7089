"""Load, check and save configs.

A config holds primary values (`configs/common.py`); `durations.plan` derives the rest when the run
starts. Every wrong value is a `ConfigError` of one line, raised before anything is compiled.
"""

import difflib
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import common
from jaxsplit import (
    augment,
    config_file,
    data,
    distill,
    distributed,
    durations,
    files,
    history,
    limits,
    losses,
    methods,
    models,
    optim,
    schedules,
    stack,
    values,
)
from jaxsplit.errors import ConfigError

CONFIG_FILE = config_file.NAME
# Fields, or groups of them, that may change when a workdir is resumed.
RUNTIME = (
    "lowering",
    "remat",
    "mesh",
    "eval.batch_size",
    "eval.every",
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
# Fields that may differ between the processes of a run.
PER_HOST = ("data.dir", "data.threads")
# Fields that are durations, or several, besides `duration`.
DURATIONS = (
    "schedule.warmup",
    "schedule.milestones",
    "schedule.decay_every",
    "cotrain.warmup",
    "ffsd.warmup",
    "log_every",
    "eval.every",
    "checkpoint.every",
)
MOST_NETWORKS, MOST_THREADS = 4096, 1024
VIEWS = ("", "different", "same")
DTYPES = ("float32", "bfloat16")
ON_CORRUPT = ("previous", "error")  # what a run does at a checkpoint that is damaged


def spec(config: ConfigDict):
    """The Spec of one of the networks that a config trains: `arch` divided, or whole.

    Raises:
      ConfigError: unknown architecture, or one that is not divided in that many.
    """
    return models.divided(config.arch, divided_in(config))


def divided_in(config: ConfigDict) -> int:
    """In how many networks `arch` is divided; 1: not at all."""
    return (config.divide_in or config.split) if config.divide else 1


def shared_view(config: ConfigDict) -> bool:
    """Whether all networks see one view of an image."""
    views = config.views or methods.METHODS[config.method].views
    return config.split == 1 or views == "same"


def trunk(config: ConfigDict) -> str:
    """The last stage that the networks share; '' where they share none.

    Raises:
      ConfigError: no such stage, or none where the method needs one.
    """
    default = methods.METHODS[config.method].trunk
    stage = models.trunk_stage(spec(config), config.trunk, default=default)
    if config.method == "one" and not stage:
        raise ConfigError(f"trunk={config.trunk!r}: must be a stage with method='one'")
    return stage


def best_metric(config: ConfigDict) -> str:
    """What makes a checkpoint the best one: accuracy of the method's answer, held out if can be."""
    split = "validation" if config.data.validation else "test"
    return f"{split}/{methods.METHODS[config.method].answer}/top1"


def check_field(field: str, value: Any) -> None:
    """Checks that `configs/common.py` has a field, or a group of fields, of that name.

    Raises:
      ConfigError: it has not; names those near it, else those of the same group.
    """
    known = dict(_flat(common.get_config()))
    if field in known or any(k.startswith(field + ".") for k in known):
        return
    group, _, name = field.rpartition(".")
    near = [k for k in known if k.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(field, known, n=3, cutoff=0.5)
    near = near or [k for k in known if k.rpartition(".")[0] == group] or list(known)
    raise ConfigError(
        f"{field}={values.short(value)}: no such field in configs/common.py; "
        f"there are {', '.join(near)}"
    )


def check_types(config: ConfigDict) -> ConfigDict:
    """Checks that a config has the fields of `configs/common.py`, each with a value of its type.

    Returns:
      A copy with Python's own values; paths and NumPy's values are taken, see `values.plain`.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    config = values.copy(config)
    known = dict(_flat(common.get_config()))
    given = dict(_flat(config))
    for field in given.keys() - known.keys():
        check_field(field, value := given[field])
        raise ConfigError(
            f"{field}={values.short(value)}: must be the group of fields of configs/common.py"
        )
    for field, default in known.items():
        if field not in given:
            raise ConfigError(f"{field}: missing; start from configs.common.get_config()")
        values.check_type(field, given[field], default)
    return config


def check(config: ConfigDict) -> ConfigDict:
    """Checks all that can be known without data and devices.

    Returns:
      A copy with Python's own values; see `check_types`.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    config = check_types(config)
    given = dict(_flat(config))

    def need(field: str, allowed: str, fine: bool) -> None:
        if not fine:
            raise ConfigError(f"{field}={values.short(given[field])}: must be {allowed}")

    def one_of(field: str, names) -> None:
        need(field, f"one of {', '.join(names)}", given[field] in names)

    one_of("method", methods.METHODS)
    one_of("data.resident", data.RESIDENT)
    one_of("data.on_bad_record", data.ON_BAD_RECORD)
    one_of("schedule.name", schedules.SCHEDULES)
    one_of("optim.name", optim.OPTIMIZERS)
    one_of("cotrain.loss", methods.cotrain.LOSSES)
    need("views", "different, same or '' (as in the method's paper)", config.views in VIEWS)
    one_of("eval.ensemble", losses.ENSEMBLES)
    one_of("dtype", DTYPES)
    one_of("checkpoint.on_corrupt", ON_CORRUPT)
    one_of("batch_norm", stack.BATCH_NORMS)
    one_of("lowering", stack.LOWERINGS)
    need("split", "at least 1", config.split >= 1 or (config.divide and not config.divide_in))
    need("split", f"at most {MOST_NETWORKS}", config.split <= MOST_NETWORKS)
    need("divide_in", "0 (as split) or more", config.divide_in >= 0)
    models.remat_stages(spec(config), config.remat)
    methods.check_split(config.method, config.split)
    trunk(config)
    for field in methods.ffsd.Weights._fields:
        need(f"ffsd.{field}", "0 or more", config.ffsd[field] >= 0)
    for field in ("fusion_weight_decay", "self_distillation_weight_decay"):
        need(f"ffsd.{field}", "0 or more", config.ffsd[field] >= 0)
    need("ffsd.self_distillation_lr", "positive", config.ffsd.self_distillation_lr > 0)
    if config.ffsd.leader:
        try:
            models.remat_stages(models.divided(config.ffsd.leader, 1), config.remat)
        except ConfigError as error:
            raise ConfigError(f"ffsd.leader={config.ffsd.leader!r}: {error}") from None
    one_of("kdcl.teacher", methods.kdcl.TEACHERS)
    distill.make(config.distill, 1.0)
    need("okddip.factor", "at least 1", config.okddip.factor >= 1)
    need("cl_ilr.label_weight", "in [0, 1]", 0 <= config.cl_ilr.label_weight <= 1)
    every = config.codistill.every
    need("codistill.every", "at least 1, in whole steps", every >= 1 and every % 1 == 0)

    need("seed", f"in 0 ... {limits.SEEDS - 1}", config.seed >= 0)
    for field in ("batch_size", "optim.base_batch_size", "checkpoint.keep", "data.threads"):
        need(field, "at least 1", given[field] >= 1)
    need("data.threads", f"at most {MOST_THREADS}", config.data.threads <= MOST_THREADS)
    parts = config.optim.accumulate
    fits = parts >= 1 and config.batch_size % parts == 0
    need("optim.accumulate", f"a divisor of batch_size={config.batch_size}", fits)
    need("eval.batch_size", "0 (as batch_size) or more", config.eval.batch_size >= 0)
    need("optim.lr", "positive", config.optim.lr > 0)
    for field in (
        "schedule.warmup_lr",
        "schedule.end_lr",
        "optim.weight_decay",
        "augment.mixup",
        "augment.cutmix",
        "cotrain.weight",
        "cotrain.floor",
    ):
        need(field, "0 or more", given[field] >= 0)
    need("augment.mix_switch", "in [0, 1]", 0 <= config.augment.mix_switch <= 1)
    need("ema", "in [0, 1)", 0 <= config.ema < 1)
    need("resume_with", "'' or 'changed'", config.resume_with in ("", "changed"))
    patience = config.stop.patience
    need("stop.patience", "0 (off) or more", isinstance(patience, int) and patience >= 0)
    named = f"at least 1 with stop.metric={config.stop.metric!r}"
    need("stop.patience", named, patience > 0 or not config.stop.metric)
    need("stop.min_delta", "0 or more", config.stop.min_delta >= 0)
    need("label_smoothing", "in [0, 1)", 0 <= config.label_smoothing < 1)
    need("data.validation", "in [0, 1)", 0 <= config.data.validation < 1)
    need("data.test_share", "in (0, 1)", 0 < config.data.test_share < 1)
    need("data.scale_min", "in (0, 1]", 0 < config.data.scale_min <= 1)
    need("data.image_size", "0 (as the data set) or more", config.data.image_size >= 0)
    need("data.resident_limit", "0 or more MiB", config.data.resident_limit >= 0)
    for field in ("schedule.factor", "schedule.decay_factor"):
        need(field, "in (0, 1]", 0 < given[field] <= 1)
    need("schedule.power", "above 0", config.schedule.power > 0)
    lower, upper = config.schedule.htd_lower, config.schedule.htd_upper
    need("schedule.htd_lower", f"below schedule.htd_upper={upper}", lower < upper)
    # Which duration is longer only the data tells, by the length of an epoch: `durations.plan`.
    total = durations.parse("duration", config.duration)
    need("duration", "in steps, epochs or examples", total.unit != "percent")
    need("duration", "at least one step", total.value > 0)
    for field in DURATIONS:
        value = given[field]
        for text in value if isinstance(value, tuple) else (value,):
            length = durations.parse(field, text)
            need(field, "above 0", length.value > 0 or not field.endswith("every"))
    for field in ("augment.erase_area", "augment.erase_aspect"):
        pair = given[field]
        need(field, "two numbers, least and most", len(pair) == 2 and all(map(_is_number, pair)))
    source = data.source(config.data)
    augment.pipeline(
        config.augment,
        source.mean,
        source.std,
        streamed=False,
        scale_min=config.data.scale_min,
    )
    optim.build(config.optim, lambda step: config.optim.lr, {}, 1)
    return config


def check_same_on_all(config: ConfigDict) -> None:
    """Checks that all processes of a run have the same config, but for where and how fast they
    read their data; each has to call it.

    Raises:
      ConfigError: on all of them; names the field and the values.
    """
    fields = {k: repr(v) for k, v in _flat(config) if k not in PER_HOST}
    distributed.check_same(fields | {"the version of jax": jax.__version__})


def flags_given(argv: list[str]) -> dict[str, str]:
    """Name -> value of the flags on a command line, before they are parsed."""
    given = {}
    for flag, after in zip(argv[1:], [*argv[2:], "-"], strict=False):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-"):
            given[name] = value if equals or after.startswith("-") else after
    return given


def check_overrides(given: dict[str, str]) -> None:
    """Raises ConfigError for the first --config.field of `flags_given` that does not exist."""
    for name, value in given.items():
        if name.startswith(("config.", "noconfig.")):
            check_field(name.partition(".")[2], value)


def save(config: ConfigDict, workdir: pathlib.Path, more: history.More | None = None) -> None:
    """Writes the config into the workdir, for resuming and evaluation; `more`: of `history`."""
    config_file.write(config, workdir, more)


def load(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a workdir was made by; fields that did not exist then have their default.

    Raises:
      ConfigError: there is none, or it does not fit.
    """
    return config_file.read(workdir)


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
    before, after = dict(_flat(old)), dict(_flat(new))
    changed = {
        field: (before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
        and not any(field == r or field.startswith(r + ".") for r in free)
    }
    return history.allowed(changed, workdir, new.resume_with, evaluating=evaluating)


def prepare_workdir(
    workdir: str | pathlib.Path, lock: Callable[[pathlib.Path], Any] | None = None
) -> pathlib.Path:
    """Makes the workdir and makes sure that it can be written.

    `lock`: called with the folder before anything else is written there.

    Raises:
      ConfigError: it cannot, or what `lock` raises.
    """
    path = files.path_of(workdir)
    # Of a bucket any error of its library: no rights, no network, no such bucket.
    errors = Exception if files.is_remote(path) else OSError
    try:
        path.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock(path)
        files.try_to_write(path)
    except ConfigError:
        raise
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"workdir={str(workdir)!r}: must be a writable directory ({reason})"
        ) from None
    return path


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('optim.lr', 0.1), ... of all fields; a list is the same as a tuple."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value
