"""Evaluation of every network and of their common answer, over exactly all examples."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation.results import EXAMPLES, SplitResults
from jaxsplit.sharding import Sharding

Sums = dict[str, dict[str, jax.Array]]


def evaluate(
    eval_step: Callable[[dict, dict], Sums],
    variables: dict,
    split: data.Arrays | data.Stream,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    sharding: Sharding,
    threads: int = 8,
) -> SplitResults:
    """Means over a split.

    Args:
      eval_step: jitted `make_eval_step`.
      variables: {'params', 'batch_stats'} on the devices.
      split: the examples.
      image_shape: (H, W, C).
      batch_size: examples a step; rounded up to a multiple of the devices along the batch.
      sharding: how arrays lie on the devices.
      threads: that decode a streamed split.

    Returns:
      For every name that the method predicts its top1, top5 (shares in 0..1) and nll (nats); under
      `NETWORKS` disagreement (mean share of network pairs that answer differently) and oracle
      (share of examples that any network answers right); under `EXAMPLES` count.

    Raises:
      ConfigError: every example of the split is bad and was skipped.
    """
    totals: dict[str, dict[str, np.float64]] = {}
    pending: Sums = {}
    with _sums(eval_step, variables, split, image_shape, batch_size, sharding, threads) as batches:
        for sums in batches:
            # Read the batch before this one, so that the device always has one queued.
            _add(totals, pending)
            pending = sums
    _add(totals, pending)
    count = float(totals.pop(EXAMPLES)["count"])
    if not count:
        raise ConfigError("data.on_bad_record='skip': leaves no example to evaluate; all are bad")
    means = {
        name: {metric: float(total) / count for metric, total in values.items()}
        for name, values in totals.items()
    }
    return means | {EXAMPLES: {"count": count}}


def try_first(
    eval_step: Callable[[dict, dict], Sums],
    variables: dict,
    split: data.Arrays | data.Stream,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    sharding: Sharding,
    threads: int = 8,
) -> None:
    """Evaluates the first batch of a split, to see that it can be done. Arguments as `evaluate`."""
    with _sums(eval_step, variables, split, image_shape, batch_size, sharding, threads) as batches:
        jax.block_until_ready(next(batches, None))


@contextlib.contextmanager
def _sums(
    eval_step: Callable[[dict, dict], Sums],
    variables: dict,
    split: data.Arrays | data.Stream,
    image_shape: tuple[int, int, int],
    batch_size: int,
    sharding: Sharding,
    threads: int,
) -> Iterator[Iterator[Sums]]:
    """The sums of each batch; at the end the threads that read are ended."""
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
    try:
        yield (eval_step(variables, sharding.put_local(batch, sharding.batch)) for batch in batches)
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _add(totals: dict[str, dict[str, np.float64]], sums: Sums) -> None:
    for name, values in jax.device_get(sums).items():
        mine = totals.setdefault(name, {})
        for metric, value in values.items():
            mine[metric] = mine.get(metric, np.float64(0.0)) + np.float64(value)
