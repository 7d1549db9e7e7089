"""A stack equals a loop over its networks, in every lowering, on every mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import models, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.models import resnet, senet
from jaxsplit.models.layers import BatchNorm
from tests.support.samples import first
from tests.support.xla import FAST

S, B, K = 3, 4, 5
SPECS = {
    "basic": dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=8),
    "bottleneck": dataclasses.replace(resnet.SPECS["resnet110"], blocks=(1, 1), width=4),
    "grouped": dataclasses.replace(
        resnet.SPECS["resnext29_8x64d"], blocks=(1, 1), width=4, stem=(6,), groups=2
    ),
    "se": dataclasses.replace(
        senet.SPECS["se_resnet50"], blocks=(1,), width=8, stem=(4, 4, 6), dropout=0.0
    ),
    "small": dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1,), width=8),
    "dropout": dataclasses.replace(
        models.divided("wide_resnet10_1", 1), blocks=(1,), width=8, dropout=0.3
    ),
}
TINY = SPECS["basic"]
SMALL = SPECS["small"]
IMAGE = {"se": (17, 16, 3)}  # its stem divides the sides by 4


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def make(spec=TINY, num_networks=S, data=1, net=1, **kwargs) -> stack.Stack:
    mesh = sharding.make(
        data, net, num_networks=num_networks, batch_size=B, devices=jax.devices()[: data * net]
    )
    return stack.make(spec, num_networks, K, mesh, **kwargs)


def inputs(name="basic", num_networks=S, shared=False, dtype=np.float32):
    """Variables with no zero and no one in them, views and labels."""
    net = make(SPECS[name], num_networks)
    shape = IMAGE.get(name, (8, 8, 3))
    rng = np.random.default_rng(0)
    trees = jax.eval_shape(lambda k: net.init(k, shape), jax.random.key(0))

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            fan_in = max(1, leaf.size // (leaf.shape[0] * leaf.shape[-1]))
            value = rng.normal(size=leaf.shape) * fan_in**-0.5
        return value.astype(dtype)

    views = rng.normal(size=(1 if shared else num_networks, B, *shape)).astype(dtype)
    labels = rng.integers(0, K, B)
    return jax.tree.map_with_path(fill, trees), views, labels


def cross_entropy(logits, labels):
    """logits [..., B, K], labels [B] -> sum over the leading axes of the mean over the batch."""
    log_p = jax.nn.log_softmax(logits)
    return -(log_p * jax.nn.one_hot(labels, K)[(None,) * (logits.ndim - 2)]).mean(-2).sum()


def training_of(net: stack.Stack, key=None):
    """(variables, views, labels) -> all that a training step reads."""

    def run(variables, views, labels):
        def loss(params):
            logits, features, stats = net.apply(
                dict(variables, params=params), views, train=True, key=key
            )
            return cross_entropy(logits, labels), (logits, features, stats)

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"train": (value, out), "grads": grads}

    return run


def outputs_of(net: stack.Stack, key=None):
    """(variables, views, labels) -> all that a training step and an evaluation read."""
    train = training_of(net, key)

    def run(variables, views, labels):
        evaluated = net.apply(variables, views, train=False)
        return dict(train(variables, views, labels), eval=evaluated)

    return run


def looped(spec, num_networks=S):
    """The same by a Python loop over single networks, each compiled alone."""
    module = models.build(spec, K)

    @quick
    def one(variables, images, labels):
        def loss(params):
            (logits, features), new = module.apply(
                dict(variables, params=params), images, True, mutable=["batch_stats"]
            )
            return cross_entropy(logits, labels), (logits, features, new["batch_stats"])

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        logits, features = module.apply(variables, images)
        return {
            "train": (value, out),
            "grads": grads,
            "eval": (logits, features, variables["batch_stats"]),
        }

    def run(variables, views, labels):
        outs = []
        for i in range(num_networks):
            network = jax.tree.map(lambda v: v[i], variables)  # noqa: B023
            outs.append(one(network, views[i if len(views) > 1 else 0], labels))
        out = jax.tree.map(lambda *v: np.stack(v), *outs)
        loss, rest = out["train"]
        return dict(out, train=(loss.sum(), rest))

    return run


def assert_close(got, want, tolerance: float = 1e-5) -> None:
    """Trees; |got - want| <= tolerance * largest |want| of the array."""
    got, want = jax.device_get((got, want))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), jax.tree_util.keystr(path)
        error = np.abs(g - w).max() / np.abs(w).max()
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


# ---- equal to a loop


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic", "bottleneck", "grouped", "se"])
def test_equals_a_loop(name):
    """Logits, features, loss, gradients and statistics, in training and in evaluation."""
    with jax.enable_x64(True):  # so that only rounding of 1e-16 can differ
        args = inputs(name, dtype=np.float64)
        got = quick(outputs_of(make(SPECS[name], lowering="dense")))(*args)
        want = looped(SPECS[name])(*args)
    assert_close(got, want, 1e-11)


@pytest.fixture(scope="module")
def expected_in_float32():
    args = inputs()
    return args, jax.device_get(looped(TINY)(*args))


@pytest.mark.parametrize("lowering", first(1, ["dense", "auto"]))
def test_equals_a_loop_in_float32(expected_in_float32, lowering):
    """Within 1e-5 of the largest element of its kind: logits, loss, gradients, statistics.

    Gradients of one layer may be small against those of another; their rounding errors are not.
    """
    args, want = expected_in_float32
    got = jax.device_get(quick(outputs_of(make(lowering=lowering)))(*args))
    for kind, pick in {
        "loss": lambda out: out["train"][0],
        "training logits": lambda out: out["train"][1][0],
        "features": lambda out: out["train"][1][1],
        "statistics": lambda out: out["train"][1][2],
        "gradients": lambda out: out["grads"],
        "evaluation logits": lambda out: out["eval"][0],
    }.items():
        g, w = jax.tree.leaves(pick(got)), jax.tree.leaves(pick(want))
        assert {v.dtype for v in (*g, *w)} == {np.dtype("float32")}
        error = max(np.abs(a - b).max() for a, b in zip(g, w, strict=True))
        assert error <= 1e-5 * max(np.abs(b).max() for b in w), kind


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["views", "shared view"])
def test_lowerings_and_a_shared_view_equal_a_loop(shared):
    """A view [1, B, ...] is the same view for all networks."""
    with jax.enable_x64(True):
        args = inputs("small", 2, shared=shared, dtype=np.float64)
        want = looped(SMALL, 2)(*args)
        got = {
            lowering: quick(outputs_of(make(SMALL, 2, lowering=lowering)))(*args)
            for lowering in ("dense", "unrolled", "packed", "grouped")
        }
    for outputs in got.values():
        assert_close(outputs, want, 1e-11)


# ---- on a mesh


@pytest.fixture(scope="module")
def on_meshes():
    """(data, net) -> outputs of training four networks with dropout and synchronised BatchNorm."""
    key = jax.random.key(5)
    with jax.enable_x64(True):
        args = inputs("dropout", 4, dtype=np.float64)
        out = {}
        for data, net in ((1, 1), (4, 1), (2, 2)):
            # At least two networks a device, so that the place of a network is put to the test.
            networks = make(SPECS["dropout"], 4, data, net, batch_norm="sync", lowering="dense")
            out[data, net] = jax.device_get(quick(training_of(networks, key))(*args))
    return out


@pytest.mark.parametrize("mesh", first(1, [(4, 1), (2, 2)]))
def test_synchronised_on_a_mesh_equals_one_device(on_meshes, mesh):
    """Statistics, and features, which see no dropout."""
    assert_close(on_meshes[mesh]["train"][1][1:], on_meshes[1, 1]["train"][1][1:], 1e-11)


@pytest.mark.parametrize("mesh", [(4, 1), (2, 2)])
def test_dropout_does_not_depend_on_the_mesh(on_meshes, mesh):
    """With synchronised BatchNorm: logits, and so the loss and all gradients."""
    assert_close(on_meshes[mesh], on_meshes[1, 1], 1e-11)


@pytest.mark.slow
def test_local_batch_norm_is_that_of_every_part():
    """By hand: each half of the batch its own statistics; kept is the mean of the new ones."""
    s, half = 2, B // 2
    module = models.build(SMALL, K)

    @quick
    def by_hand(variables, views, labels):
        def network(variables, images):
            def part(images):
                return module.apply(variables, images, True, mutable=["batch_stats"])

            (a, new_a), (b, new_b) = part(images[:half]), part(images[half:])
            logits, features = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), a, b)
            stats = jax.tree.map(lambda a, b: (a + b) / 2, new_a, new_b)
            return logits, features, stats["batch_stats"]

        def loss(params):
            networks = dict(variables, params=params)
            outs = [
                network(jax.tree.map(lambda v, i=i: v[i], networks), views[i]) for i in range(s)
            ]
            out = jax.tree.map(lambda *v: jnp.stack(v), *outs)
            return cross_entropy(out[0], labels), out

        value, grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"train": value, "grads": grads}

    with jax.enable_x64(True):
        args = inputs("small", s, dtype=np.float64)
        got = quick(training_of(make(SMALL, s, 2, 2, batch_norm="local")))(*args)
        want = by_hand(*args)
    assert_close(got, want, 1e-11)


# ---- initialisation, one of the networks


@pytest.fixture(scope="module")
def initialised():
    """S -> (stack, its variables), all of one key."""
    out = {}
    for s in (2, 4):
        networks = make(SMALL, s)
        out[s] = networks, quick(lambda k, n=networks: n.init(k, (8, 8, 3)))(jax.random.key(1))
    return out


@pytest.mark.slow
def test_networks_start_different(initialised):
    _, variables = initialised[4]
    kernels = 0
    for path, leaf in jax.tree.leaves_with_path(variables):
        assert leaf.shape[0] == 4
        if path[-1].key == "kernel":
            kernels += 1
            rows = np.asarray(leaf).reshape(4, -1)
            correlation = np.abs(np.corrcoef(rows) - np.eye(4)).max()
            assert correlation < 5 / rows.shape[1] ** 0.5, path
    assert kernels == 5


def test_a_network_starts_the_same_whatever_s_is(initialised):
    _, two = initialised[2]
    _, four = initialised[4]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), two, four)


def test_take(initialised):
    networks, variables = initialised[4]
    trees = [networks.take(variables, i) for i in range(4)]
    jax.tree.map(lambda *v: np.testing.assert_array_equal(np.stack(v[1:]), v[0]), variables, *trees)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    single = jax.eval_shape(lambda x: networks.module.init(jax.random.key(0), x), image)
    assert jax.tree.map(jnp.shape, trees[0]) == jax.tree.map(lambda x: x.shape, single)


# ---- dropout


@pytest.mark.slow
def test_dropout():
    """Equal networks on one view differ by their masks alone."""
    variables, views, _ = inputs("dropout", shared=True)
    variables = jax.tree.map(lambda v: np.repeat(v[:1], S, 0), variables)

    def run_of(lowering):
        networks = make(SPECS["dropout"], lowering=lowering)

        @quick
        def run(key):
            trained, _, _ = networks.apply(variables, views, train=True, key=key)
            evaluated, _, _ = networks.apply(variables, views, train=False, key=key)
            return trained, evaluated

        return lambda seed: jax.device_get(run(jax.random.key(seed)))

    run = run_of("dense")
    trained, evaluated = run(0)
    for i in range(1, S):
        assert np.abs(trained[i] - trained[0]).max() > 0.1 * np.abs(trained).max()
        np.testing.assert_allclose(evaluated[i], evaluated[0], rtol=1e-5, atol=1e-6)
    again, _ = run(0)
    np.testing.assert_array_equal(again, trained)
    other, other_evaluated = run(1)
    assert np.abs(other - trained).max() > 0.1 * np.abs(trained).max()
    np.testing.assert_array_equal(other_evaluated, evaluated)
    assert_close(run_of("unrolled")(0), (trained, evaluated))  # the same masks


# ---- what is emitted, shapes and types


def test_features():
    networks = make(dataclasses.replace(SPECS["se"], blocks=(1, 1)))
    variables = jax.eval_shape(lambda k: networks.init(k, (33, 32, 3)), jax.random.key(0))
    for shared in (False, True):
        images = jnp.zeros((1 if shared else S, B, 33, 32, 3))
        logits, features, stats = jax.eval_shape(
            lambda v, x: networks.apply(v, x, train=True), variables, images
        )
        assert logits.shape == (S, B, K)
        assert {name: f.shape for name, f in features.items()} == {
            "stage1": (S, B, 8, 8, 32),
            "stage2": (S, B, 4, 4, 64),
            "final": (S, B, 4, 4, 64),
        }
        assert jax.tree.map(jnp.shape, stats) == jax.tree.map(
            lambda x: x.shape, variables["batch_stats"]
        )


def groups_of(name, num_networks, lowering) -> tuple[set[int], set[int]]:
    """(feature group counts, batch group counts) in the program of a training step's gradient."""
    networks = make(SPECS[name], num_networks, lowering=lowering)
    text = jax.jit(outputs_of(networks)).lower(*inputs(name, num_networks)).as_text()
    kinds = [re.findall(rf"{k}_group_count = (\d+)", text) for k in ("feature", "batch")]
    assert len(kinds[0]) == len(kinds[1]) == text.count("stablehlo.convolution") > 0
    return tuple(set(map(int, kind)) for kind in kinds)


@pytest.mark.parametrize("s", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_the_default_emits_dense_convolutions(s):
    assert groups_of("basic", s, "auto") == ({1}, {1})
    assert groups_of("basic", s, "dense") == ({1}, {1})
    assert s in groups_of("basic", s, "grouped")[0]


def test_groups_of_one_network_stay():
    assert groups_of("grouped", 3, "dense") == ({1, 2}, {1, 2})


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_auto_unrolls_few_networks_on_cpu(platform):
    chosen = {s: stack.choose_lowering("auto", s, platform) for s in (1, 2, 4, 5, 8, 16)}
    few = "unrolled" if platform == "cpu" else "dense"
    assert chosen == {1: few, 2: few, 4: few, 5: "dense", 8: "dense", 16: "dense"}
    assert stack.choose_lowering("auto", 4, platform, models.divided("vit_ti4", 4)) == "dense"
    assert stack.choose_lowering("auto", 4, platform, SMALL) == few
    for lowering in ("dense", "unrolled", "packed", "grouped"):
        assert stack.choose_lowering(lowering, 4, platform) == lowering


def types_of(tree) -> set[str]:
    return {str(v.dtype) for v in jax.tree.leaves(tree)}


@pytest.mark.parametrize("lowering", ["dense", "unrolled"])
def test_float64_stays(lowering):
    with jax.enable_x64(True):
        run = outputs_of(make(lowering=lowering, dtype="float32"))
        out = jax.eval_shape(run, *inputs(dtype=np.float64))
    assert types_of(out) == {"float64"}


def test_bfloat16():
    """Computation only: variables, their gradients, statistics and logits are float32."""
    networks = make(SMALL, dtype="bfloat16")
    variables, views, labels = inputs("small")
    initial = jax.eval_shape(lambda k: networks.init(k, (8, 8, 3)), jax.random.key(0))
    assert types_of(initial) == {"float32"}
    out = jax.eval_shape(outputs_of(networks), variables, views, labels)
    _, (logits, features, stats) = out["train"]
    assert types_of((logits, stats, out["grads"], out["eval"][0], out["eval"][2])) == {"float32"}
    assert types_of((features, out["eval"][1])) == {"bfloat16"}

    def logits_of(networks):
        run = quick(lambda v, x: networks.apply(v, x, train=True)[0])
        return np.asarray(run(variables, views))

    got, want = logits_of(networks), logits_of(make(SMALL))
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-5 < error < 0.05  # a number has three digits, so it was not float32
    # The logits themselves are not rounded to bfloat16: there would be many equal ones.
    assert (got != np.asarray(jnp.asarray(got, jnp.bfloat16), np.float32)).mean() > 0.9


# ---- errors


def test_wrong_values_name_what_is_allowed():
    allowed = ", ".join(stack.LOWERINGS)
    assert allowed == "auto, dense, unrolled, packed, grouped"
    with pytest.raises(ConfigError, match=f"^lowering='vmap': must be one of {allowed}$"):
        make(lowering="vmap")
    with pytest.raises(ConfigError, match="^batch_norm='global': must be one of local, sync$"):
        make(batch_norm="global")


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_synchronised_statistics_do_not_cancel(mean):
    """A channel far from zero with a small spread: E[x^2] - E[x]^2 would be noise, or negative."""
    x = mean + 1e-3 * np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)
    one, many = BatchNorm(), BatchNorm(axis_name="data")
    variables = one.init(jax.random.key(0), x, False)
    mesh = sharding.make(4, 1, num_networks=1, batch_size=16)
    apply = mesh.map(
        lambda v, x: many.apply(v, x, True, mutable=["batch_stats"]),
        (mesh.replicated, mesh.batch),
        (mesh.batch, mesh.replicated),
    )
    got, stats = jax.jit(apply)(variables, x)
    want, expected = one.apply(variables, x, True, mutable=["batch_stats"])
    # A mean is known to some units in its last place, here over the square root of epsilon.
    tolerance = 1e-6 + 20 * mean * np.finfo(np.float32).eps / np.sqrt(1e-5)
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=1e-5)
    got, want = (s["batch_stats"]["var"] - 0.9 for s in (stats, expected))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-7)
