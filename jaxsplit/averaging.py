"""The decay of the moving average of the weights (EMA), and its warm-up.

After step t (from 0) the average is decay_t * average + (1 - decay_t) * new weights. With a
constant decay the random start remains visible in it for about 5 / (1 - decay) steps: 50,000 steps
for 0.9999. With a warm-up decay_t = min(decay, 1 - (1 + t) ** (-2 / 3)), as in timm's ModelEmaV3
with `use_warmup`: the first step replaces the start, and the average covers about the last
(1 + t) ** (2 / 3) steps until decay_t reaches `decay`.
"""

import math

import jax
import jax.numpy as jnp

POWER = 2 / 3  # of the warm-up (`power` in timm, whose `gamma` is 1 here)


def replaced(decay: float, step: jax.Array | int, *, warmup: bool) -> jax.Array | float:
    """1 - decay_t: the share of the average that the weights after step t replace, float32[].

    Args:
      decay: in [0, 1).
      step: t, the number of steps before this one; may be traced.
      warmup: whether the decay is warmed up.
    """
    if not warmup:
        return 1 - decay
    return jnp.maximum(1 - decay, (1 + jnp.asarray(step, jnp.float32)) ** -POWER)


def share_of_start(decay: float, steps: int, *, warmup: bool) -> float:
    """The share of the average after `steps` steps that is still the initial weights, in [0, 1].

    It is the product of all decay_t. With a warm-up decay_0 is 0, so the share is 0 from the first
    step on.
    """
    if steps < 1:
        return 1.0
    return 0.0 if warmup or not decay else math.exp(steps * math.log(decay))
