"""The evaluation step: sums of every metric over a batch."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from jaxsplit import augment
from jaxsplit.evaluation.metrics import METRICS
from jaxsplit.evaluation.results import EXAMPLES, NETWORKS
from jaxsplit.methods.base import Method, network_names


def make_eval_step(
    method: Method, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict, dict], dict[str, dict[str, Array]]]:
    """(variables, batch) -> sums over the real examples of a padded batch, name -> metric -> sum.

    A batch is {'images': uint8[B, H, W, C], 'labels': int32[B], 'mask': float32[B]}. The names are
    those in `method.predict`, `NETWORKS` for metrics of all networks together, and `EXAMPLES` for
    their `count`.
    """

    def eval_step(variables: dict, batch: dict) -> dict[str, dict[str, Array]]:
        images = augment.eval_view(batch["images"], mean, std)
        labels, mask = batch["labels"], batch["mask"]
        named = method.predict(variables, images)
        names = network_names(named)
        sums = {
            name: {
                metric: its.total(logits, labels, mask)
                for metric, its in METRICS.items()
                if not its.of_networks
            }
            for name, logits in named.items()
        }
        if len(names) > 1:
            stacked = jnp.stack([named[name] for name in names])
            sums[NETWORKS] = {
                metric: its.total(stacked, labels, mask)
                for metric, its in METRICS.items()
                if its.of_networks
            }
        return sums | {EXAMPLES: {"count": mask.sum()}}

    return eval_step
