"""The average of the weights over the steps: how much of it each step replaces.

After step t (from 0) the average is decay_t * average + (1 - decay_t) * new. A constant decay keeps
the random start in it for about 5 / (1 - decay) steps: 50,000 of 0.9999. With a warm-up
decay_t = min(decay, 1 - (1 + t) ** (-2 / 3)), as timm's ModelEmaV3 with `use_warmup`: the first
step replaces the start, and the average is over about the last (1 + t) ** (2 / 3) steps until
`decay` is reached.
"""

import math

import jax
import jax.numpy as jnp

POWER = 2 / 3  # of the warm-up; its gamma is 1


def replaced(decay: float, step: jax.Array | int, *, warmup: bool) -> jax.Array | float:
    """1 - decay_t: what share of the average the weights after step t replace, float32[].

    Args:
      decay: in [0, 1).
      step: t, the steps done before; may be traced.
      warmup: of the decay.
    """
    if not warmup:
        return 1 - decay
    return jnp.maximum(1 - decay, (1 + jnp.asarray(step, jnp.float32)) ** -POWER)


def share_of_start(decay: float, steps: int, *, warmup: bool) -> float:
    """What share of the average after so many steps is still what it started from, in [0, 1].

    The product of all decay_t. With a warm-up that is 0 from the first step on, as decay_0 is.
    """
    if steps < 1:
        return 1.0
    return 0.0 if warmup or not decay else math.exp(steps * math.log(decay))
