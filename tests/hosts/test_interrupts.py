"""Stops a run from Python: by `Stop.request`, or by interrupting a notebook's cell."""

import os
import signal
import threading
import time

import pytest

from jaxsplit import loop, metrics
from jaxsplit.errors import Stopped
from jaxsplit.hosts import signals
from tests.support.runs import assert_same_bits, state_at, steps_in, tiny


@pytest.fixture(autouse=True)
def sigint():
    """Handles SIGINT as a notebook does while a cell runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # Python handles it between two of its instructions


# ---- Alone


def test_a_request_without_with_and_from_another_thread():
    stop = signals.Stop()
    stop.hold()
    assert not stop.after(1)
    thread = threading.Thread(target=stop.request)
    thread.start()
    thread.join()
    assert stop.after(2)
    stopped = stop.stopped("step 2 is saved")
    assert isinstance(stopped, Stopped)
    assert (str(stopped), stopped.status) == ("stopped by request: step 2 is saved", 75)
    with pytest.raises(Stopped, match="^stopped by request: there was no unsaved work"):
        stop.release()


def test_a_request_before_the_first_step():
    stop = signals.Stop()
    stop.request()
    with pytest.raises(Stopped, match="^stopped by request: there was no unsaved work"):
        stop.hold()


def test_an_interrupt_waits_for_the_step_only_while_there_is_one(capsys):
    with signals.Interrupt() as stop:
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    with signals.Interrupt() as stop:
        stop.hold()
        assert not stop.after(1)
        interrupt()
        assert stop.after(2)
        stopped = stop.stopped("step 2 is saved")
        assert isinstance(stopped, KeyboardInterrupt) and str(stopped) == "step 2 is saved"
        with pytest.raises(KeyboardInterrupt):  # a second one
            interrupt()
        with pytest.raises(KeyboardInterrupt):
            stop.release()
    assert "interrupted: finishing this step, then saving; again: stops at once\n" == (
        capsys.readouterr().err
    )


def test_a_handler_of_somebody_else_stays():
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with signals.Interrupt() as stop:
            stop.hold()
            assert signal.getsignal(signal.SIGINT) is not stop._handle
            interrupt()
            assert not stop.after(1)
    finally:
        signal.signal(signal.SIGINT, handler)


# ---- A run


@pytest.fixture
def at_step(monkeypatch):
    """Returns a function of a step and of what is done once, when that step is logged."""
    write, todo = metrics.Writer.write, {}

    def and_then(writer, step, scalars):
        write(writer, step, scalars)
        if step in todo:
            todo.pop(step)()

    monkeypatch.setattr(metrics.Writer, "write", and_then)
    return todo.__setitem__


@pytest.mark.slow
def test_an_interrupted_cell_leaves_a_checkpoint(at_step, tmp_path, capsys):
    config = tiny(checkpoint__every="4 steps", eval__every="4 steps")
    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.train_and_evaluate(config, tmp_path / "a")
    # It had been asked whether it ends before it logged; so it makes one more step, the last.
    assert str(caught.value) == (
        f"step 4 of 4 is saved in {tmp_path / 'a'}; the same command resumes from there"
    )
    assert steps_in(tmp_path / "a") == [4]
    # Also in the middle of a run; the same call resumes it.
    at_step(2, interrupt)
    with pytest.raises(KeyboardInterrupt, match="^step 3 of 4 is saved in"):
        loop.train_and_evaluate(config, tmp_path / "b")
    assert steps_in(tmp_path / "b") == [3]
    results = loop.train_and_evaluate(config, tmp_path / "b")
    assert "resumed at step 3 in" in capsys.readouterr().out
    # The first has made all of its steps in one go; now it is evaluated.
    assert results == loop.train_and_evaluate(config, tmp_path / "a")
    assert_same_bits(*(state_at(config, tmp_path / run, 4) for run in "ab"))


def test_a_requested_end(at_step, tmp_path):
    stop = signals.Stop()
    at_step(2, stop.request)
    with pytest.raises(Stopped) as caught:
        loop.train_and_evaluate(tiny(), tmp_path, stop)
    text = f"stopped by request: step 3 of 4 is saved in {tmp_path}; {signals.AGAIN}"
    assert (str(caught.value), caught.value.status) == (text, 75)
    assert steps_in(tmp_path)[-1] == 3
