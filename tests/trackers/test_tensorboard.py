"""jaxsplit.trackers.tensorboard: event files beside metrics.jsonl."""

import sys
import time

import numpy as np
import pytest

from jaxsplit import metrics, trackers
from jaxsplit.trackers import tensorboard
from tests.support.runs import events, lines_of, tiny


def writer_of(folder, start: int = 0) -> metrics.Writer:
    config = tiny()
    group = trackers.Group(["tensorboard"], folder, start=start, config=config, say=print)
    return metrics.Writer(folder, start=start, beside=group)


def test_tensorboard_opens_the_same_values(tmp_path):
    writer = writer_of(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1 / step, "test/net0/top1": step / 7})
    writer.close()
    assert lines_of(tmp_path) == [
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
    writer = writer_of(tmp_path)
    for step in range(3):
        writer.write(step, {"a": 0.5})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == [metrics.JSONL]
    assert len(lines_of(tmp_path)) == 3
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert line.startswith("no TensorBoard files (") and "tensorflow" in line
    assert line.endswith(f"metrics go to {tmp_path / metrics.JSONL}")
    assert said.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["", "without a session before"])
def test_tensorboard_drops_what_came_after_the_step_resumed_at(tmp_path, monkeypatch, old):
    """`old`: the files are of a version that did not tell TensorBoard of its start."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    if old:
        monkeypatch.setattr(tensorboard, "drop_later_events", lambda *_: None)
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4)), (3, (4, 5))):
        if start == 2:
            monkeypatch.undo()
        time.sleep(1.1)  # files are in the order of the seconds in their names
        writer = writer_of(tmp_path, start)
        for step in steps:
            writer.write(step, {"a": 10.0 * start + step})
        writer.close()
    want = [(1, 1.0), (2, 2.0), (3, 23.0), (4, 34.0), (5, 35.0)]
    assert events(tmp_path) == {"a": want}
    served = EventAccumulator(str(tmp_path), tensor_size_guidance={"scalars": 0})
    served.Reload()
    assert [event.step for event in served.Tensors("a")] == [step for step, _ in want]
