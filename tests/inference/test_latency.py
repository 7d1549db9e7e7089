"""The timing of programs, and what `jaxsplit latency` measures and writes."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

import jaxsplit
from jaxsplit.errors import ConfigError
from jaxsplit.inference import latency, timing
from tests.support.inference import write_untrained
from tests.support.runs import tiny


def test_programs_take_turns_within_their_budgets():
    called = []
    times = timing.alternating(
        {
            "quick": lambda: called.append("quick"),
            "slow": lambda: (called.append("slow"), time.sleep(0.03)),
        },
        0.02,
    )
    assert called[:6] == ["quick", "slow"] * 2 + ["quick"] * 2  # the first pair warms up
    assert times["slow"].calls == 1  # one call exceeds its budget
    assert times["slow"].least >= 0.03 > times["quick"].median
    assert 3 <= times["quick"].calls <= 200


def test_the_summary_of_times():
    found = timing.of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert found == timing.Times(median=3.0, lower=2.0, upper=4.0, least=1.0, calls=5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency") / "run"
    write_untrained(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def found(workdir):
    said = []
    predictor = jaxsplit.load(workdir, cascade=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    config = jaxsplit.load(workdir).config
    made = latency.measure(
        config, [3], seconds=0.01, predictor=predictor, images=images, say=said.append
    )
    assert len(said) == 1 and said[0].startswith("batch 3: undivided ")
    return made


def test_every_candidate_at_every_batch_size(found):
    names = [candidate.name for candidate in found.candidates]
    on_one = ["undivided", "one network", "dense", "unrolled", "packed", "grouped"]
    assert names == [*on_one, "2 devices", "cascade"]  # the tests have eight devices
    assert [(c.candidate, c.batch) for c in found.cells] == [(name, 3) for name in names]
    assert all(0 < c.times.lower <= c.times.median <= c.times.upper for c in found.cells)
    by_name = {candidate.name: candidate for candidate in found.candidates}
    assert by_name["2 devices"].devices == 2 and by_name["grouped"].lowering == "grouped"
    assert by_name["dense"].params == 2 * by_name["one network"].params
    assert by_name["dense"].macs == 2 * by_name["one network"].macs
    assert by_name["cascade"].macs is None


def test_what_is_written_and_printed(found, tmp_path):
    path = latency.write(found, tmp_path / "run")
    record = json.loads(path.read_text())
    assert path.name == "latency.json" and record["format"] == 1 and record["batches"] == [3]
    cell = next(c for c in record["cells"] if c["candidate"] == "dense" and c["batch"] == 3)
    assert cell["images_per_second"] == pytest.approx(3 / cell["seconds"]["median"])
    assert set(cell["seconds"]) == {"median", "lower", "upper", "least", "calls"}
    text = latency.table(found)
    assert "one_block in 2, images 8x8x3" in text and text.count("cascade") == 1


def test_what_is_written_can_be_read(found, tmp_path):
    assert latency.read(tmp_path) is None
    cells = found.cells[:1] + (latency.Cell(found.cells[1].candidate, 3, None, "too long"),)
    found = dataclasses.replace(found, cells=cells + found.cells[2:])
    latency.write(found, tmp_path)
    assert latency.read(tmp_path) == found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda record: record.clear(), "format=None: must be 1"),
        (lambda record: record.update(format=2), "format=2: must be 1"),
        (lambda record: record.pop("device"), "device is missing"),
        (lambda record: record.update(image_shape=8), "image_shape=8: must be a list"),
        (lambda record: record.update(cells=3), "not iterable"),
        (lambda record: record["candidates"].pop(0), "must hold the undivided network"),
        (lambda record: record["candidates"][1].update(name=1), "name=1: must be text"),
        (lambda record: record["candidates"][1].update(networks="2"), "networks='2': must be"),
        (lambda record: record["candidates"].pop(), "cells: must be those of all candidates"),
        (lambda record: record["cells"][0].update(batch=True), "batch=True: must be"),
        (lambda record: record["cells"][0]["seconds"].update(least=None), "least=None: must be"),
        (lambda record: record["cells"][0]["seconds"].update(upper=1e-9), "median=.*: must lie"),
        (lambda record: record["cells"][0]["seconds"].pop("lower"), "lower is missing"),
    ],
)
def test_a_broken_file_says_what_is_wrong(change, why, found, tmp_path):
    path = latency.write(found, tmp_path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=f"latency.json: cannot be read .*{why}"):
        latency.read(tmp_path)


def test_a_file_that_is_not_json(tmp_path):
    for broken in (b'{"format": 1', b"[]", b"\xff\xfe"):
        (tmp_path / latency.NAME).write_bytes(broken)
        with pytest.raises(ConfigError, match="cannot be read .*`jaxsplit latency` writes it anew"):
            latency.read(tmp_path)


def test_what_would_take_too_long_is_left_out(found, monkeypatch):
    taken = timing.Times(1.0, 1.0, 1.0, 1.0, 1)
    monkeypatch.setattr(timing, "alternating", lambda programs, _: dict.fromkeys(programs, taken))
    made = latency.measure(tiny(), [64, 2, 1], seconds=1.0, say=lambda line: None)
    assert made.batches == (1, 2, 64)
    left = [cell for cell in made.cells if cell.times is None]
    assert {cell.batch for cell in left} == {64} and len(left) == len(made.candidates)
    assert "a call would take about 32 s" in latency.table(made)


@pytest.mark.slow
def test_all_lowerings_compute_the_same(workdir):
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    made = latency.candidates(tiny(), jaxsplit.load(workdir).restored.facts)
    said = {c.name: call(images) for c, call in made if c.networks == 2}
    assert set(said) == {"dense", "unrolled", "packed", "grouped", "2 devices"}
    assert said["dense"].shape == (3, 10) and np.ptp(said["dense"]) > 1e-3
    for name, found in said.items():
        np.testing.assert_allclose(found, said["dense"], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_only_the_lowerings_that_are_asked_for(workdir):
    """`auto` is `unrolled` here; with statistics over all networks it is `dense`."""
    known = jaxsplit.load(workdir).restored.facts
    for asked, config, expected in (
        (("auto", "unrolled"), tiny(), {"unrolled"}),
        (("packed", "auto"), tiny(), {"packed", "unrolled"}),
        (("auto",), tiny(method="batch_ensemble"), {"dense"}),
    ):
        made = latency.candidates(config, known, asked)
        assert {c.name for c, _ in made if c.networks == 2 and c.devices == 1} == expected
    with pytest.raises(ConfigError, match="lowering='fast': must be one of auto, dense"):
        latency.candidates(tiny(), known, ("fast",))


def test_a_cascade_needs_images(workdir):
    predictor = jaxsplit.load(workdir, cascade=0.5)
    with pytest.raises(ConfigError, match="cascade: needs images"):
        latency.measure(predictor.config, [1], predictor=predictor, say=lambda line: None)
    assert jax.local_device_count() == 8
