"""The logits of every answer to every example of a split, and the file that keeps them."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation.results import SplitResults, answers
from jaxsplit.evaluation.run import EvalPass, Totals
from jaxsplit.workdir import files

FILE = "predictions.npz"
_SEED = 2002  # of the sample of the training set


@dataclasses.dataclass(frozen=True)
class SplitPredictions:
    """What was answered to the N examples of a split; bad records that are skipped are none.

    labels: int32[N].
    index: int64[N], ascending: the position of each example in its split.
    logits: name of an answer -> float32[N, K]; single networks first, by number.
    """

    labels: np.ndarray
    index: np.ndarray
    logits: dict[str, np.ndarray]

    def networks(self) -> np.ndarray:
        """float32[S, N, K]: the logits of the single networks."""
        return np.stack([self.logits[name] for name in self.logits if name.startswith("net")])


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The contents of `predictions.npz`: of one checkpoint, by the name of the split."""

    step: int
    splits: dict[str, SplitPredictions]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the answers; the same in every split."""
        return tuple(next(iter(self.splits.values())).logits)


def make_collect(predict_step: Callable, how: EvalPass, options: Any = None) -> Callable:
    """`make_predict_step`'s function, jitted: every process gets the rows of the whole batch.

    options: of the compiler.
    """
    everywhere = how.sharding.named(how.sharding.replicated)
    return jax.jit(predict_step, out_shardings=(None, everywhere), compiler_options=options)


def collect(
    step: Callable[[dict, dict], tuple],
    variables: dict,
    split: data.Arrays | data.Stream,
    how: EvalPass,
) -> tuple[SplitResults, SplitPredictions | None]:
    """One pass over a split, which gives the means and the logits. Collective.

    Args:
      step: of `make_collect`.
      variables: {'params', 'batch_stats'} on the devices.
      split: the examples.
      how: they come to the devices.

    Returns:
      (means as of `evaluate`, logits on process 0 and None on the others).

    Raises:
      ConfigError: every example of the split is bad and was skipped.
    """
    totals, pending = Totals(), None
    kept = _Kept(len(split)) if jax.process_index() == 0 else None

    def take(output: tuple | None) -> None:
        if output is not None:
            totals.add(output[0])
            if kept is not None:
                kept.add(jax.device_get(output[1]))

    part, _ = how.sharding.part
    with how.batches(split) as batches:
        for k, batch in enumerate(batches):
            rows = len(batch["labels"])
            first = k * how.rows + part * rows
            batch = batch | {"index": np.arange(first, first + rows, dtype=np.int32)}
            output = step(variables, how.put(batch))
            take(pending)  # the batch before this one, so that the device always has one queued
            pending = output
    take(pending)
    return totals.means(), None if kept is None else kept.whole()


class _Kept:
    """Rows of batches, put where the examples lie in the split."""

    def __init__(self, count: int) -> None:
        self._labels = np.full(count, -1, np.int32)  # -1: not seen
        self._logits: dict[str, np.ndarray] = {}

    def add(self, rows: dict[str, Any]) -> None:
        real = rows["mask"] > 0
        at = rows["index"][real]
        self._labels[at] = rows["labels"][real]
        for name, logits in rows["logits"].items():
            if name not in self._logits:
                shape = (len(self._labels), logits.shape[1])
                self._logits[name] = np.zeros(shape, np.float32)
            self._logits[name][at] = logits[real]

    def whole(self) -> SplitPredictions:
        seen = self._labels >= 0
        index = np.flatnonzero(seen)
        if not seen.all():
            for name in self._logits:  # one at a time, which takes less memory
                self._logits[name] = self._logits[name][seen]
        logits = {name: self._logits[name] for name in answers(self._logits)}
        return SplitPredictions(self._labels[seen], index, logits)


def memory(examples: int, num_classes: int, num_networks: int) -> int:
    """Bytes that logits, and what is computed of one split of them, take at most on a host.

    examples: of all splits.
    """
    answers = num_networks + 3  # ensemble, leader, fusion
    one = examples * num_classes
    return one * (4 * answers + 4 * num_networks + 4 * 8)  # kept, stacked, float64 of one answer


def train_sample(dataset: data.Dataset) -> tuple[data.Arrays | data.Stream, np.ndarray]:
    """(examples, their positions int64[M]) of the training set, as many as the test set has.

    The positions are ascending, and the same in every run; all, where the training set is smaller.
    """
    train = dataset.train
    count = min(len(dataset.test), len(train))
    rng = np.random.Generator(np.random.Philox(_SEED))
    at = np.sort(rng.permutation(len(train))[:count]).astype(np.int64)
    return (train.take(at) if isinstance(train, data.Arrays) else train.part(at)), at


def write(path: pathlib.Path, found: Predictions) -> None:
    """Writes or replaces a file of predictions.

    Its arrays are `step`, `names` and for each split `<split>/labels`, `<split>/index` and
    `<split>/logits/<name>`, as of `SplitPredictions`.

    Raises:
      OSError: it cannot be written.
    """
    arrays: dict[str, Any] = {"step": np.int64(found.step), "names": np.array(found.names)}
    for split, its in found.splits.items():
        arrays |= {f"{split}/labels": its.labels, f"{split}/index": its.index}
        arrays |= {f"{split}/logits/{name}": logits for name, logits in its.logits.items()}
    files.write_with(path, lambda file: _savez(file, arrays))


def read(path: str | os.PathLike) -> Predictions:
    """What `write` wrote.

    Raises:
      ConfigError: there is no such file, or it is another one.
    """
    try:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(files.path_of(path).open("rb"))
            arrays = opened.enter_context(np.load(file, allow_pickle=False))
            names = [str(name) for name in arrays["names"]]
            splits = [key.partition("/")[0] for key in arrays.files if key.endswith("/labels")]
            return Predictions(
                int(arrays["step"]),
                {
                    split: SplitPredictions(
                        arrays[f"{split}/labels"],
                        arrays[f"{split}/index"],
                        {name: arrays[f"{split}/logits/{name}"] for name in names},
                    )
                    for split in splits
                },
            )
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; `jaxsplit eval` writes it") from None
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise ConfigError(f"{path}: must be a file that `jaxsplit eval` wrote ({error})") from error


def _savez(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    np.savez(file, **arrays)
