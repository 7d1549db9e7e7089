"""Checks of a config, section by section, that need neither data nor devices.

A wrong value raises a `ConfigError` of one line before anything is compiled.
"""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxsplit import (
    augment,
    data,
    defaults,
    durations,
    losses,
    methods,
    models,
    optim,
    schedules,
    stack,
    trackers,
    values,
)
from jaxsplit.config import limits, renamed
from jaxsplit.config.derived import PAPER, resolve
from jaxsplit.config.fields import check_field, flat
from jaxsplit.errors import ConfigError, short
from jaxsplit.hosts import processes
from jaxsplit.losses import distill
from jaxsplit.section import Section

# Fields that may differ between the processes of a run.
PER_HOST = ("data.dir", "data.threads")
# Fields that hold a duration, or a tuple of durations, besides `duration` and methods' fields.
DURATIONS = (
    "schedule.warmup",
    "schedule.milestones",
    "schedule.decay_every",
    "log_every",
    "eval.every",
    "checkpoint.every",
)
# Fields that take a number or 'paper'.
NUMBER_OR_PAPER = ("distill.temperature", *models.RATES)
MOST_NETWORKS, MOST_THREADS = 4096, 1024
VIEWS = ("different", "same", PAPER)
DTYPES = ("float32", "bfloat16")
ON_CORRUPT = ("previous", "error")  # what a run does if its newest checkpoint is damaged


def check_types(config: ConfigDict) -> ConfigDict:
    """Checks that a config has the fields of `jaxsplit/defaults.py`, each with a value of its type.

    Returns:
      A copy in which paths and NumPy values have become Python values; see `values.plain`.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    config = values.copy(config)
    renamed.translate(config)
    known = dict(flat(defaults.get_config()))
    given = dict(flat(config))
    for field in given.keys() - known.keys():
        check_field(field, value := given[field])
        raise ConfigError(
            f"{field}={short(value)}: must be the group of fields of jaxsplit/defaults.py"
        )
    for field, default in known.items():
        if field not in given:
            raise ConfigError(f"{field}: missing; start from jaxsplit.defaults.get_config()")
        if field in NUMBER_OR_PAPER:
            values.check_number_or(field, given[field], PAPER)
        else:
            values.check_type(field, given[field], default)
    return config


def check(config: ConfigDict) -> ConfigDict:
    """Checks everything that depends neither on the data nor on the devices.

    Returns:
      A copy with Python values; see `check_types`.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    config = check_types(config)
    config.trackers = trackers.names(config.trackers)  # a run checks that they exist
    section = Section(config)
    for of_section in (
        _names,
        _networks,
        _methods,
        _sizes,
        _optimizer,
        _schedule,
        _stop,
        _data,
        _lengths,
    ):
        of_section(section)
    optim.build(config.optim, lambda step: config.optim.lr, {}, 1)
    return config


def _names(section: Section) -> None:
    one_of = section.one_of
    one_of("method", methods.METHODS)
    one_of("data.resident", data.RESIDENT)
    one_of("data.on_bad_record", data.ON_BAD_RECORD)
    one_of("schedule.name", schedules.SCHEDULES)
    one_of("optim.name", optim.OPTIMIZERS)
    of_paper = "different, same or paper (as in the method's paper)"
    section.need("views", of_paper, section.config.views in VIEWS)
    one_of("eval.ensemble", losses.ENSEMBLES)
    one_of("label_loss", losses.LABEL_LOSSES)
    one_of("dtype", DTYPES)
    one_of("checkpoint.on_corrupt", ON_CORRUPT)
    one_of("batch_norm", stack.BATCH_NORMS)
    one_of("lowering", stack.LOWERINGS)


def _networks(section: Section) -> None:
    config, need = section.config, section.need
    need("split", "at least 1", config.split >= 1 or (config.divide and not config.divide_in))
    need("split", f"at most {MOST_NETWORKS}", config.split <= MOST_NETWORKS)
    need("divide_in", "0 (as split) or more", config.divide_in >= 0)
    for field in models.RATES:
        rate = config[field]
        need(field, "'paper' or in [0, 1)", rate == PAPER or 0 <= rate < 1)
    models.remat_stages(resolve(config).spec, config.remat)
    methods.check_split(config.method, config.split)


def _methods(section: Section) -> None:
    distill.make(section.config.distill, 1.0)
    for name, entry in methods.METHODS.items():
        if entry.fields:
            entry.check(Section(section.config, name))


def _sizes(section: Section) -> None:
    config, need = section.config, section.need
    need("seed", f"in 0 ... {limits.SEEDS - 1}", config.seed >= 0)
    for field in ("batch_size", "optim.base_batch_size", "checkpoint.keep", "data.threads"):
        need(field, "at least 1", section.given[field] >= 1)
    need("data.threads", f"at most {MOST_THREADS}", config.data.threads <= MOST_THREADS)
    repeats = config.augment.repeats
    of_batch = f"in 1 (off) ... batch_size={config.batch_size}"
    need("augment.repeats", of_batch, 1 <= repeats <= config.batch_size)
    parts = config.optim.accumulate
    fits = parts >= 1 and config.batch_size % parts == 0
    need("optim.accumulate", f"a divisor of batch_size={config.batch_size}", fits)
    need("eval.batch_size", "0 (as batch_size) or more", config.eval.batch_size >= 0)


def _optimizer(section: Section) -> None:
    config, need = section.config, section.need
    need("optim.lr", "positive", config.optim.lr > 0)
    for field in (
        "schedule.warmup_lr",
        "schedule.end_lr",
        "optim.weight_decay",
        "augment.mixup",
        "augment.cutmix",
    ):
        need(field, "0 or more", section.given[field] >= 0)
    need("augment.mix_switch", "in [0, 1]", 0 <= config.augment.mix_switch <= 1)
    need("ema", "in [0, 1)", 0 <= config.ema < 1)
    need("label_smoothing", "in [0, 1)", 0 <= config.label_smoothing < 1)
    threshold = config.bce_threshold
    need("bce_threshold", "in [0, 1]; 1: off", 0 <= threshold <= 1)
    if threshold < 1:
        its, binary = config.label_loss, config.label_loss != "cross_entropy"
        need("bce_threshold", f"1 (off) with label_loss={its!r}", binary)
        sharp = f"0 with bce_threshold={threshold}, which makes every target 0 or 1"
        need("label_smoothing", sharp, config.label_smoothing == 0)


def _schedule(section: Section) -> None:
    its, need = section.config.schedule, section.need
    for field in ("schedule.factor", "schedule.decay_factor"):
        need(field, "in (0, 1]", 0 < section.given[field] <= 1)
    need("schedule.power", "above 0", its.power > 0)
    below = f"below schedule.htd_upper={its.htd_upper}"
    need("schedule.htd_lower", below, its.htd_lower < its.htd_upper)


def _stop(section: Section) -> None:
    config, need = section.config, section.need
    need("resume_with", "'' or 'changed'", config.resume_with in ("", "changed"))
    patience = config.stop.patience
    need("stop.patience", "0 (off) or more", isinstance(patience, int) and patience >= 0)
    named = f"at least 1 with stop.metric={config.stop.metric!r}"
    need("stop.patience", named, patience > 0 or not config.stop.metric)
    need("stop.min_delta", "0 or more", config.stop.min_delta >= 0)


def _data(section: Section) -> None:
    config, need = section.config, section.need
    need("data.validation", "in [0, 1)", 0 <= config.data.validation < 1)
    need("data.test_share", "in (0, 1)", 0 < config.data.test_share < 1)
    need("data.scale_min", "in (0, 1]", 0 < config.data.scale_min <= 1)
    need("data.image_size", "0 (as the data set) or more", config.data.image_size >= 0)
    need("data.resident_limit", "0 or more MiB", config.data.resident_limit >= 0)
    for field in ("augment.erase_area", "augment.erase_aspect"):
        pair = section.given[field]
        need(field, "two numbers, least and largest", len(pair) == 2 and all(map(_is_number, pair)))


def _lengths(section: Section) -> None:
    config, need = section.config, section.need
    # Durations of different units are compared in `durations.plan`, which knows the epoch's length.
    total = durations.parse("duration", config.duration)
    need("duration", "in steps, epochs or examples", total.unit != "percent")
    need("duration", "at least one step", total.value > 0)
    for field in (*DURATIONS, *methods.durations()):
        value = section.given[field]
        for text in value if isinstance(value, tuple) else (value,):
            length = durations.parse(field, text)
            need(field, "above 0", length.value > 0 or not field.endswith("every"))
    durations.parse_profile(config.profile)
    source = data.source(config.data)
    augment.pipeline(
        config.augment,
        source.mean,
        source.std,
        scale_min=config.data.scale_min,
    )


def check_same_on_all(config: ConfigDict) -> None:
    """Checks that all processes of a run have the same config, except for `PER_HOST`. Collective.

    Raises:
      ConfigError: on all processes; names the field and its values.
    """
    fields = {k: repr(v) for k, v in flat(config) if k not in PER_HOST}
    processes.check_same(fields | {"the version of jax": jax.__version__})


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
