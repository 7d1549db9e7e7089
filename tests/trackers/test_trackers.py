"""jaxsplit.trackers: names, the registry, and trackers that fail."""

import sys

import pytest

from jaxsplit import config as config_lib
from jaxsplit import loop, metrics, trackers
from jaxsplit.errors import ConfigError, Stopped
from jaxsplit.trackers import csv_file
from tests.support import fake_wandb
from tests.support.runs import AskedAt, lines_of, tiny


class Recorder:
    """Keeps what it gets; raises where its `fails` says so."""

    def __init__(self, workdir, *, start, config, say, fails=()):
        self.workdir, self.start, self.config, self.fails = workdir, start, config, fails
        self.rows, self.closed = [], 0
        if "start" in fails:
            raise RuntimeError("no\nnetwork")

    def write(self, step, scalars):
        if step in self.fails:
            raise OSError("the line is cut")
        self.rows.append((step, dict(scalars)))

    def close(self):
        self.closed += 1
        if "close" in self.fails:
            raise RuntimeError


@pytest.fixture
def made(monkeypatch):
    """The trackers that a run makes of 'good', 'bad' (fails at step 2) and 'never'."""
    monkeypatch.setattr(trackers, "TRACKERS", dict(trackers.TRACKERS))
    found = []

    def of(*fails):
        def make(workdir, **given):
            found.append(Recorder(workdir, **given, fails=fails))
            return found[-1]

        return make

    trackers.register("good", of())
    trackers.register("bad", of(2))
    trackers.register("never", of("start"))
    trackers.register("unclosed", of("close"))
    return found


@pytest.mark.parametrize(
    "given, wanted",
    [
        ((), ()),
        (("",), ()),  # --config.trackers=
        (("csv",), ("csv",)),
        (("csv, wandb",), ("csv", "wandb")),  # --config.trackers='csv, wandb'
        (("csv", "tensorboard", "csv"), ("csv", "tensorboard")),
    ],
)
def test_names(given, wanted):
    assert config_lib.check(tiny(trackers=given)).trackers == wanted


@pytest.mark.parametrize("given", [(None,), (1,), (("csv",),)])
def test_what_is_no_name(given):
    with pytest.raises(ConfigError) as caught:
        config_lib.check(tiny(trackers=given))
    assert str(caught.value) == (
        f"trackers={given!r}: must be names, such as ('tensorboard', 'csv'); () for none"
    )


def test_a_wrong_name_is_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        loop.train_and_evaluate(tiny(trackers=("csv", "tensorbord")), tmp_path / "run")
    assert str(caught.value) == (
        "trackers=('csv', 'tensorbord'): must be names out of tensorboard, csv, wandb; () for none"
    )
    assert not (tmp_path / "run").exists()


def test_an_evaluation_needs_no_tracker(made):
    """Of a run with somebody's own tracker, whose file is not given."""
    assert config_lib.check(tiny(trackers=("somebodys",))).trackers == ("somebodys",)


@pytest.mark.slow
def test_a_run_with_several(made, tmp_path, capsys, monkeypatch):
    """All get what metrics.jsonl gets; one that fails ends nothing."""
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb)
    fake_wandb.clear()
    config = tiny(trackers=("bad", "csv", "good", "wandb"))
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, AskedAt(3))
    bad, good = made
    said = capsys.readouterr().out
    assert said.count("warning: tracker ") == 1
    line = "warning: tracker bad: failed at step 2 (the line is cut); the run goes on without it\n"
    assert line in said
    assert [step for step, _ in bad.rows] == [1] and bad.closed == 1
    assert [{"step": step, **row} for step, row in good.rows] == lines_of(tmp_path)
    assert (good.workdir, good.start, good.closed) == (tmp_path, 0, 1)
    assert good.config.trackers == ("bad", "csv", "good", "wandb")

    config.trackers = ("wandb", "good", "csv")  # a runtime field
    loop.train_and_evaluate(config, tmp_path)
    again = made[-1]
    assert again.start == 3 and {step for step, _ in again.rows} == {4}
    lines = [{k: repr(float(v)) for k, v in x.items() if k != "step"} for x in lines_of(tmp_path)]
    columns, *rows = (tmp_path / csv_file.FILE).read_text().splitlines()
    names = columns.split(",")
    found = [dict(zip(names, row.split(","), strict=True)) for row in rows]
    assert [{k: v for k, v in row.items() if v and k != "step"} for row in found] == lines
    assert [int(row["step"]) for row in found] == [x["step"] for x in lines_of(tmp_path)]
    (run,) = fake_wandb.RUNS.values()
    assert run.exit_codes == [1, 0]
    assert {row.pop("resumed_at"): row["step"] for row in run.rows} == {0: 3, 3: 4}  # the last
    assert run.rows == lines_of(tmp_path)


def test_one_that_cannot_start(made, tmp_path):
    """A new run is refused; one that resumes goes on. Those that were open are closed."""
    said = []
    given = dict(config=tiny(), say=said.append)
    with pytest.raises(ConfigError) as caught:
        trackers.Group(("good", "never"), tmp_path, start=0, **given)
    assert str(caught.value) == ("trackers=('good', 'never'): 'never' cannot start (no network)")
    assert made[0].closed == 1 and said == []
    group = trackers.Group(("never", "good"), tmp_path, start=5, **given)
    group.write(6, {"a": 1.0})
    assert made[-1].rows == [(6, {"a": 1.0})]
    assert said == ["warning: tracker never: cannot start (no network); the run goes on without it"]


def test_one_that_cannot_be_closed(made, tmp_path):
    said = []
    group = trackers.Group(("unclosed", "good"), tmp_path, start=0, config=tiny(), say=said.append)
    group.close()
    group.close()
    assert [tracker.closed for tracker in made] == [1, 1]
    assert said == ["warning: tracker unclosed: the end may be missing (RuntimeError)"]


def test_only_the_process_that_writes_has_trackers(tmp_path):
    group = trackers.Group(("csv",), tmp_path, start=0, config=tiny(), say=print)
    writer = metrics.Writer(tmp_path, active=False, beside=group)
    writer.write(1, {"a": 1.0})
    writer.close()
    assert (tmp_path / csv_file.FILE).read_text() == "step\n"


def test_names_that_cannot_be_registered(made):
    for name in ("", "a,b", "a b"):
        with pytest.raises(ValueError, match="must have a name without commas and spaces"):
            trackers.register(name, Recorder)
    with pytest.raises(ValueError, match="tracker 'csv': must have another name"):
        trackers.register("csv", Recorder)
