"""Learning-rate schedules, weight decay by parameter path, and optimizers.

Schedules are functions of the step only; all their lengths are in steps and all their rates are
already scaled to the batch size. Parameters are told apart by the name of their leaf, never by
`ndim`: in a stack of networks every leaf carries a leading network axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsplit.errors import ConfigError

Schedule = Callable[[jax.Array | int], jax.Array]
PyTree = Any


def _warmed(
    after: Schedule, lr: float, warmup_steps: int, warmup_lr: float, end_lr: float
) -> Schedule:
    """`after` behind a linear warm-up, both never below `end_lr`."""

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step)
        rate = after(step)
        if warmup_steps > 0:
            share = step.astype(jnp.float32) / np.float32(warmup_steps)
            rate = jnp.where(step <= warmup_steps, warmup_lr + (lr - warmup_lr) * share, rate)
        return jnp.maximum(rate, np.float32(end_lr))

    return schedule


def cosine(
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """Linear warm-up, then half a cosine (arXiv 1608.03983) from `lr` to 0, floored by `end_lr`.

    With W = `warmup_steps`: for step <= W it is warmup_lr + (lr - warmup_lr) * step / W, then
    lr / 2 * (1 + cos(pi * (step - W) / (total_steps - W))). The floor holds in the warm-up too.
    A run ends at `total_steps`; past it the cosine would rise again, as the reference's does.

    Args:
        lr: highest rate.
        total_steps: steps of the whole run, warm-up included.
        warmup_steps: W, inclusive. Negative: no warm-up, and the curve starts |W| steps in (what
            the reference does with -1 epochs).
        warmup_lr: rate at step 0 of a warm-up.
        end_lr: smallest rate anywhere.

    Returns:
        step (int, may be traced) -> float32[].

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    if warmup_steps > total_steps:
        raise ConfigError(
            f"schedule.warmup='{warmup_steps} steps': must not exceed the {total_steps} steps "
            "of the run (duration)"
        )
    # 1 + cos(pi * t) = 2 * sin(pi / 2 * (1 - t))**2: no cancellation near the end, and the steps
    # that remain are an exact integer, so float32 is enough for any length.
    angle = np.float32(math.pi / 2 / max(total_steps - warmup_steps, 1))

    def after(step: jax.Array) -> jax.Array:
        remaining = (total_steps - step).astype(jnp.float32)
        return np.float32(lr) * jnp.square(jnp.sin(remaining * angle))

    return _warmed(after, lr, warmup_steps, warmup_lr, end_lr)


def step(
    *,
    lr: float,
    milestones_steps: Sequence[int],
    factor: float,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> Schedule:
    """Linear warm-up, then lr * factor ** (milestones reached), floored by `end_lr`.

    Args:
        lr: highest rate.
        milestones_steps: the steps from which each further factor holds, rising.
        factor: in (0, 1].
        warmup_steps: length of the warm-up, inclusive; it hides milestones within it.
        warmup_lr: rate at step 0 of a warm-up.
        end_lr: smallest rate anywhere.

    Returns:
        step (int, may be traced) -> float32[].

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


SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": cosine, "step": step}


def schedule(name: str, **kwargs: Any) -> Schedule:
    """The schedule called `name`, made from the keywords of its factory in `SCHEDULES`.

    Raises:
        ConfigError: no such schedule.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule.name={name!r}: must be one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](**kwargs)


def decay_mask(params: PyTree, *, decay_norm: bool) -> PyTree:
    """Which parameters decay, by the name of the leaf.

    Args:
        params: nested dicts of arrays or shapes, with or without a network axis.
        decay_norm: whether the scales of BatchNorm decay.

    Returns:
        A tree like `params` of bool: `kernel` True, `bias` False, `scale` `decay_norm`.

    Raises:
        ValueError: a leaf has another name.
    """
    decays = {"kernel": True, "bias": False, "scale": decay_norm}

    def decide(path: tuple, _: Any) -> bool:
        full = jax.tree_util.keystr(path, simple=True, separator="/")
        name = full.rsplit("/", 1)[-1]
        if name not in decays:
            raise ValueError(
                f"decay_mask: parameter {full!r} is not named one of {', '.join(decays)}"
            )
        return decays[name]

    return jax.tree_util.tree_map_with_path(decide, params)


def divided_weight_decay(weight_decay: float, num_networks: int) -> float:
    """Weight decay of each of S divided networks: wd * exp(1 / S - 1), Eq. (6) of arXiv 2011.14660.

    Smaller networks overfit less and are decayed less; S = 1 leaves `weight_decay` unchanged.
    """
    return weight_decay * math.exp(1 / num_networks - 1)


def sgd(
    lr_schedule: Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    mask: PyTree,
) -> optax.GradientTransformation:
    """Stochastic gradient descent as PyTorch defines it.

    g' = g + weight_decay * w where `mask`; v = momentum * v + g'; then
    w -= lr * (g' + momentum * v with `nesterov`, else v). The rate stands outside v.

    Args:
        lr_schedule: step -> rate.
        momentum: in [0, 1); 0 keeps no buffer.
        nesterov: look ahead (needs momentum).
        weight_decay: coefficient of the L2 term in the gradient.
        mask: tree of bool like the parameters.

    Returns:
        An optax transformation; its `update` needs `params`.

    Raises:
        ConfigError: momentum out of range, or Nesterov without it.
    """
    if not 0 <= momentum < 1:
        raise ConfigError(f"optim.momentum={momentum}: must be in [0, 1)")
    if nesterov and not momentum:
        raise ConfigError("optim.nesterov=True: needs an optim.momentum above 0")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(lr_schedule),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": sgd}


def build(
    optim_config: Any, lr_schedule: Schedule, params: PyTree, num_networks: int
) -> optax.GradientTransformation:
    """The optimizer that `config.optim` describes.

    Args:
        optim_config: `config.optim`; read by attribute. Its learning rate is not used.
        lr_schedule: step -> rate, already scaled to the batch size.
        params: nested dicts of arrays or shapes; only their paths matter.
        num_networks: S of the divided network, for Eq. (6).

    Raises:
        ConfigError: unknown `optim.name`, or a value out of range.
        ValueError: a parameter that no decay rule covers.
    """
    if optim_config.name not in OPTIMIZERS:
        raise ConfigError(
            f"optim.name={optim_config.name!r}: must be one of {', '.join(OPTIMIZERS)}"
        )
    weight_decay = optim_config.weight_decay
    if weight_decay < 0:
        raise ConfigError(f"optim.weight_decay={weight_decay}: must be 0 or more")
    if optim_config.divide_weight_decay:
        weight_decay = divided_weight_decay(weight_decay, num_networks)
    return OPTIMIZERS[optim_config.name](
        lr_schedule,
        momentum=optim_config.momentum,
        nesterov=optim_config.nesterov,
        weight_decay=weight_decay,
        mask=decay_mask(params, decay_norm=optim_config.decay_norm),
    )
