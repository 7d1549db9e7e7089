"""Evaluation of every network and of their common answer, over exactly all examples."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation.results import EXAMPLES, SplitResults
from jaxsplit.sharding import Sharding

Sums = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class EvalPass:
    """How the examples of a split come to the devices.

    image_shape: (H, W, C).
    batch_size: examples a step; rounded up to a multiple of the devices along the batch.
    sharding: how arrays lie on the devices.
    threads: that decode a streamed split.
    """

    image_shape: tuple[int, int, int]
    batch_size: int
    sharding: Sharding
    threads: int = 8

    @property
    def rows(self) -> int:
        """Examples of a batch over all processes, padding included."""
        devices = self.sharding.data_devices
        return -(-self.batch_size // devices) * devices

    @contextlib.contextmanager
    def batches(self, split: data.Arrays | data.Stream) -> Iterator[Iterator[dict]]:
        """Those of `data.eval_batches` on this host; at the end the threads that read are ended."""
        part, parts = self.sharding.part
        batches = data.eval_batches(
            split,
            batch_size=self.rows,
            image_shape=self.image_shape,
            process_index=part,
            process_count=parts,
            threads=self.threads,
        )
        try:
            yield iter(batches)
        finally:
            if hasattr(batches, "close"):
                batches.close()

    def put(self, batch: dict) -> dict:
        """A batch of `batches` on the devices."""
        return self.sharding.put_local(batch, self.sharding.batch)


def evaluate(
    eval_step: Callable[[dict, dict], Sums],
    variables: dict,
    split: data.Arrays | data.Stream,
    how: EvalPass,
) -> SplitResults:
    """Means over a split.

    Args:
      eval_step: jitted `make_eval_step`.
      variables: {'params', 'batch_stats'} on the devices.
      split: the examples.
      how: they come to the devices.

    Returns:
      For every name that the method predicts its top1, top5 (shares in 0..1) and nll (nats); under
      `NETWORKS` disagreement (mean share of network pairs that answer differently) and oracle
      (share of examples that any network answers right); under `EXAMPLES` count.

    Raises:
      ConfigError: every example of the split is bad and was skipped.
    """
    totals, pending = Totals(), None
    with how.batches(split) as batches:
        for batch in batches:
            sums = eval_step(variables, how.put(batch))
            # Read the batch before this one, so that the device always has one queued.
            totals.add(pending)
            pending = sums
    totals.add(pending)
    return totals.means()


def try_first(
    eval_step: Callable[[dict, dict], Sums],
    variables: dict,
    split: data.Arrays | data.Stream,
    how: EvalPass,
) -> None:
    """Evaluates the first batch of a split, to see that it can be done. Arguments as `evaluate`."""
    with how.batches(split) as batches:
        for batch in batches:
            jax.block_until_ready(eval_step(variables, how.put(batch)))
            return


class Totals:
    """Sums over the batches of a split, in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, np.float64]] = {}

    def add(self, sums: Sums | None) -> None:
        """Adds those of a batch, once the devices have made them; None: none."""
        for name, values in jax.device_get(sums or {}).items():
            mine = self._sums.setdefault(name, {})
            for metric, value in values.items():
                mine[metric] = mine.get(metric, np.float64(0.0)) + np.float64(value)

    def means(self) -> SplitResults:
        """Means over the examples, and their count.

        Raises:
          ConfigError: there is none.
        """
        sums = dict(self._sums)
        count = float(sums.pop(EXAMPLES)["count"])
        if not count:
            raise ConfigError(
                "data.on_bad_record='skip': leaves no example to evaluate; all are bad"
            )
        means = {
            name: {metric: float(total) / count for metric, total in values.items()}
            for name, values in sums.items()
        }
        return means | {EXAMPLES: {"count": count}}
