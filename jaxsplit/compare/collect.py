"""The rows of a comparison: one for each run, one for each group of runs that differ in the seed.

`write` makes `metrics.csv` and `compare.csv` of them. Shares are 0..1, times in seconds, numbers in
full precision; a cell is empty where its number is not known.
"""

import csv
import dataclasses
import functools
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsplit.compare import bootstrap, runs
from jaxsplit.compare.bootstrap import Difference, Spread
from jaxsplit.compare.record import NAME, VERSION
from jaxsplit.compare.runs import SINGLE, Run
from jaxsplit.errors import ConfigError
from jaxsplit.workdir import files

GROUPS, RUNS = "compare.csv", "metrics.csv"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only.

    difference: of top-1 to the undivided network, over the seeds that both have; None: there is no
    such seed, or no predictions. nll_difference: the same of NLL, nats.
    nll_differences, ece_differences: of the same seeds, ours less theirs.
    reference: the runs of the undivided network.
    """

    method: str
    split: int
    axes: tuple[tuple[str, Any], ...]
    runs: tuple[Run, ...]
    reference: tuple[Run, ...] = ()
    difference: Difference | None = None
    nll_difference: Difference | None = None
    nll_differences: tuple[float, ...] = ()
    ece_differences: tuple[float, ...] = ()

    @functools.cached_property
    def ece_difference(self) -> Difference | None:
        """Over seeds alone, as an ECE is of a whole test set; None: fewer than two seeds."""
        if len(self.ece_differences) < 2:
            return None
        found = np.asarray(self.ece_differences)[:, None]
        return bootstrap.paired(found, np.zeros_like(found))

    @functools.cached_property
    def name(self) -> str:
        """Such as: cotrain S=4 weight=0.1."""
        size = "" if self.method == SINGLE and self.split == 1 else f" S={self.split}"
        last = [field.rpartition(".")[2] for field, _ in self.axes]
        short = [
            one if last.count(one) == 1 else field
            for one, (field, _) in zip(last, self.axes, strict=True)
        ]
        values = (f" {s}={text(v)}" for s, (_, v) in zip(short, self.axes, strict=True))
        return f"{self.method}{size}{''.join(values)}"

    @property
    def counted(self) -> list[Run]:
        """The runs that are part of the means."""
        return [run for run in self.runs if run.counts]

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.status == runs.FAILED]

    @property
    def is_single(self) -> bool:
        """Whether it is the undivided network."""
        return self.method == SINGLE

    @property
    def kind(self) -> str:
        """'undivided'; 'together': several networks answer; 'one of several' that were trained."""
        if self.is_single or self.split == 1:
            return "undivided" if self.is_single else "one of several"
        return "one of several" if self.runs[0].one_of_several else "together"

    def spread(self, of: Callable[[Run], float | None]) -> Spread | None:
        """Mean and deviation over the counted runs; None where none has the number."""
        values = [of(run) for run in self.counted]
        return bootstrap.spread([value for value in values if value is not None])

    def mean(self, of: Callable[[Run], float | None]) -> float | None:
        found = self.spread(of)
        return None if found is None else found.mean

    @property
    def cost(self) -> Run:
        """The run that tells the costs, which do not depend on the seed."""
        return self.runs[0]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a comparison has come to.

    record: the contents of compare.json.
    """

    folder: pathlib.Path
    record: Mapping[str, Any]
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]

    @property
    def axes(self) -> list[str]:
        """The fields that differ between runs, besides method, S and seed."""
        return list(dict.fromkeys(field for run in self.runs for field, _ in run.axes))


# ---- What is taken of a run


def top1(run: Run) -> float | None:
    """Accuracy of the answer on the test set, 0..1."""
    return run.scores.top1 if run.scores else None


def nll(run: Run) -> float | None:
    """NLL on the test set after temperature scaling, nats."""
    return run.scores.nll if run.scores else None


def ece(run: Run) -> float | None:
    """ECE on the test set after temperature scaling, 0..1."""
    return run.scores.ece if run.scores else None


def seconds(run: Run) -> float | None:
    """Of training."""
    return run.seconds


def latency(run: Run) -> float | None:
    """Seconds of a batch, of the answer."""
    return run.latency.answer if run.latency else None


def latency_ratio(run: Run) -> float | None:
    """The same as a share of the undivided network's time, measured in turns with it."""
    its = run.latency
    return its.answer / its.undivided if its and its.answer and its.undivided else None


def cascade_latency(run: Run) -> float | None:
    """Seconds of a batch, of the cascade."""
    return run.latency.cascade if run.latency and cascade_macs(run) else None


def cascade_latency_ratio(run: Run) -> float | None:
    """The same as a share of the undivided network's time."""
    its, seconds = run.latency, cascade_latency(run)
    return seconds / its.undivided if its and seconds and its.undivided else None


def cascade_macs(run: Run) -> float | None:
    """Mean multiply-adds of an image, of the cascade."""
    point = run.scores.images.cascade if run.scores and run.scores.images else None
    return point.cost if point else None


def cascade_top1(run: Run) -> float | None:
    """Accuracy of the cascade on the test set, 0..1."""
    point = run.scores.images.cascade if run.scores and run.scores.images else None
    return point.accuracy if point else None


def networks_top1(run: Run) -> float | None:
    """Mean accuracy of the single networks, 0..1."""
    return run.scores.networks_top1 if run.scores else None


def disagreement(run: Run) -> float | None:
    """Share of network pairs that differ, on test images."""
    return run.scores.disagreement if run.scores else None


def gap(run: Run) -> float | None:
    """The same less that on training images."""
    return run.scores.gap if run.scores else None


# ---- Reading


def read(workdir: pathlib.Path) -> Found:
    """Everything that a comparison has come to so far; runs that failed or wait are marked.

    Raises:
      ConfigError: there is no compare.json, or it cannot be read.
    """
    path = workdir / NAME
    try:
        record = json.loads(path.read_text())
        if record["version"] != VERSION:
            raise ValueError(f"version={record['version']!r}: must be {VERSION}")
        entries = list(record["runs"])
        for entry in entries:
            if not runs.is_inside(str(entry["name"])):
                raise ValueError(f"name={entry['name']!r}: must be the name of a folder")
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; `jaxsplit compare` writes it") from None
    except KeyError as error:
        raise ConfigError(f"{path}: cannot be read ({error.args[0]} is missing)") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    found = tuple(runs.read(workdir, entry) for entry in entries)
    return Found(workdir, record, found, tuple(groups(found)))


def groups(found: Sequence[Run]) -> list[Group]:
    """Runs by method, S and axes, in the order of the first, each beside its undivided network."""
    by: dict[tuple[str, int, tuple], list[Run]] = {}
    for run in found:
        by.setdefault((run.method, run.split, run.axes), []).append(run)
    singles = {axes: its for (method, _, axes), its in by.items() if method == SINGLE}
    return [
        _beside(Group(method, split, axes, tuple(its)), _reference(axes, singles))
        for (method, split, axes), its in by.items()
    ]


def _reference(axes: tuple, singles: Mapping[tuple, list[Run]]) -> Sequence[Run]:
    """The undivided network at the same values of the axes that it has; () without one."""
    fits = [own for own in singles if set(own) <= set(axes)]
    return singles[max(fits, key=len)] if fits else ()


def _beside(group: Group, reference: Sequence[Run]) -> Group:
    """The group with its differences to the undivided network."""
    if group.is_single or not reference:
        return dataclasses.replace(group, reference=tuple(reference))
    theirs = {run.seed: run.scores for run in reference if run.scores}
    pairs = [(its, theirs[r.seed]) for r in group.runs if (its := r.scores) and r.seed in theirs]
    return dataclasses.replace(
        group,
        reference=tuple(reference),
        difference=_difference(pairs, lambda images: images.right),
        nll_difference=_difference(pairs, lambda images: images.nll),
        nll_differences=tuple(ours.nll - other.nll for ours, other in pairs),
        ece_differences=tuple(ours.ece - other.ece for ours, other in pairs),
    )


def _difference(
    pairs: Sequence[tuple[runs.Scores, runs.Scores]],
    of: Callable[[runs.Images], np.ndarray | None],
) -> Difference | None:
    """Of the test images that all runs have answered: bad records may have been left out."""
    images = [(a.images, b.images) for a, b in pairs if a.images and b.images]
    every = [one for pair in images for one in pair]
    if not images or any(of(one) is None for one in every):
        return None
    common = functools.reduce(np.intersect1d, [one.index for one in every])
    if not len(common):
        return None

    def at(one: runs.Images) -> np.ndarray:
        values = of(one)
        assert values is not None
        return values[np.searchsorted(one.index, common)]

    ours, theirs = (np.stack([at(pair[i]) for pair in images]) for i in (0, 1))
    return bootstrap.paired(ours, theirs)


# ---- Writing


def write(workdir: pathlib.Path) -> Found:
    """Reads the runs of a comparison, and writes metrics.csv and compare.csv beside them.

    Raises:
      ConfigError: as `read`; or a file cannot be written.
    """
    found = read(workdir)
    tables = {
        RUNS: [_run_row(run, found.axes) for run in found.runs],
        GROUPS: [_group_row(group, found.axes) for group in found.groups],
    }
    for name, rows in tables.items():
        try:
            files.write_text(workdir / name, _csv(rows))
        except OSError as error:
            raise ConfigError(f"{workdir / name}: cannot be written ({error})") from None
    return found


_OF_RUN: Mapping[str, Callable[[Run], Any]] = {
    "top1": top1,
    "nll": nll,
    "ece": ece,
    "networks_top1": networks_top1,
    "disagreement": disagreement,
    "diversity_gap": gap,
    "cascade_top1": cascade_top1,
    "cascade_macs": cascade_macs,
    "seconds": seconds,
    "latency_batch": lambda run: run.latency.batch if run.latency else None,
    "latency": latency,
    "latency_undivided": lambda run: run.latency.undivided if run.latency else None,
    "latency_cascade": cascade_latency,
}
_COSTS = ("params", "macs", "train_macs")


def _run_row(run: Run, axes: Sequence[str]) -> dict[str, Any]:
    row = {"run": run.name, "method": run.method, "split": run.split, "seed": run.seed}
    row |= {field: dict(run.axes).get(field) for field in axes}
    row |= {"status": run.status, "answer": run.answer}
    row |= {name: of(run) for name, of in _OF_RUN.items()}
    return row | {name: getattr(run, name) for name in _COSTS} | {"error": run.error}


def _group_row(group: Group, axes: Sequence[str]) -> dict[str, Any]:
    its = group.difference
    row: dict[str, Any] = {"method": group.method, "split": group.split}
    row |= {field: dict(group.axes).get(field) for field in axes}
    row |= {"seeds": len(group.counted), "failed": len(group.failed)}
    row["waiting"] = len(group.runs) - row["seeds"] - row["failed"]
    for name, of in _OF_RUN.items():
        found = group.spread(of)
        row[name] = found.mean if found else None
        if name != "latency_batch":
            row[f"{name}_deviation"] = found.deviation if found else None
    row |= _interval("difference", its)
    row["difference_seeds"] = its.seeds if its else None
    row["difference_over"] = its.over if its else None
    for name, differences, found in (
        ("nll_difference", group.nll_differences, group.nll_difference),
        ("ece_difference", group.ece_differences, group.ece_difference),
    ):
        over_seeds = bootstrap.spread(differences)
        row |= _interval(name, found) | {name: over_seeds.mean if over_seeds else None}
        row[f"{name}_deviation"] = over_seeds.deviation if over_seeds else None
    return row | {name: getattr(group.cost, name) for name in _COSTS}


def _interval(name: str, found: Difference | None) -> dict[str, float | None]:
    return {
        name: found.mean if found else None,
        f"{name}_lower": found.lower if found else None,
        f"{name}_upper": found.upper if found else None,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    heads = list(rows[0]) if rows else []
    csv.writer(out, lineterminator="\n").writerows([heads, *(_cells(r.values()) for r in rows)])
    return out.getvalue()


def _cells(values: Iterable[Any]) -> list[str]:
    cells = []
    for value in values:
        known = value is not None and not (isinstance(value, float) and math.isnan(value))
        cells.append((repr(value) if isinstance(value, float) else text(value)) if known else "")
    return cells


def text(value: Any) -> str:
    """A value of an axis as it is typed: True, 0.1, 3 epochs, 1,2."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ",".join(map(text, value)) if isinstance(value, tuple | list) else str(value)
