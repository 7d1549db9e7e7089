"""A run and its workdir: one writer, checks before training, evaluations that fail."""

import shutil

import pytest

from jaxsplit import evaluation, loop, metrics, rating
from jaxsplit.checkpoints import read, store
from jaxsplit.errors import ConfigError, SaveError
from jaxsplit.workdir import lock
from tests.support.runs import assert_same_bits, files_of, state_at, steps_in, tiny, untimed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, final metrics, final state) of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    results = loop.train_and_evaluate(tiny(), workdir)
    assert not (workdir / lock.FILE).exists()
    return workdir, results, state_at(tiny(), workdir, 4)


@pytest.fixture
def untrained(monkeypatch):
    """Training must not be compiled."""

    def compiled(*_, **__):
        raise AssertionError("it was found only after compilation")

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)


def test_a_second_run_is_refused_and_changes_nothing(whole, tmp_path, untrained):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    held = lock.take(workdir)
    before = files_of(workdir)
    with pytest.raises(ConfigError, match="^workdir=.*: another run is at work there: process"):
        loop.train_and_evaluate(tiny(duration="9 steps"), workdir)
    assert files_of(workdir) == before
    evaluated = loop.evaluate_checkpoint(tiny(), workdir)  # beside the run
    assert evaluated.items() >= whole[1].items()
    assert {k: v for k, v in files_of(workdir).items() if k in before} == before
    assert files_of(workdir).keys() - before == {"eval.json", "predictions.npz"}
    held.release()


@pytest.mark.slow
def test_a_run_that_was_taken_over_saves_nothing(tmp_path, monkeypatch):
    def taken_over(folder):
        raise SaveError(f"{folder} was taken over")

    monkeypatch.setattr(lock, "check", taken_over)
    with pytest.raises(SaveError, match=f"{tmp_path} was taken over"):
        loop.train_and_evaluate(tiny(), tmp_path)
    assert steps_in(tmp_path) == [] and not (tmp_path / lock.FILE).exists()


@pytest.mark.parametrize(
    "every",
    [
        pytest.param("2 steps", id="saved", marks=pytest.mark.slow),
        pytest.param("4 steps", id="not to be saved", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_that_fails_costs_no_checkpoint(whole, tmp_path, monkeypatch, every):
    """Whether or not the step is also saved; the rerun evaluates it first."""
    tries, calls = evaluation.try_first, []

    def tried(*args, **fields):
        calls.append("a trial")
        return tries(*args, **fields)

    def bad(exp, variables, split):
        calls.append("whole")
        raise ConfigError("data.dir: record 7 of test is damaged")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="record 7"):
        patch.setattr(evaluation, "try_first", tried)
        patch.setattr(rating, "evaluate_split", bad)
        loop.train_and_evaluate(tiny(checkpoint__every=every), tmp_path)
    assert calls == ["a trial", "whole"]
    assert steps_in(tmp_path) == [2] and not (tmp_path / lock.FILE).exists()
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="record 7"):
        patch.setattr(rating, "evaluate_split", bad)
        loop.train_and_evaluate(tiny(checkpoint__every=every), tmp_path)  # before it trains
    assert loop.train_and_evaluate(tiny(checkpoint__every=every), tmp_path) == whole[1]
    assert untimed(tmp_path) == untimed(whole[0])
    assert_same_bits(state_at(tiny(), tmp_path, 4), whole[2])
    assert read.Reader(tmp_path).metrics(2)


@pytest.mark.parametrize("error", [MemoryError(), None], ids=["of this machine", "of the device"])
def test_an_evaluation_without_memory_is_found_before_training(
    tmp_path, monkeypatch, untrained, error
):
    import jax

    error = error or jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def full(*_, **__):
        raise error

    monkeypatch.setattr(evaluation, "try_first", full)
    with pytest.raises(ConfigError) as caught:
        loop.train_and_evaluate(tiny(eval__batch_size=10**6), tmp_path)
    assert str(caught.value) == "eval.batch_size=1000000: is too large for the memory here"


def test_a_damaged_record_of_the_first_batch_is_found_before_training(
    tmp_path, monkeypatch, untrained
):
    from jaxsplit import data

    def bad(*_, **__):
        raise ConfigError("data.dir: record 0 of test is damaged")
        yield

    monkeypatch.setattr(data, "eval_batches", bad)
    with pytest.raises(ConfigError, match="record 0 of test"):
        loop.train_and_evaluate(tiny(), tmp_path)


def test_checkpoints_that_are_a_file(tmp_path, untrained):
    (tmp_path / store.FOLDER).write_text("")
    with pytest.raises(ConfigError, match="its checkpoints must be a writable directory"):
        loop.train_and_evaluate(tiny(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [store.FOLDER]


def test_a_checkpoint_under_another_step_is_an_error(whole, tmp_path, untrained):
    """A resume would skip steps, and the run would end without its last one."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(workdir / store.FOLDER / "4")
    (workdir / store.FOLDER / "2").rename(workdir / store.FOLDER / "3")
    with pytest.raises(ConfigError, match="checkpoint=3 in .*: is of step 2, must lie in a folder"):
        loop.train_and_evaluate(tiny(), workdir)


def test_a_run_whose_last_step_is_gone_does_not_end_well(whole, tmp_path, monkeypatch):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.setattr(store.Checkpoints, "on_disk", lambda self: [2])
    with pytest.raises(SaveError, match="^step 4, the last, is not saved; there are 2$"):
        loop.train_and_evaluate(tiny(), workdir)


def test_leftovers_of_a_run_that_was_killed_are_cleared(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    for name in (".config.json.00ff.jaxsplit-tmp", f"{store.FOLDER}/6.orbax-checkpoint-tmp"):
        (workdir / name).mkdir() if "/" in name else (workdir / name).touch()
    loop.train_and_evaluate(tiny(), workdir)
    assert sorted(path.name for path in workdir.iterdir()) == [
        store.FOLDER,
        "config.json",
        "dataset.json",
        metrics.JSONL,
        "versions.json",
    ]
    assert steps_in(workdir) == [2, 4] and len(list((workdir / store.FOLDER).iterdir())) == 2


@pytest.mark.slow
def test_a_longer_duration_says_what_becomes_of_the_learning_rate(whole, tmp_path, capsys):
    """The learning rate is half a cosine from 0.0125, after 2 of 3 steps and after 3 of 5."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    loop.train_and_evaluate(tiny(duration="6 steps"), workdir)
    line = (
        "duration='6 steps', was '4 steps': the learning rate goes from 0.003125 at step 4 to "
        "0.004319 at step 5"
    )
    assert line in capsys.readouterr().out.splitlines()
