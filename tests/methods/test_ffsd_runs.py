"""FFSD on other networks and meshes, at degenerate inputs, in whole runs; the leader's export."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsplit
from bench.scaling import collectives
from configs import digits_ffsd_resnet20
from configs import ffsd as ffsd_config
from jaxsplit import config as config_lib
from jaxsplit import experiment, loop, methods, models, stack, state
from jaxsplit.checkpoints import read, store
from jaxsplit.data import facts
from jaxsplit.errors import ConfigError
from jaxsplit.losses import attention
from jaxsplit.models import fusion, vit
from jaxsplit.recipes import published
from jaxsplit.weights import extract, warm_start
from tests.support import nets
from tests.support.runs import shallow
from tests.support.samples import first


def tiny(data=1, net=1, **fields):
    config = digits_ffsd_resnet20.get_config()
    config.update(
        arch="wide_resnet10_1",
        divide_anyway=True,
        batch_size=16,
        batch_norm="sync",
        lowering="dense",
        duration="3 steps",
        mesh=dict(data=data, net=net),
        log_every="1 steps",
    )
    config.schedule.warmup = config.ffsd.warmup = "0 steps"
    config.schedule.warmup_lr = 0.1
    config.update(fields)
    return config


def train(config, steps=3, programs=None):
    """(experiment, state after some steps, metrics of each step); `programs` gets the step."""
    exp = experiment.build(config)
    s = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    resident = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
    resident = exp.sharding.put(resident, exp.sharding.replicated)
    batches = exp.feed.batches(0)
    compiled, out = None, []
    for _ in range(steps):
        batch = experiment.put_batch(exp, next(batches))
        if compiled is None:
            compiled, empty = experiment.compile_step(exp, s, resident, batch)
            if programs is not None:
                programs.append(compiled.as_text())
        s, totals = compiled(s, empty, resident, batch)
        out.append(jax.device_get(totals.sums))
    return exp, s, out


@pytest.fixture(scope="module")
def one_device():
    return train(tiny())


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((2, 2), marks=pytest.mark.slow),
        pytest.param((4, 1), marks=pytest.mark.slow),
        pytest.param((1, 2), marks=pytest.mark.slow),
    ],
)
def test_meshes_agree_with_one_device(one_device, mesh):
    _, one, metrics = one_device
    exp, many, others = train(tiny(*mesh), programs=(programs := []))
    check_collectives(exp, programs[0])
    for a, b in zip(metrics, others, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert metrics[2]["loss"] != metrics[0]["loss"]
    for (path, a), b in zip(
        jax.tree.leaves_with_path(jax.device_get(one)),
        jax.tree.leaves(jax.device_get(many)),
        strict=True,
    ):
        if np.issubdtype(a.dtype, np.floating):
            assert np.abs(a - b).max() <= 1e-5 * max(1.0, np.abs(a).max()), path
        else:
            np.testing.assert_array_equal(a, b)


def check_collectives(exp, text):
    """Gradients and moments are added up along `data`; along `net` go logits and features."""
    data, net = exp.sharding.data_devices, exp.sharding.net_devices
    batch, classes = exp.config.batch_size // data, exp.dataset.num_classes
    maps = {(8, 8, 16), (4, 4, 32), (2, 2, 64)}  # of one student and image
    parts = exp.state_shapes().params.items()
    replicated = [x for name, p in parts if name != "stack" for x in jax.tree.leaves(p)]

    def is_gradient_of(x, shape):
        if len(shape) == x.ndim == 4 and sorted(shape[2:]) == sorted(x.shape[2:]):
            return shape[0] <= x.shape[0] and shape[1] <= x.shape[1]  # taps that meet a small map
        return np.prod(shape) == x.size

    sent = set()
    for kind, axis, shapes, _ in collectives(text, data, net):
        for shape in shapes:
            if axis == "data":  # no dimension of a parameter or a moment is that of the batch
                assert kind == "all-reduce" and batch not in shape, (kind, shape)
            elif shape[-3:] in maps:
                assert batch in shape and len(shape) <= 5, (kind, shape)
                sent.add(shape[-3:])
            # XLA may share out what is not of the stack.
            elif not any(is_gradient_of(x, shape) for x in replicated):
                assert np.prod(shape) <= exp.config.split * batch * classes, (kind, shape)
    assert sent == (maps if net > 1 else set())


@pytest.mark.slow
def test_every_part_learns(one_device):
    exp, after, _ = one_device
    before = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    assert set(after.params) == {"stack", "leader", "fusion", "trans_fusion", "sd1", "sd_leader"}
    for path, leaf in jax.tree.leaves_with_path(after.raw):
        start = before.raw
        for key in path:
            start = start[key.key]
        assert not np.array_equal(leaf, start), path


FAMILIES = {
    "resnet110": 2,
    "resnet50": 2,
    "resnext50_32x4d": 2,
    "se_resnet110": 2,
    "senet154": 2,
    "resnexst50_4x16d": 2,
    "resnest101": 1,
    "shake_resnet26_2x96d": 2,
    "pyramidnet272": 2,
    "densenet190": 2,
    "efficientnetb0": 2,
    "googlenet": 1,
    "ffsd_resnet18": 1,
    "ffsd_wide_resnet16_2": 1,
    "vit_ti4": 2,
    "convnext_atto": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_backbone(arch, monkeypatch):
    """Widths and sizes of the auxiliary modules follow from the maps, odd ones included."""
    family, spec = models.known(arch)
    if isinstance(getattr(spec, "blocks", ()), tuple) and arch != "googlenet":
        monkeypatch.setitem(family.specs, arch, shallow(spec))
    elif arch.startswith("vit"):  # whose stages share one number of blocks
        monkeypatch.setitem(family.specs, arch, dataclasses.replace(spec, blocks=vit.STAGES))
    config = tiny(arch=arch, divide=FAMILIES[arch] > 1, duration="1 steps")
    config.data.image_size = 40 if spec.image_size > 64 else 32
    config.data.name = "synthetic"
    exp = experiment.build(config)
    shape = exp.dataset.image_shape
    variables = jax.eval_shape(lambda: exp.method.init(jax.random.key(0), shape))
    views = jax.ShapeDtypeStruct((1, 16, *shape), jnp.float32)
    batch = {"views": views, "labels": jax.ShapeDtypeStruct((16,), jnp.int32)}

    def gradient(variables, batch):
        def loss(params):
            v = dict(variables, params=params)
            return exp.method.loss(v, batch, jax.random.key(0), jnp.asarray(0))

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, (stats, _) = jax.eval_shape(gradient, variables, batch)
    assert jax.tree.structure(grads) == jax.tree.structure(variables["params"])
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, variables["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "leader"), [("wide_resnet10_1", "resnet50"), ("resnet50", "wide_resnet10_1")]
)
def test_a_leader_with_smaller_or_larger_maps(arch, leader, monkeypatch):
    for name in (arch, leader):
        family, spec = models.known(name)
        if name == "resnet50":
            monkeypatch.setitem(family.specs, name, shallow(spec))
    config = tiny(arch=arch)
    config.ffsd.leader, config.data.name = leader, "synthetic"
    exp = experiment.build(config)
    shape = exp.dataset.image_shape
    variables = jax.eval_shape(lambda: exp.method.init(jax.random.key(0), shape))
    batch = {
        "views": jax.ShapeDtypeStruct((1, 16, *shape), jnp.float32),
        "labels": jax.ShapeDtypeStruct((16,), jnp.int32),
    }
    key, progress = jax.random.key(0), jnp.asarray(0)
    _, (stats, _) = jax.eval_shape(
        lambda v, b: exp.method.loss(v, b, key, progress), variables, batch
    )
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, variables["batch_stats"])


@pytest.mark.slow
def test_three_students_by_hand():
    """Who teaches whom, where the parity files have two students."""
    config = tiny(split=3)
    exp = experiment.build(config)
    shape = exp.dataset.image_shape
    variables = jax.jit(lambda: exp.method.init(jax.random.key(0), shape))()
    views = jax.random.normal(jax.random.key(1), (1, 6, *shape))
    batch = {"views": views, "labels": jnp.arange(6)}
    key, progress = jax.random.key(2), jnp.asarray(100)
    _, (_, found) = jax.jit(exp.method.loss)(variables, batch, key, progress)
    built = stack.make(
        config_lib.resolve(config).spec, 3, 10, exp.sharding, lowering="dense", batch_norm="sync"
    )
    of_stack = {c: variables[c]["stack"] for c in variables}
    logits, features, _ = jax.jit(lambda v: built.apply(v, views, train=True, key=key))(of_stack)
    z, last = np.asarray(logits, np.float64), np.asarray(features["final"], np.float64)

    log_p = z / 2 - np.log(np.exp(z / 2).sum(-1, keepdims=True))
    kl = [[(np.exp(t) * (t - s)).sum(-1).mean() for t in log_p] for s in log_p]
    mutual = [4 * sum(kl[i][j] for j in range(3) if j != i) / 2 for i in range(3)]
    np.testing.assert_allclose(found["distill"], mutual, rtol=2e-4, atol=1e-6)

    a = np.square(last).mean(-1)  # [M, B, h, w]
    for i in (1, 2):
        terms = []
        for x, y in zip(a[i], a[i - 1], strict=True):
            norm = np.linalg.norm(y)
            u = y / norm
            t = np.sort(u.ravel())[max(u.size // 3, 1) - 1]
            target = np.where(u > t, norm - u, np.where(u < t, u, norm / 2))
            terms.append(np.square(x / np.linalg.norm(x) - target).mean())
        np.testing.assert_allclose(found["diversity"][i], np.mean(terms), rtol=1e-4)
    # The channels of one student after those of another, as the fusion module reads them.
    joined = jnp.concatenate(list(features["final"]), -1)
    module = fusion.Fusion(last.shape[-1], 10)
    own = {c: variables[c]["fusion"] for c in variables}
    (fused, _), _ = module.apply(own, joined, True, mutable=["batch_stats"])
    wanted = optax.softmax_cross_entropy_with_integer_labels(fused, batch["labels"]).mean()
    np.testing.assert_allclose(found["fusion/cross_entropy"], wanted, rtol=1e-5)


def test_adam_of_the_modules_is_its_own():
    config = tiny()
    config.optim.update(name="rmsprop_tf", eps=1e-3, beta1=0.5)
    its = methods.METHODS["ffsd"].optimizers(config)["self_distillation"]
    assert (its["name"], its["eps"], its["beta1"], its["beta2"]) == ("adam", 1e-8, 0.9, 0.999)


# ---- Degenerate inputs


@pytest.fixture(scope="module")
def gradient(one_device):
    """(variables, function of parameters and a batch)."""
    exp, _, _ = one_device
    variables = jax.jit(lambda: exp.method.init(jax.random.key(0), exp.dataset.image_shape))()

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            v = dict(variables, params=params)
            return exp.method.loss(v, batch, jax.random.key(0), jnp.asarray(100))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return variables["params"], gradient, exp.dataset.image_shape


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("case", ["noise", "constant images", "zero maps"])
def test_gradients_are_finite(gradient, case, size):
    params, compiled, shape = gradient
    views = jnp.zeros((1, size, *shape))
    if case != "constant images":
        views = jax.random.normal(jax.random.key(1), views.shape)
    if case == "zero maps":
        params = jax.tree.map_with_path(
            lambda path, x: x * 0 if path[-1].key in ("scale", "bias") else x, params
        )
    out = compiled(params, {"views": views, "labels": jnp.zeros(size, jnp.int32)})
    for path, leaf in jax.tree.leaves_with_path(out):
        # Such that a step can be taken.
        assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() < 1e6, path


@pytest.mark.parametrize("x", first(1, [0.0, 1.0]))
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_losses_of_constant_maps(x, y):
    maps = jnp.full((2, 3, 3, 4), x), jnp.full((2, 3, 3, 4), y)
    for loss in (
        lambda a, b: attention.attention_loss(attention.attention(a), attention.attention(b)),
        lambda a, b: attention.diversity_loss(attention.attention(a), attention.attention(b)),
        lambda a, b: jnp.square(a - attention.diversity_target(b)).mean(),
    ):
        value, grads = jax.value_and_grad(loss, (0, 1))(*maps)
        assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in grads)


# ---- Losses against the reference's numbers


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def test_feature_losses_are_the_references(parity):
    data = np.load(parity / "losses.npz")
    functions = {
        "attention_loss": attention.attention_loss,
        "fusion_loss": attention.attention_loss,
        "diversity_loss": attention.diversity_loss,
    }
    cases = [k.removesuffix("/loss") for k in data.files if k.endswith("/loss")]
    cases = [c for c in cases if c.startswith("ffsd/") and c.split("/")[1] in functions]
    assert len(cases) == 9
    for case in cases:
        x, y = (nhwc(data[f"{case}/{v}"]) for v in "xy")
        if x.shape[-1] == 1:
            x, y = x[..., 0], y[..., 0]
        value, grad = jax.value_and_grad(functions[case.split("/")[1]])(x, y)
        np.testing.assert_allclose(value, data[f"{case}/loss"], rtol=2e-6, err_msg=case)
        wanted = np.moveaxis(data[f"{case}/grad_x"], 1, -1).reshape(grad.shape)
        np.testing.assert_allclose(grad, wanted, atol=2e-6 * np.abs(wanted).max(), err_msg=case)
    targets = [
        k.removesuffix("/y") for k in data.files if "diversity_target" in k and k[-2:] == "/y"
    ]
    assert len(targets) == 4
    for case in targets:
        got = attention.diversity_target(nhwc(data[f"{case}/y"]))
        np.testing.assert_allclose(got, nhwc(data[f"{case}/out"]), rtol=1e-5, atol=1e-5)


def test_attention_of_another_size():
    x = jnp.arange(2 * 8 * 8, dtype=jnp.float32).reshape(2, 8, 8)
    y = jax.image.resize(x, (2, 4, 4), "linear")
    assert float(attention.attention_loss(x, y)) < 1e-12
    assert float(attention.attention_loss(y, x)) < 1e-12


def test_warmup_is_the_references(parity):
    table = np.load(parity / "losses.npz")["ffsd/lambda_warmup/table_epoch_div_fusion_sd"]
    from jaxsplit.methods.ffsd import warmup

    for epoch, diversity, towards_fusion, sd in table:
        if epoch < 1:
            continue  # training begins with epoch 1
        for progress in ((epoch - 1) * 7, epoch * 7 - 1):  # the first and last of its 7 steps
            factor = float(warmup(int(progress), 7, 35))
            found = [1e-5 * factor, 10 * factor, 1000 * factor]
            assert found == pytest.approx([diversity, towards_fusion, sd], rel=1e-5)


# ---- Whole runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir, results) of a short run of divided students and another leader."""
    workdir = tmp_path_factory.mktemp("ffsd")
    config = tiny(
        divide=True,
        duration="4 steps",
        views="different",
        eval=dict(every="2 steps", batch_size=360),
    )
    two_maps = dict(blocks=(1, 1))
    with (
        nets.registered("students", splits=(1, 2), **two_maps),
        nets.registered("leaders", width=16, **two_maps),
    ):
        config.arch, config.ffsd.leader = "students", "leaders"
        yield config, workdir, loop.train_and_evaluate(config, workdir)


def test_metrics_and_table(run, capsys):
    config, workdir, results = run
    names = ("net0", "net1", "ensemble", "fusion", "leader")
    assert {f"test/{n}/top1" for n in names} <= results.keys()
    assert results["best/test/leader/top1"] >= results["test/leader/top1"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train/loss" in line]
    for name in ("leader/loss", "fusion/cross_entropy", "net1/diversity", "ffsd/warmup"):
        assert all(math.isfinite(line[f"train/{name}"]) for line in trained), name
    assert trained[0]["train/net0/diversity"] == 0 < trained[0]["train/net1/diversity"]
    loop.evaluate_checkpoint(config, workdir)
    table = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[-2] for line in table[2:8]}
    count = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for part, tree in experiment.build(config).state_shapes().params.items()
    }
    assert rows["leader"] == f"{count['leader']:,}"
    assert rows["net0"] == f"{count['stack'] // 2:,}"
    assert rows["fusion"] == f"{count['stack'] + count['fusion']:,}"


def test_exported_leader(run, tmp_path, capsys):
    config, workdir, results = run
    to = tmp_path / "leader"
    said = extract.leader(config, workdir, to)
    assert said.startswith("the leader of checkpoint 4, leaders, is in ")
    assert said.splitlines()[1] == f"next: jaxsplit eval --workdir={to}"
    alone = config_lib.load(to)
    assert (alone.method, alone.arch, alone.split, alone.divide) == (
        "single",
        "leaders",
        1,
        False,
    )
    evaluated = loop.evaluate_checkpoint(alone, to)
    for metric in ("top1", "nll"):
        assert evaluated[f"test/net0/{metric}"] == pytest.approx(
            results[f"test/leader/{metric}"], rel=1e-6
        )
    checkpoints = read.Reader(to)
    assert not any("trans_fusion" in name for name in read.model_shapes(checkpoints.path(0)))
    # Plain apply, from either workdir.
    exp = experiment.build(config)
    images = jax.random.normal(jax.random.key(0), (3, *exp.dataset.image_shape))
    variables = read.restore_model(read.Reader(workdir).path(4), exp.state_shapes())
    wanted = jax.jit(exp.method.predict)(variables, images)["leader"]
    for place, name in ((to, "net0"), (workdir, "leader")):
        module, alone_variables = extract.network(place, name)
        logits, _ = module.apply(alone_variables, images)
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="holds checkpoints already"):
        extract.leader(config, workdir, to)
    # Predicting, without the data set.
    assert facts.read(to) == facts.read(workdir)
    test = exp.dataset.test
    predictor = jaxsplit.load(workdir)
    assert predictor.networks == ("net0", "net1", "fusion", "leader")
    assert predictor.voters == ("net0", "net1", "leader")
    found = {"leader": predictor(test.images), "fusion": predictor(test.images, networks="fusion")}
    for name, probabilities in found.items():
        top1 = (probabilities.argmax(-1) == test.labels).mean()
        assert top1 == pytest.approx(results[f"test/{name}/top1"], abs=1e-6)
    given = jaxsplit.load(to)(test.images)
    np.testing.assert_allclose(given, found["leader"], rtol=1e-4, atol=1e-6)


def saved(config, workdir):
    """A workdir with a checkpoint of new networks."""
    exp = experiment.build(config)
    s = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    checkpoints = store.Checkpoints(config_lib.prepare_workdir(workdir))
    checkpoints.save(s, config, len(exp.dataset.train))
    checkpoints.close()
    config_lib.save(config, workdir)
    return s


def test_export_of_the_best_checkpoint(run, tmp_path):
    config, workdir, results = run
    said = extract.leader(config, workdir, tmp_path / "best", "best")
    assert said.startswith(f"the leader of checkpoint {results['best/step']:.0f}, ")
    _, variables = extract.network(tmp_path / "best", which="best")
    assert variables["params"]["head"]["bias"].shape == (10,)


@pytest.mark.slow
def test_export_from_a_mesh(tmp_path):
    """The leader can be evaluated where fewer devices are."""
    saved(tiny(data=2, net=2), tmp_path)
    extract.leader(config_lib.load(tmp_path), tmp_path)
    alone = config_lib.load(tmp_path / extract.FOLDER)
    assert dict(alone.mesh) == {"data": -1, "net": 1}
    experiment.build_for_evaluation(alone)


def test_start_from_a_run_with_another_leader(run, tmp_path):
    """Students are taken, what belongs to the leader is drawn."""
    _, workdir, _ = run
    config = tiny(arch="students", divide=True, init_from=str(workdir))
    exp = experiment.build(config)
    start = warm_start.read(config, exp.state_shapes().variables)
    taken = {part: {x is None for x in jax.tree.leaves(tree, is_leaf=lambda x: x is None)}
             for part, tree in start.taken["params"].items()}  # fmt: skip
    assert taken["stack"] == taken["sd1"] == {False}
    assert taken["leader"] == taken["fusion"] == {True}
    assert "leader (of another shape)" in start.note
    config = tiny(arch="students", divide=True, init_from=str(workdir), trunk="stage1")
    exp = experiment.build(config)
    with pytest.raises(ConfigError, match="share other stages than those of this run"):
        warm_start.read(config, exp.state_shapes().variables)


@pytest.mark.slow
def test_resnet20_on_digits(tmp_path):
    config = digits_ffsd_resnet20.get_config()
    config.mesh.data = 1
    results = loop.train_and_evaluate(config, tmp_path)
    assert results["test/leader/top1"] >= 0.975


@pytest.mark.slow
def test_a_leader_like_divided_students_is_exported_as_one_of_them(tmp_path):
    s = saved(tiny(divide=True), tmp_path)
    extract.leader(config_lib.load(tmp_path), tmp_path)
    alone = config_lib.load(tmp_path / extract.FOLDER)
    assert config_lib.resolve(alone).spec == models.divided("wide_resnet10_1", 2)
    _, variables = extract.network(tmp_path / extract.FOLDER)
    kernel = s.params["leader"]["stem_conv1"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["stem_conv1"]["kernel"], kernel)


def test_the_default_leader_is_one_of_a_division_in_more():
    """`divide_in` says in how many `arch` is divided for the leader, as for the students."""
    exp = experiment.build(tiny(divide=True, split=2, divide_in=4))
    params = exp.state_shapes().params
    one = jax.tree.map(lambda x: x.shape[1:], params["stack"])
    assert one == jax.tree.map(lambda x: x.shape, params["leader"])


@pytest.mark.slow
def test_networks_of_other_methods(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        extract.leader(tiny(), tmp_path / "none")
    s = saved(tiny(method="one"), tmp_path)
    config = config_lib.load(tmp_path)
    with pytest.raises(ConfigError, match="method='one': has no network 'leader'; there are net0"):
        extract.leader(config, tmp_path)
    with pytest.raises(ConfigError, match="has no network 'net7'"):
        extract.network(tmp_path, "net7")
    # One that shares its first stages.
    _, variables = extract.network(tmp_path, "net1")
    for part in ("stack", "trunk"):
        for path, leaf in jax.tree.leaves_with_path(s.params[part]):
            own = variables["params"]
            for key in path:
                own = own[key.key]
            np.testing.assert_array_equal(own, leaf[1] if part == "stack" else leaf)


@pytest.mark.slow
def test_the_leader_of_okddip_is_its_last_network(tmp_path):
    s = saved(tiny(method="okddip", split=3), tmp_path)
    said = extract.leader(config_lib.load(tmp_path), tmp_path)
    assert "the leader of checkpoint 0, wide_resnet10_1, is in" in said
    _, variables = extract.network(tmp_path / extract.FOLDER)
    kernel = s.params["stack"]["stem_conv1"]["kernel"][2]
    np.testing.assert_array_equal(variables["params"]["stem_conv1"]["kernel"], kernel)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(diversity=-1.0), "ffsd.diversity=-1.0: must be 0 or more"),
        (dict(self_distillation_lr=0.0), "ffsd.self_distillation_lr=0.0: must be positive"),
        (dict(fusion_weight_decay=-1.0), "ffsd.fusion_weight_decay=-1.0: must be 0 or more"),
        (dict(leader="resnet21"), "ffsd.leader='resnet21': arch='resnet21': unknown; nearest are"),
        (dict(warmup="soon"), "ffsd.warmup='soon': must be a number of steps"),
    ],
)
def test_bad_input(fields, message):
    config = tiny()
    config.ffsd.update(fields)
    with pytest.raises(ConfigError) as caught:
        config_lib.check(config)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# ---- Published rows


def test_every_published_row_has_a_config():
    rows = [r for r in published.RESULTS if r.method == "ffsd"]
    assert len(rows) == 9
    for row in rows:
        config = ffsd_config.get_config(f"arch={row.arch}")
        config_lib.check(config)
        assert (config.data.name, config.arch, config.split) == (row.dataset, row.arch, row.split)
        assert config.method == "ffsd" and not config.divide
        assert config.duration == f"{row.epochs} epochs" and config.batch_size == row.batch_size
        assert (config.data.image_size or 32) == row.crop
        mean = sum(row.top1) / len(row.top1)
        assert f"{row.arch} {mean:.2f}" in ffsd_config.__doc__
        its = config.optim
        assert (its.lr, its.momentum, its.weight_decay) == (0.1, 0.9, 1e-4)
        assert its.decay_norm and its.decay_bias and not its.divide_weight_decay


def test_shorter_runs_fall_at_the_same_shares():
    config = ffsd_config.get_config("arch=resnet20,epochs=30,split=3")
    assert config.split == 3
    assert config.schedule.milestones == ("15 epochs", "22.5 epochs")
    assert config.ffsd.warmup == "1.66667%"
