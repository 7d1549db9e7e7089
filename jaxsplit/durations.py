"""Durations as text, and the plan of a run: all lengths in steps.

A config holds primary values only, so an override never leaves a stale value behind. `plan`
derives the rest when the run starts, because the length of an epoch depends on the data set.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict

from jaxsplit import methods, schedules
from jaxsplit.errors import ConfigError

MOST_STEPS = 2**31 - 1  # steps are counted in int32


@dataclass(frozen=True)
class Duration:
    """A length of training. `unit` is 'steps', 'epochs', 'examples' or 'percent'."""

    value: float
    unit: str

    def steps(self, *, batch_size: int, steps_per_epoch: int, total_steps: int | None) -> int:
        """The length in whole steps, rounded. Arguments as of `exact_steps`."""
        exact = self.exact_steps(
            batch_size=batch_size, steps_per_epoch=steps_per_epoch, total_steps=total_steps
        )
        return round(exact)

    def exact_steps(
        self, *, batch_size: int, steps_per_epoch: int, total_steps: int | None
    ) -> float:
        """The length in steps, not rounded.

        Args:
          batch_size: images per step.
          steps_per_epoch: steps in an epoch.
          total_steps: steps of the run, of which percent are taken; None: not known yet.

        Raises:
          ConfigError: a percentage where `total_steps` is None.
        """
        if self.unit == "percent":
            if total_steps is None:
                raise ConfigError(
                    f"duration='{self.value:g}%': must be in steps, epochs or examples"
                )
            return self.value / 100 * total_steps
        per_unit = {"steps": 1, "epochs": steps_per_epoch, "examples": 1 / batch_size}
        return self.value * per_unit[self.unit]


def parse(field: str, text: str) -> Duration:
    """Reads a duration: '300 epochs', '5000 steps', '1e6 examples' or '10%'.

    Raises:
      ConfigError: names `field` if the text has another form or is negative.
    """
    match = re.fullmatch(
        r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*(steps?|epochs?|examples?|%|percent)\s*", str(text)
    )
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise ConfigError(
            f"{field}={text!r}: must be a number of steps, epochs, examples or percent, "
            "such as '300 epochs' or '10%'"
        )
    unit = "percent" if match[2] in ("%", "percent") else match[2].rstrip("s") + "s"
    return Duration(value, unit)


@dataclass(frozen=True)
class Plan:
    """What follows from a config and the length of an epoch. Lengths are in steps."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    method_steps: Mapping[
        str, int
    ]  # '<method>.<field>' -> length, for the durations of every method
    milestones_steps: tuple[int, ...]
    decay_every_steps: float  # of an exponential schedule; need not be whole
    log_every: int
    eval_every: int
    checkpoint_every: int
    eval_batch_size: int
    profile_steps: tuple[int, int] | None  # a trace is written of the steps after .. up to; or none
    lr_scale: float  # batch_size / base_batch_size; multiplies every learning rate

    def schedule(self, config: ConfigDict) -> schedules.Schedule:
        """The learning-rate schedule: step -> learning rate."""
        its, total = config.schedule, self.total_steps
        own = {
            "cosine": dict(total_steps=total),
            "step": dict(milestones_steps=self.milestones_steps, factor=its.factor),
            "polynomial": dict(total_steps=total, power=its.power),
            "htd": dict(total_steps=total, lower=its.htd_lower, upper=its.htd_upper),
            "exponential": dict(
                total_steps=total,
                factor=its.decay_factor,
                every_steps=self.decay_every_steps,
                staircase=its.staircase,
            ),
        }
        fields = dict(
            lr=config.optim.lr * self.lr_scale,
            warmup_steps=self.warmup_steps,
            warmup_lr=config.schedule.warmup_lr * self.lr_scale,
            end_lr=config.schedule.end_lr * self.lr_scale,
        )
        return schedules.make(its.name, **fields, **own.get(its.name, {}))


def plan(config: ConfigDict, steps_per_epoch: int) -> Plan:
    """Derives all lengths of a run from its config.

    Raises:
      ConfigError: a duration is malformed, shorter than a step where that is not allowed, or too
        long.
    """
    units = dict(batch_size=config.batch_size, steps_per_epoch=steps_per_epoch)

    def exact(field: str, text: str, total: int | None) -> float:
        n = parse(field, text).exact_steps(**units, total_steps=total)
        if not n <= MOST_STEPS:
            raise ConfigError(f"{field}={text!r}: must be at most {MOST_STEPS} steps, is {n:.6g}")
        return n

    def steps(field: str, text: str, total: int | None, at_least: int = 0) -> int:
        n = round(exact(field, text, total))
        if field == "duration" and n < 1:
            raise ConfigError(f"duration={text!r}: must be at least one step")
        return max(n, at_least)

    def value(field: str) -> str:
        group, name = field.split(".")
        return config[group][name]

    total = steps("duration", config.duration, None)
    warmup = steps("schedule.warmup", config.schedule.warmup, total)
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup={config.schedule.warmup!r}: must not be longer than "
            f"duration={config.duration!r}; a share such as '5%' always fits"
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        method_steps={field: steps(field, value(field), total) for field in methods.durations()},
        milestones_steps=tuple(
            steps("schedule.milestones", m, total) for m in config.schedule.milestones
        ),
        decay_every_steps=exact("schedule.decay_every", config.schedule.decay_every, total),
        log_every=steps("log_every", config.log_every, total, 1),
        eval_every=steps("eval.every", config.eval.every, total, 1),
        checkpoint_every=steps("checkpoint.every", config.checkpoint.every, total, 1),
        eval_batch_size=config.eval.batch_size or config.batch_size,
        profile_steps=_profile(config.profile, lambda text: steps("profile", text, total), total),
        lr_scale=config.batch_size / config.optim.base_batch_size,
    )


def parse_profile(text: str) -> tuple[str, str] | None:
    """The two durations of `config.profile`; None: it is ''.

    Raises:
      ConfigError: the text has another form.
    """
    if not text:
        return None
    start, colon, end = text.partition(":")
    if not colon or not start.strip() or not end.strip():
        raise ConfigError(
            f"profile={text!r}: must be '' or two durations, such as '20 steps:25 steps'"
        )
    parse("profile", start), parse("profile", end)
    return start, end


def _profile(text: str, steps: Callable[[str], int], total: int) -> tuple[int, int] | None:
    ends = parse_profile(text)
    if ends is None:
        return None
    start, end = map(steps, ends)
    if not start < end <= total:
        raise ConfigError(
            f"profile={text!r}: must end after it begins and within the {total} steps of the run; "
            f"it is of the steps after {start} up to {end}"
        )
    return start, end


def in_words(seconds: float) -> str:
    """'45 s', '3.5 minutes' or '2.1 hours'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
