"""jaxsplit.metrics: sums between two log points, metrics.jsonl and TensorBoard files."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import metrics


def read(path) -> list[dict]:
    return [json.loads(line) for line in (path / metrics.JSONL).read_text().splitlines()]


def add_all(values, losses, first_step: int = 0) -> metrics.Totals:
    totals = metrics.empty()
    for i, (value, loss) in enumerate(zip(values, losses, strict=True)):
        named = {"loss": jnp.float32(loss), "top1": jnp.asarray(value, jnp.float32)}
        step = jnp.int32(first_step + i)
        totals = jax.jit(metrics.add)(totals, named, jnp.isfinite(loss), step)
    return totals


def test_means():
    totals = add_all([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5]], [3.0, 2.0, 4.0])
    assert metrics.means(totals) == {"loss": 3.0, "net0/top1": 0.5, "net1/top1": 0.5}
    assert int(totals.count) == 3
    assert int(totals.bad_step) == -1


def test_zeros_start_again():
    totals = add_all([[0.0, 1.0]], [float("nan")])
    fresh = metrics.zeros(totals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fresh) == jax.tree.map(
        lambda x: (x.shape, x.dtype), totals
    )
    assert metrics.means(fresh) == {"loss": 0.0, "net0/top1": 0.0, "net1/top1": 0.0}
    assert (int(fresh.count), int(fresh.bad_step)) == (0, -1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_step_with_a_bad_loss_is_remembered(bad):
    values = [[0.0]] * 5
    assert int(add_all(values, [1.0, 2.0, bad, 1.0, bad], first_step=40).bad_step) == 42
    assert int(add_all(values, [bad] * 5, first_step=0).bad_step) == 0
    assert int(add_all(values, [1.0] * 5).bad_step) == -1


def events(path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), as TensorBoard reads the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    read = {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in tags["scalars"]}
    for tag in tags["tensors"]:
        found = accumulator.Tensors(tag)
        read[tag] = [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in found]
    return read


def test_tensorboard_opens_the_same_values(tmp_path):
    writer = metrics.Writer(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1 / step, "test/net0/top1": step / 7})
    writer.close()
    assert read(tmp_path) == [
        {"step": s, "train/loss": 1 / s, "test/net0/top1": s / 7} for s in (1, 2, 3)
    ]
    found = events(tmp_path)
    for tag, value in (("train/loss", lambda s: 1 / s), ("test/net0/top1", lambda s: s / 7)):
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        np.testing.assert_array_equal(
            np.float32([v for _, v in found[tag]]), np.float32([value(s) for s in (1, 2, 3)])
        )


def test_without_tensorflow_it_goes_on_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    writer = metrics.Writer(tmp_path)
    for step in range(3):
        writer.write(step, {"a": 0.5})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == [metrics.JSONL]
    assert len(read(tmp_path)) == 3
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert line.startswith("no TensorBoard files (") and "tensorflow" in line
    assert line.endswith(f"metrics go to {tmp_path / metrics.JSONL}")
    assert said.err == ""


@pytest.fixture
def no_board(monkeypatch):
    monkeypatch.setattr(metrics, "_tensorboard", lambda workdir: None)


def test_each_line_is_on_disk_at_once(tmp_path, no_board):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"a": 1.0})
    assert read(tmp_path) == [{"step": 1, "a": 1.0}]
    writer.close()


def test_numbers_that_are_not_finite_are_null(tmp_path, no_board):
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 2.0})
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / metrics.JSONL).read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "a": None, "b": None, "c": 2.0}


def test_lines_after_the_restored_step_are_dropped(tmp_path, no_board):
    writer = metrics.Writer(tmp_path)
    for step in (1, 2, 2, 3, 4):
        writer.write(step, {"a": float(step)})
    writer.close()
    writer = metrics.Writer(tmp_path, start=2)
    writer.write(3, {"a": 30.0})
    writer.close()
    assert [(line["step"], line["a"]) for line in read(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [metrics.JSONL]


def test_a_new_run_drops_all_lines(tmp_path, no_board):
    (tmp_path / metrics.JSONL).write_text('{"step": 1, "a": 1.0}\n')
    metrics.Writer(tmp_path, start=0).close()
    assert read(tmp_path) == []


@pytest.mark.parametrize("cut", ['{"step": 3, "a": 0.', '{"step', "{", "", '{"a": 1.0}'])
def test_a_last_line_that_was_cut_short(tmp_path, no_board, cut):
    whole = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}\n'
    (tmp_path / metrics.JSONL).write_text(whole + cut)
    writer = metrics.Writer(tmp_path, start=2)
    writer.write(3, {"a": 3.0})
    writer.close()
    assert (tmp_path / metrics.JSONL).read_text() == whole + '{"step": 3, "a": 3.0}\n'


def test_only_the_active_process_writes(tmp_path):
    writer = metrics.Writer(tmp_path, active=False)
    writer.write(1, {"a": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())
