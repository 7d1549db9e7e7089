"""Names, Specs, dividing, initial values and layers of the residual networks."""

import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models
from jaxsplit.errors import ConfigError
from jaxsplit.models import layers, pooling, resnet, resnexst, senet, stochastic
from tests.support.xla import FAST

FAMILIES = ("resnet", "senet", "resnest", "resnexst")


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


# ---- the reference's own widths


def stage_facts(spec, stage: int) -> dict:
    """What the parity file says of a stage, in its words, from a Spec."""
    width = spec.width * 2**stage
    basic = spec.block == "basic"
    inner = int(width * spec.base_width / 64) * spec.groups
    out = width if basic else width * resnet.EXPANSION
    stride = 1 if stage == 0 else 2
    pooled = [stride == 2, *[stage > 0 and spec.pool_every] * (spec.blocks[stage] - 1)]
    kernel = 3 if stride == 2 and spec.shortcut == "strided_3x3" else 1
    pool = ["AvgPool2d"] * (stride == 2 and spec.shortcut == "pool")
    return {
        "blocks": spec.blocks[stage],
        "inner": inner,
        "conv1_out": inner // spec.first_divisor,
        "conv2_out": inner,
        "conv2_conv_out": spec.radix * inner,
        "conv2_conv_groups": spec.radix * spec.groups,
        "fc_groups": spec.groups,
        "attn_channels": max(spec.radix * inner // 4, 32),
        "avd_in_blocks": pooled,
        "out": out,
        "groups": spec.groups,
        "stride": 1 if spec.radix else stride,  # of the convolution
        "se_reduced": spec.se_reduction and out // spec.se_reduction,
        "downsample": [*pool, f"Conv2d({kernel}, {kernel})", "BatchNorm2d"],
    }


def test_specs_are_the_references(parity):
    """Widths, groups, blocks, stem, attention, rates and BatchNorm constants, all 143."""
    norm = layers.BatchNorm()
    data = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    rows = [row for row in data if row["facts"]["family"] in FAMILIES]
    assert len(rows) == 143
    for row in rows:
        facts, name = row["facts"], (row["arch"], row["split_factor"])
        spec = models.divided(*name)
        assert spec.dropout == pytest.approx(facts.get("dropout_p") or 0.0, rel=1e-12), name
        assert facts["bn_eps"] == [norm.epsilon], name
        assert facts["bn_momentum"] == [pytest.approx(1 - norm.momentum)], name
        assert facts["first_conv_out"] == spec.stem[0], name
        assert facts.get("stem_out", spec.stem[-1]) == spec.stem[-1], name
        assert facts.get("radix", spec.radix) == spec.radix, name
        for i, stage in enumerate(facts["stages"]):
            ours = stage_facts(spec, i)
            assert {key: ours[key] for key in stage} == stage, name
        assert len(facts["stages"]) == len(spec.blocks)
        assert bool(spec.drop_block) == ("dropblock" in facts), name
        if spec.drop_block:
            (params,) = facts["dropblock"]["params"]
            assert spec.drop_block == pytest.approx(params["p"], rel=1e-12), name
            assert resnet.drop_block_size(row["image_size"]) == params["block_size"]


def test_drop_blocks_grow_with_the_image():
    """From 299 pixels on their side is even, which the reference cannot run."""
    sizes = {32: 1, 224: 3, 298: 3, 299: 4, 320: 4, 416: 5}
    assert {side: resnet.drop_block_size(side) for side in sizes} == sizes


# ---- names and dividing


def test_wide_resnet_of_any_depth_and_width():
    assert models.divided("wide_resnet10_1", 1).blocks == (1, 1, 1)
    spec = models.divided("wide_resnet22_3", 1)
    assert (spec.blocks, spec.width, spec.block) == ((3, 3, 3), 48, "basic")
    assert models.divided("wide_resnet22_3", 4).width == 16  # int(3 / 2 + 0.4) = 1
    assert models.divided("wide_resnet100_20", 2).width == 16 * 14  # int(20 / sqrt 2 + 0.4)
    assert models.divided("wide_resnet10_1", 16).width == 16  # never narrower than 1
    for s, k in {1: 10, 2: 7, 4: 5, 8: 3, 16: 2}.items():
        assert models.divided("wide_resnet28_10", s).width == 16 * k


def test_cost_of_the_digits_network():
    spec = models.divided("wide_resnet16_4", 4)
    cost = costs.cost(spec, num_classes=10, image_shape=(8, 8, 1))
    assert (cost.params, cost.macs) == (691_834, 6_301_952)


@pytest.mark.parametrize(
    "arch",
    ["wide_resnet17_4", "wide_resnet4_4", "wide_resnet16_0", "wide_resnet016_4", "resnet51", ""],
)
def test_unknown_architecture_names_the_nearest(arch):
    with pytest.raises(ConfigError) as error:
        models.divided(arch, 1)
    nearest = str(error.value).removeprefix(f"arch={arch!r}: unknown; nearest are ").split(", ")
    assert len(nearest) == 3 and set(nearest) <= set(models.names())
    with pytest.raises(ConfigError, match="unknown; nearest are"):
        models.build(dataclasses.replace(resnet.SPECS["resnet50"], arch=arch), 10)


@pytest.mark.parametrize(
    "arch, s, known",
    [
        ("resnet50", 16, "1, 2, 4, 8"),
        ("resnet110", 3, "1, 2, 4, 8, 16"),
        ("wide_resnet16_8", 0, "1, 2, 4, 8, 16"),
        ("wide_resnet50_2", 8, "1, 2, 4"),
        ("resnext29_8x64d", 16, "1, 2, 4, 8"),
        ("se_resnet110", 8, "1, 2, 4"),
    ],
)
def test_unknown_split_names_the_known(arch, s, known):
    with pytest.raises(ConfigError, match=f"^split={s}: {arch} can be divided into {known}$"):
        models.divided(arch, s)


def test_specs_are_values():
    spec = models.divided("se_resnet101", 4)
    assert spec == models.divided("se_resnet101", 4)
    assert hash(spec) == hash(models.divided("se_resnet101", 4))
    assert spec != models.divided("se_resnet101", 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.width = 1


def test_undivided_is_the_spec_itself():
    for family in models.FAMILIES.values():
        for arch, spec in family.specs.items():
            assert spec.arch == arch
            assert family.divide(spec, 1) == spec == models.divided(arch, 1)


def test_names_are_found():
    values = {"{6n+4}": "16", "{k}": "4", "vit_{size}": "vit_s", "{size}": "pico", "{patch}": "2"}
    for name in models.names():
        for field, value in values.items():
            name = name.replace(field, value)
        assert models.divided(name, 1).splits[0] == 1


@pytest.mark.parametrize("arch, params", [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_resnet18_and_34_are_the_papers_but_for_the_stem(arch, params):
    image = dict(num_classes=1000, image_shape=(224, 224, 3))
    spec = models.divided(arch, 1)
    plain = dataclasses.replace(spec, stem=(64,), stem_kernel=7, shortcut="strided")
    assert costs.cost(plain, **image).params == params
    # Three 3x3 for one 7x7, and stage 1 reads 128 channels, which need a shortcut.
    stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128) - (49 * 3 * 64 + 2 * 64)
    stage1 = 9 * 64 * 64 + 128 * 64 + 2 * 64
    whole = costs.cost(spec, **image)
    assert whole.params == params + stem + stage1
    for s in (2, 4, 8):
        small = costs.cost(models.divided(arch, s), **image)
        assert 0.85 < s * small.params / whole.params < 1.25
        assert 0.85 < s * small.macs / whole.macs < 1.25


# ---- the module


def test_features_in_order():
    cases = {
        # arch, S -> image, shapes of the stages, final is the last
        ("wide_resnet16_8", 4): (32, [(32, 32, 64), (16, 16, 128), (8, 8, 256)]),
        ("resnet110", 2): (31, [(31, 31, 48), (16, 16, 96), (8, 8, 192)]),
        ("resnet50", 4): (56, [(14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 1024)]),
        ("se_resnet50", 4): (57, [(14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 1024)]),
        ("senet154", 4): (57, [(14, 14, 256), (7, 7, 512), (4, 4, 1024), (2, 2, 2048)]),
        ("resnest200", 2): (57, [(15, 15, 176), (8, 8, 352), (4, 4, 704), (2, 2, 1408)]),
        ("resnexst50_4x16d", 4): (57, [(14, 14, 256), (7, 7, 512), (4, 4, 1024), (2, 2, 2048)]),
        ("resnet18", 8): (57, [(15, 15, 24), (8, 8, 48), (4, 4, 96), (2, 2, 192)]),
    }
    for (arch, s), (size, maps) in cases.items():
        spec = models.divided(arch, s)
        module = models.build(dataclasses.replace(spec, blocks=(1,) * len(maps)), 7)
        image = jnp.zeros((2, size, size, 3))
        found = []

        def run(x, module=module, found=found):
            logits, features = module.apply(module.init(jax.random.key(0), x), x)
            found.extend(features)  # a dict that leaves a transformation is sorted
            return logits, features

        logits, features = jax.eval_shape(run, image)
        assert logits.shape == (2, 7)
        assert found == [f"stage{i + 1}" for i in range(len(maps))] + ["final"]
        assert [features[f].shape[1:] for f in found] == [*maps, maps[-1]]


@pytest.fixture(scope="module")
def initialised():
    """Variables of one wide block: ResNet, Wide-ResNet, ResNeXt, SE-ResNet, ResNeXSt."""
    tiny = dict(blocks=(1,), width=64)
    specs = {
        "bottleneck": dataclasses.replace(resnet.SPECS["resnet50"], **tiny, stem=(32, 32, 64)),
        "basic": dataclasses.replace(models.divided("wide_resnet10_1", 1), **tiny),
        "grouped": dataclasses.replace(
            resnet.SPECS["resnext29_8x64d"], **tiny, base_width=4, groups=32
        ),
        "se": dataclasses.replace(senet.SPECS["se_resnet50"], **tiny),
        "attention": dataclasses.replace(resnexst.SPECS["resnexst50_4x32d"], **tiny),
    }

    def init(spec, key):
        module = models.build(spec, 100)
        return module.init(key, jnp.zeros((1, 8, 8, 3)))

    out = {}
    for name, spec in specs.items():
        variables = quick(lambda key, spec=spec: init(spec, key))(jax.random.key(len(name)))
        leaves = jax.tree.leaves_with_path(jax.device_get(variables))
        out[name] = {tuple(p.key for p in path): leaf for path, leaf in leaves}
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottleneck", "basic", "grouped", "se", "attention"])
def test_initial_kernels(initialised, name):
    """Normal, fan-out: std sqrt(2 / (h w C')); 1e-3 in the head. Within 5 standard errors."""
    seen = 0
    for path, kernel in initialised[name].items():
        if path[-1] != "kernel":
            continue
        std = (
            1e-3
            if path[1] == "head"
            else (2 / np.prod([*kernel.shape[:2], kernel.shape[3]])) ** 0.5
        )
        assert abs(kernel.std() / std - 1) < 5 / (2 * kernel.size) ** 0.5, path
        assert abs(kernel.mean()) < 5 * std / kernel.size**0.5, path
        seen += 1
    assert seen >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottleneck", "basic", "grouped", "se", "attention"])
def test_initial_norms_and_biases(initialised, name):
    """Branches start at zero in ResNets, not with attention; statistics start at 0 and 1."""
    attention = name in ("se", "attention")
    last = "bn2" if name == "basic" else "bn3"
    values = {"bias": 0.0, "mean": 0.0, "var": 1.0}
    scales = collections.Counter()
    for path, leaf in initialised[name].items():
        if path[-1] in values:
            assert (leaf == values[path[-1]]).all(), path
        elif path[-1] == "scale":
            expected = 0.0 if path[-2] == last and not attention else 1.0
            assert (leaf == expected).all(), path
            scales[expected] += 1
    assert scales[0.0] == (0 if attention else 1)
    assert scales[1.0] >= 3


# ---- layers


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (7, 3)])
def test_batch_norm_by_hand(shape):
    rng = np.random.default_rng(0)
    c = shape[-1]
    # A variance near epsilon shows the epsilon.
    spread = np.array([3e-3, 2.0, 1.0])[:c]
    x = (rng.normal(1.0, 1.0, shape) * spread).astype(np.float32)
    scale, bias, mean, var = (rng.uniform(0.5, 2.0, c).astype(np.float32) for _ in range(4))
    var[0] = 1e-5
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    norm = layers.BatchNorm()
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])

    rows = x.astype(np.float64).reshape(-1, c)
    m, v = rows.mean(0), rows.var(0)
    want = (x - m) / np.sqrt(v + 1e-5) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    unbiased = rows.var(0, ddof=1)
    assert (unbiased > 1.01 * v).all()  # so that the two can be told apart
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * mean + 0.1 * m, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 * var + 0.1 * unbiased, rtol=1e-6)

    y, new = norm.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(new["batch_stats"]["mean"], mean)
    np.testing.assert_array_equal(new["batch_stats"]["var"], var)


def test_batch_norm_of_one_row():
    """No unbiased variance exists: the biased one, 0, is kept instead of a NaN."""
    norm = layers.BatchNorm()
    x = jnp.asarray([[2.0, -1.0]])
    variables = norm.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], [1.0, 1.0])
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, [[0.0, 0.0]])
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2, -0.1], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9, 0.9], rtol=1e-6)


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(100.0, 1.0, (64, 8, 8, 2)), jnp.bfloat16)
    norm = layers.BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, True)
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    rows = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
    )
    assert {v.dtype for v in jax.tree.leaves((variables, new))} == {jnp.dtype("float32")}


def windows(x, window, stride, reduce):
    """Pooling of [B, H, W, C] by Python loops; windows over the edge hold what exists."""
    b, h, w, c = x.shape
    rows = range(0, max(h - window, 0) + stride, stride)
    cols = range(0, max(w - window, 0) + stride, stride)
    rows = [i for i in rows if i < h and (i == 0 or i - stride + window < h)]
    cols = [j for j in cols if j < w and (j == 0 or j - stride + window < w)]
    out = [[reduce(x[:, i : i + window, j : j + window], (1, 2)) for j in cols] for i in rows]
    return np.asarray(out).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("h, w", [(4, 6), (5, 4), (4, 7), (5, 7), (1, 1), (2, 1)])
def test_avg_pool_covers_odd_edges(h, w):
    x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
    want = windows(x, 2, 2, np.mean)
    assert want.shape == (2, -(-h // 2), -(-w // 2), 3)
    np.testing.assert_allclose(pooling.avg_pool_2x2(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("h, w", [(3, 4), (5, 6), (7, 8), (9, 2), (112, 3)])
def test_max_pool_with_ceil_padding(h, w):
    # All negative: a padded zero would win.
    x = -np.random.default_rng(0).uniform(1.0, 2.0, (2, h, w, 3)).astype(np.float32)
    padding = tuple(pooling.ceil_padding(n, 3, 2) for n in (h, w))
    got = pooling.max_pool(x, 3, 2, padding)
    np.testing.assert_array_equal(got, windows(x, 3, 2, np.max))


def test_max_pool_with_padding_on_both_sides():
    x = -np.random.default_rng(0).uniform(1.0, 2.0, (2, 6, 7, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    got = pooling.max_pool(x, 3, 2, ((1, 1), (1, 1)))
    assert got.shape == (2, 3, 4, 3)
    want = [[padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2, 4, 6)] for i in (0, 2, 4)]
    np.testing.assert_array_equal(got, np.asarray(want).transpose(2, 0, 1, 3))


def test_gradient_of_max_pool():
    """Under jit and vmap; every output gives its cotangent to the largest of its window."""
    x = np.random.default_rng(0).permutation(36.0 * np.arange(1, 37)).reshape(1, 6, 6, 1)
    x = x.astype(np.float32)
    g = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)

    def f(x):
        return jnp.sum(pooling.max_pool(x, 3, 2, ((1, 1), (1, 1)))[0, ..., 0] * g)

    want = np.zeros((6, 6), np.float32)
    for i in range(3):
        for j in range(3):
            rows, cols = range(max(2 * i - 1, 0), 2 * i + 2), range(max(2 * j - 1, 0), 2 * j + 2)
            place = max(((r, c) for r in rows for c in cols), key=lambda p: x[0, *p, 0])
            want[place] += g[i, j]
    np.testing.assert_array_equal(jax.jit(jax.grad(f))(x)[0, ..., 0], want)
    stacked = jax.jit(jax.grad(lambda x: jax.vmap(f)(x).sum()))(np.stack([x, 2 * x]))
    np.testing.assert_array_equal(stacked[:, 0, ..., 0], np.stack([want, want]))


def test_squeeze_excite_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    w1, b1 = rng.normal(size=(6, 2)), np.array([1.0, -1.0])
    w2, b2 = rng.normal(size=(2, 6)), rng.normal(size=6)
    params = {
        "fc1": {"kernel": w1[None, None], "bias": b1},
        "fc2": {"kernel": w2[None, None], "bias": b2},
    }
    params = jax.tree.map(lambda v: v.astype(np.float32), params)
    hidden = np.maximum(x.mean((1, 2)) @ w1 + b1, 0.0)
    assert (hidden == 0).any() and (hidden > 0).any()
    gate = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    got = layers.SqueezeExcite(2).apply({"params": params}, x)
    np.testing.assert_allclose(got, x * gate[:, None, None], rtol=1e-5, atol=1e-6)


def test_dropout():
    layer = stochastic.Dropout(0.25)
    x = np.ones((40, 500), np.float32)
    rngs = {"dropout": jax.random.key(3)}
    y = np.asarray(layer.apply({}, x, True, None, rngs=rngs))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / y.size) ** 0.5
    assert len({row.tobytes() for row in y}) == 40
    # The mask belongs to the place in the global batch: a part of it is masked as in the whole.
    part = layer.apply({}, x[10:20], True, jnp.arange(10, 20), rngs=rngs)
    np.testing.assert_array_equal(part, y[10:20])
    assert layer.apply({}, x, False, None) is x
    assert stochastic.Dropout(0.0).apply({}, x, True, None) is x
