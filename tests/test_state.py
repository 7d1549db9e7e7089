"""The state: the average of the weights, its checkpoints, and that nothing changes without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsplit import averaging, compiler, experiment, loop, metrics, rating, state, step
from jaxsplit.checkpoints import read
from jaxsplit.errors import ConfigError
from jaxsplit.methods.base import Method
from tests.support.runs import assert_same_bits, state_at
from tests.support.runs import one_network as tiny
from tests.support.xla import USUAL

DECAY = 0.75


def fast(**fields):
    """A run that learns fast enough that an average of its weights is another network."""
    return tiny(optim__lr=2.0, **fields)


def averaged_run(**fields):
    return fast(ema=DECAY, **fields)


@pytest.fixture(autouse=True, scope="module")
def usual_compiler():
    options, fast_options = compiler.options, compiler.fast_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "options", lambda platform: (options(platform) or {}) | USUAL)
        patch.setattr(compiler, "fast_options", lambda at: (fast_options(at) or {}) | USUAL)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, final metrics) of a run with an average, never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train_and_evaluate(averaged_run(), workdir)


def toy_step(ema: float, warmup: bool):
    """A step of one weight and one statistic, by hand: the weight falls by 1, the statistic x2."""

    def loss(variables, batch, key, progress):
        w = variables["params"]["stack"]["w"]
        stats = jax.tree.map(lambda x: 2 * x, variables["batch_stats"])
        return w.sum(), (stats, {"loss": w.sum()})

    method = Method(None, loss, None, None, "net0")
    return step.make_train_step(
        method, optax.sgd(1.0), lambda r, b, k: b, ema=ema, ema_warmup=warmup
    )


WARMED = [0.0, 0.37003947505, 0.51925014323, 0.60314973701]  # 1 - (1 + t) ** (-2 / 3), t = 0 ..
CONSTANT = [DECAY] * 9


@pytest.mark.parametrize(
    ("ema", "decays"),
    [
        (DECAY, CONSTANT),  # without a warm-up, as timm's ModelEmaV2
        (0.9999, WARMED),  # as its V3
        (0.5, [*WARMED[:2], 0.5, 0.5]),
    ],
)
def test_average_by_its_equation(ema, decays):
    """From the first weights, statistics too."""
    variables = {
        "params": {"stack": {"w": jnp.asarray([5.0, 7.0])}},
        "batch_stats": {"stack": {"mean": jnp.asarray([1.0, 3.0])}},
    }
    s = state.TrainState(
        step=jnp.int32(0),
        **variables,
        opt_state=optax.sgd(1.0).init(variables["params"]),
        key=jax.random.key_data(jax.random.key(0)),
        ema=variables,
    )
    run, totals = jax.jit(toy_step(ema, decays is not CONSTANT)), metrics.empty()
    w, mean = np.asarray([5.0, 7.0]), np.asarray([1.0, 3.0])
    averages = [w, mean]
    for d in decays[:4]:
        s, totals = run(s, totals, {}, {})
        w, mean = w - 1, mean * 2
        averages = [d * a + (1 - d) * x for a, x in zip(averages, (w, mean), strict=True)]
        np.testing.assert_allclose(s.params["stack"]["w"], w, rtol=1e-6)
        np.testing.assert_allclose(s.ema["params"]["stack"]["w"], averages[0], rtol=1e-6)
        np.testing.assert_allclose(s.ema["batch_stats"]["stack"]["mean"], averages[1], rtol=1e-6)
    assert s.variables is s.ema and s.raw["params"] is s.params


def test_the_decay_is_timms():
    """Its documentation: 0.999 is reached at 31,600 steps, 0.9999 at a million."""
    for steps, decay in ((31_622, 0.999), (1_000_000, 0.9999)):
        assert 1 - averaging.replaced(0.99999, steps, warmup=True) == pytest.approx(decay, abs=2e-7)
    assert averaging.replaced(0.9999, 0, warmup=True) == 1  # the start is replaced at once
    assert averaging.replaced(0.75, 7, warmup=True) == pytest.approx(0.25)
    assert averaging.replaced(0.75, 8, warmup=True) == averaging.replaced(0.75, 0, warmup=False)


@pytest.mark.parametrize(
    ("steps", "warmup", "share"),
    [(0, False, 1), (60, False, 0.994017), (23_025, False, 0.1), (1, True, 0), (0, True, 1)],
)
def test_what_of_the_start_is_left(steps, warmup, share):
    assert averaging.share_of_start(0.9999, steps, warmup=warmup) == pytest.approx(share, rel=1e-4)
    assert averaging.share_of_start(0.0, 2, warmup=False) == 0


def test_without_an_average_the_tree_is_as_before():
    exp = experiment.build(tiny())
    shapes = exp.state_shapes()
    assert shapes.ema is None and shapes.variables == shapes.raw
    paths = {jax.tree_util.keystr(p[:1]) for p, _ in jax.tree.leaves_with_path(shapes)}
    assert paths == {".step", ".params", ".batch_stats", ".opt_state", ".key"}


def test_a_new_state_has_the_shapes_and_places_that_are_said():
    two = dict(split=2, method="independent", mesh__data=2, mesh__net=2)
    exp = experiment.build(averaged_run(**two))
    args = exp.method, exp.optimizer
    made = state.init(*args, 0, exp.dataset.image_shape, exp.sharding, averaged=True)
    said = exp.state_shapes()
    assert jax.tree.structure(made) == jax.tree.structure(said)
    for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(said), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
    assert_same_bits(made.ema, made.raw)
    kernel = made.ema["params"]["stack"]["head"]["kernel"]
    assert kernel.sharding.spec == exp.sharding.networks
    buffers = [x.unsafe_buffer_pointer() for x in local_arrays(made)]
    assert len(buffers) == len(set(buffers))  # each can be donated


def local_arrays(tree) -> list[jax.Array]:
    return [shard.data for x in jax.tree.leaves(tree) for shard in x.addressable_shards if x.size]


def test_what_a_checkpoint_holds(whole):
    """The average is the model, so that whoever reads the networks gets it; weights are beside."""
    workdir, _ = whole
    checkpoints = read.Reader(workdir)
    exp = experiment.build(tiny())  # knows nothing of an average
    model = read.restore_model(checkpoints.path(4), exp.state_shapes())
    full = state_at(averaged_run(), workdir, 4)
    assert_same_bits(model, full.ema)
    kernels = [t["params"]["stack"]["head"]["kernel"] for t in (full.ema, full.raw)]
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def test_the_average_is_what_is_evaluated(whole, capsys):
    workdir, results = whole
    again = loop.evaluate_checkpoint(averaged_run(), workdir, 4)
    nll = "test/net0/nll"
    assert again[nll] == pytest.approx(results[nll], rel=1e-6)
    exp = experiment.build(averaged_run())
    raw = rating.evaluate_split(exp, state_at(averaged_run(), workdir, 4).raw, "test")
    assert abs(raw["net0"]["nll"] - results[nll]) > 1e-4


def test_a_resumed_run_ends_bit_identical(whole, tmp_path, monkeypatch, capsys):
    class Stop(Exception):
        pass

    def stop(writer, at, values):
        if at == 3:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Writer, "write", stop)
        with pytest.raises(Stop):
            loop.train_and_evaluate(averaged_run(), tmp_path)
    loop.train_and_evaluate(averaged_run(), tmp_path)
    assert "resumed at step 2" in capsys.readouterr().out
    assert_same_bits(state_at(averaged_run(), tmp_path, 4), state_at(averaged_run(), whole[0], 4))


@pytest.mark.slow
def test_the_average_does_not_change_training(whole, tmp_path, capsys):
    loop.train_and_evaluate(fast(), tmp_path)
    plain = state_at(fast(), tmp_path, 4)
    averaged = state_at(averaged_run(), whole[0], 4)
    assert_same_bits(plain, dataclasses.replace(averaged, ema=None))


@pytest.mark.parametrize("fields", [dict(ema=0.0), dict(ema=0.5)])
def test_another_decay_is_another_experiment(whole, fields):
    with pytest.raises(ConfigError, match="holds another experiment; changed are ema: 0.75 -> 0"):
        loop.train_and_evaluate(tiny(**fields), whole[0])


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_decay_out_of_range(value):
    with pytest.raises(ConfigError, match=r"^ema=-?\d.\d: must be in \[0, 1\)"):
        experiment.build(tiny(ema=value))
