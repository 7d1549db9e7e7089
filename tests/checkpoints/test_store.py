"""checkpoints.store: restores bit by bit what was saved; which checkpoints stay; errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsplit.checkpoints import folder as checkpoint_folder
from jaxsplit.checkpoints import read, resume, store
from jaxsplit.errors import ConfigError
from tests.support.checkpoints import METRIC, assert_same, like, make_state, save


def test_a_state_comes_back_bit_by_bit(opened, tmp_path):
    state = make_state(5)
    first = opened()
    first.save(state, common.get_config(), 100)
    first.wait()
    for checkpoints in (first, opened(), read.Reader(tmp_path, METRIC)):
        assert checkpoints.latest() == 5
        assert_same(read.restore(checkpoints.path(5), like(state)), state)
        variables = read.restore_model(checkpoints.path(5), like(state))
        assert variables.keys() == {"params", "batch_stats"}
        assert_same(variables, state.variables)


def test_items_on_disk(opened, tmp_path):
    config = common.get_config()
    checkpoints = opened()
    save(checkpoints, 3)
    folder = tmp_path / "checkpoints" / "3"
    assert {"model", "opt", "config", "data"} <= {path.name for path in folder.iterdir()}
    position = json.loads((folder / "data" / "metadata").read_text())
    assert position == {"step": 3, "train_examples": 100, "format": 2}
    saved = json.loads((folder / "config" / "metadata").read_text())
    assert saved["optim"] == config.optim.to_dict()


def test_saving_copies_the_arrays(opened):
    """The caller may donate the arrays as soon as `save` returns."""
    state = make_state(1)
    numbers = jax.tree.map(np.array, state)
    checkpoints = opened()
    checkpoints.save(state, common.get_config(), 100)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 9, s), donate_argnums=0)
    for _ in range(20):
        state = overwrite(state)
    checkpoints.wait()
    assert_same(read.restore(checkpoints.path(1), like(make_state(1))), numbers)


def test_the_newest_and_the_best_are_kept(opened):
    checkpoints = opened(keep=2)
    for step, top1 in ((1, 0.2), (2, 0.9), (3, None), (4, 0.4), (5, None), (6, 0.5)):
        save(checkpoints, step, top1)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.latest() == 6
    step, metrics = checkpoints.best()
    assert step == 2 and metrics[METRIC] == 0.9
    # The same after the folder is opened again; the better checkpoint becomes the best.
    again = opened(keep=2)
    assert again.steps() == [2, 5, 6] and again.best()[0] == 2
    save(again, 7, 0.95)
    save(again, 8)
    save(again, 9)
    assert again.steps() == [7, 8, 9] and again.best()[0] == 7


def test_keep_one(opened):
    checkpoints = opened(keep=1)
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert checkpoints.steps() == [3]
    assert checkpoints.best() is None


def test_the_newest_of_equals_is_the_best(opened):
    checkpoints = opened(keep=1)
    for step in (1, 2, 3):
        save(checkpoints, step, 0.5)
    save(checkpoints, 4)
    assert checkpoints.best()[0] == 3
    assert checkpoints.steps() == [3, 4]


def test_a_saved_step_is_never_overwritten(opened):
    checkpoints = opened()
    save(checkpoints, 2, 0.5)
    other = make_state(1).replace(step=jnp.int32(2))
    checkpoints.save(other, common.get_config(), 100, {METRIC: 0.9})
    checkpoints.wait()
    assert_same(read.restore(checkpoints.path(2), like(other)), make_state(2))
    assert checkpoints.best()[1][METRIC] == 0.5


def test_find(opened, tmp_path):
    checkpoints = opened(keep=3)
    for step, top1 in ((10, 0.7), (20, 0.1), (30, None)):
        save(checkpoints, step, top1)
    reader = read.Reader(tmp_path, METRIC)
    assert reader.find("latest") == 30
    assert reader.find("best") == 10
    assert reader.find("20") == reader.find(20) == 20
    for which in ("999", 999, "-10", "newest", ""):
        with pytest.raises(ConfigError) as caught:
            reader.find(which)
        assert str(caught.value) == (
            f"checkpoint={which!r}: not in {tmp_path / 'checkpoints'}; "
            "must be latest, best or one of: 10, 20, 30"
        )


def test_find_where_nothing_was_evaluated(opened, tmp_path):
    checkpoints, reader = opened(), read.Reader(tmp_path, METRIC)
    for which in ("latest", "best", "1"):
        with pytest.raises(ConfigError, match="one of: none"):
            reader.find(which)
    save(checkpoints, 1)
    with pytest.raises(ConfigError) as caught:
        reader.find("best")
    assert str(caught.value) == (
        f"checkpoint='best': none in {tmp_path / 'checkpoints'} was evaluated, so none is best; "
        "must be latest or one of: 1"
    )


@pytest.mark.parametrize(
    "other, reason",
    [
        (
            make_state(1, features=5),
            "batch_stats/stack/mean has shape (2, 3, 4), should be (2, 3, 5)",
        ),
        (
            make_state(1, parts=("stack", "fusion")),
            "batch_stats/fusion/mean has shape None, should be (2, 3, 4)",
        ),
        (make_state(1, parts=("other",)), "batch_stats/other/mean has shape None"),
        (make_state(1).replace(opt_state=({}, {})), "opt_state/0/trace/stack/bias has shape"),
    ],
    ids=["shape", "more", "names", "optimizer"],
)
def test_a_state_of_another_architecture(opened, tmp_path, other, reason):
    checkpoints = opened()
    save(checkpoints, 1)
    with pytest.raises(ConfigError) as caught:
        read.restore(checkpoints.path(1), like(other))
    message = str(caught.value)
    assert message.startswith(
        f"checkpoint=1 in {tmp_path / 'checkpoints'}: is damaged or of another architecture"
    )
    assert reason in message
    assert len(message.splitlines()) == 1


def test_evaluation_leaves_parts_of_other_methods_alone(opened, tmp_path):
    """It ignores whole parts only: a part that the method has must have the same shapes."""
    state = make_state(1, parts=("stack", "fusion"))
    checkpoints = opened()
    checkpoints.save(state, common.get_config(), 100)
    checkpoints.wait()
    stack = make_state(1)
    got = read.restore_model(checkpoints.path(1), like(stack))
    assert got.keys() == stack.variables.keys()
    for collection, parts in got.items():
        assert parts.keys() == {"stack"}
        assert_same(parts["stack"], state.variables[collection]["stack"])
    with pytest.raises(ConfigError, match="batch_stats/fusion/mean has shape"):
        read.restore(checkpoints.path(1), like(stack))  # training needs all
    narrow = make_state(1, features=3)
    with pytest.raises(ConfigError, match="batch_stats/stack/mean has shape"):
        read.restore_model(checkpoints.path(1), like(narrow))
    del stack.params["stack"]["bias"]
    with pytest.raises(ConfigError, match="params/stack/bias has shape .* should be None"):
        read.restore_model(checkpoints.path(1), like(stack))


def test_weights_only(opened, tmp_path):
    state = make_state(1)
    variables = jax.tree.map(np.asarray, state.variables)
    checkpoints = opened()
    checkpoints.save_weights(variables, common.get_config(), {"files": ["a"]}, {METRIC: 0.25})
    checkpoints.wait()
    assert store.weights_only(tmp_path)
    reader = read.Reader(tmp_path, METRIC)
    assert reader.find("latest") == reader.find("best") == 0
    assert checkpoints.best() == (0, {METRIC: 0.25})
    assert_same(read.restore_model(checkpoints.path(0), like(state)), variables)
    saved = json.loads((tmp_path / "checkpoints" / "0" / "data" / "metadata").read_text())
    assert saved == {"step": 0, "origin": {"files": ["a"]}, "format": 2}
    sizes = read.model_shapes(checkpoints.path(0))
    assert sizes["params/stack/kernel"] == (2, 3, 4) and len(sizes) == 3
    part = like(state).params["stack"]["bias"]
    got = read.restore_some(checkpoints.path(0), {"params": {"stack": {"bias": part}}})
    assert_same(got, {"params": {"stack": {"bias": variables["params"]["stack"]["bias"]}}})
    save(checkpoints, 10)
    assert not store.weights_only(tmp_path)  # the newest counts, by number


def test_a_damaged_checkpoint(opened, tmp_path):
    checkpoints = opened()
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "checkpoints" / "2" / "model" / "_METADATA").unlink()
    with pytest.raises(ConfigError, match="checkpoint=2 .*: is damaged"):
        read.restore_model(checkpoints.path(2), like(make_state(2)))
    assert_same(read.restore(checkpoints.path(1), like(make_state(1))), make_state(1))


def test_reading_leaves_an_unfinished_save_alone(opened, tmp_path):
    """An evaluation must not remove files that a run is saving."""
    save(opened(), 1)
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    reader = read.Reader(tmp_path, METRIC)
    assert reader.steps() == [1]
    assert_same(read.restore(reader.path(1), like(make_state(1))), make_state(1))
    assert unfinished.exists()
    resumed = opened()  # a resumed run cleans up, at the latest before it saves
    assert resumed.steps() == [1]
    save(resumed, 3)
    assert not unfinished.exists()


def test_another_training_set_is_refused(opened):
    checkpoints = opened()
    save(checkpoints, 2)
    read.position(checkpoints.path(2), 100)
    with pytest.raises(ConfigError, match="data.dir: the training set has 99 .* must have 100"):
        read.position(checkpoints.path(2), 99)


def test_exists(opened, tmp_path, monkeypatch):
    assert not store.exists(tmp_path)
    run = opened()
    assert not store.exists(tmp_path)  # the folder is there, but empty
    save(run, 1)
    run.wait()
    assert store.exists(tmp_path) and store.exists(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.exists("~")


def test_metrics_of_an_evaluation_after_the_save(opened, tmp_path):
    """They act as if saved with the checkpoint: for the best, for deletion and for checksums."""
    checkpoints = opened(keep=1)
    for step, top1 in ((1, 0.25), (2, 0.75), (3, 0.5)):
        save(checkpoints, step)
        assert checkpoints.metrics(step) is None
        checkpoints.rate(step, {METRIC: top1})
        assert checkpoints.metrics(step) == {METRIC: top1}
    assert checkpoints.steps() == [2, 3] and checkpoints.best() == (2, {METRIC: 0.75})
    assert store.steps_in(tmp_path / "checkpoints") in ([2, 3], [3, 2])
    other = read.Reader(tmp_path, METRIC)
    assert other.best() == (2, {METRIC: 0.75})
    assert_same(read.restore(other.path(2), like(make_state(2))), make_state(2))
    path = tmp_path / "checkpoints" / "3" / "metrics" / "metrics"
    assert json.loads(path.read_text()) == {METRIC: 0.5}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(ConfigError, match="checkpoint=3 .*damaged .metrics: its checksum differs"):
        read.restore(other.path(3), like(make_state(3)))


def test_a_rated_checkpoint_that_is_not_the_best_makes_no_room(opened):
    checkpoints = opened(keep=1)
    save(checkpoints, 1, 0.5)
    save(checkpoints, 2)
    checkpoints.rate(2, {METRIC: 0.75})
    assert checkpoints.steps() == [2]
    save(checkpoints, 3)
    checkpoints.rate(3, {METRIC: 0.1})
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize("to", [35, 25])
def test_a_folder_that_was_renamed(opened, tmp_path, to):
    save(opened(), 30)
    folder = tmp_path / "checkpoints"
    (folder / "30").rename(folder / str(to))
    checkpoints = opened()
    line = (
        f"checkpoint={to} in {folder}: is of step 30, must lie in a folder of that name; rename it "
        f"to {folder / '30'}"
    )
    state = like(make_state(30))
    for reading in (
        lambda: resume.newest(checkpoints, state, 100),
        lambda: read.restore(checkpoints.path(to), state),
        lambda: read.restore_model(checkpoints.path(to), state),
        lambda: read.restore_some(checkpoints.path(to), state.variables),
        lambda: read.model_shapes(checkpoints.path(to)),
    ):
        with pytest.raises(ConfigError) as caught:
            reading()
        assert str(caught.value) == line
    assert checkpoints.steps() == [to]  # not set aside, as damage is


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ConfigError) as caught:
        checkpoint_folder.check(tmp_path)
    assert str(caught.value).startswith(
        f"workdir={str(tmp_path)!r}: its checkpoints must be a writable directory ("
    )


def test_what_an_interrupted_save_left_makes_room(tmp_path, opened):
    save(opened(), 1)
    folder = tmp_path / "checkpoints"
    (folder / "2.orbax-checkpoint-tmp-5" / "model").mkdir(parents=True)
    checkpoint_folder.make_room(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["1"]
    checkpoint_folder.make_room(tmp_path / "nothing")
