"""Runs that are stopped, find damage or a full disk: what they keep, and how they go on."""

import errno
import shutil
import time

import orbax.checkpoint as ocp
import pytest

from jaxsplit import loop
from jaxsplit.checkpoints import integrity, store
from jaxsplit.errors import DamagedError, SaveError, Stopped
from jaxsplit.hosts import signals
from tests.support.runs import AskedAt, assert_same_bits, lines_of, state_at, steps_in, tiny

# Where one of its reads or writes fails, orbax leaves the others alone, to end as they may.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, final metrics, final state) of a run that nobody stops."""
    workdir = tmp_path_factory.mktemp("whole")
    results = loop.train_and_evaluate(tiny(), workdir)
    return workdir, results, state_at(tiny(), workdir, 4)


@pytest.mark.parametrize("at", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_a_run_that_is_stopped_loses_nothing(whole, at, tmp_path, capsys):
    """Where it has just evaluated, between such steps, and at its last one."""
    with pytest.raises(Stopped) as caught:
        loop.train_and_evaluate(tiny(), tmp_path, AskedAt(at))
    assert caught.value.status == 75
    assert str(caught.value) == (
        f"stopped by SIGTERM: step {at} of 4 is saved in {tmp_path}; {signals.AGAIN}"
    )
    assert steps_in(tmp_path)[-1] == at
    _, results, state = whole
    assert loop.train_and_evaluate(tiny(), tmp_path) == results
    assert f"resumed at step {at} " in capsys.readouterr().out
    assert_same_bits(state_at(tiny(), tmp_path, 4), state)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    for path in (workdir / store.FOLDER / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError, match="checkpoint=4 in .*: is damaged"):
        loop.evaluate_checkpoint(tiny(), workdir)
    with pytest.raises(DamagedError, match="checkpoint=4 in .*on_corrupt='previous'"):
        loop.train_and_evaluate(tiny(checkpoint__on_corrupt="error"), workdir)
    capsys.readouterr()
    assert loop.train_and_evaluate(tiny(), workdir) == whole[1]
    said = capsys.readouterr().out
    assert "is damaged (" in said and f"resumed at step 2 in {workdir}" in said
    assert_same_bits(state_at(tiny(), workdir, 4), whole[2])
    assert [line["step"] for line in lines_of(workdir)] == [1, 2, 2, 3, 4, 4]
    assert steps_in(workdir) == [2, 4]


def test_a_run_that_cannot_save_says_so_and_stops(tmp_path, monkeypatch):
    sums_of, saves = integrity.sums_of, []

    async def full(self, item, directory):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def second_fails(*args):
        saves.append(args)
        if len(saves) == 2:
            while not steps_in(tmp_path):  # until the first is there
                time.sleep(0.01)
            monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full)
        return sums_of(*args)

    monkeypatch.setattr(integrity, "sums_of", second_fails)
    config = tiny(checkpoint__every="1 steps")
    with pytest.raises(SaveError, match="the disk is full; the last good one is 1$"):
        loop.train_and_evaluate(config, tmp_path)
    assert steps_in(tmp_path) == [1]
    assert len(saves) < 4
