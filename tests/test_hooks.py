"""Hooks, the history and the profile of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from jaxsplit import config as config_lib
from jaxsplit import experiment, loop, metrics, run_results
from jaxsplit.errors import ConfigError
from jaxsplit.hooks import STOP, Hooks
from jaxsplit.run import Now
from tests.support.runs import lines_of, steps_in, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, results, events) of a run of 4 steps: a hook stops it after step 2; it is resumed.

    Steps 3 and 4 are profiled. It logs every step, evaluates and saves every two.
    """
    workdir, events = tmp_path_factory.mktemp("hooks") / "run", []

    def stop_at_2(event):
        return STOP if event.step == 2 and event.kind == "log" else None

    config = tiny(profile="2 steps:100%")
    first = loop.train_and_evaluate(config, workdir, hooks=[events.append, stop_at_2])
    assert first["step"] == 2 and steps_in(workdir) == [2]
    assert not list(workdir.rglob("*.xplane.pb"))
    results = loop.train_and_evaluate(config, workdir, hooks=(events.append,))
    return workdir, results, events


def test_events(run):
    _, results, events = run
    kinds = [(event.step, event.kind) for event in events]
    at_2 = [(2, "log"), (2, "checkpoint"), (2, "evaluate")]
    at_4 = [(4, "log"), (4, "checkpoint"), (4, "evaluate")]
    assert kinds == [(1, "log"), *at_2, (3, "log"), *at_4]
    assert {event.total_steps for event in events} == {4}
    assert events[0].values["train/loss"] > 0 and events[0].values["lr"] > 0
    assert events[-1].values.items() <= results.items()


def test_a_stopped_run_is_evaluated_and_resumes(run):
    workdir, results, _ = run
    assert results["step"] == 4 and steps_in(workdir) == [2, 4]


def test_history_has_what_was_logged_before_the_resume(run):
    workdir, results, _ = run
    history = results.history
    assert next(iter(history)) == "step" and history["step"] == [1, 2, 3, 4]
    assert {len(column) for column in history.values()} == {4}
    assert history["test/ensemble/top1"][0] is None
    assert history["test/ensemble/top1"][3] == results["test/ensemble/top1"]
    losses = [line["train/loss"] for line in lines_of(workdir) if "train/loss" in line]
    assert history["train/loss"] == losses
    assert dict(results) == results


def test_columns():
    lines = ['{"step": 1, "a": 1.0}', '{"step": 1, "b": 2.0}', '{"step": 3, "a": null, "c": 5}']
    wanted = {"step": [1, 3], "a": [1.0, None], "b": [2.0, None], "c": [None, 5]}
    assert run_results.columns(lines) == wanted
    assert list(run_results.columns(lines)) == list(wanted)
    assert run_results.columns([]) == {"step": []}


def test_the_profile_is_of_the_run_that_had_the_steps(run):
    (trace,) = run[0].rglob("*.xplane.pb")
    assert trace.relative_to(run[0]).parts[:2] == ("plugins", "profile")
    data = trace.read_bytes()
    assert b"train" in data and len(data) > 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 steps", "profile='5 steps': must be '' or two durations, such as"),
        ("5 steps:", "profile='5 steps:': must be '' or two durations, such as"),
        ("a:5 steps", "profile='a': must be a number of steps"),
        ("3 steps:3 steps", "must end after it begins and within the 4 steps of the run"),
        ("3 steps:5 steps", "must end after it begins and within the 4 steps of the run"),
    ],
)
def test_a_wrong_profile(text, message):
    with pytest.raises(ConfigError, match=message):
        experiment.build(config_lib.check(tiny(profile=text)))


def test_a_bucket_holds_no_profile():
    from jaxsplit.profiling import Profile

    with pytest.raises(ConfigError, match="must be a directory of this machine with a profile"):
        Profile(epath.Path("gs://bucket/run"), (1, 2), active=True, say=print)


def test_only_the_word_stops():
    hooks = Hooks([lambda event: np.ones(3), lambda event: True], 4, active=True)
    hooks.call("log", 1, {})
    assert not hooks.stop()


def test_an_evaluation_that_was_missed_is_an_event(tmp_path):
    """The first start ends between the saving of a step and its evaluation."""

    def fail(event):
        if event.kind == "checkpoint":
            raise RuntimeError("between")

    def stop(event):
        events.append((event.step, event.kind))
        return STOP

    with pytest.raises(RuntimeError, match="between"):
        loop.train_and_evaluate(tiny(), tmp_path, hooks=[fail])
    events = []
    results = loop.train_and_evaluate(tiny(), tmp_path, hooks=[stop])
    assert events == [(2, "evaluate")] and results["step"] == 2


def test_the_speed_is_that_of_this_start(monkeypatch):
    """A checkpoint holds sums of steps that an earlier start has trained."""
    written = []
    monkeypatch.setattr(metrics, "means", lambda totals: {})
    exp = SimpleNamespace(
        config=tiny(), schedule=lambda step: 0.1, plan=SimpleNamespace(steps_per_epoch=10)
    )
    nothing = SimpleNamespace(check=lambda: 0, training=lambda *_: 0, call=lambda *_: 0)
    writer = SimpleNamespace(write=lambda step, values: written.append(values))
    run = SimpleNamespace(
        exp=exp, checkpoints=nothing, progress=nothing, hooks=nothing, writer=writer
    )
    clock = SimpleNamespace(lap=lambda: 2.0)
    now = Now(45, None, clock, logged=43)
    now.totals = SimpleNamespace(count=50)
    for now.step in (45, 50):
        loop._log(run, now)
    assert [one["images_per_second"] for one in written] == [2 * 16 / 2, 5 * 16 / 2]


@pytest.mark.slow
def test_an_exception_of_a_hook_ends_the_run(tmp_path):
    def fail(event):
        raise RuntimeError(f"at {event.step}")

    with pytest.raises(RuntimeError, match="^at 1$"):
        loop.train_and_evaluate(tiny(), tmp_path, hooks=[fail])
