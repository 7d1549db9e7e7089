"""What one run of a grid has come to, read from its workdir; nothing is computed on a device."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsplit import config as config_lib
from jaxsplit import methods
from jaxsplit.compare.record import FAILED, FINISHED, RUNNING, STOPPED
from jaxsplit.compare.record import OF_RUN as STATUS
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import record, scores, temperature
from jaxsplit.evaluation.predictions import FILE as PREDICTIONS
from jaxsplit.inference import cascade, latency
from jaxsplit.inference.cascade import Point
from jaxsplit.inference.latency import Found

WAITING = "waiting"  # for its first start; the other states are those of record.py
STATES = (FINISHED, FAILED, STOPPED, RUNNING, WAITING)
SINGLE = methods.ALONE  # the method of the undivided network
ENSEMBLE = "ensemble"
_ALL = 0.95  # of the multiply-adds in training; an answer that takes less is not that of all
_NEAR = 0.05  # by which multiply-adds of what was timed may differ from those of the answer


@dataclasses.dataclass(frozen=True)
class Images:
    """What predictions.npz says of an answer.

    index: int64[N], the position of each test image. right: float64[N], 1 where it is right.
    nll: float64[N], nats after temperature scaling; None: not known.
    cascade: of the networks, as accurate as all of them together where that was fitted; None: there
    is no cascade.
    """

    index: np.ndarray
    right: np.ndarray
    cascade: Point | None = None
    nll: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of the test set; NLL and ECE after temperature scaling, shares 0..1.

    networks_top1: mean of the single networks; disagreement: of their pairs on test images, gap:
    that less the one on training images. None of one network.
    """

    top1: float
    nll: float
    ece: float
    networks_top1: float | None
    disagreement: float | None
    gap: float | None
    images: Images | None


@dataclasses.dataclass(frozen=True)
class Latency:
    """Median seconds of a batch on one device, of the answer, undivided network and cascade.

    A batch of the smallest size that was measured. None: not measured.
    """

    batch: int
    answer: float | None
    undivided: float | None
    cascade: float | None
    where: str


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the grid.

    status: of STATES. error: why it failed, or why its files cannot be read; ''.
    params, macs: of what is deployed, macs those of one image. train_macs: of one image's forward
    pass of all that trains. None: not known.
    seconds: of training. scores: None where it does not count.
    """

    name: str
    path: pathlib.Path
    method: str
    split: int
    seed: int
    axes: tuple[tuple[str, Any], ...]
    status: str
    error: str
    params: int | None
    macs: int | None
    train_macs: int | None
    seconds: float | None
    answer: str
    scores: Scores | None
    latency: Latency | None

    @property
    def counts(self) -> bool:
        """Whether it is part of the means."""
        return self.scores is not None

    @property
    def one_of_several(self) -> bool:
        """Whether several networks train and one answers, which then costs less."""
        if self.split == 1 or self.answer.startswith("net"):
            return self.split > 1
        if self.answer == ENSEMBLE:  # MIMO's training and that of a trunk cost more than its answer
            return False
        if self.macs and self.train_macs:
            return self.macs < _ALL * self.train_macs
        return self.answer != ENSEMBLE


def read(folder: pathlib.Path, entry: Mapping[str, Any]) -> Run:
    """A run of `compare.json`, an entry of its "runs".

    Files that are broken make the run one that failed, with the reason.

    Raises:
      ConfigError: the entry lacks a key, or holds a wrong value.
    """
    try:
        name, method = str(entry["name"]), str(entry["method"])
        split, seed, axes = int(entry["split"]), int(entry["seed"]), dict(entry.get("axes") or {})
        cost = dict(entry.get("cost") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"runs: {entry!r:.80}: cannot be read ({error})") from None
    path = folder / name
    params, macs, train_macs = (_count(cost.get(k)) for k in ("params", "macs", "train_macs"))
    status, error, seconds = _status(path)
    base = Run(
        name=name,
        path=path,
        method=method,
        split=split,
        seed=seed,
        axes=tuple((field, _hashable(value)) for field, value in axes.items()),
        status=status,
        error=error,
        params=params,
        macs=macs,
        train_macs=train_macs,
        seconds=seconds,
        answer=str(entry.get("answer") or ""),
        scores=None,
        latency=None,
    )
    if status not in (FINISHED, WAITING):
        return base
    try:
        return _evaluated(base)
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ConfigError) else f"{error!r}"
        line = reason.partition("\n")[0]
        return dataclasses.replace(base, status=FAILED, error=f"cannot be read: {line}")


def cascade_of(folder: pathlib.Path, entry: Mapping[str, Any]) -> Point | None:
    """The cascade of a run of `compare.json` that the tables show; None: it has none."""
    scores = read(folder, entry).scores
    return scores.images.cascade if scores and scores.images else None


def _status(path: pathlib.Path) -> tuple[str, str, float | None]:
    """(status, error, seconds) of compare_run.json; of a broken one the reason is the error."""
    try:
        found = json.loads((path / STATUS).read_text())
        status, error = str(found["status"]), str(found.get("error") or "")
        seconds = found.get("seconds")
        if status not in STATES:
            raise ValueError(f"status={status!r}: must be one of {', '.join(STATES)}")
        return status, error.partition("\n")[0], None if seconds is None else float(seconds)
    except FileNotFoundError:
        return WAITING, "", None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return FAILED, f"{STATUS} cannot be read ({error})", None


def _evaluated(run: Run) -> Run:
    """The run with its scores; unchanged where it was not evaluated."""
    path = run.path / record.FILE
    if not path.exists():
        if run.status == WAITING:
            return run
        return dataclasses.replace(run, status=FAILED, error=f"{record.FILE} is missing")
    found = json.loads(path.read_text())
    if found.get("format") != record.FORMAT:
        raise ConfigError(f"{record.FILE}: format={found.get('format')!r}: must be {record.FORMAT}")
    answer = run.answer or _deployed(run, found["answer"])
    test, scaled = found["splits"]["test"], found["temperature"]["answers"][answer]["after"]
    if test["answers"][answer]["nll"] is None or scaled["nll"] is None:
        return dataclasses.replace(
            run, answer=answer, status=FAILED, error="its NLL on the test set is not finite"
        )
    networks = [its["top1"] for name, its in test["answers"].items() if name.startswith("net")]
    several = len(networks) > 1
    apart = (found.get("diversity_gap") or {}).get("disagreement") or {}
    run = dataclasses.replace(run, answer=answer, status=FINISHED)
    its = Scores(
        top1=float(test["answers"][answer]["top1"]),
        nll=float(scaled["nll"]),
        ece=float(scaled["ece"]),
        networks_top1=float(np.mean(networks)) if several else None,
        disagreement=_number(apart.get("test")) if several else None,
        gap=_number(apart.get("gap")) if several else None,
        images=_images_of(run, found),
    )
    return dataclasses.replace(run, scores=its, latency=_latency(run))


def _deployed(run: Run, answer: str) -> str:
    """The answer that is compared.

    Where less is deployed than trains, one network answers in the end; it is the first, which
    nobody has chosen by its test images.
    """
    if answer != ENSEMBLE or run.split == 1 or not (run.macs and run.train_macs):
        return answer
    return "net0" if run.macs < _ALL * run.train_macs else answer


# ---- Images


def _images_of(run: Run, found: Mapping[str, Any]) -> Images | None:
    """None: there are no predictions of the evaluated checkpoint."""
    path = run.path / PREDICTIONS
    if not path.exists():
        return None
    stat = path.stat()
    networks = _cascaded(run) if run.answer == ENSEMBLE else ()
    how = str((found.get("config") or {}).get("ensemble") or "mean_logits")
    # In a bucket the names are those of etils.
    stamp = (
        float(getattr(stat, "st_mtime_ns", 0) or getattr(stat, "mtime", 0)),
        int(getattr(stat, "st_size", 0) or getattr(stat, "length", 0)),
    )
    scaled_by = float(found["temperature"]["answers"][run.answer]["temperature"])
    return _images(path, stamp, int(found["step"]), run.answer, scaled_by, networks, run.macs, how)


def _cascaded(run: Run) -> tuple[str, ...]:
    """The networks that a cascade can ask one after another; () where they share layers."""
    resolved = config_lib.resolve(config := config_lib.load(run.path))
    if resolved.trunk:
        return ()
    names = tuple(f"net{i}" for i in range(run.split))
    return names if set(names) <= set(resolved.entry.networks(config)) else ()


@functools.lru_cache(maxsize=1024)
def _images(
    path: pathlib.Path,
    stamp: tuple[float, int],
    step: int,
    answer: str,
    scaled_by: float,
    networks: tuple[str, ...],
    macs: int | None,
    how: str,
) -> Images | None:
    """Read once, though a page is made after every run; `stamp` tells a new file of the name."""
    assert stamp
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if int(arrays["step"]) != step:
            return None
        labels, index = arrays["test/labels"], arrays["test/index"]
        given = arrays[f"test/logits/{answer}"]
        right = scores.predicted(given) == labels
        divided_by: np.ndarray | float = scaled_by
        if "validation/labels" not in arrays.files:  # each half of the test set has the other's
            divided_by = temperature.cross_fitted(given, labels).each
        nll = scores.of_each(given, labels, divided_by).nll
        point = None
        if len(networks) > 1 and macs:
            held = "validation/labels" in arrays.files
            logits = {
                split: [arrays[f"{split}/logits/{name}"] for name in networks]
                for split in ("test", *(("validation",) if held else ()))
            }
            targets = {split: arrays[f"{split}/labels"] for split in logits}
            point = _cascade(logits, targets, macs / len(networks), how)
    return Images(index, right.astype(np.float64), point, nll)


def _cascade(
    logits: Mapping[str, list[np.ndarray]], labels: Mapping[str, np.ndarray], each: float, how: str
) -> Point | None:
    """The cheapest cascade that is as accurate as all networks, on images it was not fitted on.

    The threshold, and the order of the networks, come from held-out images where there are some,
    else the threshold from the test set by cross-fitting and the order from the numbers.
    """
    order = range(len(logits["test"]))
    if "validation" in logits:
        order = cascade.order(np.stack(logits["validation"]), labels["validation"])
    found = {k: cascade.steps_in_parts([its[i] for i in order], how) for k, its in logits.items()}
    costs = np.full(len(order), each)
    fitted_on = "validation" if "validation" in found else "test"
    wanted = float((found[fitted_on].answer[-1] == labels[fitted_on]).mean())
    try:
        if fitted_on == "test":
            return cascade.cross_fitted(
                found["test"], labels["test"], costs, accuracy=wanted
            ).expected
        at = cascade.fit(found["validation"], labels["validation"], costs, accuracy=wanted)
        return cascade.point(found["test"], labels["test"], costs, at.threshold)
    except ConfigError:  # too few images, or none is answered right
        return None


# ---- Latency


def _latency(run: Run) -> Latency | None:
    found = latency.read(run.path)
    if found is None:
        return None
    batch = found.batches[0]
    at = {cell.candidate: cell.times for cell in found.cells if cell.batch == batch}

    def median(name: str) -> float | None:
        times = at.get(name)
        return None if times is None else times.median

    taken = [seconds for name in _candidates(run, found) if (seconds := median(name)) is not None]
    about = found.facts
    where = str(about["device"])
    if about["platform"] == "cpu":
        cores = about["cores"]
        where = f"a CPU with {cores} core{'s' * (cores != 1)}" if cores else "a CPU"
    return Latency(
        batch=batch,
        answer=min(taken) if taken else None,
        undivided=median(latency.UNDIVIDED),
        cascade=median(latency.CASCADE),
        where=where,
    )


def _candidates(run: Run, found: Found) -> list[str]:
    """What was timed on one device and computes the answer, told by its multiply-adds.

    Where the undivided network costs about as much, the number of networks tells them apart; MIMO
    is one network that answers for several.
    """
    if run.macs is None:
        return []
    timed = [one for one in found.candidates if one.devices == 1 and one.macs]
    exact = [one for one in timed if one.macs == run.macs]
    near = [one for one in timed if one.macs and abs(one.macs / run.macs - 1) <= _NEAR]
    several = run.split > 1 and not run.one_of_several
    for fits in (exact, near):
        if alike := [one.name for one in fits if (one.networks > 1) == several]:
            return alike
    return [one.name for one in exact if one.name == latency.ONE]


# ---- Values


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def is_inside(name: str) -> bool:
    """Whether the name of a run is one part of a path, which lies inside the folder."""
    return name not in ("", ".", "..") and os.path.basename(name) == name
