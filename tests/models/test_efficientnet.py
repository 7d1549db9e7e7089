"""EfficientNet: Specs against the reference's, padding, dropped branches, names, a stack of two."""

import dataclasses
import json
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import conv, models, sharding, stack
from jaxsplit.errors import ConfigError
from jaxsplit.models import efficientnet, layers
from tests.support.samples import first_rows
from tests.support.xla import FAST


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def tiny(arch: str, **fields):
    """An eighth as wide, with one block in every stage, and nothing drawn at random."""
    fields = dict(width=0.125, depth=0.25, dropout=0.0, drop_path=0.0) | fields
    return dataclasses.replace(models.divided(arch, 4), **fields)


def shapes(spec, size: int, num_classes: int = 1000):
    """(variables, features) of the network of a Spec, as shapes."""
    module = models.build(spec, num_classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    return variables, jax.eval_shape(module.apply, variables, image)[1]


def sides(spec, size: int) -> list[int]:
    """Of stage1 ... stage7 and final."""
    features = shapes(spec, size)[1]
    assert sorted(features) == ["final", *(f"stage{i}" for i in range(1, 8))]
    return [features[name].shape[1] for name in (*sorted(features)[1:], "final")]


def paddings(spec, size: int) -> list:
    """Of the stem's and every depthwise convolution, at the start and end of a side."""
    module = models.build(spec, 10)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = shapes(spec, size, 10)[0]
    with conv.lowered("grouped"):  # plain convolutions, whatever the size
        program = jax.make_jaxpr(module.apply)(variables, image)
    found = []
    for eqn in program.jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" and eqn.invars[1].aval.shape[0] > 1:
            rows, columns = eqn.params["padding"]
            assert rows == columns
            found.append(rows)
    return found


# ---- Specs


def name_of(row: dict) -> str:
    if row["dataset"] != "imagenet":
        return row["arch"] + "_cifar"
    return row["arch"] + ("" if row["is_lukemelas_efficientnet"] else "_lightnetpp")


def blocks_of(spec) -> list[list[dict]]:
    """Of every stage, in the words of the parity file."""
    stem, *widths, _ = spec.channels
    stages, channels = [], stem
    for stage, blocks in enumerate(spec.blocks):
        stages.append([])
        for i in range(blocks):
            stride = spec.strides[1 + stage] if i == 0 else 1
            stages[-1].append(
                {
                    "kernel": efficientnet.KERNELS[stage],
                    "stride": stride,
                    "hidden": channels * efficientnet.EXPANSIONS[stage],
                    "out": widths[stage],
                    "se": int(channels * efficientnet.SE_RATIO),
                    "residual": stride == 1 and channels == widths[stage],
                    "dropout2d_p": pytest.approx(spec.drop_paths[stage], rel=1e-12),
                }
            )
            channels = widths[stage]
    return stages


def test_specs_are_the_references(parity):
    """Channels, blocks, strides, windows, squeeze, rates, padding; all 138."""
    rows = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    rows = [row for row in rows if row["arch"].startswith("efficientnet")]
    assert len(rows) == 138
    for row in rows:
        facts, name = row["facts"], (name_of(row), row["split_factor"])
        spec = models.divided(*name)
        blocks = blocks_of(spec)
        if spec.padding == "same":
            # Its facts are one list, and say less; nothing is dropped but before the classifier.
            kept = ("kernel", "stride", "hidden", "out", "se")
            blocks = [{k: block[k] for k in kept} for stage in blocks for block in stage]
            assert facts["family"] == "efficientnet_lukemelas"
            assert (facts["drop_connect_rate"], spec.drop_path) == (0.0, 0.0), name
            assert facts["depth_divisor"] == spec.divisor, name
            assert facts["head_out"] == spec.channels[-1], name
            dropout = facts["dropout_p"]
        else:
            assert facts["family"] == "efficientnet_lightnet++"
            assert facts["last_channels"] == spec.channels[-1], name
            dropout = facts["dropout_p_functional"]
            assert spec.drop_unit == "channel"
        assert facts["blocks"] == blocks, name
        assert facts["first_conv_out"] == spec.channels[0], name
        assert dropout == pytest.approx(spec.dropout, rel=1e-12), name


def test_sizes_in_pixels_are_the_references(parity):
    rows = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    largest = {}
    for row in rows:
        if row["arch"].startswith("efficientnet"):
            largest[name_of(row)] = max(largest.get(name_of(row), 0), row["image_size"])
    assert largest == {name: spec.image_size for name, spec in efficientnet.SPECS.items()}


@pytest.mark.parametrize(
    ("arch", "millions"),
    first_rows(
        1,
        [
            ("efficientnetb0", 5.3),
            ("efficientnetb1", 7.8),
            ("efficientnetb3", 12),
            ("efficientnetb7", 66),
        ],
    ),
)
def test_parameters_of_the_paper(arch, millions):
    """Table 2 of the paper."""
    params = shapes(models.divided(arch, 1), 224)[0]["params"]
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params)) / 1e6
    assert round(count, 1 if isinstance(millions, float) else None) == millions


def test_splits_are_those_of_the_table():
    for spec in efficientnet.SPECS.values():
        assert spec.splits == tuple(efficientnet.CHANNELS)
    with pytest.raises(ConfigError, match="split=8: efficientnetb1 can be divided into 1, 2, 4"):
        models.divided("efficientnetb1", 8)
    with pytest.raises(ConfigError, match=r"nearest are efficientnetb\d_cifar"):
        models.divided("efficientnetb8_cifar", 1)


# ---- maps and padding


@pytest.mark.parametrize(
    ("arch", "size", "wanted"),
    first_rows(
        1,
        [
            ("efficientnetb0", 224, [112, 56, 28, 14, 14, 7, 7, 7]),
            ("efficientnetb0_lightnetpp", 224, [112, 56, 28, 14, 14, 7, 7, 7]),
            ("efficientnetb0_cifar", 32, [32, 16, 16, 8, 8, 8, 8, 8]),
            ("efficientnetb0", 75, [38, 19, 10, 5, 5, 3, 3, 3]),
        ],
    ),
)
def test_sides_of_maps(arch, size, wanted):
    assert sides(tiny(arch), size) == wanted


def test_padding():
    """Of windows 3, then 3, 3, 5, 3, 5, 5, 3 on maps of 32, 32, 16, 8, 4, 4, 2."""
    symmetric = [(k // 2, k // 2) for k in (3, 3, 3, 5, 3, 5, 5, 3)]
    assert paddings(tiny("efficientnetb0_lightnetpp"), 64) == symmetric
    same = [(0, 1), (1, 1), (0, 1), (1, 2), (0, 1), (2, 2), (1, 2), (1, 1)]
    assert paddings(tiny("efficientnetb0"), 64) == same
    # 75, 38, 19, 10, 5: an odd side is padded alike at both ends.
    odd = [(1, 1), (1, 1), (0, 1), (2, 2), (0, 1), (2, 2), (2, 2), (1, 1)]
    assert paddings(tiny("efficientnetb0"), 75) == odd


# ---- training


def norm(name):
    return layers.BatchNorm(name=name)


@pytest.mark.parametrize(
    ("unit", "one_draw"), first_rows(1, [("example", (8, 1, 1, 1)), ("channel", (8, 1, 1, 8))])
)
def test_dropped_branches(unit, one_draw):
    """A branch, or a channel of it, is dropped whole or scaled by 1 / (1 - rate)."""
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 8))

    def run(rate):
        block = efficientnet.Block(norm, 8, 1, 3, 1, None, rate, unit)
        variables = block.init(jax.random.key(1), x, False, None)
        rngs = {"dropout": jax.random.key(2)}
        y, _ = block.apply(variables, x, True, None, rngs=rngs, mutable=["batch_stats"])
        return np.asarray(y - x)

    whole, dropped = run(0.0), run(0.6)
    keep = np.abs(dropped).max((1, 2), keepdims=True) > 0
    if unit == "example":
        keep = keep.any(3, keepdims=True)
    assert keep.shape == one_draw
    assert 0 < keep.sum() < keep.size
    assert unit == "example" or set(keep.sum(3).flat) - {0, 8}  # channels one by one
    np.testing.assert_allclose(dropped, keep * whole / 0.4, rtol=1e-4, atol=1e-5)


def test_a_block_without_a_shortcut_is_not_dropped():
    x = jnp.ones((2, 4, 4, 8))
    for features, stride in ((16, 1), (8, 2), (8, 1)):
        block = efficientnet.Block(norm, features, 1, 3, stride, None, 0.5, "channel")
        variables = jax.eval_shape(lambda b=block: b.init(jax.random.key(0), x, False, None))

        def train(v, block=block):
            return block.apply(v, x, True, None, mutable=["batch_stats"])

        if (features, stride) == (8, 1):
            with pytest.raises(flax.errors.InvalidRngError):
                jax.eval_shape(train, variables)
        else:
            jax.eval_shape(train, variables)


def test_initial_depthwise_kernels():
    """Standard deviation sqrt(2 / k^2), whatever the number of channels; mean of many."""
    conv = efficientnet.ConvNorm(norm, 512, 5, depthwise=True)
    kernel = conv.init(jax.random.key(0), jnp.ones((1, 5, 5, 512)), False)
    kernel = kernel["params"]["conv"]["kernel"]
    assert kernel.shape == (5, 5, 1, 512)
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / 25), rel=0.05)


@pytest.mark.slow
def test_stack_of_two_is_two_networks():
    """Logits and gradients of depthwise convolutions, in training."""
    mesh = sharding.make(1, 1, num_networks=2, batch_size=4, devices=jax.devices()[:1])
    net = stack.make(tiny("efficientnetb0_cifar"), 2, 10, mesh, lowering="dense")
    variables = quick(lambda key: net.init(key, (16, 16, 3)))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 4, 16, 16, 3))

    def loss(params):
        logits, *_ = net.apply(variables | {"params": params}, x, train=True, key=jax.random.key(2))
        return jnp.square(logits).sum(), logits

    (_, logits), grads = quick(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    def alone(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        (logits, _), _ = net.module.apply(variables, x, True, mutable=["batch_stats"])
        return jnp.square(logits).sum(), logits

    alone = quick(jax.value_and_grad(alone, has_aux=True))
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
        (_, wanted), wanted_grads = alone(one["params"], one["batch_stats"], x[i])
        assert float(jnp.abs(wanted).max()) > 0
        np.testing.assert_allclose(logits[i], wanted, rtol=1e-3, atol=1e-6)
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
            assert np.abs(got[i] - want).max() <= 1e-3 * np.abs(want).max() + 1e-6


# ---- names


def test_names_of_the_references():
    same, symmetric = models.divided("efficientnetb1", 2), models.divided("efficientnetb1_cifar", 2)
    for path, wanted in (
        ("stem_conv bn", ("_bn0", "mod1.conv_block.norm")),
        (
            "stage1_block2 depthwise bn",
            ("_blocks.1._bn1", "mod2.block2.depth_wise.conv_block.norm"),
        ),
        (
            "stage3_block1 expand conv",
            ("_blocks.5._expand_conv", "mod4.block1.expansion.conv_block.conv"),
        ),
        (
            "stage7_block2 se fc2",
            ("_blocks.22._se_expand", "mod8.block2.se_block.channel_se.linear2"),
        ),
        ("head", ("_fc", "classifier")),
    ):
        module = tuple(path.split())
        names = tuple(efficientnet.torch_name(spec, module) for spec in (same, symmetric))
        assert names == wanted
