"""Evaluation of a checkpoint of a run: the table, and the files eval.json and predictions.npz."""

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxsplit
from jaxsplit import compiler, data, evaluation, experiment, metrics, rating
from jaxsplit import config as config_lib
from jaxsplit.checkpoints import read, store
from jaxsplit.config import history, limits
from jaxsplit.data import prepared
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import Results, SplitResults, predictions, record
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes
from jaxsplit.report import evaluated, tables
from jaxsplit.workdir import files, lock


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The checkpoint that is evaluated, on the devices.

    which: 'latest', 'best' or 'chosen'. best: (step, metrics) of the best checkpoint, if any was
      evaluated in training.
    """

    exp: Experiment
    workdir: pathlib.Path
    variables: dict
    step: int
    which: str
    best: tuple[int, dict] | None


def evaluate_checkpoint(
    config: ConfigDict, workdir: str | pathlib.Path, which: str | int = "latest"
) -> dict[str, float]:
    """Evaluates a checkpoint, prints the table, writes eval.json, predictions.npz and TensorBoard.

    A workdir that cannot be written is evaluated all the same; a line says so.

    Args:
      config: of the run; `config.load(workdir)` gives it.
      workdir: of the run.
      which: 'latest', 'best' or a step.

    Returns:
      test/<name>/top1 ... as `train_and_evaluate`, and `step`; also every score of eval.json that
      is one number, as test/<name>/ece, and the same of a sample of the training set, as
      train/<name>/ece. docs/evaluation.md defines them.

    Raises:
      ConfigError: no such checkpoint, or a config that does not fit the workdir.
    """
    chosen = restore(config, workdir, which)
    results, found = collect(chosen)
    flat: dict[str, float] = {}
    if jax.process_index() == 0:
        scored = None if found is None else describe(chosen, results, found)
        _print(chosen, results, scored)
        flat = evaluation.flatten(results)
        if scored is not None and found is not None:
            _write(chosen, scored, found, flat)
    # The scores are computed on process 0 only.
    flat = processes.broadcast(flat)
    return {"step": float(chosen.step)} | flat | rating.flat_best(chosen.exp, chosen.best)


def restore(config: ConfigDict, workdir: str | pathlib.Path, which: str | int) -> Chosen:
    """The networks of a checkpoint; arguments and errors as of `evaluate_checkpoint`."""
    workdir = files.path_of(workdir)
    config_lib.check_same_on_all(config)
    if not store.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    history.adopt(config, workdir / config_lib.CONFIG_FILE)
    config_lib.check_identity(config_lib.load(workdir), config, workdir, evaluating=True)
    exp = experiment.build(config, training=False)
    checkpoints = read.Reader(workdir, exp.best_metric)
    step = checkpoints.find(which)
    variables = read.restore_model(checkpoints.path(step), exp.state_shapes())
    kind = str(which) if which in ("latest", "best") else "chosen"
    return Chosen(exp, workdir, variables, step, kind, checkpoints.best())


def collect(chosen: Chosen) -> tuple[Results, Predictions | None]:
    """The means of every split, and the logits: None on other processes than 0. Collective.

    The splits are those of `rating.splits` and `record.TRAIN`, a sample of the training set. Where
    the logits do not fit into memory there are no logits and no sample; a line says so.
    """
    exp, variables = chosen.exp, chosen.variables
    sample, at = predictions.train_sample(exp.dataset)
    splits = rating.splits(exp) | {record.TRAIN: sample}
    if not processes.broadcast(_fits(exp, sum(map(len, splits.values())))):
        names = rating.splits(exp)
        return {name: rating.evaluate_split(exp, variables, name) for name in names}, None
    results: Results = {}
    kept: dict[str, SplitPredictions] = {}
    predict = predictor(chosen)
    for name, examples in splits.items():
        means, its = predict(examples)
        results[name] = rating.count_bad(exp, examples, means)
        if its is not None:
            kept[name] = its
    if not kept:
        return results, None
    kept[record.TRAIN] = dataclasses.replace(kept[record.TRAIN], index=at[kept[record.TRAIN].index])
    return results, Predictions(chosen.step, kept)


def predictor(
    chosen: Chosen,
) -> Callable[[data.Arrays | data.Stream], tuple[SplitResults, SplitPredictions | None]]:
    """A function that passes once over examples, compiled once: see `predictions.collect`."""
    exp = chosen.exp
    how, dataset = rating.eval_pass(exp), exp.dataset
    step = predictions.make_collect(
        evaluation.make_predict_step(exp.method, dataset.mean, dataset.std),
        how,
        compiler.options(exp.sharding.platform),
    )
    return lambda examples: predictions.collect(step, chosen.variables, examples, how)


def describe(chosen: Chosen, results: Results, found: Predictions) -> dict[str, Any]:
    """The contents of eval.json; every score that is one number is added to `results`, too."""
    exp = chosen.exp
    config = exp.config
    splits = record.of_splits(results, found)
    classes = exp.dataset.num_classes
    names = prepared.class_names(config.data.name, config.data.dir, classes)
    return {
        "format": record.FORMAT,
        "step": chosen.step,
        "checkpoint": chosen.which,
        "config": {
            "arch": config.arch,
            "split": config.split,
            "method": config.method,
            "data": config.data.name,
            "validation": config.data.validation,
            "ensemble": config.eval.ensemble,
            "seed": config.seed,
        },
        "names": list(found.names),
        "answer": exp.method.answer,
        "classes": list(names or map(str, range(classes))),
        "splits": splits,
        "temperature": record.scaled(results, found),
        "diversity_gap": record.gap(results),
        "versions": {"jaxsplit": jaxsplit.__version__} | record.versions(),
    }


def _fits(exp: Experiment, examples: int) -> bool:
    """Whether the logits of so many examples, and what is computed of them, fit into memory."""
    there = limits.host_memory()
    needed = predictions.memory(examples, exp.dataset.num_classes, exp.config.split)
    if there is None or needed < there:
        return True
    if jax.process_index() == 0:
        print(
            f"only means are computed: the logits of {examples:,} images would take "
            f"{needed / 1e9:,.1f} GB of the {there / 1e9:,.1f} GB of this machine",
            flush=True,
        )
    return False


def _print(chosen: Chosen, results: Results, scored: dict[str, Any] | None) -> None:
    exp, best = chosen.exp, chosen.best
    line = rating.best_line(exp, best)
    if best and store.weights_only(chosen.workdir):
        line = tables.imported_line(exp, best[1][exp.best_metric])
    shown = {name: results[name] for name in rating.splits(exp)}
    which = f"step {chosen.step}, the {chosen.which}"
    more = evaluated.text(scored) if scored else ""
    parts = [tables.tables(exp, shown, which), more, line]
    print("\n\n".join(part for part in parts if part), flush=True)


def _write(
    chosen: Chosen, scored: dict[str, Any], found: Predictions, flat: dict[str, float]
) -> None:
    """Writes the files, and says where they lie or why they do not."""
    workdir = chosen.workdir
    scores, logits = workdir / record.FILE, workdir / predictions.FILE
    # A bucket's library raises many kinds of errors: no rights, no network.
    errors = Exception if files.is_remote(workdir) else OSError
    path = scores
    try:
        files.write_text(path, record.text(scored))
        path = logits
        predictions.write(path, found)
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"\nnot written: {path} ({reason})", flush=True)
        return
    lines = [f"scores: {scores}", f"logits and labels: {logits}"]
    if (workdir / lock.FILE).exists():
        lines.append(f"not in TensorBoard, as a run may be at work: {workdir / lock.FILE}")
    elif metrics.write_board(workdir, chosen.step, {f"eval/{k}": v for k, v in flat.items()}):
        where = shlex.quote(os.fspath(workdir))
        lines.append(f"next: tensorboard --logdir {where}  # the scores are under eval/")
    print("\n" + "\n".join(lines), flush=True)
