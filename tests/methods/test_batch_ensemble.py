"""BatchEnsemble: layers by hand, and a training step in the authors' way, on a tiled batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from configs import common
from jaxsplit import config as config_lib
from jaxsplit import costs, methods, models, optim, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.methods import batch_ensemble, single
from jaxsplit.models.layers import Conv
from jaxsplit.report import summary
from tests.models.test_trunk import FAMILIES, shallow
from tests.support.xla import FAST

S, B, K, IMAGE = 2, 4, 5, (8, 8, 3)
TINY = dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=8)
IN, OUT = batch_ensemble.IN, batch_ensemble.OUT


def test_a_dense_layer_by_hand():
    """y = ((x o r) W) o s with all numbers written out."""
    x, w = np.array([1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    r, s = np.array([2.0, -1.0]), np.array([1.0, 0.5, -1.0])
    # x o r = (2, -2); its product with W is (-6, -6, -6)
    np.testing.assert_array_equal(x @ batch_ensemble.times(w, r, s), [-6, -3, 6])
    variables = {"head": {"kernel": w, IN: r, OUT: s, "bias": np.ones(3)}, "bn": {"scale": r}}
    got = batch_ensemble.plain(variables)
    assert got["head"].keys() == {"kernel", "bias"} and got["bn"] == {"scale": r}
    np.testing.assert_array_equal(x @ got["head"]["kernel"] + got["head"]["bias"], [-5, -2, 7])


@pytest.mark.parametrize("groups", [1, 2, 6], ids=["plain", "groups", "depthwise"])
def test_a_convolution_by_hand(groups):
    """Scaled maps around the convolution; the kernel is scaled in the code under test."""
    rng = np.random.default_rng(0)
    kernel, r, s = (rng.normal(size=n) for n in ((3, 3, 6 // groups, 12), 6, 12))
    x = rng.normal(size=(2, 5, 5, 6))

    def conv(x, kernel):
        fields = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **fields)

    with jax.enable_x64(True):
        want = np.asarray(conv(x * r, kernel)) * s
        got = conv(x, batch_ensemble.times(kernel, r, s))
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


# ---- A training step


def make(data=1, net=1, networks=S, norm="shared", **fields) -> stack.Stack:
    devices = jax.devices()[: data * net]
    mesh = sharding.make(data, net, num_networks=networks, batch_size=B, devices=devices)
    tying = batch_ensemble.tie(norm=norm)
    return stack.make(TINY, networks, K, mesh, batch_norm="sync", tying=tying, **fields)


def inputs(method, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda k: method.init(k, IMAGE), jax.random.key(0))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var", IN, OUT):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        return (rng.normal(size=leaf.shape) / 4).astype(dtype)

    views = rng.normal(size=(1, B, *IMAGE)).astype(dtype)
    return jax.tree.map_with_path(fill, shapes), {"views": views, "labels": np.array([0, 3, 4, 3])}


def step_of(method):
    """(variables, batch) -> ((loss, (statistics, metrics)), gradients)."""

    def step(variables, batch):
        def loss(params):
            return method.loss(dict(variables, params=params), batch, jax.random.key(0), 0)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return jax.jit(step, compiler_options=FAST)


@jax.jit
def on_a_tiled_batch(variables, batch):
    """The authors' way: one network, a batch repeated S times, maps scaled example by example."""
    module = models.build(TINY, K)
    images = jnp.tile(batch["views"][0], (S, 1, 1, 1))
    labels = jnp.tile(batch["labels"], S)

    def loss(params):
        own = params["stack"]

        def scaled(call, args, kwargs, context):
            layer = own
            if not isinstance(context.module, Conv | nn.Dense):
                return call(*args, **kwargs)
            for name in context.module.path:
                layer = layer[name]
            (x,) = args

            def rows(factors):  # [S, C] -> [S B, 1 ..., C]
                each = jnp.repeat(factors, B, axis=0)
                return each.reshape(len(each), *(1,) * (x.ndim - 2), -1)

            y = call(x * rows(layer[IN])) * rows(layer[OUT])
            return y + rows(layer["bias"]) if "bias" in layer else y

        head = params["trunk"]["head"] | {"bias": jnp.zeros(K)}
        whole = {
            "params": params["trunk"] | {"head": head},
            "batch_stats": variables["batch_stats"]["trunk"],
        }
        with nn.intercept_methods(scaled):
            (logits, _), new = module.apply(whole, images, True, mutable=["batch_stats"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean(), new["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def assert_close(got, want, tolerance=1e-9):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert np.shape(g) == np.shape(w), path
        error = np.abs(np.asarray(g) - np.asarray(w)).max() / max(np.abs(w).max(), 1e-3)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


@pytest.fixture(scope="module")
def by_tiling():
    with jax.enable_x64(True):
        args = inputs(batch_ensemble.make(make()))
        return args, jax.device_get(on_a_tiled_batch(*args))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2), (1, 1), (2, 1), (1, 2)])
def test_equals_a_tiled_batch(by_tiling, mesh):
    """Loss, statistics and gradients; BatchNorm's are of all networks, on any mesh."""
    args, ((value, stats), grads) = by_tiling
    with jax.enable_x64(True):
        got = step_of(batch_ensemble.make(make(*mesh)))(*args)
    (total, (new, metrics)), got_grads = jax.device_get(got)
    np.testing.assert_allclose(total, value, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"].sum(), rtol=1e-10)
    assert_close(new, {"stack": {}, "trunk": stats})
    assert_close(got_grads, grads)
    assert grads["trunk"]["stem_conv1"]["kernel"].shape == (3, 3, 3, 16)
    assert grads["stack"]["head"]["bias"].shape == (S, K)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["packed", "grouped"])
def test_lowerings_agree(by_tiling, lowering):
    args, (_, grads) = by_tiling
    with jax.enable_x64(True):
        assert_close(step_of(batch_ensemble.make(make(lowering=lowering)))(*args)[1], grads)


@pytest.mark.slow
def test_factors_of_one_are_a_single_network():
    """S = 1 and r = s = 1: loss, statistics and gradients of `single`."""
    ours = batch_ensemble.make(make(networks=1))
    alone = single.make(stack.make(TINY, 1, K, make(networks=1).sharding))
    with jax.enable_x64(True):
        variables, batch = inputs(ours)
        own = variables["params"]["stack"]
        ones = jax.tree.map_with_path(
            lambda path, x: np.ones_like(x) if path[-1].key in (IN, OUT) else x, own
        )
        variables["params"]["stack"] = ones
        joined = jax.tree.map(
            lambda x: x[None], {c: parts["trunk"] for c, parts in variables.items()}
        )
        joined["params"]["head"]["bias"] = ones["head"]["bias"]
        (value, (stats, _)), grads = jax.device_get(step_of(ours)(variables, batch))
        plain = {c: {"stack": tree} for c, tree in joined.items()}
        (want, (want_stats, _)), want_grads = jax.device_get(step_of(alone)(plain, batch))
    np.testing.assert_allclose(value, want, rtol=1e-12)
    assert_close(jax.tree.map(lambda x: x[None], stats["trunk"]), want_stats["stack"], 1e-11)
    got = jax.tree.map(lambda x: x[None], grads["trunk"])
    got["head"]["bias"] = grads["stack"]["head"]["bias"]
    assert_close(got, want_grads["stack"], 1e-10)


@pytest.mark.slow
def test_own_norms_are_networks_that_share_kernels():
    """Each network alone, as a plain module, has the same logits and statistics."""
    with jax.enable_x64(True):
        networks = make(norm="own")
        method = batch_ensemble.make(networks)
        variables, batch = inputs(method)
        joined = {c: stack.merge(p["stack"], p.get("trunk", {})) for c, p in variables.items()}

        @jax.jit
        def both(joined, view):
            got = networks.apply(joined, view[None], train=True)
            ones = [
                networks.module.clone(axis_name=None).apply(
                    networks.take(joined, i), view, True, mutable=["batch_stats"]
                )
                for i in range(S)
            ]
            return got, ones

        (logits, _, stats), ones = both(joined, batch["views"][0])
    assert joined["params"]["stem_bn1"]["scale"].shape == (S, 16)
    for i, ((want, _), new) in enumerate(ones):
        assert_close(logits[i], want)
        assert_close(jax.tree.map(lambda x, i=i: x[i], stats), new["batch_stats"])


# ---- Factors


@pytest.mark.slow
@pytest.mark.parametrize("start", batch_ensemble.STARTS)
def test_how_factors_start(start):
    """Networks differ; the kernel is network 0's, as without factors."""
    networks = make()
    networks = dataclasses.replace(networks, tying=batch_ensemble.tie(start=start, deviation=0.3))
    apart = dataclasses.replace(networks, tying=stack.NOTHING)

    def draw(key):
        return [n.init(key, IMAGE)["params"] for n in (networks, apart)]

    got, without = jax.jit(draw, compiler_options=FAST)(jax.random.key(1))
    layer = got["stage2_block1"]["conv2"]
    np.testing.assert_array_equal(layer["kernel"], without["stage2_block1"]["conv2"]["kernel"][0])
    assert layer[IN].shape == layer[OUT].shape == (S, 16)
    found = {path: x for path, x in jax.tree.leaves_with_path(got) if path[-1].key in (IN, OUT)}
    r = np.concatenate(list(found.values()), 1)
    assert (r[0] != r[1]).mean() > 0.3
    assert len({x.tobytes() for x in map(np.asarray, found.values())}) == len(found)
    if start == "signs":
        assert set(r.ravel()) == {-1, 1} and abs(r.mean()) < 0.2
    else:
        assert abs(r.mean() - 1) < 0.05 and abs(r.std() - 0.3) < 0.05


FAST_FAMILIES = ("efficientnetb0_cifar", "resnet20", "vit_ti4")  # depthwise, plain, dense


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=() if a in FAST_FAMILIES else pytest.mark.slow) for a in FAMILIES],
)
def test_every_family(arch):
    """All kernels have factors of their inputs and outputs; `plain` gives back the network's."""
    spec = shallow(arch)
    module = models.build(spec, K)
    image = jnp.zeros((1, 32, 32, 3))
    tying = batch_ensemble.tie()

    def draw(key):
        before = module.init(key, image)
        return before, tying.draw(module, before, image, key)

    before, after = jax.eval_shape(draw, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, before)
    assert jax.tree.map(lambda x: x.shape, jax.eval_shape(tying.plain, after)) == shapes

    def check(tree):
        if "kernel" not in tree:
            return sum(check(x) for x in tree.values() if isinstance(x, dict))
        kernel, r, s = (tree[name].shape for name in ("kernel", IN, OUT))
        assert s == kernel[-1:] and r[0] % kernel[-2] == 0
        return 1

    leaves = jax.tree.leaves_with_path(before["params"])
    assert check(after["params"]) == sum(path[-1].key == "kernel" for path, _ in leaves) > 3


def test_recomputed_stages_have_their_factors():
    """Recomputation changes the paths of no layer."""
    for remat in ("", "all"):
        tree = jax.eval_shape(lambda k, r=remat: make(remat=r).init(k, IMAGE), jax.random.key(0))
        assert tree["params"]["stage1_block1"]["conv1"][IN].shape == (S, 16)


def test_a_backbone_without_such_layers_is_refused():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.DenseGeneral((2, 3), name="odd")(x)

    module, image = Bare(), jnp.zeros((1, 2))
    with pytest.raises(ConfigError, match="layer odd is no convolution, dense layer"):
        batch_ensemble.tie().draw(
            module, module.init(jax.random.key(0), image), image, jax.random.key(0)
        )


def config_with(**fields):
    config = common.get_config()
    config.arch, config.split, config.method = "wide_resnet10_1", 3, "batch_ensemble"
    config.divide = False
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize("norm", batch_ensemble.NORMS)
def test_costs(norm):
    """One network's parameters and what each network has: factors, biases, its BatchNorm."""
    rows = summary.table(
        config_with(batch_ensemble__norm=norm), num_classes=K, image_shape=(8, 8, 1)
    )
    (line,) = (line.replace(",", "") for line in rows.splitlines() if line.startswith("all 3"))
    got = [int(v) for v in line.split()[-2:]]
    one = costs.cost(models.divided("wide_resnet10_1", 1), num_classes=K, image_shape=(8, 8, 1))
    # Input and output channels of the stem, of two convolutions in each of three blocks and the
    # shortcuts of two, and of the head.
    channels = (1 + 16) + 4 * 16 + (16 + 3 * 32 + 16 + 32) + (32 + 3 * 64 + 32 + 64) + (64 + K)
    norms = one.stats if norm == "own" else 0  # as many scales and biases as means and variances
    assert got == [one.params + 3 * channels + 2 * (K + norms), 3 * one.macs]
    module = models.build(models.divided("wide_resnet10_1", 1), K)
    image = jnp.zeros((1, 8, 8, 1))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    assert one.params == sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def test_optimizer_groups():
    """Factors do not decay and have a rate of their own."""
    its, config = methods.METHODS["batch_ensemble"], config_with(batch_ensemble__rate=0.25)
    method = batch_ensemble.make(make())
    variables, _ = inputs(method, np.float32)
    params, lr = variables["params"], config.optim.lr
    config.optim.update(name="sgd", momentum=0.0, nesterov=False, weight_decay=0.1)
    config.optim.update(divide_weight_decay=False)
    groups = its.optimizers(config)
    built = optim.build(config.optim, lambda step: lr, params, 1, group=method.group, groups=groups)
    grads = jax.tree.map(np.ones_like, params)
    updates, _ = built.update(grads, built.init(params), params)
    layer = "stage1_block1"
    np.testing.assert_allclose(updates["stack"][layer]["conv1"][IN], -lr / 4, rtol=1e-6)
    kernel = params["trunk"][layer]["conv1"]["kernel"]
    want = -lr * (1 + 0.1 * kernel)
    np.testing.assert_allclose(updates["trunk"][layer]["conv1"]["kernel"], want, rtol=1e-5)
    np.testing.assert_allclose(updates["stack"]["head"]["bias"], -lr, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": 1}, "^split=1: must be 2 or more with method='batch_ensemble'; one network is"),
        ({"trunk": "stage1"}, "^trunk='stage1': must be none with method='batch_ensemble'$"),
        ({"batch_ensemble__start": "x"}, "^batch_ensemble.start='x': must be one of normal, signs"),
        ({"batch_ensemble__norm": "x"}, "^batch_ensemble.norm='x': must be one of shared, own$"),
        ({"batch_ensemble__rate": -1.0}, "^batch_ensemble.rate=-1.0: must be 0 or more$"),
        ({"batch_ensemble__deviation": -1.0}, "^batch_ensemble.deviation=-1.0: must be 0 or more$"),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config_with(**fields))
