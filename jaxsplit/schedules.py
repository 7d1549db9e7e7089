"""Learning-rate schedules: a linear warm-up, then one of several decays.

A schedule is a function of the step only. All lengths are in steps, and all learning rates are
already scaled to the batch size. With W = `warmup_steps`: for step <= W the rate is warmup_lr +
(lr - warmup_lr) * step / W; after that the decay counts from W. The rate is never below `end_lr`,
not even during the warm-up.

Every factory takes `lr` (the highest rate), `warmup_steps` (0: no warm-up), `warmup_lr` (the rate
at step 0 of a warm-up) and `end_lr`. It returns step (int, may be traced) -> float32[], accurate to
the last digits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsplit.errors import ConfigError

Schedule = Callable[[ArrayLike], jax.Array]
MOST_STAIRS = 1_000_000  # of an exponential schedule with a staircase, which is stored as a table


def _warmed(
    after: Callable[[jax.Array], jax.Array],
    lr: float,
    warmup_steps: int,
    warmup_lr: float,
    end_lr: float,
) -> Schedule:
    """`after` behind a linear warm-up, both never below `end_lr`."""

    def schedule(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        rate = after(step)
        if warmup_steps > 0:
            share = step.astype(jnp.float32) / np.float32(warmup_steps)
            rate = jnp.where(step <= warmup_steps, warmup_lr + (lr - warmup_lr) * share, rate)
        return jnp.maximum(rate, np.float32(end_lr))

    return schedule


def _decay_steps(total_steps: int, warmup_steps: int) -> int:
    """Steps after the warm-up, at least 1."""
    if warmup_steps > total_steps:
        raise ConfigError(
            f"schedule.warmup='{warmup_steps} steps': must not exceed the {total_steps} steps "
            "of the run (duration)"
        )
    return max(total_steps - warmup_steps, 1)


def cosine(
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """Half a cosine (arXiv 1608.03983): lr / 2 * (1 + cos(pi * (step - W) / (total_steps - W))).

    A run ends at `total_steps`. After it the cosine would rise again, as in the original code.

    Args:
        lr, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run, warm-up included.
        warmup_steps: W; the warm-up includes step W. Negative: no warm-up, and the curve starts
            |W| steps after its beginning (as the original code does with -1 epochs).

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    # 1 + cos(pi * t) = 2 * sin(pi / 2 * (1 - t))**2 has no cancellation near the end. The number of
    # remaining steps is an exact integer, so float32 is enough for any length.
    angle = np.float32(math.pi / 2 / _decay_steps(total_steps, warmup_steps))

    def after(step: jax.Array) -> jax.Array:
        remaining = (total_steps - step).astype(jnp.float32)
        return np.float32(lr) * jnp.square(jnp.sin(remaining * angle))

    return _warmed(after, lr, warmup_steps, warmup_lr, end_lr)


def step(
    *,
    lr: float,
    milestones_steps: Sequence[int] | np.ndarray,
    factor: float,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """lr * factor ** (number of milestones reached).

    Args:
        lr, warmup_lr, end_lr: see the module.
        milestones_steps: the steps at which the rate is multiplied by `factor`; must rise.
        factor: in (0, 1].
        warmup_steps: W; the warm-up includes step W and hides the milestones within it.

    Raises:
        ConfigError: the milestones do not rise, or `factor` is outside (0, 1].
    """
    milestones = np.asarray(milestones_steps, np.int32)
    if (np.diff(milestones) <= 0).any():
        raise ConfigError(f"schedule.milestones={milestones.tolist()} (in steps): must rise")
    if not 0 < factor <= 1:
        raise ConfigError(f"schedule.factor={factor}: must be in (0, 1]")
    rates = np.asarray([lr * factor**k for k in range(len(milestones) + 1)], np.float32)

    def after(step: jax.Array) -> jax.Array:
        reached = (step >= jnp.asarray(milestones)).sum()
        return jnp.asarray(rates)[reached]

    return _warmed(after, lr, warmup_steps, warmup_lr, end_lr)


def polynomial(
    *,
    lr: float,
    total_steps: int,
    power: float = 0.9,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """lr * (1 - (step - W) / (total_steps - W)) ** power; 0 from `total_steps` on.

    Args:
        lr, warmup_steps, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run, warm-up included.
        power: above 0; 1 is a straight line.

    Raises:
        ConfigError: the warm-up is longer than the run, or `power` is not above 0.
    """
    if not power > 0:
        raise ConfigError(f"schedule.power={power}: must be above 0")
    length = np.float32(_decay_steps(total_steps, warmup_steps))

    def after(step: jax.Array) -> jax.Array:
        # After the end the base would be negative, and its power not a real number.
        remaining = jnp.maximum(total_steps - step, 0).astype(jnp.float32)
        return np.float32(lr) * (remaining / length) ** np.float32(power)

    return _warmed(after, lr, warmup_steps, warmup_lr, end_lr)


def htd(
    *,
    lr: float,
    total_steps: int,
    lower: float = -6.0,
    upper: float = 3.0,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """Hyperbolic tangent decay (Hsueh et al. 2018, arXiv 1806.01593, Eq. (2)).

    lr / 2 * (1 - tanh(lower + (upper - lower) * (step - W) / (total_steps - W))).

    Args:
        lr, warmup_steps, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run, warm-up included.
        lower, upper: the arguments of tanh at the beginning and at the end.

    Raises:
        ConfigError: the warm-up is longer than the run, or `lower` is not below `upper`.
    """
    if not lower < upper:
        raise ConfigError(f"schedule.htd_lower={lower}: must be below schedule.htd_upper={upper}")
    slope = np.float32(2 * (upper - lower) / _decay_steps(total_steps, warmup_steps))

    def after(step: jax.Array) -> jax.Array:
        # (1 - tanh(x)) / 2 = sigmoid(-2 x) has no cancellation where the rate is small.
        remaining = (total_steps - step).astype(jnp.float32)
        return np.float32(lr) * jax.nn.sigmoid(slope * remaining - np.float32(2 * upper))

    return _warmed(after, lr, warmup_steps, warmup_lr, end_lr)


def exponential(
    *,
    lr: float,
    total_steps: int,
    factor: float = 0.97,
    every_steps: float,
    staircase: bool = True,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """lr * factor ** ((step - W) / every_steps); `staircase` rounds the exponent down.

    Args:
        lr, warmup_steps, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run; a staircase does not fall any further after them.
        factor: in (0, 1].
        every_steps: steps in which the rate falls by `factor`; at least 1, need not be whole.
        staircase: whether the rate stays constant in between, and falls at once.

    Raises:
        ConfigError: a value is out of range, or the warm-up is longer than the run.
    """
    if not 0 < factor <= 1:
        raise ConfigError(f"schedule.decay_factor={factor}: must be in (0, 1]")
    if not every_steps >= 1:
        raise ConfigError(
            f"schedule.decay_every='{every_steps:g} steps': must be at least one step"
        )
    warmup = dict(warmup_steps=warmup_steps, warmup_lr=warmup_lr, end_lr=end_lr)
    length = _decay_steps(total_steps, warmup_steps)
    if staircase:
        if length / every_steps > MOST_STAIRS:
            raise ConfigError(
                f"schedule.decay_every='{every_steps:g} steps': must be longer, or "
                f"schedule.staircase False; the run has {length / every_steps:.0f} stairs, at most "
                f"{MOST_STAIRS} are allowed"
            )
        # Stair k begins at the first step for which step / every_steps >= k in float64.
        stairs = np.arange(1, int(length / every_steps) + 1)
        starts = np.rint(stairs * every_steps)
        starts += starts / every_steps < stairs
        return step(lr=lr, milestones_steps=warmup_steps + starts, factor=factor, **warmup)
    rate = np.float32(math.log(factor) / every_steps)

    def after(step: jax.Array) -> jax.Array:
        return np.float32(lr) * jnp.exp(rate * (step - warmup_steps).astype(jnp.float32))

    return _warmed(after, lr, **warmup)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "step": step,
    "polynomial": polynomial,
    "htd": htd,
    "exponential": exponential,
}


def make(name: str, **kwargs: Any) -> Schedule:
    """The schedule called `name`; `kwargs` are the arguments of its factory in `SCHEDULES`.

    Raises:
        ConfigError: there is no such schedule, or a value is out of range.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule.name={name!r}: must be one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](**kwargs)
