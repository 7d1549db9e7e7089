"""Workdirs in a fake bucket (`gs://`): everything in a run except TensorBoard's files."""

import importlib.util
import json
import pathlib

import pytest

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import loop, metrics
from jaxsplit.checkpoints import read, resume, store
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError, Stopped
from jaxsplit.hosts import signals
from jaxsplit.workdir import files, lock, versions
from tests.support import bucket as bucket_fake
from tests.support.checkpoints import METRIC, assert_same, like, make_state, save
from tests.support.runs import lines_of, state_at, tiny, untimed

RUN = "gs://bucket/runs/a"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    return bucket_fake.install(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "workdir, allowed",
    [
        ("s3://bucket/run", "must be a directory or gs://<bucket>/<folder>"),
        ("file:///tmp/run", "must be a directory or gs://<bucket>/<folder>"),
        ("gs://", "must be a directory or gs://<bucket>/<folder>"),
        (pathlib.Path(RUN), "must be text; pathlib takes one of the slashes away"),
    ],
)
def test_other_schemes_are_refused(workdir, allowed):
    with pytest.raises(ConfigError) as caught:
        files.path_of(workdir)
    assert str(caught.value) == f"workdir={str(workdir)!r}: {allowed}"


@pytest.mark.parametrize(
    "installed, missing",
    [
        ((), "gcsfs (or tensorflow)"),
        (("gcsfs",), "google-cloud-storage"),
        (("tensorflow",), "google-cloud-storage"),
        (("tensorflow", "google.cloud.storage"), ""),
    ],
)
def test_what_reads_buckets_is_missing(monkeypatch, installed, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed)
    assert files.missing_libraries() == missing
    if missing:
        with pytest.raises(ConfigError) as caught:
            files.path_of(RUN)
        assert str(caught.value) == f"workdir={RUN!r}: needs {missing}; pip install it"


def test_a_bucket_that_cannot_be_written(bucket, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("403: does not have storage.objects.create access\nmore")

    monkeypatch.setattr(bucket, "open", refused)
    with pytest.raises(ConfigError) as caught:
        config_lib.prepare_workdir(RUN)
    assert str(caught.value) == (
        f"workdir={RUN!r}: must be a writable directory (403: does not have storage.objects.create "
        "access more)"
    )


def test_config_and_probe(bucket):
    folder = config_lib.prepare_workdir(RUN)
    assert str(folder) == RUN and list(bucket.at(RUN).iterdir()) == []
    config = common.get_config()
    config_lib.save(config, folder)
    assert config_lib.load(RUN).to_dict() == config.to_dict()


def test_lock(bucket, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 1.0)
    folder = config_lib.prepare_workdir(RUN)
    held = lock.take(folder)
    with pytest.raises(ConfigError, match=f"^workdir='{RUN}': another run is at work there"):
        lock.take(folder)
    held.release()
    assert list(bucket.at(RUN).iterdir()) == []
    owner = {"host": "there", "pid": 1, "machine": "another"}
    (bucket.at(RUN) / lock.FILE).write_text(json.dumps(owner))
    said = []
    lock.take(folder, said.append).release()
    assert said[-1].endswith(": .lock has not changed for 1 s")
    assert list(bucket.at(RUN).iterdir()) == []


def test_metrics(bucket, monkeypatch):
    folder = config_lib.prepare_workdir(RUN)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = metrics.Writer(folder, start=start)
        for step in steps:
            writer.write(step, {"a": float(step + start)})
            assert lines_of(bucket.at(RUN))[-1]["step"] == step
        writer.close()
    assert [line["a"] for line in lines_of(bucket.at(RUN))] == [1, 2, 5, 6]
    (bucket.at(RUN) / metrics.JSONL).write_bytes(b"\xff\n")
    said = []
    metrics.Writer(folder, say=said.append).close()
    assert (bucket.at(RUN) / "metrics.jsonl.damaged").read_bytes() == b"\xff\n" and len(said) == 1


def test_checkpoints(bucket):
    """Includes unfinished checkpoints, which in a bucket have the same names as finished ones."""
    folder = config_lib.prepare_workdir(RUN)
    checkpoints = store.Checkpoints(folder, best_metric=METRIC)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2)
    checkpoints.rate(2, {METRIC: 0.75})
    checkpoints.close()
    (bucket.at(RUN) / store.FOLDER / "3" / "model").mkdir(parents=True)
    assert store.exists(RUN) and sorted(store.steps_in(folder / "checkpoints")) == [1, 2]
    reader = read.Reader(folder, METRIC)
    assert reader.steps() == [1, 2] and reader.best() == (2, {METRIC: 0.75})
    assert_same(read.restore(reader.path(2), like(make_state(2))), make_state(2))
    checkpoints = store.Checkpoints(folder, best_metric=METRIC)
    model = bucket.at(RUN) / store.FOLDER / "2" / "model"
    for path in model.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    said = []
    step, state, _ = resume.newest(checkpoints, like(make_state(1)), 100, say=said.append)
    assert step == 1 and "set aside as damaged-2" in said[0]
    assert_same(state, make_state(1))
    assert (bucket.at(RUN) / store.FOLDER / "damaged-2").is_dir()
    checkpoints.close()


@pytest.mark.slow
def test_a_run(bucket, tmp_path, monkeypatch):
    """A run is stopped, resumed and evaluated as on a disk."""

    class StopsAfterTwo(signals.Stop):
        def after(self, step):
            return step == 2

    with pytest.raises(Stopped, match=f"step 2 of 4 is saved in {RUN}"):
        loop.train_and_evaluate(tiny(), RUN, StopsAfterTwo())
    results = loop.train_and_evaluate(tiny(), RUN)
    assert loop.evaluate_checkpoint(config_lib.load(RUN), RUN, "best")["step"] in (2, 4)
    assert results == loop.train_and_evaluate(tiny(), tmp_path / "local")
    assert untimed(bucket.at(RUN)) == untimed(tmp_path / "local")
    assert_same(state_at(tiny(), RUN, 4), state_at(tiny(), tmp_path / "local", 4))
    names = {path.name for path in bucket.at(RUN).iterdir()}
    assert names == {
        "config.json",
        facts.NAME,
        "eval.json",
        "predictions.npz",
        facts.NAME,
        versions.NAME,
        metrics.JSONL,
        store.FOLDER,
    }
    assert all(path.startswith("gs://bucket/runs/a/") for path in bucket.written)
