"""Runs of BatchEnsemble and MIMO on digits: they learn, resume, and work in every mode."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxsplit
from jaxsplit import augment, export, loop, models, sharding, stack
from jaxsplit import config as config_lib
from jaxsplit.errors import ConfigError, Stopped
from jaxsplit.inference import latency
from jaxsplit.models import resnet
from jaxsplit.report import runs, summary
from jaxsplit.weights import extract, torch_files, torch_import, warm_start
from tests.support.runs import AskedAt, assert_same_bits, lines_of, state_at, tiny

STEPS = 60


@pytest.fixture(scope="module")
def tiny_arch():
    """A small network by name."""
    spec = dataclasses.replace(
        models.divided("wide_resnet10_1", 1), arch="tiny_rival", blocks=(1, 1), splits=(1,)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "FAMILIES", dict(models.FAMILIES))
        models.register(spec, lambda spec, s: spec, resnet.build, num_stages=2)
        yield spec.arch


@pytest.fixture(
    scope="module", params=["batch_ensemble", pytest.param("mimo", marks=pytest.mark.slow)]
)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def config_with(method, tiny_arch):
    """Fields -> a config of the method, with two networks on digits; all kinds of state are on."""
    fields = dict(arch=tiny_arch, divide=False, method=method, batch_size=32)
    fields |= dict(data__name="digits", data__image_size=0, duration=f"{STEPS} steps")
    fields |= dict(eval__every=f"{STEPS} steps", checkpoint__every=f"{STEPS // 2} steps")
    fields |= dict(
        augment__mixup=0.0,
        augment__flip=False,
        augment__erase_prob=0.0,
        ema=0.5,
        optim__clip_norm=1.0,
    )
    fields |= dict(mimo__batch_repetitions=2, optim__lr=2.0, augment__crop_padding=0)
    return lambda **more: tiny(**fields | more)


@pytest.fixture(scope="module")
def whole(config_with, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train_and_evaluate(config_with(), workdir)


@pytest.fixture(scope="module")
def predictor(whole):
    return jaxsplit.load(whole[0])


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)


@pytest.mark.slow
def test_it_learns(whole):
    workdir, results = whole
    losses = [line["train/loss"] for line in lines_of(workdir) if "train/loss" in line]
    assert losses[0] == pytest.approx(2 * np.log(10), rel=0.05)  # the sum over two networks
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    assert results["test/ensemble/top1"] > 0.4
    assert {"test/net0/top1", "test/net1/top1"} < results.keys()


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(whole, config_with, tmp_path):
    at = STEPS // 2 + 1
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config_with(), tmp_path, AskedAt(at))
    results = loop.train_and_evaluate(config_with(), tmp_path)
    assert results == whole[1]
    states = [state_at(config_with(), workdir, STEPS) for workdir in (tmp_path, whole[0])]
    assert_same_bits(*states)


@pytest.mark.slow
def test_predictions(predictor):
    found = predictor.predict(IMAGES)
    assert list(found.networks) == ["net0", "net1"]
    combined = predictor.predict(IMAGES, combine="mean_probs").probabilities
    np.testing.assert_allclose(combined, np.mean(list(found.networks.values()), 0), atol=1e-6)
    one = predictor.predict(IMAGES, networks="net1").probabilities
    np.testing.assert_allclose(one, found.networks["net1"], atol=1e-6)


@pytest.mark.slow
def test_one_network_of_a_run(method, whole, predictor):
    """A network of BatchEnsemble is a plain one; an output of MIMO is none."""
    workdir, _ = whole
    if method == "mimo":
        none = "has no network 'net1'; there are none that can be taken out$"
        with pytest.raises(ConfigError, match=f"^method='mimo': {none}"):
            extract.network(workdir, "net1")
        with pytest.raises(ConfigError, match="^cascade=0.5: method='mimo' has one network only$"):
            predictor.using(cascade=0.5)
        return
    module, variables = extract.network(workdir, "net1")
    known = predictor.restored.facts
    views = augment.eval_view(jax.numpy.asarray(IMAGES), known.mean, known.std)
    logits, _ = jax.jit(module.apply)(variables, views)
    want = predictor.predict(IMAGES).networks["net1"]
    np.testing.assert_allclose(jax.nn.softmax(logits), want, atol=1e-5)
    asked = predictor.predict(IMAGES, cascade=1.1)
    assert (asked.used == 2).all()
    np.testing.assert_allclose(asked.networks["net1"], want, atol=1e-5)


@pytest.mark.slow
def test_exports(method, whole, predictor, config_with, tmp_path):
    """The program answers as `predict`, and weights in a file start a run as those of a workdir."""
    workdir, _ = whole
    written = export.export(workdir, "stablehlo", to=tmp_path / "a.stablehlo")
    assert written.difference < 1e-5
    file = tmp_path / "a.safetensors"
    export.export(workdir, "safetensors", to=file)
    like = jaxsplit.experiment.build(config_with()).state_shapes().raw
    starts = [warm_start.read(config_with(init_from=str(x)), like) for x in (file, workdir)]
    assert_same_bits(starts[0].taken, starts[1].taken)
    assert "not taken" not in starts[0].note
    if method == "mimo":
        with pytest.raises(ConfigError, match="^format='onnx': method='mimo' has no networks with"):
            export.export(workdir, "onnx")


@pytest.mark.slow
def test_other_weights_are_refused(method, whole, config_with):
    plain = config_with(method="independent", init_from=str(whole[0]))
    like = jaxsplit.experiment.build(plain).state_shapes().raw
    with pytest.raises(
        ConfigError, match="^init_from=.*: (its networks share|holds tiny_rival with)"
    ):
        warm_start.read(plain, like)
    with pytest.raises(ConfigError, match=f"^method='{method}': must be a method of whole netw"):
        torch_import.to_variables(config_with(), torch_files.Weights([{}, {}], {}))


@pytest.mark.slow
def test_reports_count_what_it_costs(method, whole, config_with):
    costs = runs.read([whole[0]])[0].costs
    rows = summary.table(config_with(), num_classes=10, image_shape=(8, 8, 1)).splitlines()
    every = next(row for row in rows if row.startswith("all")).replace(",", "").split()[-2:]
    assert list(costs["all"]) == [int(v) for v in every]
    alone = costs["all"] if method == "mimo" else costs["net0"]
    assert costs["net1"] == alone
    assert ("undivided" in costs) == (method == "mimo")  # a network of the other one is undivided


@pytest.mark.slow
def test_latency_times_its_network(method, whole, config_with):
    """Traced, not run: costs, and the networks that are one program."""
    known = jaxsplit.load(whole[0]).restored.facts
    found = {c.name: c for c, _ in latency.candidates(config_with(), known)}
    costs = runs.read([whole[0]])[0].costs
    name = "one network" if method == "mimo" else "dense"
    assert (found[name].params, found[name].macs) == costs["all"]
    assert "unrolled" not in found  # MIMO has one network; a common BatchNorm needs `vmap`
    if method == "mimo":
        call = dict((c.name, call) for c, call in latency.candidates(config_with(), known))[name]
        assert call(IMAGES).shape == (4, 10)


def test_stack_of_a_config(method, config_with):
    """Where the arrays lie; what networks share has no network axis."""
    resolved = config_lib.resolve(config_with())
    made = stack.make(
        resolved.spec,
        resolved.num_networks,
        resolved.heads * 10,
        sharding.make(1, 1, num_networks=1, devices=jax.devices()[:1]),
        tying=resolved.tying,
    )
    shapes = jax.eval_shape(lambda k: made.init(k, (8, 8, resolved.heads)), jax.random.key(0))[
        "params"
    ]
    head = shapes["head"]["kernel"].shape  # 32 features, 10 classes
    assert head == ((1, 32, 20) if method == "mimo" else (32, 10))
