"""Learning-rate schedules: a linear warm-up, then one of several decays.

Functions of the step only; all their lengths are in steps and all their rates are already scaled to
the batch size. With W = `warmup_steps`: for step <= W the rate is warmup_lr + (lr - warmup_lr) *
step / W; after that the decay counts from W. Nothing is ever below `end_lr`, the warm-up included.

Every factory takes `lr` (highest rate), `warmup_steps` (0: none), `warmup_lr` (rate at step 0 of a
warm-up) and `end_lr`, and returns step (int, may be traced) -> float32[], right to its last digits.
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
MOST_STAIRS = 1_000_000  # of a staircase, which is a table of them


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

    A run ends at `total_steps`; past it the cosine would rise again, as the reference's does.

    Args:
        lr, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run, warm-up included.
        warmup_steps: W, inclusive. Negative: no warm-up, and the curve starts |W| steps in (what
            the reference does with -1 epochs).

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    # 1 + cos(pi * t) = 2 * sin(pi / 2 * (1 - t))**2: no cancellation near the end, and the steps
    # that remain are an exact integer, so float32 is enough for any length.
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
    """lr * factor ** (milestones reached).

    Args:
        lr, warmup_lr, end_lr: see the module.
        milestones_steps: the steps from which each further factor holds, rising.
        factor: in (0, 1].
        warmup_steps: length of the warm-up, inclusive; it hides milestones within it.

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
        # Past the end the base would be negative and its power no real number.
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
        lower, upper: where on the curve of tanh it begins and ends.

    Raises:
        ConfigError: the warm-up is longer than the run, or `lower` is not below `upper`.
    """
    if not lower < upper:
        raise ConfigError(f"schedule.htd_lower={lower}: must be below schedule.htd_upper={upper}")
    slope = np.float32(2 * (upper - lower) / _decay_steps(total_steps, warmup_steps))

    def after(step: jax.Array) -> jax.Array:
        # (1 - tanh(x)) / 2 = sigmoid(-2 x): no cancellation where the rate is small.
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
    """lr * factor ** ((step - W) / every_steps), the exponent rounded down if `staircase`.

    Args:
        lr, warmup_steps, warmup_lr, end_lr: see the module.
        total_steps: steps of the whole run; a staircase goes down no further after them.
        factor: in (0, 1].
        every_steps: steps to each further factor, at least 1, not always whole (0.8 epochs).
        staircase: the rate is constant between the factors.

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
        # Each begins at the first step whose quotient by every_steps, in float64, reaches it.
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
    """The schedule called `name`, made from the keywords of its factory in `SCHEDULES`.

    Raises:
        ConfigError: no such schedule, or a value out of range.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule.name={name!r}: must be one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](**kwargs)
