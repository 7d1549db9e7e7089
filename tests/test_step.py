"""The evaluation step: ranks, ties, padding; what a device makes of its part of a batch; batches
that are cut into parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from jaxsplit import augment, evaluation, experiment, metrics, sharding, stack, state, step
from jaxsplit.errors import ConfigError
from jaxsplit.methods.base import Method
from jaxsplit.state import TrainState
from tests.support.runs import tiny
from tests.support.samples import first

MEAN, STD = (0.0,), (1.0,)


def sums_of(named, labels, mask):
    """What the evaluation step adds up for given logits of every name."""
    method = Method(None, None, lambda variables, images: named, None, "ensemble")
    batch = {
        "images": jnp.zeros((len(labels), 2, 2, 1), jnp.uint8),
        "labels": jnp.asarray(labels),
        "mask": jnp.asarray(mask, jnp.float32),
    }
    sums = evaluation.make_eval_step(method, MEAN, STD)({}, batch)
    return {k.removeprefix("x/"): float(v) for k, v in evaluation.flatten({"x": sums}).items()}


def test_sums_by_hand():
    logits = jnp.asarray(
        [
            [9.0, 8, 7, 6, 5, 4, 3],  # label 0: first
            [9.0, 8, 7, 6, 5, 4, 3],  # label 4: fifth
            [9.0, 8, 7, 6, 5, 4, 3],  # label 5: sixth
            [0.0, 0, 0, 0, 0, 0, 9],  # padding
        ]
    )
    labels, mask = [0, 4, 5, 6], [1, 1, 1, 0]
    other = logits[:, ::-1]
    sums = sums_of({"net0": logits, "net1": other, "ensemble": logits}, labels, mask)
    assert sums["count"] == 3
    assert (sums["ensemble/top1"], sums["ensemble/top5"]) == (1, 2)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    assert sums["ensemble/nll"] == pytest.approx(-log_p[[0, 1, 2], [0, 4, 5]].sum(), rel=1e-6)
    assert sums["oracle"] == 1  # net0 is right once, net1 never
    assert sums["disagreement"] == 3  # net0 says 0, net1 says 6; the padding does not count


def test_of_equals_the_first_counts_as_higher():
    equal = jnp.zeros((10, 10))
    sums = sums_of({"net0": equal}, list(range(10)), [1] * 10)
    assert (sums["net0/top1"], sums["net0/top5"]) == (1, 5)
    assert sums["net0/nll"] == pytest.approx(10 * np.log(10))


def test_what_is_not_a_number_is_no_hit():
    sums = sums_of({"net0": jnp.full((2, 10), jnp.nan)}, [0, 1], [1, 1])
    assert (sums["net0/top1"], sums["net0/top5"]) == (0, 0)


def test_fewer_than_five_classes():
    sums = sums_of({"net0": jnp.asarray([[1.0, 2.0, 3.0]])}, [0], [1])
    assert (sums["net0/top1"], sums["net0/top5"]) == (0, 1)


@pytest.mark.parametrize("shared", first(1, [False, True]))
def test_inputs_do_not_depend_on_the_mesh(shared):
    """Views, by the number of their network and of their example; only mixup pairs per device."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 1), np.uint8)
    resident = {"images": images, "labels": np.arange(20, dtype=np.int32)}
    batch = {"index": rng.permutation(20)[:8].astype(np.int32)}
    config = dict(
        crop_padding=2, flip=True, erase_prob=0.5, erase_area=(0.1, 0.2), erase_aspect=(1, 1)
    )
    ops = augment.pipeline(config, MEAN, STD)
    made = {}
    for data, net in ((1, 1), (4, 2)):
        mesh = sharding.make(data, net, num_networks=4, batch_size=8)
        inputs = step.make_inputs(
            mesh, ops, num_networks=4, shared_view=shared, batch_of="indices", mixup=0.0
        )
        made[data] = jax.jit(inputs)(
            mesh.put(resident, mesh.replicated), mesh.put(batch, mesh.batch), jax.random.key(1)
        )
    assert made[1]["views"].shape == (1 if shared else 4, 8, 8, 8, 1)
    np.testing.assert_array_equal(made[1]["views"], made[4]["views"])
    np.testing.assert_array_equal(made[4]["labels"], batch["index"])


def test_mixup_pairs_within_a_device_with_one_lambda():
    labels = np.arange(16, dtype=np.int32)
    images = np.zeros((1, 16, 2, 2, 1), np.uint8) + labels[None, :, None, None, None].astype(
        np.uint8
    )
    mesh = sharding.make(4, 2, num_networks=2, batch_size=16)
    ops = [("wide", lambda key, image: image.astype(jnp.float32))]
    inputs = step.make_inputs(
        mesh, ops, num_networks=2, shared_view=False, batch_of="images", mixup=1.0
    )
    batch = {
        "images": mesh.put(np.repeat(images, 2, 0), mesh.views),
        "labels": mesh.put(labels, mesh.batch),
    }
    out = jax.device_get(jax.jit(inputs)({}, batch, jax.random.key(3)))
    partner, lam = out["partner"], out["lam"]
    assert (partner // 4 == labels // 4).all() and (partner != labels).any()
    for views in out["views"]:  # one lambda and one permutation for all networks
        np.testing.assert_allclose(views[:, 0, 0, 0], lam * labels + (1 - lam) * partner, rtol=1e-5)


# ---- Accumulation

IMAGES = (4, 4, 1)


def linear_method(networks: int = 2) -> Method:
    """Linear networks on mixed labels, whose statistics are frozen."""

    def loss(variables, batch, key, progress):
        w = variables["params"]["stack"]["kernel"]
        views = jnp.broadcast_to(batch["views"], (networks, *batch["views"].shape[1:]))
        logits = jnp.einsum("sbhwc,shwck->sbk", views, w)
        log_p = jax.nn.log_softmax(logits)
        of_label, of_partner = (
            -jnp.take_along_axis(log_p, batch[name][None, :, None], 2)[..., 0].mean(1)
            for name in ("labels", "partner")
        )
        each = batch["lam"] * of_label + (1 - batch["lam"]) * of_partner
        return each.sum(), (variables["batch_stats"], {"each": each, "lam": batch["lam"]})

    return Method(None, loss, None, None, "net0")


def linear_state(optimizer, networks: int = 2) -> TrainState:
    rng = np.random.default_rng(0)
    params = {
        "stack": {"kernel": jnp.asarray(rng.normal(size=(networks, *IMAGES, 5)), jnp.float32)}
    }
    return TrainState(
        step=jnp.int32(3),
        params=params,
        batch_stats={"stack": {"mean": jnp.ones(networks)}},
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.key(5)),
    )


def linear_run(mesh_shape, accumulate: int, shared: bool = False):
    """(state, means of the metrics) after one step on 32 images, with flips and mixup."""
    mesh = sharding.make(*mesh_shape, num_networks=2, batch_size=32)
    rng = np.random.default_rng(1)
    resident = {
        "images": rng.integers(0, 256, (40, *IMAGES), np.uint8),
        "labels": rng.integers(0, 5, 40).astype(np.int32),
    }
    batch = {"index": rng.permutation(40)[:32].astype(np.int32)}
    ops = augment.pipeline(augment_config(), MEAN, STD)
    inputs = step.make_inputs(
        mesh, ops, num_networks=2, shared_view=shared, batch_of="indices", mixup=1.0
    )
    optimizer = optax.sgd(1.0)
    train_step = step.make_train_step(
        linear_method(), optimizer, inputs, accumulate=accumulate, sharding=mesh
    )
    new, totals = jax.jit(train_step)(
        linear_state(optimizer),
        metrics.empty(),
        mesh.put(resident, mesh.replicated),
        mesh.put(batch, mesh.batch),
    )
    return new, metrics.means(totals)


def augment_config():
    config = common.get_config().augment
    config.crop_padding, config.flip, config.erase_prob = 0, True, 0.0
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "shared", "in_a_loop"),
    [((1, 1), False, False), ((1, 1), False, True), ((4, 2), False, False), ((4, 2), True, True)],
)
def test_parts_of_a_batch_do_what_the_whole_does(mesh, shared, in_a_loop, monkeypatch):
    """The same gradient and metrics, so the same views and pairs; written out, or in a loop."""
    whole, means = linear_run(mesh, 1, shared)
    if in_a_loop:
        scan = jax.lax.scan
        monkeypatch.setattr(jax.lax, "scan", lambda f, init, xs, unroll: scan(f, init, xs))
    start = linear_state(optax.sgd(1.0))
    moved = np.abs(whole.params["stack"]["kernel"] - start.params["stack"]["kernel"]).max()
    assert moved > 0.1
    parts, of_parts = linear_run(mesh, 4, shared)
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert of_parts == pytest.approx(means, rel=1e-5)
    assert int(parts.step) == 4


def test_batches_are_cut_within_each_device():
    mesh = sharding.make(4, 2, num_networks=2, batch_size=16)
    numbers = np.arange(16, dtype=np.int32)
    views = np.broadcast_to(numbers[None, :, None], (2, 16, 3)) + 100 * np.arange(2)[:, None, None]
    batch = {
        "views": mesh.put(views, mesh.views),
        "labels": mesh.put(numbers, mesh.batch),
        "lam": mesh.put(np.float32(0.3), mesh.replicated),
    }
    compiled = jax.jit(lambda b: step.cut_batch(b, 2, mesh)).lower(batch).compile()
    got = jax.device_get(compiled(batch))
    want = [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert got["labels"].tolist() == want
    assert got["views"].shape == (2, 2, 8, 3)
    assert got["views"][:, 0, :, 1].tolist() == want
    assert (got["views"][:, 1] == got["views"][:, 0] + 100).all()
    np.testing.assert_allclose(got["lam"], [0.3, 0.3])
    text = compiled.as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "permute("))


def test_batch_norm_and_keys_of_each_part_in_turn():
    """Statistics go from part to part; each has noise of its own."""
    seen = []

    def loss(variables, batch, key, progress):
        w, mean = variables["params"]["stack"]["kernel"], variables["batch_stats"]["stack"]["mean"]
        noise = jax.random.uniform(key)
        jax.debug.callback(lambda x: seen.append(float(x)), noise)
        new = 0.5 * mean + 0.5 * batch["views"].mean((1, 2))
        return (w.mean() * new).sum(), ({"stack": {"mean": new}}, {"loss": new.sum()})

    mesh = sharding.make(1, 1, num_networks=2, batch_size=4)
    views = jnp.asarray([[[1.0], [3.0], [5.0], [9.0]], [[2.0], [2.0], [4.0], [0.0]]])
    optimizer = optax.sgd(1.0)
    train_step = step.make_train_step(
        Method(None, loss, None, None, "net0"),
        optimizer,
        lambda r, b, k: {"views": views, "labels": jnp.zeros(4, jnp.int32)},
        accumulate=2,
        sharding=mesh,
    )
    new, totals = jax.jit(train_step)(linear_state(optimizer), metrics.empty(), {}, {})
    jax.effects_barrier()
    first = [0.5 * 1 + 0.5 * 2, 0.5 * 1 + 0.5 * 2]  # means of images 0 and 1: 2 and 2
    second = [0.5 * first[0] + 0.5 * 7, 0.5 * first[1] + 0.5 * 2]
    np.testing.assert_allclose(new.batch_stats["stack"]["mean"], second)
    assert metrics.means(totals)["loss"] == pytest.approx((sum(first) + sum(second)) / 2)
    assert len(set(seen)) == 2


@pytest.mark.parametrize(("accumulate", "data"), [(3, 1), (8, 4), (0, 1), (32, 1)])
def test_a_batch_that_cannot_be_cut(accumulate, data):
    mesh = sharding.make(data, 1, num_networks=1, batch_size=16)
    with pytest.raises(
        ConfigError, match=f"^optim.accumulate={accumulate}: must divide the {16 // data} images"
    ):
        step.check_accumulate(accumulate, 16, mesh)
    step.check_accumulate(16 // data, 16, mesh)


def test_a_config_whose_batch_cannot_be_cut():
    config = common.get_config()
    config.data.name, config.arch, config.batch_size = "digits", "wide_resnet10_1", 16
    config.optim.accumulate, config.mesh.data = 3, 4
    with pytest.raises(ConfigError, match="^optim.accumulate=3: must be a divisor of batch_size=1"):
        experiment.build(config)
    config.optim.accumulate = 8
    with pytest.raises(ConfigError, match="^optim.accumulate=8: must divide the 4 images of a dev"):
        experiment.build(config)
    experiment.build_for_evaluation(config)


@pytest.mark.slow
def test_a_real_network_in_parts():
    """Two divided networks with BatchNorm: as two calls of the loss by hand, and on two devices."""
    config = common.get_config()
    config.data.name, config.arch, config.split = "digits", "wide_resnet10_1", 2
    config.batch_size, config.mesh.data, config.batch_norm = 16, 2, "sync"
    config.optim.accumulate, config.augment.mixup = 2, 0.0
    exp = experiment.build(config)
    start = state.init(exp.method, exp.optimizer, 0, exp.dataset.image_shape, exp.sharding)
    host = jax.device_get(start)
    arrays = dict(images=exp.feed.resident.images, labels=exp.feed.resident.labels)
    resident = exp.sharding.put(arrays, exp.sharding.replicated)
    batch = experiment.put_batch(exp, next(exp.feed.batches(0)))
    compiled, totals = experiment.compile_step(exp, start, resident, batch)
    new, totals = compiled(start, totals, resident, batch)

    ops = augment.pipeline(config.augment, exp.dataset.mean, exp.dataset.std)
    inputs = step.make_inputs(
        exp.sharding, ops, num_networks=2, shared_view=False, batch_of="indices", mixup=0.0
    )
    key = jax.random.fold_in(jax.random.wrap_key_data(host.key), 0)
    made = jax.device_get(jax.jit(inputs)(resident, batch, jax.random.split(key)[0]))

    @jax.jit
    def gradient(params, stats, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            return exp.method.loss(variables, batch, key, jnp.int32(0))

        (value, (stats, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, stats, grads

    stats, grads, values = host.batch_stats, [], []
    for rows in ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]):
        part = {"views": made["views"][:, rows], "labels": made["labels"][rows]}
        part = {
            "views": exp.sharding.put(part["views"], exp.sharding.views),
            "labels": exp.sharding.put(part["labels"], exp.sharding.batch),
        }
        value, stats, grad = gradient(host.params, stats, part)
        grads.append(grad)
        values.append(float(value))
    mean = jax.tree.map(lambda *x: sum(x) / 2, *grads)
    updates, _ = exp.optimizer.update(mean, exp.optimizer.init(host.params), host.params)
    want = optax.apply_updates(host.params, updates)
    assert metrics.means(totals)["loss"] == pytest.approx(np.mean(values), rel=1e-5)
    for a, b in zip(jax.tree.leaves(new.raw["params"]), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(new.batch_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_initialisation_is_traced_once(monkeypatch):
    """However often an experiment's state, or its shapes, are asked for."""
    init, traced = stack.Stack.init, []
    monkeypatch.setattr(stack.Stack, "init", lambda *args: traced.append(args) or init(*args))
    exp = experiment.build(tiny())
    shapes = exp.state_shapes()
    made = jax.eval_shape(lambda: exp.method.init(jax.random.key(1), exp.dataset.image_shape))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shapes.raw)
    assert len(traced) == 1
