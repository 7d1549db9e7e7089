"""The evaluation steps: sums of every metric over a batch, and with them the logits."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from jaxsplit import augment
from jaxsplit.evaluation.metrics import METRICS
from jaxsplit.evaluation.results import EXAMPLES, NETWORKS
from jaxsplit.methods.base import Method, network_names

Sums = dict[str, dict[str, Array]]


def make_eval_step(
    method: Method, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict, dict], Sums]:
    """(variables, batch) -> sums over the real examples of a padded batch, name -> metric -> sum.

    A batch is {'images': uint8[B, H, W, C], 'labels': int32[B], 'mask': float32[B]}. The names are
    those in `method.predict`, `NETWORKS` for metrics of all networks together, and `EXAMPLES` for
    their `count`.
    """

    def eval_step(variables: dict, batch: dict) -> Sums:
        images = augment.eval_view(batch["images"], mean, std)
        return _sums(method.predict(variables, images), batch["labels"], batch["mask"])

    return eval_step


def make_predict_step(
    method: Method, mean: Sequence[float], std: Sequence[float]
) -> Callable[[dict, dict], tuple[Sums, dict]]:
    """(variables, batch) -> (sums as of `make_eval_step`, rows).

    The batch has also 'index': int32[B], the position of each example, -1 of padding. The rows are
    its labels, mask and index, and 'logits': name -> float32[B, K].
    """

    def predict_step(variables: dict, batch: dict) -> tuple[Sums, dict]:
        images = augment.eval_view(batch["images"], mean, std)
        named = method.predict(variables, images)
        rows = {key: batch[key] for key in ("labels", "mask", "index")}
        rows["logits"] = {name: logits.astype(jnp.float32) for name, logits in named.items()}
        return _sums(named, batch["labels"], batch["mask"]), rows

    return predict_step


def _sums(named: dict[str, Array], labels: Array, mask: Array) -> Sums:
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
