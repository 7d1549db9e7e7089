"""MIMO: which images its inputs see, its loss by hand, and its cost."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import costs, models, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.losses import LabelLoss
from jaxsplit.methods import mimo, single
from jaxsplit.report import summary
from tests.models.test_trunk import FAMILIES, shallow
from tests.support.samples import first
from tests.support.xla import FAST

B, K, M = 8, 5, 3
TINY = dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=8)
LABELS = np.array([0, 3, 4, 3, 1, 2, 2, 0])


def make(data=1, heads=M, spec=TINY, **fields) -> stack.Stack:
    mesh = sharding.make(data, 1, num_networks=1, batch_size=B, devices=jax.devices()[:data])
    return stack.make(spec, 1, heads * K, mesh, **fields)


def numbered():
    """Images whose pixels are all the number of the image, which is its label, too."""
    numbers = np.arange(B, dtype=np.float32)
    views = np.broadcast_to(numbers[None, :, None, None, None], (1, B, 2, 2, 1))
    return {"views": views, "labels": np.arange(B), "partner": np.arange(B) + 100}


@functools.cache
def drawing(data, rho):
    fields = dict(heads=M, input_repetition=rho, batch_repetitions=2)

    def draw(seed):
        return mimo.side_by_side(make(data), numbered(), jax.random.key(seed), **fields)

    return jax.jit(draw)


def drawn(seed=0, data=1, input_repetition=0.0):
    """(images int[R B, M], labels [M, R B], partners) that the inputs see."""
    views, targets = drawing(data, input_repetition)(seed)
    views = np.asarray(views)
    assert (views[0] == views[0][:, :1, :1]).all()
    return views[0, :, 0, 0].astype(int), *map(np.asarray, (targets["labels"], targets["partner"]))


@pytest.mark.parametrize("data", [1, 2])
def test_every_input_sees_every_image_with_its_label(data):
    seen, labels, partner = drawn(data=data)
    assert seen.shape == (2 * B, M)
    np.testing.assert_array_equal(seen.T, labels)
    np.testing.assert_array_equal(labels + 100, partner)
    for m in range(M):
        np.testing.assert_array_equal(np.sort(seen[:, m]), np.repeat(np.arange(B), 2))
    # Each device shuffles its own part of the batch, each in another way.
    halves = seen.reshape(data, -1, M)
    for i in range(data):
        assert set(halves[i].ravel()) == set(range(i * B // data, (i + 1) * B // data))
    assert data == 1 or (halves[0] + B // 2 != halves[1]).any()


def test_inputs_are_drawn_independently():
    """Over many steps any two inputs see the same image in one of B rows, as by chance."""
    same = []
    for seed in range(40):
        seen, *_ = drawn(seed)
        same += [(seen[:, 0] == seen[:, 1]).mean(), (seen[:, 1] == seen[:, 2]).mean()]
    assert abs(np.mean(same) - 1 / B) < 0.03
    assert (drawn(0)[0] != drawn(1)[0]).any()


@pytest.mark.parametrize("rho", [0.25, 1.0])
def test_input_repetition(rho):
    seen, *_ = drawn(input_repetition=rho)
    apart = round(2 * B * (1 - rho))
    assert (seen[apart:] == seen[apart:, :1]).all()
    if apart:
        assert (seen[:apart] != seen[:apart, :1]).any()
        for m in range(M):  # of the other rows, each input sees the same images in another order
            np.testing.assert_array_equal(np.sort(seen[:apart, m]), np.sort(seen[:apart, 0]))


# ---- By hand


class Linear(stack.Stack):
    """Logits are products of an image's first pixel and a matrix."""

    def apply(self, variables, images, *, train, key=None):
        return images[:, :, 0, 0] @ variables["params"]["head"]["kernel"][0], {}, {}


@pytest.mark.parametrize("mixed", first(1, [False, True]))
def test_loss_and_gradient(mixed):
    """All inputs see the same rows, whose order does not matter: numpy needs no random numbers."""
    rng = np.random.default_rng(0)
    kernel, smoothing = rng.normal(size=(1, M * 2, M * K)), 0.1
    views = rng.normal(size=(1, B, 1, 1, 2))
    made = make()
    networks = Linear(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    loss = LabelLoss(smoothing=smoothing)
    method = mimo.make(networks, heads=M, input_repetition=1.0, label_loss=loss)
    batch, target = {"views": views, "labels": LABELS}, np.eye(K)[LABELS]
    if mixed:
        batch |= {"partner": LABELS[::-1].copy(), "lam": 0.3}
        target = 0.3 * target + 0.7 * target[::-1]
    target = 0.9 * target + 0.1 / K

    def loss(kernel):
        params = {"stack": {"head": {"kernel": kernel}}}
        variables = {"params": params, "batch_stats": {"stack": {}}}
        return method.loss(variables, batch, jax.random.key(0), 0)

    with jax.enable_x64(True):
        (value, (_, metrics)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(kernel)
    wide = np.tile(views[0, :, 0, 0], M)  # [B, 2 M]
    z = (wide @ kernel[0]).reshape(B, M, K)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    by_head = -(target[:, None] * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(metrics["cross_entropy"], by_head, rtol=1e-9)
    np.testing.assert_allclose(value, by_head.sum(), rtol=1e-9)
    hits = (z.argmax(-1) == LABELS[:, None]).mean(0)
    np.testing.assert_allclose(metrics["top1"], hits, rtol=1e-6)
    want = wide.T @ (p - target[:, None]).reshape(B, M * K) / B
    np.testing.assert_allclose(grad[0], want, rtol=1e-9, atol=1e-12)
    named = method.predict(
        {"params": {"stack": {"head": {"kernel": kernel}}}, "batch_stats": {"stack": {}}}, views[0]
    )
    assert list(named) == ["net0", "net1", "net2", "ensemble"] and method.answer == "ensemble"
    for m in range(M):
        np.testing.assert_allclose(named[f"net{m}"], z[:, m], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(named["ensemble"], z.mean(1), rtol=1e-4, atol=1e-5)


def step_of(method, batch):
    def step(variables):
        def loss(params):
            return method.loss(dict(variables, params=params), batch, jax.random.key(0), 0)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return jax.jit(step, compiler_options=FAST)


def batch_of(dtype=np.float64):
    views = np.random.default_rng(1).normal(size=(1, B, 8, 8, 3)).astype(dtype)
    return {"views": views, "labels": LABELS}


def variables_of(method, dtype=np.float64):
    """With no zero and no one in them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda k: method.init(k, (8, 8, 3)), jax.random.key(0))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        return (rng.normal(size=leaf.shape) / 4).astype(dtype)

    return jax.tree.map_with_path(fill, shapes)


def assert_close(got, want, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = np.abs(np.asarray(g) - np.asarray(w)).max() / max(np.abs(w).max(), 1e-3)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
def test_one_head_is_a_single_network():
    """M = 1: loss, statistics, gradients and logits of `single`; only the order of rows differs."""
    networks = make(heads=1)
    ours, alone = mimo.make(networks, heads=1, batch_repetitions=1), single.make(networks)
    assert ours.answer == alone.answer == "net0"
    with jax.enable_x64(True):
        variables, batch = variables_of(ours), batch_of()
        assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, variables_of(alone))
        (value, (stats, _)), grads = step_of(ours, batch)(variables)
        (want, (want_stats, _)), want_grads = step_of(alone, batch)(variables)
        views = batch["views"][0]
        predicted = jax.jit(
            lambda v: [m.predict(v, views) for m in (ours, alone)], compiler_options=FAST
        )(variables)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    assert_close((stats, grads), (want_stats, want_grads), 1e-9)
    assert_close(*predicted, 1e-12)


@pytest.mark.slow
def test_two_devices_agree_with_one():
    """With one image for all inputs nothing depends on how a batch is shuffled."""
    with jax.enable_x64(True):
        results = []
        for data in (1, 2):
            networks = make(data, batch_norm="sync")
            method = mimo.make(networks, heads=M, input_repetition=1.0, batch_repetitions=2)
            results.append(step_of(method, batch_of())(variables_of(method)))
        assert_close(results[1], results[0], 1e-9)


def test_needs_one_network():
    mesh = make().sharding
    with pytest.raises(ValueError, match="^mimo: needs a stack of 1 network that shares nothing$"):
        mimo.make(stack.make(TINY, 2, K, mesh), heads=2)


# ---- Its network


def config_with(**fields):
    config = common.get_config()
    config.arch, config.split, config.method = "wide_resnet10_1", M, "mimo"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def test_costs():
    """Of one network with M times the images in its stem, and M times the classes in its head."""
    rows = summary.table(config_with(), num_classes=K, image_shape=(8, 8, 3)).splitlines()
    assert rows[0] == "wide_resnet10_1 with 3 inputs and outputs, one network"
    found = {}
    for row in rows[2:]:
        name, *values = row.replace(",", "").rsplit(maxsplit=2)
        found[name] = values
    one = costs.cost(models.divided("wide_resnet10_1", 1), num_classes=K, image_shape=(8, 8, 3))
    params = one.params + (M - 1) * (9 * 3 * 16 + 64 * K + K)
    macs = one.macs + (M - 1) * (9 * 3 * 16 * 8 * 8 + 64 * K)
    assert [int(v) for v in found["all 1"]] == [int(v) for v in found["one network"]]
    assert [int(v) for v in found["all 1"]] == [params, macs]
    assert [int(v) for v in found["undivided"]] == [one.params, one.macs]


def test_it_is_undivided_unless_divide_in_says_otherwise():
    """It takes the place of `arch` alone; a division is asked for by its number."""
    for fields, want in (({}, 1), ({"divide": False}, 1), ({"divide_in": 4}, 4)):
        resolved = config_lib.resolve(config_with(**fields))
        assert (resolved.num_networks, resolved.heads, resolved.divided_in) == (1, M, want)
        assert resolved.shared_view
    assert summary.title(config_with(divide_in=4)) == (
        "1 of wide_resnet10_1 divided in 4 with 3 inputs and outputs"
    )


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=() if a in ("resnet20",) else pytest.mark.slow) for a in FAMILIES],
)
def test_every_family(arch):
    """Only kernels that read the image, and the classifier, differ from a plain network's."""
    shapes = {}
    for heads in (1, M):
        networks = make(heads=heads, spec=shallow(arch))
        init = mimo.make(networks, heads=heads).init
        tree = jax.eval_shape(lambda k, init=init: init(k, (32, 32, 3)), jax.random.key(0))
        shapes[heads] = {
            jax.tree_util.keystr(p, simple=True, separator="/"): x.shape
            for p, x in jax.tree.leaves_with_path(tree["params"])
        }
    assert shapes[1].keys() == shapes[M].keys()
    other = {name for name in shapes[1] if shapes[1][name] != shapes[M][name]}
    heads = {"stack/head/kernel", "stack/head/bias"}
    assert heads < other
    for name in other - heads:
        assert name.endswith("/kernel")
        assert (shapes[1][name][-2], shapes[M][name][-2]) == (3, 3 * M)
    assert len(other - heads) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": 1}, "^split=1: must be 2 or more with method='mimo'; one network is"),
        ({"split": 0}, "^split=0: "),
        ({"trunk": "stage1"}, "^trunk='stage1': must be none with method='mimo'$"),
        ({"views": "different"}, "^views='different': must be same or paper with method='mimo', w"),
        ({"mimo__input_repetition": 1.5}, r"^mimo.input_repetition=1.5: must be in \[0, 1\]$"),
        ({"mimo__batch_repetitions": 0}, "^mimo.batch_repetitions=0: must be at least 1$"),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config_with(**fields))


def test_a_mesh_cannot_divide_its_one_network():
    with pytest.raises(ConfigError, match="^mesh.net=3: must divide the 1 networks: 1$"):
        sharding.make(1, 3, num_networks=config_lib.resolve(config_with()).num_networks)
