"""Workdirs for tests of reports: made of random logits, without training."""

import json
import pathlib
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
from ml_collections import ConfigDict

from jaxsplit import config as config_lib
from jaxsplit import metrics
from jaxsplit.data import facts
from jaxsplit.evaluation import predictions, record
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions
from jaxsplit.report import page
from tests.support.runs import tiny

STEP = 40
VOID = {"meta", "img", "br"}  # elements that are not closed


def digits(**fields) -> ConfigDict:
    """The config of runs on the digits."""
    return tiny(data__name="digits", data__image_size=0, **fields)


def logits(labels: np.ndarray, classes: int, right: float, rng: np.random.Generator) -> np.ndarray:
    """float32[N, K] whose highest is that of the label in about a share `right` of N."""
    out = rng.normal(size=(len(labels), classes)).astype(np.float32)
    out[np.arange(len(labels)), labels] += 6 * (rng.random(len(labels)) < right)
    return out


def split(
    names: list[str], labels: np.ndarray, classes: int, rng: np.random.Generator
) -> SplitPredictions:
    found = {name: logits(labels, classes, 0.8, rng) for name in names if name not in ("ensemble",)}
    if "ensemble" in names:
        found["ensemble"] = np.mean([v for k, v in found.items() if k.startswith("net")], 0)
    index = np.arange(len(labels))
    return SplitPredictions(labels.astype(np.int32), index, {name: found[name] for name in names})


def results_of(found: Predictions) -> dict:
    """The means that `record` starts from."""
    out = {}
    for name, its in found.splits.items():
        means = {}
        for answer, values in its.logits.items():
            rank = (-values).argsort(1)
            top = [(rank[:, :k] == its.labels[:, None]).any(1).mean() for k in (1, 5)]
            log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
            nll = -log_p[np.arange(len(log_p)), its.labels].mean()
            means[answer] = {"top1": float(top[0]), "top5": float(top[1]), "nll": float(nll)}
        networks = [v.argmax(1) for k, v in its.logits.items() if k.startswith("net")]
        if len(networks) > 1:
            differ = [a != b for i, a in enumerate(networks) for b in networks[:i]]
            right = np.any([n == its.labels for n in networks], 0)
            means["all"] = {
                "disagreement": float(np.mean(differ)),
                "oracle": float(right.mean()),
            }
        out[name] = means | {"examples": {"count": float(len(its.labels))}}
    return out


def workdir(
    path: pathlib.Path,
    config: ConfigDict,
    *,
    names: tuple[str, ...] = ("net0", "net1", "ensemble"),
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = tuple(map(str, range(10))),
    shape: tuple[int, int, int] = (8, 8, 1),
    lines: bool = True,
    evaluated: bool = True,
) -> pathlib.Path:
    """A workdir as training and evaluation leave it, without checkpoints."""
    rng = np.random.default_rng(config.seed)
    path.mkdir(parents=True)
    config_lib.save(config, path)
    mean = (0.5,) * shape[2]
    facts.write(path, facts.Facts("any", len(classes), shape, mean, mean, classes))
    labels = rng.integers(0, len(classes), 60) if labels is None else labels
    every = {"test": labels, "train": labels[::-1]}
    if config.data.validation:
        every["validation"] = labels[: len(labels) // 2]
    found = Predictions(
        STEP, {k: split(list(names), v, len(classes), rng) for k, v in every.items()}
    )
    results = results_of(found)
    if evaluated:
        splits = record.of_splits(results, found)
        scored = {
            "format": record.FORMAT,
            "step": STEP,
            "checkpoint": "latest",
            "answer": names[-1],
            "classes": list(classes),
            "splits": splits,
            "temperature": record.scaled(results, found),
            "diversity_gap": record.gap(results),
            "versions": {"jaxsplit": "0.1.0"} | record.versions(),
        }
        (path / record.FILE).write_text(record.text(scored))
        predictions.write(path / predictions.FILE, found)
    if lines:
        text = []
        for step in (10, 20, STEP):
            row = {"step": step, "train/loss": 9 / step, "lr": 1 / step, "images_per_second": 50.0}
            row |= {f"train/{n}/cross_entropy": 3 / step for n in names if n.startswith("net")}
            text.append(json.dumps(row))
            row = {"step": step, "test/count": float(len(labels))}
            for name in names:
                row |= {f"test/{name}/top1": 1 - 5 / step, f"test/{name}/nll": 4 / step}
            text.append(json.dumps(row))
        (path / metrics.JSONL).write_text("\n".join(text) + "\n")
    return path


class Checked(HTMLParser):
    """Reads a page; every element must be closed, and in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.cells: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[k] for k in ("href", "src") if k in given]
        self.cells += [(tag, given)] if tag == "th" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def no_evaluation(run) -> None:
    raise AssertionError(f"{run.name} is evaluated")


def written(
    *workdirs: pathlib.Path, out: pathlib.Path | None = None, evaluate: Callable = no_evaluation
) -> str:
    """The report of some workdirs; `out` is in the first if not given."""
    out = out or workdirs[0] / page.FILE
    return page.write(list(workdirs), out, evaluate, say=lambda text: None).read_text()
