"""Whole runs of okdph, joint and packed: stopped and resumed, on meshes, in all modes."""

import jax
import numpy as np
import pytest

import jaxsplit
from jaxsplit import config as config_lib
from jaxsplit import durations, experiment, loop, state
from jaxsplit.checkpoints import read
from jaxsplit.errors import Stopped
from jaxsplit.export import export
from jaxsplit.inference import latency
from jaxsplit.report import page, summary
from jaxsplit.weights import extract
from tests.support.nets import registered
from tests.support.runs import AskedAt, assert_same_bits, lines_of, tiny

METHODS = {  # method -> (its answer, fields)
    "okdph": ("hybrid", dict(okdph__every="2 steps")),
    "joint": ("ensemble", dict(joint__weight=0.7, joint__of="mean_probs")),
    "packed": ("ensemble", dict(packed__least_channels=1, packed__alpha=1.0)),
}


@pytest.fixture(scope="module")
def make():
    """(method, fields) -> its config."""
    with registered("tiny_rival") as arch:

        def config(method, **fields):
            own = dict(arch=arch, method=method, divide=method == "packed", lowering="dense")
            return tiny(**own | METHODS[method][1] | fields)

        yield config


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """method -> (config, workdir, results) of a run that nobody stops."""
    done = {}

    def run(method):
        if method not in done:
            config, workdir = make(method), tmp_path_factory.mktemp(method)
            done[method] = config, workdir, dict(loop.train_and_evaluate(config, workdir))
        return done[method]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_loses_nothing(trained, method, tmp_path):
    config, workdir, results = trained(method)
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, AskedAt(3))
    assert dict(loop.train_and_evaluate(config, tmp_path)) == results
    shapes = experiment.build(config).state_shapes()
    assert_same_bits(
        *(read.restore(read.Reader(path).path(4), shapes) for path in (tmp_path, workdir))
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_mode(trained, method, tmp_path):
    config, workdir, results = trained(method)
    answer, images = METHODS[method][0], experiment.build(config).dataset.test.images[:8]
    evaluated = loop.evaluate_checkpoint(config, workdir)
    assert evaluated[f"test/{answer}/nll"] == pytest.approx(results[f"test/{answer}/nll"], rel=1e-5)
    predictor = jaxsplit.load(workdir)
    assert predictor.restored.method.answer == answer
    said = predictor(images)
    assert said.shape == (8, 10) and np.allclose(said.sum(1), 1, atol=1e-5)
    name = answer if answer != "ensemble" else "net1"
    own = predictor(images, networks=name)
    folder = tmp_path / "alone"
    export(workdir, "workdir", of=name, to=folder)
    np.testing.assert_allclose(jaxsplit.load(folder)(images), own, rtol=1e-4, atol=1e-6)
    module, variables = extract.network(workdir, name)
    assert module.spec == config_lib.resolve(config_lib.load(folder)).spec or method == "packed"
    assert set(variables) == {"params", "batch_stats"}
    written = export(workdir, "stablehlo", of=answer, to=tmp_path / "program.stablehlo")
    program = jax.export.deserialize(bytearray(written.path.read_bytes()))
    np.testing.assert_allclose(program.call(images), said, rtol=1e-4, atol=1e-6)
    export(workdir, "safetensors", of=name, to=tmp_path / "net.safetensors")
    html = page.write([workdir], tmp_path / "report.html", lambda run: pytest.fail(run.name))
    assert answer in html.read_text()
    assert f"all {config.split}" in summary.of_config(config)
    found = latency.measure(config, [2], seconds=0.001, predictor=predictor)
    assert {c.name for c in found.candidates} >= {"undivided", "grouped", "packed", "dense"}


def two_steps(config):
    """(the variables after two steps, their summed losses)."""
    exp = experiment.build(config)
    s = state.init(exp.method, exp.optimizer, 1, exp.dataset.image_shape, exp.sharding)
    fixed, batches = experiment.constants(exp), exp.feed.batches(0)
    batch = experiment.put_batch(exp, next(batches))
    step, totals = experiment.compile_step(exp, s, fixed, batch)
    for _ in range(2):
        s, totals = step(s, totals, fixed, batch)
    batches.close()
    return jax.device_get(s.raw), float(totals.sums["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mesh", [(2, 2), (4, 1)])
def test_meshes_agree_with_one_device(make, method, mesh):
    fields = dict(batch_norm="sync", schedule__warmup="0 steps", augment__mixup=0.0)
    one = two_steps(make(method, **fields))
    many = two_steps(make(method, **fields, mesh__data=mesh[0], mesh__net=mesh[1]))
    np.testing.assert_allclose(many[1], one[1], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(one[0]), jax.tree.leaves(many[0]), strict=True
    ):
        assert np.abs(a - b).max() <= 2e-5 * max(1.0, np.abs(a).max()), jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_it_learns(make, method, tmp_path):
    """Two epochs of digits; chance is 10 %."""
    fields = dict(data__name="digits", data__image_size=0, duration="2 epochs", batch_size=32)
    fields |= dict(eval__every="2 epochs", checkpoint__every="2 epochs", optim__lr=0.8)
    fields |= dict(augment__mixup=0.0, augment__erase_prob=0.0, augment__flip=False)
    fields |= dict(log_every="10 steps", okdph__every="1 epochs", packed__alpha=2.0)
    with registered("tiny_learner", blocks=(1, 1), width=16, stem=(16,)) as arch:
        results = loop.train_and_evaluate(make(method, arch=arch, **fields), tmp_path)
    losses = [line["train/loss"] for line in lines_of(tmp_path) if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert results[f"test/{METHODS[method][0]}/top1"] > 0.6


@pytest.mark.slow
def test_accumulated_steps_draw_their_own_mixtures(make):
    config = make("okdph", optim__accumulate=2)
    variables, loss = two_steps(config)
    assert np.isfinite(loss) and durations.plan(config, 4).method_steps["okdph.every"] == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
