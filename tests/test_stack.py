"""A stack equals a loop over its networks, in every lowering, on every mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsplit import models, sharding, stack
from jaxsplit.models import resnet, senet

S, B, K = 3, 4, 5
SPECS = {
    "basic": dataclasses.replace(models.divided("wide_resnet10_1", 1), blocks=(1, 1), width=8),
    "bottleneck": dataclasses.replace(resnet.SPECS["resnet110"], blocks=(1, 1), width=4),
    "grouped": dataclasses.replace(
        resnet.SPECS["resnext29_8x64d"], blocks=(1, 1), width=4, stem=(6,), groups=2
    ),
    "se": dataclasses.replace(
        senet.SPECS["se_resnet50"], blocks=(1, 1), width=8, stem=(4, 4, 6), dropout=0.0
    ),
}
TINY = SPECS["basic"]
IMAGE = {"se": (17, 16, 3)}  # its stem divides the sides by 4
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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


def outputs_of(net: stack.Stack, key=None):
    """(variables, views, labels) -> all that a training step and an evaluation read."""

    def run(variables, views, labels):
        def loss(params):
            logits, features, stats = net.apply(
                dict(variables, params=params), views, train=True, key=key
            )
            return cross_entropy(logits, labels), (logits, features, stats)

        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {
            "train": (value, out),
            "grads": grads,
            "eval": net.apply(variables, views, train=False),
        }

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


@pytest.fixture(scope="module", params=SPECS)
def family(request):
    """(name, its inputs, the outputs of a loop)."""
    with jax.enable_x64(True):
        args = inputs(request.param, dtype=np.float64)
        return request.param, args, looped(SPECS[request.param])(*args)


@pytest.mark.parametrize("lowering", ["dense", "unrolled", "grouped"])
def test_equals_a_loop(family, lowering):
    """Logits, features, loss, gradients and statistics, in training and in evaluation."""
    name, args, want = family
    with jax.enable_x64(True):  # so that only rounding of 1e-16 can differ
        got = quick(outputs_of(make(SPECS[name], lowering=lowering)))(*args)
    assert_close(got, want, 1e-11)
