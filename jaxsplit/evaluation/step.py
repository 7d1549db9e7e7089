"""The evaluation step: sums of every metric over a batch."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from jaxsplit import augment
from jaxsplit.evaluation.metrics import METRICS
from jaxsplit.methods.base import Method, network_names


def make_eval_step(
    method: Method, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict, dict], dict[str, Array]]:
    """(variables, batch) -> sums over the real examples of a padded batch, and their `count`.

    A batch is {'images': uint8[B, H, W, C], 'labels': int32[B], 'mask': float32[B]}. The sums are
    called <name>/<metric> for every name in `method.predict`, and <metric> where it is of all
    networks together.
    """

    def eval_step(variables: dict, batch: dict) -> dict[str, Array]:
        images = augment.eval_view(batch["images"], mean, std)
        labels, mask = batch["labels"], batch["mask"]
        named = method.predict(variables, images)
        names = network_names(named)
        sums = {"count": mask.sum()}
        for metric, its in METRICS.items():
            if not its.of_networks:
                for name, logits in named.items():
                    sums[f"{name}/{metric}"] = its.total(logits, labels, mask)
            elif len(names) > 1:
                stacked = jnp.stack([named[name] for name in names])
                sums[metric] = its.total(stacked, labels, mask)
        return sums

    return eval_step
