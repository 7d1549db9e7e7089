"""Folders as `compare` leaves them, made of random logits, without training."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsplit import config as config_lib
from jaxsplit.compare import collect, runs
from jaxsplit.evaluation import predictions, record
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions
from jaxsplit.inference import latency
from jaxsplit.inference.timing import Times
from tests.support.reports import results_of
from tests.support.runs import one_network, tiny

STEP, CLASSES = 40, 5
MACS = 8000  # of the undivided network


def labels(count: int) -> np.ndarray:
    """int32[N], the same in every run."""
    return np.random.default_rng(7).integers(0, CLASSES, count).astype(np.int32)


def logits(right: np.ndarray, its: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32[N, K] that answer an image right where `right` says so."""
    out = rng.normal(0, 0.3, (len(its), CLASSES))
    answer = np.where(right, its, (its + 1 + rng.integers(0, CLASSES - 1, len(its))) % CLASSES)
    out[np.arange(len(its)), answer] += rng.uniform(1.5, 4, len(its))
    return out.astype(np.float32)


def predicted(split: int, top1: float, seed: int, count: int) -> Predictions:
    """Networks of about this accuracy; which images are hard is the same in every run."""
    rng, its = np.random.default_rng([seed, split]), labels(count)
    hard = np.random.default_rng(11).normal(size=count)
    found = {}
    for i in range(split):
        order = (hard + 0.6 * rng.normal(size=count)).argsort().argsort()
        found[f"net{i}"] = logits(order < round(top1 * count), its, rng)
    if split > 1:
        found["ensemble"] = np.mean(list(found.values()), 0)
    one = SplitPredictions(its, np.arange(count), found)
    return Predictions(STEP, {"test": one, "train": one})


def evaluated(path: pathlib.Path, found: Predictions, answer: str) -> None:
    """eval.json and predictions.npz."""
    results = results_of(found)
    splits = record.of_splits(results, found)
    whole = {
        "format": record.FORMAT,
        "step": STEP,
        "config": {"ensemble": "mean_logits"},
        "answer": answer,
        "splits": splits,
        "temperature": record.scaled(results, found),
        "diversity_gap": record.gap(results),
    }
    (path / record.FILE).write_text(record.text(whole))
    predictions.write(path / predictions.FILE, found)


def timed(path: pathlib.Path, split: int, macs: int, milliseconds: float, cascade: float) -> None:
    """latency.json: batches of 1 and 64; the undivided network takes 1 ms for 1 image."""

    def times(value: float) -> Times:
        return Times(value / 1e3, value / 1.1e3, value / 0.9e3, value / 1.2e3, 10)

    made = [latency.Candidate("undivided", "wide_resnet10_1", 1, "dense", 1, 100, MACS)]
    took = {"undivided": 1.0}
    if split > 1:
        made.append(latency.Candidate("dense", "wide_resnet10_1", split, "dense", 1, 100, macs))
        made.append(latency.Candidate("cascade", "wide_resnet10_1", split, "", 1, 100, None))
        took |= {"dense": milliseconds, "cascade": cascade}
    cells = [latency.Cell(n, b, times(v * b**0.5)) for b in (1, 64) for n, v in took.items()]
    about: dict[str, Any] = dict(arch="wide_resnet10_1", split=split, method="any", dtype="float32")
    about |= dict(image_shape=[8, 8, 1], num_classes=CLASSES, platform="cpu", device="cpu")
    about |= dict(cores=2, devices=1, seconds=1.0, jax="0", jaxsplit="0")
    latency.write(latency.Found(tuple(made), (1, 64), tuple(cells), about), path)


def run(
    folder: pathlib.Path,
    method: str,
    split: int,
    seed: int,
    *,
    top1: float = 0.9,
    axes: dict[str, Any] | None = None,
    status: str = "finished",
    error: str = "",
    seconds: float = 60.0,
    macs: int = MACS,
    one_of_several: bool = False,
    count: int = 200,
    latency_ms: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Writes the folder of a run, and returns its entry of compare.json.

    status: 'waiting' writes no folder; others than 'finished' are not evaluated.
    latency_ms: of a batch of one image: (networks together, cascade).
    """
    extra = "".join(f"-{k.rpartition('.')[2]}={v}" for k, v in (axes or {}).items())
    name = f"{method}-s{split}{extra}-seed{seed}"
    answer = "net0" if split == 1 or one_of_several else "ensemble"
    path = folder / name
    entry: dict[str, Any] = {"name": name, "method": method, "split": split, "seed": seed}
    entry |= {"axes": axes or {}, "overrides": {}}
    trained = split * macs if one_of_several else macs
    entry["cost"] = {"params": macs // 8, "macs": macs, "train_macs": trained}
    if status == "waiting":
        return entry
    path.mkdir(parents=True)
    known = dict(status=status, error=error, seconds=seconds, starts=1)
    (path / runs.STATUS).write_text(json.dumps(known))
    config = one_network(seed=seed) if split == 1 else tiny(split=split, seed=seed)
    config_lib.save(config, path)
    if status == "finished":
        salted = 1000 * seed + sum(map(ord, name.rpartition("-")[0]))
        found = predicted(split, top1, salted, count)
        evaluated(path, found, answer)
        if latency_ms is not None:
            timed(path, split, macs, *latency_ms)
    return entry


def write(folder: pathlib.Path, entries: Sequence[dict[str, Any]], **grid: Any) -> pathlib.Path:
    """compare.json of these runs; `grid` replaces parts of its "grid"."""
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = {
        "methods": list(dict.fromkeys(one["method"] for one in entries)),
        "splits": sorted({one["split"] for one in entries}),
        "seeds": sorted({one["seed"] for one in entries}),
        "axes": {},
    }
    config = json.loads(tiny().to_json())
    record_ = {"version": 1, "config": config, "grid": whole | grid, "runs": list(entries)}
    (folder / collect.NAME).write_text(json.dumps(record_))
    return folder
