"""Shake-Shake networks: dividing, the papers' sizes, names, and random coefficients in a stack."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models, sharding, stack
from jaxsplit.models import shake_shake
from jaxsplit.weights import torch_network
from tests.support.xla import FAST

TINY = dataclasses.replace(
    models.divided("shake_resnet26_2x96d", 1), width=6, blocks=(1, 1), stem=4
)
BLOCK = dataclasses.replace(TINY, blocks=(1,))
S, B, K = 4, 4, 3


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


@pytest.mark.parametrize("width, millions", [(32, 2.9), (64, 11.7), (96, 26.2)])
def test_sizes_are_the_papers(width, millions):
    """Gastaldi 2017, on CIFAR-10; to the digits that are published."""
    spec = models.divided(f"shake_resnet26_2x{width}d", 1)
    cost = costs.cost(spec, num_classes=10, image_shape=(32, 32, 3))
    assert round(cost.params / 1e6, 1) == millions


def test_divided_widths():
    widths = {
        arch: [models.divided(arch, s).width for s in spec.splits]
        for arch, spec in shake_shake.SPECS.items()
    }
    assert widths == {
        "shake_resnet26_2x32d": [32, 24, 16],
        "shake_resnet26_2x64d": [64, 48, 32, 24, 16],
        "shake_resnet26_2x96d": [96, 64, 48, 32, 24],
    }


@pytest.mark.parametrize("arch", shake_shake.SPECS)
def test_divided_cost_is_about_the_same(arch):
    """The width's square times S; the published division is within 11 %."""
    spec = shake_shake.SPECS[arch]
    for s in spec.splits:
        assert 0.85 < s * models.divided(arch, s).width ** 2 / spec.width**2 < 1.15


def test_facts_are_the_references(parity):
    rows = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    rows = [row for row in rows if row["facts"].get("family") == "shake_shake"]
    assert len(rows) == 5
    for row in rows:
        facts, spec = row["facts"], models.divided(row["arch"], row["split_factor"])
        assert facts["base_width"] == spec.width
        assert facts["in_chs"] == [spec.stem, *(spec.width * 2**i for i in range(3))]
        # Exactly the shortcuts that we do not build are dead.
        for stage, blocks in enumerate(spec.blocks, start=1):
            for i in range(blocks):
                name = f"stage_{stage}.{i}"
                dead = any(
                    re.fullmatch(d, f"{name}.shortcut.conv1.weight")
                    for d in shake_shake.FAMILY.torch_dead
                )
                assert dead == (name in facts["unused_shortcut_blocks"])


def test_only_what_changes_shapes_has_a_shortcut():
    spec = dataclasses.replace(TINY, width=TINY.stem, blocks=(2, 2))
    module = models.build(spec, K)
    shapes = jax.eval_shape(lambda k: module.init(k, jnp.zeros((1, 8, 8, 3))), jax.random.key(0))
    having = {name for name, block in shapes["params"].items() if "shortcut" in block}
    assert having == {"stage2_block1"}


@pytest.mark.parametrize("stride", [1, 2])
def test_shortcut_by_hand(stride):
    """The second half reads one pixel down and right, zero beyond the map."""

    def norm(name):
        return lambda x, train: x

    shortcut = shake_shake.Shortcut(2, stride, norm)
    x = np.arange(1.0, 26.0, dtype=np.float32).reshape(1, 5, 5, 1)
    kernels = {name: {"kernel": jnp.ones((1, 1, 1, 1))} for name in ("conv1", "conv2")}
    out = shortcut.apply({"params": kernels}, x, True)
    shifted = np.zeros((5, 5), np.float32)
    shifted[:4, :4] = x[0, 1:, 1:, 0]
    np.testing.assert_array_equal(out[0, :, :, 0], x[0, ::stride, ::stride, 0])
    np.testing.assert_array_equal(out[0, :, :, 1], shifted[::stride, ::stride])


def test_features_and_names():
    module = models.build(TINY, K, dtype=jnp.bfloat16)
    x = jnp.zeros((2, 9, 8, 3))
    variables = jax.eval_shape(lambda k: module.init(k, x), jax.random.key(0))
    logits, features = jax.eval_shape(module.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, K), jnp.float32)
    shapes = {"stage1": (9, 8, 6), "stage2": (5, 4, 12), "final": (5, 4, 12)}
    assert {name: f.shape[1:] for name, f in features.items()} == shapes
    assert {f.dtype for f in features.values()} == {jnp.dtype(jnp.bfloat16)}
    names = torch_network.state_dict_names(TINY, variables)["params"]
    block = names["stage2_block1"]
    assert block["branch2"]["conv2"]["kernel"] == "stage_2.0.branch2.4.weight"
    assert block["branch1"]["bn1"]["scale"] == "stage_2.0.branch1.2.weight"
    assert block["shortcut"]["bn"]["bias"] == "stage_2.0.shortcut.bn.bias"
    assert names["stem_conv"]["bias"] == "conv_1.bias"


@pytest.fixture(scope="module")
def on_meshes():
    """Mesh -> (logits, gradients, statistics) of a training step, of two steps."""
    with jax.enable_x64(True):
        module = models.build(BLOCK, K)
        x = np.random.default_rng(0).normal(size=(1, B, 8, 8, 3))
        variables = quick(module.init)(jax.random.key(0), x[0])
        # Equal networks on one view, so that only what they draw differs.
        variables = jax.tree.map(lambda v: np.stack([v] * S), variables)
        return {mesh: jax.device_get(training(mesh, variables, x)) for mesh in ((1, 1), (2, 2))}


def training(mesh, variables, x):
    devices = sharding.make(*mesh, num_networks=S, batch_size=B)
    networks = stack.make(BLOCK, S, K, devices, lowering="dense", batch_norm="sync")

    @quick
    def run(params, seed):
        def loss(params):
            logits, _, stats = networks.apply(
                dict(variables, params=params), x, train=True, key=jax.random.key(seed)
            )
            return logits.sum(), (logits, stats)

        grads, (logits, stats) = jax.grad(loss, has_aux=True)(params)
        return logits, grads, stats

    return [run(variables["params"], seed) for seed in (0, 1)]


@pytest.mark.slow
def test_a_mesh_equals_one_device(on_meshes):
    """With random coefficients: each example's and each network's are its own everywhere."""
    for one, many in zip(*on_meshes.values(), strict=True):
        for got, want in zip(many, one, strict=True):
            got, want = jax.tree.leaves(got), jax.tree.leaves(want)
            # Of the largest: the gradient of a bias before a BatchNorm is zero.
            error = max(np.abs(g - w).max() for g, w in zip(got, want, strict=True))
            assert error <= 1e-10 * max(np.abs(w).max() for w in want)


@pytest.mark.slow
def test_networks_and_steps_draw_differently(on_meshes):
    outs = [logits for step in on_meshes[1, 1] for logits in step[0]]
    assert len(outs) == 2 * S
    for i, a in enumerate(outs):
        for b in outs[:i]:
            assert np.abs(a - b).max() > 0.02 * np.abs(a).max()
