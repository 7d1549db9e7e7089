"""jaxsplit.trackers.wandb_run: with a stand-in for wandb; the real one where it is installed."""

import contextlib
import importlib.util
import os
import subprocess
import sys

import pytest

from jaxsplit import errors, loop, trackers
from jaxsplit.trackers import wandb_run
from tests.support import fake_wandb
from tests.support.paths import ROOT
from tests.support.runs import tiny


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    fake_wandb.clear()
    return fake_wandb


def open_run(folder, start: int = 0) -> wandb_run.WandbRun:
    return wandb_run.WandbRun(folder, start=start, config=tiny(), say=print)


def test_a_run_and_its_resumption(fake, tmp_path):
    """One wandb run, which the resumed run goes on with."""
    workdir = tmp_path / "mine"
    workdir.mkdir()
    with pytest.raises(errors.Stopped), contextlib.ExitStack() as at_end:
        at_end.callback(open_run(workdir).close)
        raise errors.Stopped("now", 75)
    config = tiny(checkpoint__keep=5)  # a runtime field
    try:
        raise ValueError  # of somebody who calls jaxsplit: no error of the run
    except ValueError:
        wandb_run.WandbRun(workdir, start=3, config=config, say=print).close()
    (name,), (run,) = fake.RUNS.keys(), fake.RUNS.values()
    assert (workdir / wandb_run.ID_FILE).read_text() == f"{name}\n"
    given = dict(project="jaxsplit-synthetic", name="mine", id=name, dir=str(workdir))
    assert fake.INITS == [given, given]
    assert run.config["checkpoint"]["keep"] == 5 and run.config["split"] == 2
    assert run.axes == {"step": None, "*": "step"}
    assert run.exit_codes == [1, 0]


def test_steps_that_come_again(fake, tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = open_run(tmp_path, start)
        for step in steps:
            writer.write(step, {"a": 10.0 * start + step})
        writer.close()
    (run,) = fake.RUNS.values()
    assert [(row["step"], row["resumed_at"], row["a"]) for row in run.rows] == [
        (1, 0, 1.0),
        (2, 0, 2.0),
        (3, 0, 3.0),
        (3, 2, 23.0),
        (4, 2, 24.0),
    ]


def test_a_new_run_in_the_same_workdir_is_a_new_one(fake, tmp_path):
    open_run(tmp_path).close()
    open_run(tmp_path).close()
    assert len(fake.RUNS) == 2


@pytest.mark.parametrize("text", [b"", b"../../x\n", b"\xff", b"a" * 65, b"a b"])
def test_what_is_no_id_is_replaced(fake, tmp_path, text):
    (tmp_path / wandb_run.ID_FILE).write_bytes(text)
    open_run(tmp_path, start=2).close()
    (name,) = fake.RUNS
    assert len(name) == 8 and (tmp_path / wandb_run.ID_FILE).read_text() == f"{name}\n"


def test_the_project_has_no_characters_that_wandb_refuses(fake, tmp_path):
    config = tiny(data__name="hf:someone/my photos?")
    wandb_run.WandbRun(tmp_path, start=0, config=config, say=print).close()
    assert fake.INITS[0]["project"] == "jaxsplit-hf-someone-my-photos-"


def test_its_variables_hold(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_NAME", "n")
    open_run(tmp_path).close()
    assert (fake.INITS[0]["project"], fake.INITS[0]["name"]) == ("p", "n")


@pytest.mark.parametrize("how", ["not installed", "a folder of this name"])
def test_it_is_missing(how, tmp_path, monkeypatch):
    """One line before anything is written; wandb itself makes folders of its name."""
    if how == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        (tmp_path / "wandb").mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(errors.ConfigError) as caught:
        trackers.check(("csv", "wandb"))
    assert str(caught.value).startswith(
        "trackers=('csv', 'wandb'): 'wandb' needs the library wandb ("
    )
    assert str(caught.value).endswith("; pip install 'jaxsplit[wandb]'")
    sys.modules.pop("wandb", None)


def test_a_run_without_it_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.ConfigError, match="needs the library wandb"):
        loop.train_and_evaluate(tiny(trackers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


OFFLINE = """
import pathlib, sys, time
from jaxsplit import trackers
from tests.support.runs import tiny

for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
    group = trackers.Group(
        ["wandb"], pathlib.Path(sys.argv[1]), start=start, config=tiny(), say=print
    )
    for step in steps:
        group.write(step, {"a": float(step)})
    group.close()
    time.sleep(1.1)  # wandb names its folders by the second
"""
if importlib.util.find_spec("wandb"):  # not a skip: where the reference's numbers are, none may

    @pytest.mark.slow
    def test_the_real_one_offline(tmp_path):
        env = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
        args = [sys.executable, "-c", OFFLINE, str(tmp_path)]
        done = subprocess.run(args, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "warning: " not in done.stdout
        name = (tmp_path / wandb_run.ID_FILE).read_text().strip()
        logs = list(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
        assert len(logs) == 2 and all(path.stat().st_size for path in logs)
