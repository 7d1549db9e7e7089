"""DenseNets: sizes of the papers' networks, dividing, names, and what the layers compute."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models
from jaxsplit.models import densenet
from jaxsplit.models.layers import BatchNorm
from jaxsplit.weights import torch_network
from tests.support.samples import first, first_rows
from tests.support.xla import FAST

TINY = densenet.Spec("densenet190", (1, 2), 2, stem="norm", shake_drop=0.6)
# Parameters for 1000 classes, as torchvision documents them.
IMAGENET = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
}


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def random_variables(module, *args):
    """Variables of `module`, none of them 0 or 1."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return tree.unflatten([jax.random.uniform(k, s.shape, minval=0.1) for k, s in pairs])


def shapes_of(spec, num_classes, size, dtype=None):
    """((logits, features), variables) as shapes."""
    module = models.build(spec, num_classes, dtype=dtype)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)


# ---- sizes and dividing


@pytest.mark.slow
@pytest.mark.parametrize("arch", IMAGENET)
def test_imagenet_networks_are_the_papers(arch):
    spec = models.divided(arch, 1)
    (logits, features), variables = shapes_of(spec, 1000, 224, jnp.bfloat16)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == IMAGENET[arch]
    sides = {name: x.shape[1] for name, x in features.items()}
    assert sides == {"stage1": 56, "stage2": 28, "stage3": 14, "stage4": 7, "final": 7}
    assert (logits.dtype, features["final"].dtype) == (jnp.float32, jnp.bfloat16)


def test_growth_is_divided_by_the_root():
    for arch, growths in {
        "densenet190": {1: 40, 2: 28, 4: 20, 8: 14, 16: 10},
        "densenet121": {1: 32, 2: 22, 4: 16, 8: 11},
        "densenet40_12": {1: 12, 2: 8, 4: 6},
    }.items():
        assert {s: models.divided(arch, s).growth for s in densenet.SPECS[arch].splits} == growths
    assert densenet.divide(TINY, 4).shake_drop == 0.3


def test_widths_are_the_references(parity):
    rows = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    rows = [row for row in rows if row["facts"]["family"] == "densenet"]
    assert len(rows) == 5
    norm = BatchNorm()
    for row in rows:
        facts, spec = row["facts"], models.divided("densenet190", row["split_factor"])
        assert facts["growth_rate"] == spec.growth
        assert facts["num_init_features"] == 2 * spec.growth
        assert facts["final_p_shakedrop"] == spec.shake_drop
        assert facts["bn_eps"] == [norm.epsilon]
        assert facts["bn_momentum"] == [pytest.approx(1 - norm.momentum)]


@functools.cache
def cost_of(arch, s):
    size = densenet.SPECS[arch].image_size
    num_classes = 100 if size == 32 else 1000
    spec = models.divided(arch, s)
    return costs.cost(spec, num_classes=num_classes, image_shape=(size, size, 3))


# What S networks cost together, in (parameters, multiply-adds) of the undivided one, where the rule
# is not the reference's own: the most and the least.
@pytest.mark.parametrize(
    "arch, s, ratios",
    first_rows(
        2,
        [
            ("densenet40_12", 2, (0.915, 0.890)),
            ("densenet40_12", 4, (1.059, 1.003)),
            ("densenet121", 8, (1.199, 1.021)),
            ("densenet161", 8, (1.041, 0.930)),
        ],
    ),
)
def test_divided_networks_cost_what_the_whole_does(arch, s, ratios):
    small, large = cost_of(arch, s), cost_of(arch, 1)
    got = (s * small.params / large.params, s * small.macs / large.macs)
    assert got == pytest.approx(ratios, abs=5e-4)
    assert all(0.85 <= ratio <= 1.25 for ratio in got)


# ---- names


@pytest.mark.parametrize(
    "arch, names",
    [
        (
            "densenet121",
            {
                "stem_conv": "features.conv0",
                "stem_bn": "features.norm0",
                "stage2_layer1 conv1": "features.denseblock2.denselayer1.conv1",
                "stage2_layer2 bn2": "features.denseblock2.denselayer2.norm2",
                "stage1_transition bn": "features.transition1.norm",
                "stage1_transition conv": "features.transition1.conv",
                "final_bn": "features.norm5",
                "head": "classifier",
            },
        ),
        (
            "densenet190_plain",
            {
                "stem_conv": "conv1",
                "stage2_layer1 conv1": "block2.layer.0.conv1",
                "stage2_layer2 bn2": "block2.layer.1.bn2",
                "stage1_transition bn": "trans1.bn1",
                "stage1_transition conv": "trans1.conv1",
                "final_bn": "bn1",
                "head": "fc",
            },
        ),
        (
            "densenet40_12",
            {
                "stem_conv": "conv1",
                "stage2_layer1 conv1": "dense2.0.conv1",
                "stage2_layer2 bn1": "dense2.1.bn1",
                "stage1_transition bn": "trans1.bn1",
                "stage1_transition conv": "trans1.conv1",
                "final_bn": "bn",
                "head": "fc",
            },
        ),
    ],
)
def test_names(arch, names):
    spec = dataclasses.replace(densenet.SPECS[arch], layers=(2, 2))
    _, variables = shapes_of(spec, 10, 32)
    tensors = jax.tree.leaves(torch_network.state_dict_names(spec, variables))
    assert len(set(tensors)) == len(tensors)
    assert ("stem_bn" in variables["params"]) == ("stem_bn" in names)
    for module, name in names.items():
        assert densenet.torch_name(spec, tuple(module.split())) == name


# ---- computation


@pytest.mark.parametrize("bottleneck", first(1, [True, False]))
def test_a_layer_appends_what_it_computes(bottleneck):
    """On maps of one pixel, where a 3x3 convolution is its kernel's centre."""
    layer = densenet.DenseLayer(3, bottleneck, 0.0, BatchNorm)
    x = jax.random.normal(jax.random.key(2), (4, 1, 1, 5))
    variables = random_variables(layer, x, False, None)
    with jax.default_matmul_precision("highest"):
        got = quick(lambda v, x: layer.apply(v, x, False, None))(variables, x)

    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    y = np.asarray(x[:, 0, 0])
    for i in range(1, 3 if bottleneck else 2):
        bn, moments = params[f"bn{i}"], stats[f"bn{i}"]
        factor = bn["scale"] / np.sqrt(moments["var"] + 1e-5)
        y = np.maximum((y - moments["mean"]) * factor + bn["bias"], 0)
        kernel = params[f"conv{i}"]["kernel"]
        y = y @ kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]
    assert len(params) == (4 if bottleneck else 2)
    np.testing.assert_array_equal(got[..., :5], x)
    np.testing.assert_allclose(got[:, 0, 0, 5:], y, rtol=1e-5)


def test_transition_leaves_a_last_odd_row_out():
    transition = densenet.Transition(2, BatchNorm)
    x = jax.random.normal(jax.random.key(2), (2, 5, 7, 3))
    variables = random_variables(transition, x, False)
    apply = quick(lambda v, x: transition.apply(v, x, False))
    assert apply(variables, x).shape == (2, 2, 3, 2)
    np.testing.assert_allclose(apply(variables, x), apply(variables, x[:, :4, :6]), rtol=1e-6)


@pytest.mark.slow
def test_shake_drop_grows_over_the_layers():
    """In evaluation a layer's new channels are multiplied by what remains: 1 - 0.6 i / 3."""
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 3))
    variables = random_variables(densenet.build(TINY, 5), x)
    scaled = jax.tree.map(lambda v: v, variables)  # a copy of the dicts
    for i, name in enumerate(["stage1_layer1", "stage2_layer1", "stage2_layer2"], start=1):
        scaled["params"][name]["conv2"]["kernel"] *= 1 - 0.6 * i / 3
    plain = densenet.build(dataclasses.replace(TINY, shake_drop=0.0), 5)
    got, _ = quick(densenet.build(TINY, 5).apply)(variables, x)
    wanted, _ = quick(plain.apply)(scaled, x)
    without, _ = quick(plain.apply)(variables, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert np.abs(got - without).max() > 1e-2


@pytest.mark.slow
def test_shake_drop_is_drawn_in_training():
    module = densenet.build(TINY, 5)
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 3))
    variables = random_variables(module, x)

    @quick
    def logits(variables, key):
        rngs = {"dropout": key}
        return module.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])[0][0]

    drawn = [logits(variables, jax.random.key(i)) for i in range(8)]
    assert len({float(y.sum()) for y in drawn}) > 2
