"""Evaluates a checkpoint: prints the table, writes the files eval.json and predictions.npz."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

import jaxsplit
from jaxsplit import compiler, data, evaluation, experiment, rating
from jaxsplit import config as config_lib
from jaxsplit.checkpoints import read, store
from jaxsplit.config import history, limits
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import Results, SplitResults, predictions, record, shift
from jaxsplit.evaluation import foreign as foreign_images
from jaxsplit.evaluation.predictions import Predictions, SplitPredictions
from jaxsplit.experiment import Experiment
from jaxsplit.hosts import processes
from jaxsplit.report import evaluated, following, progress, shifted, tables
from jaxsplit.trackers import tensorboard
from jaxsplit.workdir import files, lock


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The checkpoint to evaluate, with its variables on the devices.

    which: 'latest', 'best' or 'chosen'. best: (step, metrics) of the best checkpoint; None if none
      was evaluated in training.
    """

    exp: Experiment
    workdir: pathlib.Path
    variables: dict
    step: int
    which: str
    best: tuple[int, dict] | None


class Evaluated(NamedTuple):
    """What an evaluation found.

    scores: as `evaluate_checkpoint` returns them.
    unwritten: on process 0 why a file was not written; '': all were.
    """

    scores: dict[str, float]
    unwritten: str


def evaluate_checkpoint(
    config: ConfigDict, workdir: str | pathlib.Path, which: str | int = "latest"
) -> dict[str, float]:
    """Evaluates a checkpoint, prints the table, writes eval.json, predictions.npz and TensorBoard.

    If the workdir cannot be written, the evaluation prints its table and a line that says so.

    Args:
      config: config of the run; `config.load(workdir)` reads it.
      workdir: workdir of the run.
      which: the checkpoint: 'latest', 'best' or a step.

    Returns:
      `step`; test/<name>/top1 ... as from `train_and_evaluate`; every score in eval.json that is
      one number, such as test/<name>/ece; and the same scores of a sample of the training set, such
      as train/<name>/ece. docs/evaluation.md defines the scores.

    Raises:
      ConfigError: there is no such checkpoint, or the config does not fit the workdir.
    """
    return evaluated_checkpoint(config, workdir, which).scores


def evaluated_checkpoint(
    config: ConfigDict, workdir: str | pathlib.Path, which: str | int = "latest"
) -> Evaluated:
    """`evaluate_checkpoint`, and what became of its files; arguments and errors are the same."""
    chosen = restore(config, workdir, which)
    foreign = _foreign(chosen)
    results, found = collect(chosen)
    more = _shifted(chosen, foreign, found)
    flat: dict[str, float] = {}
    unwritten = "the logits do not fit into memory"
    if jax.process_index() == 0:
        scored = None if found is None else describe(chosen, results, found) | more
        if scored is not None:
            _add_numbers(results, more)
        _print(chosen, results, scored)
        flat = evaluation.flatten(results)
        if scored is not None and found is not None:
            unwritten = _write(chosen, scored, found, flat)
    # The scores are computed on process 0 only.
    flat = {"step": float(chosen.step)} | processes.broadcast(flat)
    return Evaluated(flat | rating.flat_best(chosen.exp, chosen.best), unwritten)


def restore(config: ConfigDict, workdir: str | pathlib.Path, which: str | int) -> Chosen:
    """Restores the networks of a checkpoint; arguments and errors as in `evaluate_checkpoint`."""
    workdir = files.path_of(workdir)
    config_lib.check_same_on_all(config)
    if not store.exists(workdir):
        raise ConfigError(f"workdir={str(workdir)!r}: holds no checkpoints")
    history.adopt(config, workdir / config_lib.CONFIG_FILE)
    config_lib.check_evaluation(config_lib.load(workdir), config, workdir)
    exp = experiment.build_for_evaluation(config)
    checkpoints = read.Reader(workdir, exp.best_metric)
    step = checkpoints.find(which)
    variables = read.restore_model(checkpoints.path(step), exp.state_shapes())
    kind = str(which) if which in ("latest", "best") else "chosen"
    return Chosen(exp, workdir, variables, step, kind, checkpoints.best())


def collect(chosen: Chosen) -> tuple[Results, Predictions | None]:
    """Means of every split and, on process 0, the logits (None on others). Collective.

    The splits are those of `rating.splits` and `record.TRAIN`, a sample of the training set. If the
    logits do not fit into memory, logits and sample are left out; a line says so.
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
    """A function that evaluates any examples in one pass with one compiled step.

    Arguments and results are as in `predictions.collect`.
    """
    exp = chosen.exp
    how, step = rating.eval_pass(exp), _predict_step(exp)
    return lambda examples: predictions.collect(step, chosen.variables, examples, how)


def _predict_step(exp: Experiment) -> Callable[[dict, dict], tuple]:
    return predictions.make_collect(
        evaluation.make_predict_step(exp.method, exp.dataset.mean, exp.dataset.std),
        rating.eval_pass(exp),
        compiler.options(exp.sharding.platform),
    )


def _foreign(chosen: Chosen) -> foreign_images.Foreign | None:
    """Loads the data set that `config.eval.ood` names; called first, so that it fails early."""
    config, shape = chosen.exp.config, chosen.exp.dataset.image_shape
    if not config.eval.ood:
        return None
    found = foreign_images.load(config.data, config.eval.ood, shape)
    if found.note and jax.process_index() == 0:
        print(found.note, flush=True)
    return found


def _shifted(
    chosen: Chosen, foreign: foreign_images.Foreign | None, found: Predictions | None
) -> dict[str, Any]:
    """Sections `ood` and `corruptions` of eval.json, if the config asks for them. Collective."""
    exp = chosen.exp
    how, sections = rating.eval_pass(exp), {}
    if not processes.broadcast(found is not None):
        return sections  # `_fits` has printed the reason
    if foreign is not None:
        logits = foreign_images.collect(_predict_step(exp), chosen.variables, foreign, how)
        if found is not None and logits is not None:
            sections["ood"] = foreign_images.scored(found.splits["test"], foreign, logits)
    if exp.config.eval.corruptions:
        options = compiler.options(exp.sharding.platform)
        step = shift.make_step(exp.method, exp.dataset.mean, exp.dataset.std, how, options)
        test = exp.dataset.test
        batches = -(-len(test) // how.rows)
        with progress.counted(batches, "batches under 75 corruptions") as advance:
            section = shift.evaluate(step, chosen.variables, test, how, advance)
        sections["corruptions"] = section
    return sections


def _add_numbers(results: Results, sections: dict[str, Any]) -> None:
    """Adds the numbers from `_shifted` to `results`, for TensorBoard and callers."""
    for name, its in sections.get("corruptions", {}).get("answers", {}).items():
        results["test"][name]["mean_corruption_error"] = its["mean_corruption_error"]
        results["test"][name] |= {f"corrupted_{metric}": its[metric] for metric in shift.SCORES}
    for name, kinds in sections.get("ood", {}).get("answers", {}).items():
        for kind, its in kinds.items():
            results["test"][name] |= {f"ood_{kind}_{score}": its[score] for score in its}


def describe(chosen: Chosen, results: Results, found: Predictions) -> dict[str, Any]:
    """The contents of eval.json; also adds every score that is one number to `results`."""
    exp = chosen.exp
    config = exp.config
    splits = record.of_splits(results, found)
    classes = exp.dataset.num_classes
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
        "classes": list(exp.dataset.class_names or map(str, range(classes))),
        "splits": splits,
        "temperature": record.scaled(results, found),
        "diversity_gap": record.gap(results),
        "versions": {"jaxsplit": jaxsplit.__version__} | record.versions(),
    }


def _fits(exp: Experiment, examples: int) -> bool:
    """Whether memory holds the logits of `examples` examples and what is computed from them."""
    there = limits.host_memory()
    needed = predictions.memory(examples, exp.dataset.num_classes, exp.config.split)
    if there is None or needed < there:
        return True
    if jax.process_index() == 0:
        asked = [f"eval.{name}" for name in ("ood", "corruptions") if exp.config.eval[name]]
        skipped = f", {' and '.join(asked)} skipped" if asked else ""
        print(
            f"only means are computed: the logits of {examples:,} images would take "
            f"{needed / 1e9:,.1f} GB of the {there / 1e9:,.1f} GB of this machine; "
            f"no file is written{skipped}",
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
    shift_tables = shifted.text(scored) if scored else ""
    parts = [tables.tables(exp, shown, which), more, shift_tables, line]
    print("\n\n".join(part for part in parts if part), flush=True)


def _write(
    chosen: Chosen, scored: dict[str, Any], found: Predictions, flat: dict[str, float]
) -> str:
    """Writes the files and prints where they are; prints and returns why one cannot be written."""
    workdir = chosen.workdir
    scores, logits = workdir / record.FILE, workdir / predictions.FILE
    # The library of a bucket raises many kinds of errors, such as missing rights or no network.
    errors = Exception if files.is_remote(workdir) else OSError
    path = scores
    try:
        files.write_text(path, record.text(scored))
        path = logits
        predictions.write(path, found)
    except errors as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        unwritten = f"{path} ({reason})"
        print(f"\nnot written: {unwritten}", flush=True)
        return unwritten
    lines = [f"scores: {scores}", f"logits and labels: {logits}"]
    if "tensorboard" not in chosen.exp.config.trackers:
        pass
    elif (workdir / lock.FILE).exists():
        lines.append(f"not in TensorBoard, as a run may be at work: {workdir / lock.FILE}")
    else:
        tensorboard.write_board(workdir, chosen.step, {f"eval/{k}": v for k, v in flat.items()})
    lines.append(following.of_workdir(workdir, "report"))
    print("\n" + "\n".join(lines), flush=True)
    return ""
