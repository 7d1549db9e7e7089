"""FFSD's ResNets and Wide-ResNets: names, maps, dividing, what no fixture shows."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models
from jaxsplit.models import ffsd_resnet, ffsd_wide_resnet
from jaxsplit.weights import torch_network
from tests.support.xla import FAST

# What FFSD calls its networks -> their names here.
NAMES = {
    "resnet20": "resnet20",
    "resnet32": "resnet32",
    "resnet56": "resnet56",
    "resnet18": "ffsd_resnet18",
    "resnet34": "ffsd_resnet34",
    "wideresnet1602": "ffsd_wide_resnet16_2",
    "wideresnet4002": "ffsd_wide_resnet40_2",
    "wideresnet2810": "ffsd_wide_resnet28_10",
}
SPECS = ffsd_resnet.SPECS | ffsd_wide_resnet.SPECS


def traced(spec, num_classes: int = 10):
    """(shapes of the variables, name -> shape of the feature, in their order) for one image."""
    module = models.build(spec, num_classes)
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.float32)
    order = []

    def init(x):
        (_, features), variables = module.init_with_output(jax.random.key(0), x)
        order.extend(features)  # the traced function's result is sorted
        return features, variables

    features, variables = jax.eval_shape(init, image)
    return variables, {name: features[name].shape for name in order}


def test_the_maps_that_ffsd_reads(parity):
    rows = json.loads((parity / "reference_models.json").read_text())["ffsd"]
    rows = [row for row in rows if row["model"] in NAMES]
    assert {NAMES[row["model"]] for row in rows} == set(SPECS)
    for row in rows:
        spec = SPECS[NAMES[row["model"]]]
        _, features = traced(spec)
        stages = sorted(name for name in features if name.startswith("stage"))
        assert list(features) == [*stages, "final"]
        read = [features[name] for name in [*stages[:-1], "final"]]
        assert read == [(1, h, w, c) for c, h, w in row["feature_maps_CHW"]]
        assert spec.image_size == row["image_size"]
        assert set((row["dropout"] or {"": 0}).values()) == {spec.dropout}


def test_names_are_torchvisions():
    """Those of its `resnet18`, written out."""
    spec = SPECS["ffsd_resnet18"]
    variables, _ = traced(spec)
    norm = ["weight", "bias", "running_mean", "running_var"]
    wanted = ["conv1.weight", *(f"bn1.{n}" for n in norm), "fc.weight", "fc.bias"]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            prefix = f"layer{stage}.{block}"
            wanted += [f"{prefix}.conv{i}.weight" for i in (1, 2)]
            wanted += [f"{prefix}.bn{i}.{n}" for i in (1, 2) for n in norm]
        if stage > 1:
            wanted += [f"layer{stage}.0.downsample.0.weight"]
            wanted += [f"layer{stage}.0.downsample.1.{n}" for n in norm]
    assert sorted(jax.tree.leaves(torch_network.state_dict_names(spec, variables))) == sorted(
        wanted
    )


def test_wide_resnets_of_any_depth_and_width():
    spec = models.known("ffsd_wide_resnet22_3")[1]
    assert (spec.blocks, spec.widening, spec.dropout) == (3, 3, 0.0)
    variables, features = traced(spec)
    assert [f[3] for f in features.values()] == [48, 96, 192, 192]
    kernels = [p for p, v in jax.tree.leaves_with_path(variables["params"]) if v.ndim == 4]
    assert len([p for p in kernels if p[-2].key != "shortcut"]) == 22 - 3  # as the paper counts
    for none in ("23_3", "4_3", "022_3", "22_03", "22_0", "22"):
        assert ffsd_wide_resnet.FAMILY.find(f"ffsd_wide_resnet{none}") is None
    # Without a change of channels the first block of stage 1 has no shortcut to learn.
    variables, _ = traced(models.known("ffsd_wide_resnet10_1")[1])
    blocks = [name for name, block in variables["params"].items() if "shortcut" in block]
    assert blocks == ["stage2_block1", "stage3_block1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", ["resnet20", "ffsd_resnet18", "ffsd_wide_resnet16_2", "ffsd_wide_resnet28_10"]
)
def test_divided_networks_cost_what_the_undivided_one_does(arch):
    spec = SPECS[arch]
    side = 64 if spec.image_size == 224 else 32  # ratios are about the same

    def macs(s):
        cost = costs.cost(models.divided(arch, s), num_classes=10, image_shape=(side, side, 3))
        return s * cost.macs

    whole = macs(1)
    for s in (2, 4):
        # A factor of 2 has no good half: 2 / sqrt(2) is rounded down to 1.
        low = 0.5 if (s, getattr(spec, "widening", None)) == (2, 2) else 0.9
        assert low < macs(s) / whole < 1.2, s


def test_divided_specs():
    assert [models.divided("resnet56", s).width for s in (1, 2, 4)] == [16, 12, 8]
    small = models.divided("ffsd_resnet34", 2)
    assert (small.width, small.stem, small.blocks) == (44, (44,), (3, 4, 6, 3))
    divided = [models.divided("ffsd_wide_resnet28_10", s) for s in (1, 2, 4)]
    assert [spec.widening for spec in divided] == [10, 7, 5]
    assert [spec.dropout for spec in divided] == [0.3, 0.15, 0.075]
    assert {spec.arch for spec in divided} == {"ffsd_wide_resnet28_10"}


@pytest.mark.slow
def test_dropout_lies_between_the_convolutions_and_the_last_norm_forgets_fast():
    spec = dataclasses.replace(models.known("ffsd_wide_resnet10_1")[1], dropout=0.5)
    module = models.build(spec, 10)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

    shapes, _ = traced(spec)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda v: 0.2 * rng.normal(size=v.shape).astype(v.dtype), shapes)
    # Then the first convolution returns its bias, whatever it is given.
    variables["params"]["stage1_block1"]["conv1"]["kernel"] *= 0.0

    @lambda fn: jax.jit(fn, compiler_options=FAST)
    def run(key):
        rngs = {"dropout": key}
        (_, features), new = module.apply(variables, x, True, rngs=rngs, mutable=["batch_stats"])
        return features, new["batch_stats"]

    features, first = run(jax.random.key(2))
    _, second = run(jax.random.key(3))
    a, b = first["stage1_block1"], second["stage1_block1"]
    np.testing.assert_array_equal(a["bn1"]["mean"], b["bn1"]["mean"])
    assert jnp.abs(a["bn2"]["mean"] - b["bn2"]["mean"]).max() > 1e-3

    mean = features["stage3"].mean((0, 1, 2))
    before = variables["batch_stats"]["final_bn"]["mean"]
    got = first["final_bn"]["mean"]
    np.testing.assert_allclose(got, 0.1 * before + 0.9 * mean, rtol=1e-4, atol=1e-5)
    assert features["stage3"].min() < 0 <= features["final"].min()
