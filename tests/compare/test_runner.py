"""compare.runner with a program in place of `jaxsplit`: order, failures, stops, repetitions."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxsplit import config as config_lib
from jaxsplit.compare import grid, outcome, record, runner, runs
from jaxsplit.errors import ConfigError
from jaxsplit.hosts import signals
from jaxsplit.inference.cascade import Point
from tests.support.grids import After, cost, fake, planned
from tests.support.paths import ROOT
from tests.support.runs import tiny


def compare(workdir, plan, how=(), stop=None, **fields):
    """(outcome, lines) of a start."""
    said: list[str] = []
    record.write(workdir, tiny(), plan)
    settings = runner.Settings(config=["--config=base.py"], command=fake(*how), **fields)
    stop = stop or signals.Stop()
    stop.hold()
    return runner.run(plan, workdir, settings, stop, said.append), said


def calls(workdir, verb: str | None = None) -> list[tuple[str, str, str]]:
    path = workdir / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        (call["verb"], call["name"], call["what"])
        for call in found
        if verb is None or call["verb"] == verb
    ]


def statuses(workdir, plan) -> list[str]:
    return [record.read_status(workdir / run.name).status for run in plan.runs]


def test_a_grid_from_start_to_end(tmp_path):
    plan, told = planned(tmp_path), []
    found, said = compare(tmp_path, plan, batches=(1, 8), after_run=told.append)
    names = [run.name for run in plan.runs]
    assert sorted(found.finished) == sorted(names)
    assert (found.failed, found.left, found.why) == ({}, (), "")
    trained = [name for verb, name, what in calls(tmp_path) if (verb, what) == ("train", "starts")]
    assert trained == names
    # A run is evaluated before the next one starts; the latency follows the first seed's runs.
    began = [call[:2] for call in calls(tmp_path) if call[2] == "starts"]
    assert began[:4] == [(v, n) for n in names[:2] for v in ("train", "eval")]
    assert [name for verb, name in began[4:6]] == names[:2] and began[6][0] == "train"
    assert len([call for call in began if call[0] == "latency"]) == 2
    assert told == [tmp_path] * 6
    assert [line for line in said if "50.00%" in line][0].startswith(
        f"[1/4] {names[0]}: 50.00% in "
    )
    status = record.read_status(tmp_path / names[0])
    assert (status.status, status.starts, status.step, status.error) == ("finished", 1, 4, "")
    assert 0 < status.seconds < 60
    # Nothing is done twice.
    before = calls(tmp_path)
    found, said = compare(tmp_path, plan, batches=(1, 8))
    assert calls(tmp_path) == before and len(found.finished) == 4
    assert said == ["4 of 4 runs are finished already"]


@pytest.fixture
def cascades(monkeypatch):
    """The tables show a cascade of every divided network, at the threshold 0.25."""

    def shown(folder, entry):
        return Point(0.25, 0.5, 10.0, 0.5, (0.5, 0.5)) if entry["split"] > 1 else None

    monkeypatch.setattr(runs, "cascade_of", shown)


def test_the_commands(tmp_path, cascades):
    """The base config's flags come first, so that the run's own fields win."""
    compare(tmp_path, planned(tmp_path, seeds=(0,)), batches=(1, 8))
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    by = {(c["verb"], c["name"]): c["flags"] for c in lines}
    train = by["train", "independent-s2-seed0"]
    assert train[0] == "--config=base.py"
    assert train[1:5] == [
        "--config.method=independent",
        "--config.split=2",
        "--config.divide=True",
        "--config.seed=0",
    ]
    assert train[5:] == [f"--workdir={tmp_path / 'independent-s2-seed0'}", "--num_processes=1"]
    assert by["eval", "single-s1-seed0"][-1] == "--num_processes=1"
    assert by["latency", "single-s1-seed0"][-3:] == [
        "--batches=1,8",
        "--seconds=0.5",
        "--lowerings=auto",
    ]
    assert by["latency", "independent-s2-seed0"][-1] == "--cascade=0.25"


def test_a_cascade_that_cannot_be_timed(tmp_path, cascades):
    plan = planned(tmp_path, seeds=(0,))
    found, said = compare(tmp_path, plan, ["cascade=s2"], batches=(1,))
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    tried = [c["flags"][-1] for c in lines if c["verb"] == "latency" and c["what"] == "starts"]
    assert tried[1:] == ["--cascade=0.25", "--lowerings=auto"]
    assert (tmp_path / "independent-s2-seed0" / "latency.json").exists() and not found.failed


def test_a_run_that_fails(tmp_path):
    plan = planned(tmp_path)
    found, said = compare(tmp_path, plan, ["fail=single-s1-seed0", "kill=independent-s2-seed1"])
    assert found.failed == {
        "single-s1-seed0": "the loss is not finite at step 3",
        "independent-s2-seed1": "killed by signal 9, after: compiling",
    }
    assert found.left == () and len(found.finished) == 2
    assert statuses(tmp_path, plan) == ["failed", "finished", "finished", "failed"]
    status = record.read_status(tmp_path / "single-s1-seed0")
    assert status.error == "the loss is not finite at step 3"
    assert "single-s1-seed0: failed: the loss is not finite at step 3" in said
    assert "compiling" in (tmp_path / "single-s1-seed0" / "log.txt").read_text()
    # The next start tries failed runs again, and those alone.
    found, _ = compare(tmp_path, plan)
    assert len(found.finished) == 4 and not found.failed
    assert record.read_status(tmp_path / "single-s1-seed0").starts == 2
    assert record.read_status(tmp_path / "single-s1-seed1").starts == 1


def test_pupils_of_a_failed_teacher_fail(tmp_path):
    plan = planned(tmp_path, seeds=(0,))
    pupil = dataclasses.replace(plan.runs[1], teacher=plan.runs[0].name)
    plan = dataclasses.replace(plan, runs=(plan.runs[0], pupil))
    found, _ = compare(tmp_path, plan, ["fail=single"])
    assert found.failed[pupil.name] == f"its teacher {plan.runs[0].name} is not finished"
    assert calls(tmp_path, "train") == [("train", plan.runs[0].name, "starts")]


def test_pupils_wait_for_a_teacher_whose_folder_is_busy(tmp_path, monkeypatch):
    """With a second device free: a killed start may still save in the teacher's folder."""
    monkeypatch.setattr(runner, "_AGAIN", 0.3)
    plan = planned(tmp_path, seeds=(0,))
    pupil = dataclasses.replace(plan.runs[1], teacher=plan.runs[0].name)
    plan = dataclasses.replace(plan, runs=(plan.runs[0], pupil))
    found, said = compare(tmp_path, plan, ["busy=single"], environments=[{}, {}])
    assert len(found.finished) == 2 and not found.failed
    assert any("waits for a process that is at work" in line for line in said)


def test_a_signal_is_handed_on(tmp_path):
    plan = planned(tmp_path)
    waits = "independent-s2-seed0"
    stop = After(lambda: ("train", waits, "starts") in calls(tmp_path))
    found, said = compare(tmp_path, plan, [f"wait={waits}"], stop=stop)
    assert found.why == "a signal" and found.finished == ("single-s1-seed0",)
    assert found.left == (waits, "single-s1-seed1", "independent-s2-seed1")
    assert ("train", waits, "stopped") in calls(tmp_path) and f"{waits}: stopped" in said
    assert statuses(tmp_path, plan) == ["finished", "stopped", "", ""]
    found, _ = compare(tmp_path, plan)
    assert len(found.finished) == 4 and record.read_status(tmp_path / waits).starts == 2


def test_the_budget(tmp_path):
    plan = planned(tmp_path)
    found, said = compare(tmp_path, plan, ["wait=single-s1-seed0"], budget=1.0)
    assert found.why == "the budget" and len(found.left) == 4 and not found.failed
    assert ("train", "single-s1-seed0", "stopped") in calls(tmp_path)
    assert "the budget is spent; stopping single-s1-seed0" in said
    assert len(calls(tmp_path)) == 2  # nothing else was started


def test_a_process_for_each_device(tmp_path):
    """Runs share out the devices; latency is measured alone."""
    plan = planned(tmp_path, ("single", "independent", "cotrain"), seeds=(0,))
    shown = [{"CUDA_VISIBLE_DEVICES": str(i)} for i in (4, 7)]
    found, _ = compare(tmp_path, plan, environments=shown, batches=(1,))
    assert len(found.finished) == 3
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    seen = {c["name"]: c["env"]["CUDA_VISIBLE_DEVICES"] for c in lines if c["verb"] == "train"}
    assert (seen["single-s1-seed0"], seen["independent-s2-seed0"]) == ("4", "7")
    running: set[tuple[str, str]] = set()
    for call in lines:
        key = (call["verb"], call["name"])
        running ^= {key}
        assert len(running) <= 2 and (call["verb"] != "latency" or running <= {key})


@pytest.mark.parametrize("batches", [(), (1,)])
def test_a_free_device_waits_for_a_latency_alone(tmp_path, batches):
    """Without latencies the next seed starts beside the last runs of the seed before."""
    plan = planned(tmp_path, seeds=(0, 1, 2))
    how = ["behind=independent-s2-seed1"] + ["behind=independent-s2-seed0"] * (not batches)
    found, said = compare(tmp_path, plan, how, environments=[{}, {}], batches=batches)
    assert len(found.finished) == 6

    def starts_beside(seed: int) -> bool:
        """Whether the first run of the seed starts before the last one of the seed before ends."""
        events = ": ".join(said)
        return events.index(f"single-s1-seed{seed}: starts") < events.index(
            f"independent-s2-seed{seed - 1}: 50"
        )

    assert starts_beside(1) == (not batches)
    assert starts_beside(2)  # all groups are timed after the first seed


def test_finished_is_what_the_folder_says(tmp_path):
    plan = planned(tmp_path)
    compare(tmp_path, plan)
    first, second, third, fourth = (tmp_path / run.name for run in plan.runs)
    (first / record.OF_RUN).unlink()  # the last checkpoint is that of the last step
    (second / "eval.json").unlink()
    (third / "checkpoints" / "4").rename(third / "checkpoints" / "3")
    (fourth / "checkpoints" / "4" / "_CHECKPOINT_METADATA").unlink()
    (fourth / "checkpoints" / "4").rmdir()  # to save space
    assert [outcome.finished(tmp_path / run.name, run) for run in plan.runs] == [
        True, False, False, True
    ]  # fmt: skip
    assert len(calls(tmp_path, "train")) == 8
    found, _ = compare(tmp_path, plan)
    assert len(found.finished) == 4 and len(calls(tmp_path, "train")) == 12
    assert record.read_status(first).status == "finished"


def test_tables_that_cannot_be_written_end_nothing(tmp_path):
    def broken(workdir):
        raise ValueError("no room")

    found, said = compare(tmp_path, planned(tmp_path, seeds=(0,)), after_run=broken)
    assert len(found.finished) == 2
    assert "warning: the comparison's tables are not written: no room" in said


# ---- compare.json


def test_more_of_a_grid_extends_it(tmp_path):
    compare(tmp_path, planned(tmp_path, seeds=(0,)))
    more = planned(tmp_path, ("cotrain", "single"), (2, 4), seeds=(0, 1))
    found, said = compare(tmp_path, more)
    assert said[0] == "1 of 6 runs are finished already"
    made = record.read(tmp_path)
    assert made["grid"] == {
        "methods": ["cotrain", "single", "independent"],
        "splits": [2, 4],
        "seeds": [0, 1],
        "axes": {},
        "teacher": "",
    }
    assert [run["name"] for run in made["runs"]] == [
        "independent-s2-seed0",
        "cotrain-s2-seed0",
        "cotrain-s4-seed0",
        "single-s1-seed0",
        "cotrain-s2-seed1",
        "cotrain-s4-seed1",
        "single-s1-seed1",
    ]
    cost = {"params": 20, "macs": 200, "train_macs": 2000, "answer_macs": 0}
    assert made["runs"][0]["cost"] == cost
    assert made["runs"][0]["answer"] == "ensemble" and made["config"]["arch"] == tiny().arch
    assert record.known_costs(tmp_path)["cotrain-s4"].macs == 400


def test_another_teacher_is_refused(tmp_path):
    """A group would hold pupils of several teachers; the folder of the comparison may move."""
    asked = ("cotrain", "distill_from")
    plan = planned(tmp_path, asked, (2,), seeds=(0,))
    record.write(tmp_path, tiny(), plan)
    for run in plan.runs:
        (tmp_path / run.name).mkdir()
    more = planned(tmp_path, asked, (2, 4), seeds=(0, 1))
    with pytest.raises(ConfigError, match="its teacher is cotrain-s2-seed0 there, cotrain-s4-seed"):
        record.write(tmp_path, tiny(), more)
    same = planned(tmp_path / "moved", asked, (2, 4), seeds=(0, 1), teacher=("cotrain", 2))
    record.write(tmp_path, tiny(), same)
    assert record.read(tmp_path)["grid"]["teacher"] == "cotrain:2"


def test_another_kind_of_given_teacher_is_refused(tmp_path):
    """Of a run outside of the grid: named by its workdir, which may have moved."""
    folders = {split: tmp_path / f"teacher{split}" for split in (2, 4)}
    for split, folder in folders.items():
        folder.mkdir()
        config_lib.save(tiny(arch="wide_resnet10_1", split=split), folder)
    workdir = tmp_path / "grid"

    def planned_with(split):
        config = tiny(arch="wide_resnet10_1", distill_from__teacher=str(folders[split]))
        asked = grid.Grid(("distill_from",), (1,), (0,))
        return config, grid.plan(config, asked, cost, lambda name: str(workdir / name))

    config, plan = planned_with(2)
    pupil = workdir / plan.runs[0].name
    pupil.mkdir(parents=True)
    config_lib.save(plan.runs[0].config, pupil)
    identity = {"arch": config.arch, "split": 2, "method": config.method}
    (pupil / "teacher.json").write_text(json.dumps(identity))
    record.write(workdir, config, plan)
    with pytest.raises(
        ConfigError, match="its teacher was cotrain of .*, split=2; distill_from.tea"
    ):
        record.write(workdir, *planned_with(4))


def test_another_grid_is_refused(tmp_path):
    plan = planned(tmp_path, seeds=(0,))
    record.write(tmp_path, tiny(), plan)
    record.write(tmp_path, tiny(log_every="2 steps", method="dml", seed=3), plan)  # change nothing
    with pytest.raises(ConfigError) as caught:
        record.write(tmp_path, tiny(duration="5 steps", optim__lr=0.3), plan)
    said = f"workdir={str(tmp_path)!r}: holds another comparison: "
    assert str(caught.value) == (
        f"{said}duration='4 steps' there, '5 steps' here; optim.lr=0.1 there, 0.3 here"
    )
    other = planned(tmp_path, seeds=(0,), axes={"optim.lr": (0.1,)})
    with pytest.raises(ConfigError, match="its axes are none, not optim.lr$"):
        record.write(tmp_path, tiny(), other)


def test_a_folder_of_another_run_is_refused(tmp_path):
    plan = planned(tmp_path, seeds=(0,))
    folder = tmp_path / plan.runs[0].name
    folder.mkdir()
    config_lib.save(tiny(), folder)
    with pytest.raises(ConfigError, match="holds another run: .*method='cotrain' there, 'single'"):
        record.write(tmp_path, tiny(), plan)
    assert not (tmp_path / "compare.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1}', "{"])
def test_a_broken_record_is_named(text, tmp_path):
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(ConfigError, match="compare.json: cannot be read"):
        record.read(tmp_path)


# ---- SIGKILL

_START = """
    import pathlib, sys
    sys.path.insert(0, {root!r})
    from jaxsplit.compare import record, runner
    from jaxsplit.hosts import signals
    from tests.support.grids import fake, planned
    from tests.support.runs import tiny
    workdir = pathlib.Path({workdir!r})
    plan = planned(workdir)
    record.write(workdir, tiny(), plan)
    settings = runner.Settings(config=[], command=fake("wait=independent-s2-seed0"))
    with signals.Stop() as stop:
        stop.hold()
        runner.run(plan, workdir, settings, stop, print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process")
def test_processes_end_with_the_comparison(tmp_path):
    """Where the comparison is killed, its process is asked to save, and the next start goes on."""
    code = textwrap.dedent(_START.format(root=str(ROOT), workdir=str(tmp_path)))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    waits = ("train", "independent-s2-seed0", "starts")
    until(lambda: waits in calls(tmp_path), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: ("train", "independent-s2-seed0", "stopped") in calls(tmp_path))
    plan = planned(tmp_path)
    assert statuses(tmp_path, plan)[:2] == ["finished", "running"]
    found, _ = compare(tmp_path, plan)
    assert len(found.finished) == 4
    assert [record.read_status(tmp_path / run.name).starts for run in plan.runs] == [1, 2, 1, 1]


def until(ready, process=None) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.05)
