"""Split attention, DropBlock and pooling in the residual networks, and ResNeSt's dividing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models
from jaxsplit.models import layers, pooling, resnet
from tests.support.xla import FAST


def normed(x):
    """Batch normalisation in training, of scale 1 and bias 0, over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)


def same_conv(x, kernel):
    """3x3 convolution, stride 1, of float[B, H, W, C] and float[3, 3, C, C']."""
    h, w = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[x[:, i : i + h, j : j + w] @ kernel[i, j] for j in range(3)] for i in range(3)]
    return np.sum(windows, (0, 1))


@pytest.mark.parametrize("radix, groups, features", [(2, 1, 6), (2, 2, 72), (3, 4, 12)])
def test_split_attention_by_hand(radix, groups, features):
    """Section 3.1 of the paper: each cardinal group by itself, from its part of every kernel."""
    rng = np.random.default_rng(0)
    inputs, r, g, part = 2 * radix * groups, radix, groups, features // groups
    x = rng.normal(size=(3, 4, 5, inputs)).astype(np.float32)
    module = layers.SplitAttention(features, radix, groups, layers.BatchNorm)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, True), x)
    params = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), shapes["params"])
    for name in ("bn0", "bn1"):
        params[name]["scale"][:] = 1.0
        params[name]["bias"][:] = 0.0
    reduced = params["fc1"]["kernel"].shape[-1]
    assert reduced == max(radix * features // 4, 32)

    kernel = params["conv"]["kernel"].astype(np.float64)
    parts = np.split(x.astype(np.float64), r * g, axis=3)
    maps = [same_conv(p, k) for p, k in zip(parts, np.split(kernel, r * g, axis=3), strict=True)]
    maps = [np.maximum(normed(m), 0) for m in maps]
    out = []
    for group in range(g):
        splits = [maps[i * g + group] for i in range(r)]  # a split is all its groups, in order
        fc1 = np.split(params["fc1"]["kernel"][0, 0], g, axis=1)[group]
        bias1 = np.split(params["fc1"]["bias"], g)[group]
        hidden = np.maximum(normed(np.sum(splits, 0).mean((1, 2)) @ fc1 + bias1), 0)
        fc2 = np.split(params["fc2"]["kernel"][0, 0], g, axis=1)[group]
        bias2 = np.split(params["fc2"]["bias"], g)[group]
        scores = np.exp((hidden @ fc2 + bias2).reshape(-1, r, part))
        weights = scores / scores.sum(1, keepdims=True)
        assert weights.std() > 0.1
        out.append(sum(splits[i] * weights[:, i, None, None] for i in range(r)))

    run = jax.jit(
        lambda v, x: module.apply(v, x, True, mutable=["batch_stats"])[0], compiler_options=FAST
    )
    with jax.default_matmul_precision("highest"):
        got = run({"params": params, "batch_stats": zeros(shapes["batch_stats"])}, x)
    want = np.concatenate(out, axis=3)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def zeros(shapes):
    return jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("h, w", [(1, 1), (2, 3), (4, 7), (5, 6)])
def test_avg_pool_3x3_counts_the_border(h, w, stride):
    x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = np.asarray(
        [
            [padded[:, i : i + 3, j : j + 3].sum((1, 2)) / 9 for j in range(0, w, stride)]
            for i in range(0, h, stride)
        ]
    ).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(pooling.avg_pool_3x3(x, stride), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_avg_pool_3x3(stride):
    """A place gets a ninth of what every window that sees it gets; also of two networks at once."""
    g = np.random.default_rng(0).normal(size=(2, -(-5 // stride), -(-4 // stride)))
    want = np.zeros((2, 7, 6))
    for i, j in np.ndindex(*g.shape[1:]):
        rows, cols = slice(i * stride, i * stride + 3), slice(j * stride, j * stride + 3)
        want[:, rows, cols] += g[:, i, j, None, None] / 9

    def f(x, g):
        return jnp.vdot(pooling.avg_pool_3x3(x, stride)[0, ..., 0], g)

    got = jax.vmap(jax.grad(f))(np.zeros((2, 1, 5, 4, 1), np.float32), g.astype(np.float32))
    np.testing.assert_allclose(got[:, 0, ..., 0], want[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-6)


def tiny(arch: str, blocks=(2, 2, 2, 2), **fields):
    """A network of that family with few, narrow blocks."""
    return dataclasses.replace(
        models.divided(arch, 1), blocks=blocks, width=16, stem=(4, 4, 8), **fields
    )


@pytest.mark.parametrize(
    "arch, strides", [("resnest101", [2, 2, 2]), ("resnexst50_4x16d", [2, 1, 2, 1, 2, 1])]
)
def test_where_a_mean_follows_split_attention(arch, strides, monkeypatch):
    seen = []

    def pool(x, stride):
        seen.append(stride)
        return pooling.avg_pool_3x3(x, stride)

    monkeypatch.setattr(resnet, "avg_pool_3x3", pool)
    module = models.build(tiny(arch), 10)
    jax.eval_shape(lambda x: module.init(jax.random.key(0), x), jnp.zeros((1, 64, 64, 3)))
    assert seen == strides


def test_drop_block_is_in_stages_3_and_4():
    module = models.build(tiny("se_resnet50_B", (1, 2, 2, 1)), 10)

    def run(x):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = module.init(rngs, x)
        _, state = module.apply(
            variables,
            x,
            True,
            rngs=rngs,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "drop",
        )
        return state["intermediates"]

    found = jax.eval_shape(run, jnp.zeros((2, 64, 64, 3)))
    assert set(found) == {"stage3_block1", "stage3_block2", "stage4_block1"}
    assert all(set(layers) == {"drop"} for layers in found.values())


@pytest.mark.slow
def test_drop_block_in_a_block():
    """It zeroes squares of what the branch adds, before squeeze-excite, and scales the rest."""
    spec = tiny("se_resnet50_B", drop_block=0.3)
    block = resnet.Block(spec, stage=3, stride=1, drop_block_size=3)
    x = np.random.default_rng(0).normal(size=(4, 12, 12, 256)).astype(np.float32)
    kept = ("bn3", "drop", "se")

    def run(train):
        variables = block.init(jax.random.key(0), x, False, None)
        _, state = block.apply(
            variables,
            x,
            train,
            None,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in kept,
        )
        return [state["intermediates"][name]["__call__"][0] for name in kept]

    run = jax.jit(run, static_argnums=0, compiler_options=FAST)
    before, after, se = map(np.asarray, run(True))
    dropped = after == 0
    assert 0.2 < dropped.mean() < 0.4
    np.testing.assert_array_equal(se[dropped], 0.0)
    scaled = before[~dropped] / (1 - dropped.mean())
    np.testing.assert_allclose(after[~dropped], scaled, rtol=1e-4, atol=1e-6)
    before, after, _ = run(False)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "arch",
    [pytest.param(f"resnest{n}", marks=pytest.mark.slow) for n in (101, 200, 269)],
)
def test_divided_resnest_costs_the_same(arch):
    image = dict(num_classes=1000, image_shape=(224, 224, 3))
    whole = costs.cost(models.divided(arch, 1), **image)
    for s in models.divided(arch, 1).splits[1:]:
        small = costs.cost(models.divided(arch, s), **image)
        assert 0.85 < s * small.params / whole.params < 1.25
        assert 0.85 < s * small.macs / whole.macs < 1.25
