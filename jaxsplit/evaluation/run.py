"""Evaluation of every network and of what they answer together, over exactly all examples."""

from collections.abc import Callable

import jax
import numpy as np

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.sharding import Sharding


def evaluate(
    eval_step: Callable[[dict, dict], dict[str, jax.Array]],
    variables: dict,
    split: data.Arrays | data.Stream,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    sharding: Sharding,
    threads: int = 8,
    first_only: bool = False,
) -> dict[str, float]:
    """Means over a split.

    Args:
      eval_step: jitted `make_eval_step`.
      variables: {'params', 'batch_stats'} on the mesh.
      split: the examples.
      image_shape: (H, W, C).
      batch_size: examples a step; rounded up to a multiple of the devices along the batch.
      sharding: the mesh.
      threads: that decode a streamed split.
      first_only: of its first batch alone, as a trial.

    Returns:
      <name>/top1, <name>/top5 (shares in 0..1), <name>/nll (nats) for every name that the method
      predicts, `disagreement` (mean share of network pairs that answer differently), `oracle`
      (share of examples that any network answers right) and `count`.

    Raises:
      ConfigError: every example of the split is bad and was skipped.
    """
    devices = sharding.data_devices
    part, parts = sharding.part
    batches = data.eval_batches(
        split,
        batch_size=-(-batch_size // devices) * devices,
        image_shape=image_shape,
        process_index=part,
        process_count=parts,
        threads=threads,
    )
    totals: dict[str, np.float64] = {}
    pending = None
    for batch in batches:
        sums = eval_step(variables, sharding.put_local(batch, sharding.batch))
        # Read the batch before this one, so that the device always has one queued.
        _add(totals, pending)
        pending = sums
        if first_only:
            break
    _add(totals, pending)
    if hasattr(batches, "close"):  # ends the threads that read
        batches.close()
    count = float(totals.pop("count"))
    if not count and first_only:
        return {}
    if not count:
        raise ConfigError("data.on_bad_record='skip': leaves no example to evaluate; all are bad")
    return {name: float(total) / count for name, total in totals.items()} | {"count": count}


def _add(totals: dict[str, np.float64], sums: dict[str, jax.Array] | None) -> None:
    for name, value in jax.device_get(sums or {}).items():
        totals[name] = totals.get(name, np.float64(0.0)) + np.float64(value)
