"""Draws the learning rate and a method's own curves over a run as text, before it starts."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from jaxsplit import durations, methods

WIDTH, HEIGHT = 60, 8  # size of a curve in characters
# Number of training examples of each data set, as published; svhn_cropped with extra images.
TRAIN_EXAMPLES = {
    "digits": 1437,
    "synthetic": 2048,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn_cropped": 604_388,
    "imagenet2012": 1_281_167,
}
# Assumed steps per epoch of an unknown data set; curves in epochs or percent hardly depend on it.
ASSUMED_STEPS = 1000
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw(title: str, values: ArrayLike, ticks: Sequence[str]) -> str:
    """A bar chart with a column for each value, from 0 to the highest value.

    Args:
      title: the line above the chart.
      values: 0 or more, finite.
      ticks: three labels below the chart: at its left end, in its middle, at its right end.
    """
    heights = np.asarray(values, np.float64)
    top = heights.max()
    # Heights in eighths of a character; any value above 0 is visible.
    levels = np.ceil(heights / (top or 1) * 8 * HEIGHT - 1e-6).astype(int)
    labels = {HEIGHT - 1: f"{top:.4g}", 0: "0"}
    lines = [title]
    for row in reversed(range(HEIGHT)):
        bars = "".join(_EIGHTHS[min(max(level - 8 * row, 0), 8)] for level in levels)
        lines.append(f"{labels.get(row, ''):>10} │{bars}".rstrip())
    left, middle, right = ticks
    axis = f"{left:<{len(heights) // 2 - len(middle) // 2}}{middle}"
    lines.append(" " * 11 + "└" + "─" * len(heights))
    lines.append(" " * 12 + f"{axis:<{len(heights) - len(right)}}{right}")
    return "\n".join(lines)


def of_config(config: ConfigDict) -> str:
    """Text with the learning rate and the curves of the method's Entry over the run.

    Reads the config only. If the size of the data set is unknown, an epoch is assumed to have
    `ASSUMED_STEPS` steps, and the title says so.

    Raises:
      ConfigError: a field has a wrong value.
    """
    examples = TRAIN_EXAMPLES.get(config.data.name)
    per_epoch, note = ASSUMED_STEPS, f" (if an epoch has {ASSUMED_STEPS} steps)"
    if examples:
        held_out = round(examples * config.data.validation)
        per_epoch, note = max((examples - held_out) // config.batch_size, 1), ""
    plan = durations.plan(config, per_epoch)
    steps = np.linspace(0, plan.total_steps - 1, WIDTH).round().astype(np.int32)
    # The highest rate, at the end of the warm-up, must be among the drawn steps.
    steps[np.abs(steps - plan.warmup_steps).argmin()] = min(plan.warmup_steps, plan.total_steps - 1)
    epochs = plan.total_steps / per_epoch
    ticks = ("0", f"{epochs / 2:.4g}", f"{epochs:.4g} epochs")
    rates = jax.vmap(plan.schedule(config))(steps)
    texts = [draw(f"learning rate{note}", rates, ticks)]
    for title, of_steps in methods.METHODS[config.method].curves(config, plan).items():
        texts.append(draw(f"{title}{note}", of_steps(steps), ticks))
    return "\n\n".join(texts)
