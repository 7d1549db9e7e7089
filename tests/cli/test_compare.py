"""--mode=compare and `jaxsplit compare`: a whole grid, its dry run, and bad input in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxsplit import expected
from jaxsplit.cli import modes
from jaxsplit.compare import grid, record, runner
from jaxsplit.evaluation import predictions
from tests.support.grids import fake
from tests.support.paths import ROOT
from tests.support.runs import DIGITS

# ml_collections loads config files by a function that Python warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SMALL = (
    DIGITS,
    "--config.arch=wide_resnet10_1",
    "--config.divide_anyway=True",
    "--config.batch_size=16",
    "--config.mesh.data=1",
    "--config.duration=4 steps",
    "--config.trackers=()",
    "--config.data.name=synthetic",
    "--config.data.image_size=8",
)
GRID = ("--compare.methods=single,independent", "--compare.splits=1,2", "--compare.seeds=2")


@pytest.fixture
def faked(monkeypatch):
    """The runs' processes do nothing but write files."""
    settings = runner.Settings

    def made(how=()):
        monkeypatch.setattr(
            runner, "Settings", lambda **fields: settings(**fields, command=fake(*how))
        )

    made()
    return made


def test_compare(run, faked, tmp_path, capsys):
    run("--mode=compare", *SMALL, f"--workdir={tmp_path}", *GRID)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("left out: independent-s1: split=1: must be 2 or more")
    assert said[1] == "[1/4] single-s1-seed0: starts"
    assert said[2].startswith("[1/4] single-s1-seed0: 50.00% in 0 s; 3 left, about ")
    assert said[-1] == "4 of 4 runs are finished"
    made = record.read(tmp_path)
    assert [r["name"] for r in made["runs"]][:2] == ["single-s1-seed0", "independent-s2-seed0"]
    assert made["config"]["arch"] == "wide_resnet10_1"
    costs = [run["cost"] for run in made["runs"][:2]]
    assert costs[0]["macs"] == costs[0]["train_macs"] < costs[1]["macs"]
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    calls = [json.loads(line) for line in lines]
    assert calls[0]["flags"][: len(SMALL)] == list(SMALL)
    assert not (tmp_path / ".lock").exists()


AXES = (
    "distill.temperature=paper,4",
    "schedule.milestones=50%,75%;10%",
    "augment.erase_area=(0.1,0.2);(0.2,0.3)",
    "duration=3 steps,5 steps",
    "augment.flip=true",
    "optim.lr=0.3",
)


def test_the_flags_of_a_run_make_its_config(run, monkeypatch, tmp_path):
    """Also where the command line of the comparison gives the same fields."""
    given = (*SMALL, "--config.seed=7", "--config.method=cotrain", "--noconfig.divide")
    plans, configs = [], []
    monkeypatch.setattr(expected, "cost", lambda config: grid.Cost(1, 1, 1))
    monkeypatch.setattr(runner, "run", lambda plan, *_: plans.append(plan) or NOTHING)
    axes = [f"--compare.axis={text}" for text in AXES]
    run("--mode=compare", *given, f"--workdir={tmp_path}", *GRID, *axes)
    monkeypatch.setitem(modes.MODES, "train", configs.append)
    runs = plans[0].runs
    assert len(runs) == 2 * 2 * 2**4 and [r.seed for r in (runs[0], runs[-1])] == [7, 8]
    for one in runs[::9]:
        run(*given, *one.flags, f"--workdir={tmp_path}")
        assert configs.pop().to_dict() == one.config.to_dict()


NOTHING = runner.Outcome((), {}, (), "")


def test_failed_runs_end_with_status_1(run, faked, tmp_path, capsys):
    faked(["fail=single-s1-seed1"])
    with pytest.raises(SystemExit) as caught:
        run("--mode=compare", *SMALL, f"--workdir={tmp_path}", *GRID)
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.err == "failed: single-s1-seed1: the loss is not finite at step 3\n"
    assert said.out.splitlines()[-1] == "3 of 4 runs are finished"


def test_the_budget_ends_with_status_0(run, faked, tmp_path, capsys):
    faked(["wait=single-s1-seed0"])
    run("--mode=compare", *SMALL, f"--workdir={tmp_path}", *GRID, "--compare.budget=1")
    *_, finished, left = capsys.readouterr().out.splitlines()
    assert finished == "0 of 4 runs are finished"
    assert left.startswith("left (the budget ended the comparison): single-s1-seed0, independ")


def test_dry_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(expected, "pace", lambda config: expected.Pace(0.5, 10.0, 4))
    workdir = tmp_path / "none"
    run("--mode=compare", *SMALL, f"--workdir={workdir}", *GRID, "--dry-run")
    said = capsys.readouterr().out
    assert said.startswith("single-s1: 500.0 ms a step, compiled in 10.0 s\n")
    assert "4 runs: 2 groups at seeds 0, 1\nabout 28 s of training in all" in said
    assert said.splitlines()[-1].startswith("left out: independent-s1: ")
    assert not workdir.exists()


BAD = [
    (["--compare.methods=cotrian"], "compare.methods='cotrian': must be of single, independent"),
    (["--compare.methods=cotrain", "--compare.splits=1"], "compare: no run is left: cotrain-s1: "),
    (["--compare.axis=lr=1"], "compare.axis: lr='1': no such field in jaxsplit/defaults.py; there"),
    (["--compare.budget=soon"], "compare.budget='soon': must be a time such as '3 hours'"),
    (["--compare.devices=some"], "compare.devices='some': must be a number of 1 or more, or all"),
    (["--compare.latency=a"], "compare.latency='a': must be whole numbers of 1 or more"),
    (["--mode=train", "--dry-run"], "dry-run: only with --mode=compare, not train"),
    (["--checkpoint=1"], "checkpoint: only with --mode=eval or --mode=predict or "),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input(given, said, refused, tmp_path, monkeypatch):
    line = refused("--mode=compare", *SMALL, f"--workdir={tmp_path / 'none'}", *given)
    assert line.startswith(said)
    assert not (tmp_path / "none").exists()


def test_a_workdir_of_something_else(run, refused, faked, tmp_path, capsys):
    small = [*SMALL, "--compare.methods=single", "--compare.seeds=1"]
    run("--mode=compare", *small, f"--workdir={tmp_path}")
    line = refused("--mode=compare", *small, f"--workdir={tmp_path}", "--config.optim.lr=0.3")
    assert line.endswith("holds another comparison: optim.lr=0.1 there, 0.3 here")
    line = refused(
        "--mode=compare", *small, f"--workdir={tmp_path}", "--dry-run", "--config.ema=0.9"
    )
    assert line.endswith("holds another comparison: ema=0.0 there, 0.9 here")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    line = refused("--mode=compare", *small, f"--workdir={tmp_path / 'run'}")
    assert line.endswith("holds a run; a comparison needs its own")
    line = refused("--mode=compare", *small, "--workdir=gs://bucket/runs")
    assert "gs://bucket/runs" in line


# ---- Real runs


def started(workdir, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxsplit", "compare", *SMALL, f"--workdir={workdir}", *GRID]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *more],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_all(process: subprocess.Popen, workdir) -> None:
    """SIGKILL, at the same moment, to the comparison and to the process of its run."""
    os.killpg(process.pid, signal.SIGKILL)
    for path in workdir.glob("*/.lock"):
        os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
    process.communicate()


def until(ready, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not ready():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_twice(tmp_path):
    """It ends with all runs finished, and with the numbers of a grid that nobody kills."""
    more = (
        "--config.duration=300 steps",
        "--config.checkpoint.every=20 steps",
        "--compare.latency=",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said, _ = (process := started(whole, *more)).communicate(timeout=900)
    assert process.returncode == 0, said
    for name in ("single-s1-seed0", "independent-s2-seed1"):
        process = started(killed, *more)
        until((killed / name / "checkpoints" / "40").is_dir, process)
        kill_all(process, killed)
        assert json.loads((killed / name / record.OF_RUN).read_text())["status"] == "running"
    said, _ = (process := started(killed, *more)).communicate(timeout=900)
    assert process.returncode == 0 and "4 of 4 runs are finished" in said, said
    assert "3 of 4 runs are finished already" in said
    for run in record.read(whole)["runs"]:
        name = run["name"]
        one, other = (predictions.read(at / name / "predictions.npz") for at in (whole, killed))
        for split in one.splits:
            for answer, logits in one.splits[split].logits.items():
                assert np.array_equal(logits, other.splits[split].logits[answer])
        status = record.read_status(killed / name)
        cut = name in ("single-s1-seed0", "independent-s2-seed1")
        assert (status.status, status.starts) == ("finished", 2 if cut else 1)
        assert ("resumed at step" in (killed / name / "log.txt").read_text()) == cut


@pytest.mark.slow
def test_a_signal_saves(tmp_path):
    process = started(
        tmp_path, "--config.duration=20000 steps", "--config.checkpoint.every=20 steps"
    )
    folder = tmp_path / "single-s1-seed0"
    until((folder / "checkpoints" / "20").is_dir, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopped by SIGINT: 4 of 4 runs are left; the same command resumes from there" in said
    assert record.read_status(folder).status == "stopped"
    assert "stopped by SIGTERM: step " in (folder / "log.txt").read_text()
