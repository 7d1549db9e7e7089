"""jaxsplit.early_stop: when a run ends early, also after an interruption, and that it stays so."""

import json
from types import SimpleNamespace

import pytest

from jaxsplit import early_stop, experiment, loop, rating
from jaxsplit.early_stop import EarlyStop
from jaxsplit.errors import ConfigError, Stopped
from jaxsplit.hosts import processes
from jaxsplit.hosts.signals import Stop
from tests.support.runs import ENSEMBLE, assert_same_bits, lines_of, state_at, steps_in, tiny

# ---- The count


@pytest.mark.parametrize(
    ("metric", "min_delta", "values", "ended_at"),
    [
        ("test/ensemble/top1", 0.0, [0.5, 0.6, 0.6, 0.55], 4),
        ("test/ensemble/top1", 0.0, [0.5, 0.4, 0.6, 0.5, 0.55], 5),  # counted anew
        ("test/ensemble/top1", 0.0, [0.5, 0.6, 0.7, 0.8], None),
        ("test/ensemble/top1", 0.25, [0.5, 0.6, 0.7], 3),  # too little better
        ("test/ensemble/top1", 0.125, [0.25, 0.375, 0.5], None),  # together more than that
        ("test/net0/nll", 0.0, [2.0, 1.0, 1.5, 1.2], 4),  # less is better
        ("test/net0/nll", 0.0, [2.0, None, float("nan")], 3),
        ("test/net0/nll", 0.0, [None, 2.0, 1.0], None),
        ("test/net0/nll", 0.0, [None, None], 2),
        ("test/net0/nll", 0.0, [None, 2.0, 2.1], None),  # the first number is an improvement
        ("test/net0/nll", 0.0, [float("inf"), 2.0, 2.1], None),  # in the log it is null
    ],
)
def test_the_evaluation_that_ends_the_run(metric, min_delta, values, ended_at):
    early = EarlyStop(metric, 2, min_delta)
    split, name, kind = metric.split("/")
    ends = [early.after(n, {split: {name: {kind: v}}}) for n, v in enumerate(values, 1)]
    assert ends == [n == ended_at for n in range(1, len(values) + 1)]


def test_without_patience_a_run_never_ends_early(tmp_path):
    early = EarlyStop("test/ensemble/top1", 0)
    assert not any(early.after(n, {}) for n in range(9)) and not early.resume(tmp_path, 3)


def test_it_says_why():
    early = EarlyStop("test/ensemble/top1", 2, 0.01)
    for step, value in enumerate((0.75, 0.75, 0.755), 1):
        early.seen(10 * step, value)
    assert early.why == (
        "stopped early: test/ensemble/top1 was not better than 0.7500 of step 10 by more than 0.01 "
        "in 2 evaluations (stop.patience=2; with a larger one, or 0, the run resumes)"
    )


def test_what_the_log_tells(tmp_path):
    """The last line of a step counts; nothing in a log can stop a run."""
    log = [
        {"step": 1, "train/loss": 2.0},
        {"step": 1, "m": 0.9},
        {"step": 1, "m": 0.5},
        {"step": 2, "m": 0.5},
        {"step": 3, "m": None},
        {"step": 4, "m": 0.9},
        {"step": None, "m": 0.9},
        {"step": 2, "m": "x"},
        5,
        ["step", "m"],
        None,
    ]
    text = "\n".join(json.dumps(line) for line in log) + '\n{"step": 2, "m'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b"\xff\xfe\n")
    read = list(early_stop.evaluated(tmp_path / "metrics.jsonl", "m", 3))
    assert read == [(1, 0.5), (2, 0.5), (3, None)]
    assert list(early_stop.evaluated(tmp_path, "m", 3)) == []  # a directory
    assert EarlyStop("m", 2).resume(tmp_path, 3) and not EarlyStop("m", 2).resume(tmp_path, 2)


def test_process_0_decides(monkeypatch):
    monkeypatch.setattr(processes, "broadcast", lambda mine: not mine)
    early = EarlyStop("test/net0/top1", 1)
    assert [early.after(n, {"test": {"net0": {"top1": v}}}) for n, v in enumerate((1.0, 0.5))] == [
        True,
        False,
    ]


# ---- The config


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_names_of_metrics(split):
    fields = dict(data__validation=0.25) if split == "validation" else {}
    config = tiny(stop__patience=2, **fields)
    assert early_stop.make(experiment.build(config)).metric == f"{split}/ensemble/top1"
    config.stop.metric = f"{split}/net1/nll"
    assert early_stop.make(experiment.build(config)).metric == f"{split}/net1/nll"
    config.stop.metric = "ensemble/top1"
    with pytest.raises(ConfigError) as caught:
        early_stop.make(experiment.build(config))
    names = [f"{split}/{n}/{m}" for n in ("net0", "net1", "ensemble") for m in ("top1", "top5")]
    assert str(caught.value).startswith("stop.metric='ensemble/top1': must be one of ")
    assert {*names, f"{split}/net0/nll", f"{split}/oracle"} < set(
        str(caught.value).partition("one of ")[2].split(", ")
    )


def test_accuracy_cannot_become_better_by_one():
    its = SimpleNamespace(metric="", patience=2, min_delta=1.0)
    exp = SimpleNamespace(config=SimpleNamespace(stop=its), best_metric="test/net0/top1")
    with pytest.raises(ConfigError, match="^stop.min_delta=1: must be below 1, test/net0/top1 is"):
        early_stop.make(exp)


# ---- A run


VALUES = dict(enumerate([0.5, 0.6, 0.58, 0.55, 0.7, 0.5], 1))  # of step 1, 2 ...


def stopping(**fields):
    return tiny(duration="6 steps", eval__every="1 steps", checkpoint__every="6 steps", **fields)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations give VALUES."""
    evaluate, steps = rating.evaluate_split, []
    after = Stop.after

    def known(stop, step):
        steps.append(step)
        return after(stop, step)

    def values(*args):
        found = evaluate(*args)
        found["ensemble"]["top1"] = VALUES[steps[-1]]
        return found

    monkeypatch.setattr(Stop, "after", known)
    monkeypatch.setattr(rating, "evaluate_split", values)
    return steps


@pytest.mark.slow
def test_a_run_that_ends_early(scripted, tmp_path, capsys, monkeypatch):
    config = stopping(stop__patience=2)
    results = loop.train_and_evaluate(config, tmp_path / "a")
    said = capsys.readouterr().out
    why = "stopped early: test/ensemble/top1 was not better than 0.6000 of step 2 in 2 evaluations"
    assert said.count(why) == 1 and "checkpoint step 4, the last" in said
    assert results["step"] == 4 and results["best/step"] == 2 and results[ENSEMBLE] == 0.55
    assert steps_in(tmp_path / "a") == [2, 4] and scripted == [1, 2, 3, 4]
    log = lines_of(tmp_path / "a")

    # Interrupted where one evaluation was not better, it ends at the same step.
    def save_and_raise(stop, step):
        return scripted.append(step) or step == 3

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "after", save_and_raise)
        with pytest.raises(Stopped):
            loop.train_and_evaluate(config, tmp_path / "b", Stop())
    capsys.readouterr()
    assert loop.train_and_evaluate(config, tmp_path / "b") == results
    assert why in capsys.readouterr().out and steps_in(tmp_path / "b") == [2, 3, 4]
    end = [state_at(config, tmp_path / run, 4) for run in "ab"]
    assert_same_bits(*end)

    # The same command says that it has ended, trains nothing and writes nothing.
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "compile_step", None)
        assert loop.train_and_evaluate(config, tmp_path / "a") == results
    said = capsys.readouterr().out
    assert said.count(why) == 1 and "checkpoint step 4, the last" in said
    assert lines_of(tmp_path / "a") == log and steps_in(tmp_path / "a") == [2, 4]

    # With more patience, which may change, it goes on.
    config.stop.patience = 3
    results = loop.train_and_evaluate(config, tmp_path / "a")
    assert results["step"] == 6 and results["best/step"] == 5
    assert "stopped early" not in capsys.readouterr().out
