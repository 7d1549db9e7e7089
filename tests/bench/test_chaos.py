"""bench.chaos: five kills, and that it would notice what it looks for."""

import json
import shutil

import pytest

from bench import chaos
from jaxsplit import loop, metrics
from jaxsplit.checkpoints import store
from tests.support.runs import state_at, tiny

KILLS, STEPS, SEED = 5, 40, 8


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    lives = chaos.run(KILLS, STEPS, SEED, tmp_path)
    assert len(lives) == KILLS
    assert {life.signal for life in lives} == {"SIGKILL", "SIGTERM"}
    assert {life.moment for life in lives} == set(chaos.MOMENTS)
    assert any(life.unfinished for life in lives if life.signal == "SIGKILL")
    said = (tmp_path / "killed" / "said.txt").read_text()
    assert said.count("resumed at step ") >= 2
    assert said.count("stopped by SIGTERM: ") == sum(life.status == 75 for life in lives)
    table = chaos.report(lives, STEPS, 1.0)
    assert f"{KILLS} kills of a run of {STEPS} steps" in table and "| SIGKILL | saving | " in table


@pytest.mark.slow
def test_a_difference_is_found(tmp_path, monkeypatch):
    config, a, b = tiny(), tmp_path / "a", tmp_path / "b"
    loop.train_and_evaluate(config, a)
    shutil.copytree(a, b)
    chaos.compare(config, a, b)
    path = b / metrics.JSONL
    lines = path.read_text().splitlines()
    changed = json.loads(lines[0]) | {"train/loss": 9.0}
    path.write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
    with pytest.raises(chaos.ChaosError, match="metrics.jsonl differs"):
        chaos.compare(config, a, b)
    shutil.copyfile(a / metrics.JSONL, path)
    chaos.compare(config, a, b)
    state = state_at(config, a, 4)
    checkpoints = store.Checkpoints(b)
    known = checkpoints.metrics(4)
    checkpoints.close()
    shutil.rmtree(b / store.FOLDER / "4")
    checkpoints = store.Checkpoints(b)
    checkpoints.save(state.replace(key=state.key + 1), config, 512, known)
    checkpoints.close()
    with pytest.raises(chaos.ChaosError, match="key differs"):
        chaos.compare(config, a, b)


def test_a_wrong_end_is_found(tmp_path):
    """A run that ends by itself, with the status of an error."""

    class Ended:
        exitcode = 2

        def join(self, seconds):
            pass

        def is_alive(self):
            return False

    (tmp_path / "said.txt").write_text("error: why\n")
    with pytest.raises(chaos.ChaosError, match="status 2, must be .75,.\nerror: why"):
        chaos._end(Ended(), tmp_path, 75)
    with pytest.raises(chaos.ChaosError, match="ended with status 2\nerror: why"):
        chaos._until(lambda: False, Ended(), tmp_path)
