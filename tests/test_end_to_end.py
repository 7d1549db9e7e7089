"""The whole program on small data: training, files, tables, resuming, every config, a NaN."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxsplit import (
    augment,
    costs,
    errors,
    experiment,
    loop,
    metrics,
    models,
    rating,
    schedules,
    step,
)
from jaxsplit import config as config_lib
from jaxsplit.checkpoints import store
from jaxsplit.errors import ConfigError, NonFiniteLossError
from jaxsplit.hosts import signals
from jaxsplit.report.progress import Progress
from tests.support.runs import (
    DATA,
    ENSEMBLE,
    assert_same_bits,
    config_of,
    events,
    files_of,
    lines_of,
    state_at,
    steps_in,
    tiny,
    untimed,
)


@dataclasses.dataclass
class Run:
    config: ConfigDict
    workdir: object
    results: dict[str, float]
    said: str

    def copy(self, to):
        return shutil.copytree(self.workdir, to / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of `tiny` from its start to its end, never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    config = tiny(trackers=("tensorboard", "csv"))
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, **_: said.append(" ".join(map(str, args))))
        results = loop.train_and_evaluate(config, workdir)
    return Run(config, workdir, results, "\n".join(said))


# ---- A run and what it leaves behind


def test_final_metrics(whole):
    names = [f"test/{n}/{m}" for n in ("net0", "net1", "ensemble") for m in ("top1", "top5", "nll")]
    names += [
        "test/disagreement",
        "test/oracle",
        "test/count",
        "step",
        "best/step",
        f"best/{ENSEMBLE}",
    ]
    assert set(whole.results) == set(names)
    assert all(isinstance(v, float) and np.isfinite(v) for v in whole.results.values())
    assert whole.results["test/count"] == 512
    assert whole.results["step"] == 4
    for name in names:
        if name.endswith(("top1", "top5", "disagreement", "oracle")):
            assert 0 <= whole.results[name] <= 1
    assert whole.results["test/ensemble/top5"] >= whole.results[ENSEMBLE]
    assert whole.results["test/oracle"] >= max(whole.results[f"test/net{i}/top1"] for i in (0, 1))


def test_table_at_the_end(whole):
    config, results = whole.config, whole.results
    small, large = costs.stack_cost(config.arch, 2, num_classes=10, image_shape=(8, 8, 3))
    table = whole.said[whole.said.index("synthetic test (512 images)") :].splitlines()
    assert "one_block divided in 2, cotrain; checkpoint step 4, the last" in table[0]
    rows = {line.split()[0]: line.split()[1:] for line in table[2:6]}
    assert list(rows) == ["net0", "net1", "ensemble", "undivided"]
    for name, n in (("net0", 1), ("net1", 1), ("ensemble", 2)):
        assert rows[name] == [
            f"{100 * results[f'test/{name}/top1']:.2f}",
            f"{100 * results[f'test/{name}/top5']:.2f}",
            f"{results[f'test/{name}/nll']:.4f}",
            f"{n * small.params:,}",
            f"{n * small.macs:,}",
        ]
    assert rows["undivided"] == ["-", "-", "-", f"{large.params:,}", f"{large.macs:,}"]
    assert f"disagreement of the networks: {results['test/disagreement']:.2%}; " in table[6]
    assert table[6].endswith(f"any of them right (oracle): {results['test/oracle']:.2%}")
    assert table[-1].startswith(f"best: step {results['best/step']:.0f}, ensemble top-1 ")
    assert table[-1].endswith("chosen on the test set")
    assert whole.said.count("mean pairwise disagreement") == 1


def test_plain_log_lines(whole):
    logged = [line for line in whole.said.splitlines() if line.startswith("step ")]
    steps = [line.split("/4,")[0] for line in logged if "/4," in line]
    assert steps == [f"step {n}" for n in (1, 2, 3, 4)]
    assert sum("test ensemble top-1" in line for line in logged) == 2


def test_metrics_in_both_files(whole):

    lines = lines_of(whole.workdir)
    assert all(None not in line.values() for line in lines)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    for line in training:
        assert line.keys() >= {
            "lr",
            "images_per_second",
            "train/loss",
            "train/cotrain/js",
            "train/cotrain/weight",
            "train/ensemble/top1",
            "train/net0/cross_entropy",
            "train/net1/cross_entropy",
            "train/net0/top1",
            "train/net1/top1",
        }
        assert line["images_per_second"] > 0
        total = line["train/net0/cross_entropy"] + line["train/net1/cross_entropy"]
        assert line["train/loss"] == pytest.approx(total + line["train/exchange"], rel=1e-6)
    # lr 0.1 at a batch of 128, so 0.0125 here, and half a cosine over the three steps after step 1.
    rates = [5e-3 / 8] + [0.0125 / 2 * (1 + np.cos(np.pi * n / 3)) for n in (0, 1, 2)]
    np.testing.assert_allclose([line["lr"] for line in training], rates, rtol=1e-5)
    weights = [line["train/cotrain/weight"] for line in training]
    np.testing.assert_allclose(weights, [0.005, 0.25, 0.5, 0.5], rtol=1e-6)
    tested = [line for line in lines if ENSEMBLE in line]
    assert sorted({line["step"] for line in tested}) == [2, 4]
    assert tested[-1].items() <= (whole.results | {"step": 4}).items()

    curves = events(whole.workdir)
    assert set(curves) == set().union(*lines) - {"step"}
    for tag, points in curves.items():
        wanted = {line["step"]: np.float32(line[tag]) for line in lines if tag in line}
        assert {s: np.float32(v) for s, v in points} == wanted, tag


def test_every_value_is_written_once(whole):
    seen = [(line["step"], name) for line in lines_of(whole.workdir) for name in line]
    names = [entry for entry in seen if entry[1] != "step"]
    assert len(names) == len(set(names))


def test_without_tensorflow(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    results = loop.train_and_evaluate(tiny(trackers=("tensorboard",)), tmp_path)
    said = capsys.readouterr().out
    assert said.count("no TensorBoard files") == 1
    assert not list(tmp_path.glob("events.*"))
    assert results == whole.results  # training is the same to the last bit
    timing = "images_per_second"
    assert [{k: v for k, v in line.items() if k != timing} for line in lines_of(tmp_path)] == [
        {k: v for k, v in line.items() if k != timing} for line in lines_of(whole.workdir)
    ]


# ---- Evaluation of a workdir


def test_evaluation_from_the_workdir_alone(whole, capsys):
    before = files_of(whole.workdir)
    config = config_lib.load(whole.workdir)
    results = loop.evaluate_checkpoint(config, whole.workdir)
    assert results.items() >= whole.results.items()  # and scores that training does not compute
    said = capsys.readouterr().out
    assert "checkpoint step 4, the latest" in said and "chosen on the test set" in said
    assert files_of(whole.workdir).items() >= before.items()


def test_evaluation_of_a_chosen_step_and_of_the_best(whole):
    at_two = next(line for line in lines_of(whole.workdir) if ENSEMBLE in line)
    assert at_two["step"] == 2
    results = loop.evaluate_checkpoint(whole.config, whole.workdir, 2)
    assert results["step"] == 2
    assert results.items() >= at_two.items()
    assert results != whole.results
    best = loop.evaluate_checkpoint(whole.config, whole.workdir, "best")
    assert best["step"] == whole.results["best/step"]
    assert best[ENSEMBLE] == whole.results[f"best/{ENSEMBLE}"]
    assert best[ENSEMBLE] == max(at_two[ENSEMBLE], whole.results[ENSEMBLE])


def test_evaluation_on_another_mesh(whole):
    config = tiny(mesh__data=2, mesh__net=2, eval__batch_size=100)
    results = loop.evaluate_checkpoint(config, whole.workdir)
    for name, value in whole.results.items():
        assert results[name] == pytest.approx(value, abs=2 / 512 if "top" in name else 1e-2), name


def test_evaluation_by_another_answer(whole):
    config = config_lib.load(whole.workdir)
    config.eval.ensemble = "mean_probs"
    results = loop.evaluate_checkpoint(config, whole.workdir)
    assert results["test/net0/nll"] == whole.results["test/net0/nll"]
    assert results["test/ensemble/nll"] != whole.results["test/ensemble/nll"]


def test_evaluation_beside_a_run_that_saves(whole, tmp_path):
    workdir = whole.copy(tmp_path)
    unfinished = workdir / store.FOLDER / "6.orbax-checkpoint-tmp"
    unfinished.mkdir()
    loop.evaluate_checkpoint(whole.config, workdir)
    assert unfinished.exists()


def test_missing_checkpoints(whole, tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        loop.evaluate_checkpoint(tiny(), tmp_path)
    with pytest.raises(ConfigError, match="checkpoint=999: not in .*one of: 2, 4"):
        loop.evaluate_checkpoint(tiny(), whole.workdir, 999)


@pytest.mark.parametrize("arch", ["wide_resnet16_1", "wide_resnet10_4"])
def test_checkpoint_of_another_architecture(whole, tmp_path, arch):
    with pytest.raises(ConfigError, match=f"arch: 'one_block' -> '{arch}'"):
        loop.evaluate_checkpoint(tiny(arch=arch), whole.workdir)
    # A config.json that does not belong to the checkpoints, too.
    workdir = whole.copy(tmp_path)
    config_lib.save(tiny(arch=arch), workdir)
    with pytest.raises(ConfigError, match="checkpoint=4 .*damaged or of another architecture"):
        loop.evaluate_checkpoint(tiny(arch=arch), workdir)


# ---- Resuming


class Stopped(BaseException):
    """What ends a run from outside, as Ctrl-C does."""


def run_until(done: int, config, workdir, monkeypatch) -> None:
    """Starts a run and stops it after step `done` was dispatched and `done - 1` was handled."""
    advance = Progress.advance
    count = 0

    def counting(self):
        nonlocal count
        count += 1
        if count == done:
            raise Stopped
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", counting)
        with pytest.raises(Stopped):
            loop.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_resumed_run_ends_bit_identical(whole, tmp_path, monkeypatch, capsys):
    run_until(4, whole.config, tmp_path, monkeypatch)
    assert steps_in(tmp_path) == [2]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 2, 3]  # 3 is done, not saved
    capsys.readouterr()

    results = loop.train_and_evaluate(tiny(), tmp_path)
    assert f"resumed at step 2 in {tmp_path}" in capsys.readouterr().out
    assert results == whole.results
    assert steps_in(tmp_path) == [2, 4]
    start, middle, end = (state_at(tiny(), tmp_path, n) for n in (2, 2, 4))
    assert_same_bits(middle, state_at(tiny(), whole.workdir, 2))
    assert_same_bits(end, state_at(tiny(), whole.workdir, 4))  # weights, momenta, step, key
    assert int(end.step) == 4
    # Steps 3 and 4 did something, with the same key.
    assert np.asarray(start.key).tobytes() == np.asarray(end.key).tobytes()
    for x, y in zip(jax.tree.leaves(start.params), jax.tree.leaves(end.params), strict=True):
        assert not np.array_equal(x, y)
    position = tmp_path / store.FOLDER / "4" / "data" / "metadata"
    assert json.loads(position.read_text()) == {"step": 4, "train_examples": 2048, "format": 2}

    timing = "images_per_second"
    assert [{k: v for k, v in line.items() if k != timing} for line in lines_of(tmp_path)] == [
        {k: v for k, v in line.items() if k != timing} for line in lines_of(whole.workdir)
    ]


@pytest.mark.slow
def test_stopped_before_the_first_checkpoint(whole, tmp_path, monkeypatch):
    run_until(2, whole.config, tmp_path, monkeypatch)
    assert steps_in(tmp_path) == []
    assert loop.train_and_evaluate(tiny(), tmp_path) == whole.results
    assert_same_bits(state_at(tiny(), tmp_path, 4), state_at(tiny(), whole.workdir, 4))


def test_finished_run_is_left_as_it_is(whole, tmp_path, capsys):
    workdir = whole.copy(tmp_path)
    before = files_of(workdir / store.FOLDER)
    config = tiny(
        log_every="3 steps", checkpoint__keep=5, eval__every="1 steps", checkpoint__every="1 steps"
    )
    assert loop.train_and_evaluate(config, workdir) == whole.results
    said = capsys.readouterr().out
    assert "resumed at step 4" in said and "mean pairwise disagreement" in said
    assert files_of(workdir / store.FOLDER) == before
    assert lines_of(workdir) == lines_of(whole.workdir)


@pytest.mark.slow
def test_finished_run_is_extended(whole, tmp_path):
    workdir = whole.copy(tmp_path)
    config = tiny(
        duration="7 steps",
        log_every="2 steps",
        checkpoint__every="1 steps",
        eval__every="6 steps",
        mesh__data=2,
        mesh__net=2,
        lowering="dense",
    )
    results = loop.train_and_evaluate(config, workdir)
    assert results["step"] == 7
    best = int(results["best/step"])
    assert steps_in(workdir) == sorted({6, 7, best})  # the newest two, and the best
    assert config_lib.load(workdir).duration == "7 steps"
    lines = lines_of(workdir)
    assert lines[: len(lines_of(whole.workdir))] == lines_of(whole.workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 6, 7]
    with pytest.raises(ConfigError) as caught:
        loop.train_and_evaluate(tiny(), workdir)
    assert str(caught.value) == (
        "duration='4 steps': must not be shorter than the '7 steps' of the run in "
        f"workdir={str(workdir)!r}"
    )


def test_another_experiment_is_refused(whole):
    before = files_of(whole.workdir)
    config = tiny(optim__lr=0.2, method="independent", augment__mixup=0.0)
    with pytest.raises(ConfigError) as caught:
        loop.train_and_evaluate(config, whole.workdir)
    message = str(caught.value)
    assert "optim.lr: 0.1 -> 0.2" in message
    assert "method: 'cotrain' -> 'independent'" in message
    assert "augment.mixup: 0.2 -> 0.0" in message
    with pytest.raises(ConfigError, match="holds another experiment.*data.name"):
        loop.train_and_evaluate(tiny(data__name="digits", data__image_size=0), whole.workdir)
    assert files_of(whole.workdir) == before


@pytest.mark.slow
def test_nothing_of_the_metrics_is_lost_by_a_stop(tmp_path, monkeypatch):
    """Neither the sums since the last log point, nor the evaluation at the end."""
    config = tiny(log_every="3 steps", data__validation=0.1)
    whole = loop.train_and_evaluate(config, tmp_path / "whole")

    class StopsAfterTwo(signals.Stop):
        def after(self, step):
            return step == 2

    with pytest.raises(errors.Stopped, match="step 2 of 4 is saved"):
        loop.train_and_evaluate(config, tmp_path / "run", StopsAfterTwo())
    evaluate = rating.evaluate_split

    def stop(exp, variables, split):
        if split == "test":
            raise errors.Stopped("now", 75)
        return evaluate(exp, variables, split)

    with monkeypatch.context() as patch, pytest.raises(errors.Stopped, match="now"):
        patch.setattr(rating, "evaluate_split", stop)
        loop.train_and_evaluate(config, tmp_path / "run")
    assert steps_in(tmp_path / "run") == [2, 4]
    assert loop.train_and_evaluate(config, tmp_path / "run") == whole
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


# ---- Two devices; a part of the training set held out


@pytest.mark.slow
def test_validation_on_two_devices(tmp_path, capsys):
    config = tiny(mesh__data=2, data__validation=0.1, duration="2 steps", eval__every="1 steps")
    results = loop.train_and_evaluate(config, tmp_path)
    assert results["validation/count"] == 205 and results["test/count"] == 512
    metric = "validation/ensemble/top1"
    values = [line[metric] for line in lines_of(tmp_path) if metric in line]
    assert results[f"best/{metric}"] == max(values)
    said = capsys.readouterr().out
    assert "synthetic validation (205 images)" in said and "synthetic test (512 images)" in said
    assert said.splitlines()[-1].endswith("chosen on the training part held out")
    again = loop.evaluate_checkpoint(config_lib.load(tmp_path), tmp_path)
    assert again.items() >= results.items()
    assert "chosen on the training part held out\n" in capsys.readouterr().out


# ---- A loss that is not finite


@pytest.mark.slow
def test_nan_stops_the_run_and_leaves_what_is_saved(tmp_path, monkeypatch):
    """The rate jumps at the fifth step: the loss of the next is huge, that of the one after NaN."""

    def jumping(**_):
        return lambda count: jnp.where(jnp.asarray(count) < 4, 0.01, 1e30)

    monkeypatch.setitem(schedules.SCHEDULES, "cosine", jumping)
    config = tiny(
        duration="12 steps",
        log_every="4 steps",
        checkpoint__every="4 steps",
        eval__every="12 steps",
    )
    with pytest.raises(NonFiniteLossError) as caught:
        loop.train_and_evaluate(config, tmp_path)
    assert str(caught.value) == (
        "the loss or the update of the weights is not finite at step 5; "
        "the last good checkpoint is step 4"
    )
    assert steps_in(tmp_path) == [4]
    assert [line["step"] for line in lines_of(tmp_path)] == [4]  # stopped at the log point after
    saved = files_of(tmp_path / store.FOLDER)
    results = loop.evaluate_checkpoint(config, tmp_path)
    assert results["step"] == 4
    assert all(np.isfinite(value) for value in results.values())
    # Resumed, it goes the same way, and what is saved stays.
    with pytest.raises(NonFiniteLossError, match="at step 5; the last good checkpoint is step 4"):
        loop.train_and_evaluate(config, tmp_path)
    assert files_of(tmp_path / store.FOLDER) == saved


# ---- Every config: its whole network traced, a shallow one trained


def small_run(name: str, folder) -> ConfigDict:
    """The config of that name with small batches of small images on one device."""
    config = config_of(name)
    config.data.dir = str(folder)
    config.batch_size = config.eval.batch_size = 4
    config.mesh.data = 1
    config.data.threads = 2
    config.lowering = "dense"
    config.trackers = ()
    if config.data.name == "imagenet2012":
        config.data.image_size = 32
    return config


def make_shallow(name: str, monkeypatch) -> None:
    """Leaves one block a stage, and Wide-ResNets narrow: fast to compile."""
    arch = config_of(name).arch
    family, spec = models.known(arch)
    fields = dict(width=32) if arch.startswith("wide") else {}
    spec = dataclasses.replace(spec, blocks=(1,) * len(spec.blocks), **fields)
    monkeypatch.setitem(family.specs, arch, spec)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)  # streamed images: config/test_folder_config.py
def test_two_steps_of_every_config(name, prepared, tmp_path, monkeypatch, capsys):
    make_shallow(name, monkeypatch)
    config = small_run(name, prepared)
    config.duration, config.log_every = "2 steps", "1 steps"
    config.schedule.warmup = config.cotrain.warmup = "1 steps"
    results = loop.train_and_evaluate(config, tmp_path)
    assert results["step"] == 2
    assert results["test/count"] == (8 if config.data.name == "imagenet2012" else 12)
    networks = [f"net{i}" for i in range(config.split)]
    for answer in (*networks, "ensemble"):
        assert np.isfinite(results[f"test/{answer}/nll"])
    losses = [line["train/loss"] for line in lines_of(tmp_path) if "train/loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    # Untrained networks know nothing: log K each.
    classes = {"cifar100": 100, "imagenet2012": 1000}.get(config.data.name, 10)
    assert losses[0] == pytest.approx(config.split * np.log(classes), rel=0.05)
    assert steps_in(tmp_path) == [2]
    assert f"{config.data.name} test" in capsys.readouterr().out


# Networks of a hundred layers take tens of seconds.
@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_whole_network_of_every_config_is_traced(name, prepared):
    """State and training step of the network as configured, with all its blocks; no compilation."""
    config = small_run(name, prepared)
    exp = experiment.build(config)
    state = exp.state_shapes()
    small, _ = costs.stack_cost(
        config.arch,
        config.split,
        num_classes=exp.dataset.num_classes,
        image_shape=exp.dataset.image_shape,
    )
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)]
    assert sum(sizes) == config.split * small.params
    assert all(leaf.shape[0] == config.split for leaf in jax.tree.leaves(state.params))

    streamed = exp.feed.resident is None
    shape = exp.dataset.image_shape
    ops = augment.pipeline(
        config.augment, exp.dataset.mean, exp.dataset.std, crops_on=exp.feed.crops_on
    )
    inputs = step.make_inputs(
        exp.sharding,
        ops,
        num_networks=config.split,
        shared_view=False,
        batch_of="images" if streamed else "indices",
        mixup=config.augment.mixup,
    )

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    labels = array((4,), jnp.int32)
    if streamed:
        resident = {}
        batch = {"images": array((config.split, 4, *shape), jnp.uint8), "labels": labels}
    else:
        resident = {
            "images": array((16, *shape), jnp.uint8),
            "labels": array((16,), jnp.int32),
        }
        batch = {"index": labels}
    train_step = step.make_train_step(exp.method, exp.optimizer, inputs)
    new, totals = jax.eval_shape(train_step, state, metrics.empty(), resident, batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
    assert all(jax.tree.leaves(same))
    assert totals.sums["cross_entropy"].shape == (config.split,)
    assert {"loss", "cotrain/js", "cotrain/weight"} <= totals.sums.keys()
