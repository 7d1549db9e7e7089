"""PyramidNet: widths and rates, shortcuts, names, and ShakeDrop in a stack."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import models, sharding, stack
from jaxsplit.models import pyramidnet
from jaxsplit.weights import torch_network
from tests.support.xla import FAST

TINY = dataclasses.replace(
    models.divided("pyramidnet164", 1), blocks=(1, 1), alpha=2.0, stem=2, shake_drop=0.9
)
BLOCK = dataclasses.replace(TINY, blocks=(1,))
S, B, K = 4, 4, 3


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def test_widths_and_rates_are_the_references(parity):
    """Of every block, of both networks at every S."""
    rows = json.loads((parity / "reference_models.json").read_text())["splitnet"]
    rows = [row for row in rows if row["facts"].get("family") == "pyramidnet"]
    assert len(rows) == 10
    for row in rows:
        facts, spec = row["facts"], models.divided(row["arch"], row["split_factor"])
        assert list(spec.widths) == facts["block_planes"]
        assert spec.rates == pytest.approx(facts["p_shakedrop"], rel=1e-12)
        assert spec.shake_drop == pytest.approx(facts["final_shake_p"], rel=1e-12)
        assert spec.rates[-1] == spec.shake_drop
        assert spec.alpha / sum(spec.blocks) == pytest.approx(facts["addrate"], rel=1e-12)
        assert spec.stem == facts["first_conv_out"]


def test_widths_are_rounded_to_even():
    """Half to even: 18.5 -> 18, 23.5 -> 24."""
    spec = models.divided("pyramidnet164", 4)
    assert spec.widths[:4] == (18, 21, 24, 26)
    assert (len(spec.widths), spec.rates[0]) == (54, 0.25 / 54)


def test_features_and_names():
    module = models.build(TINY, K, dtype=jnp.bfloat16)
    x = jnp.zeros((2, 9, 8, 3))
    variables = jax.eval_shape(lambda k: module.init(k, x), jax.random.key(0))
    logits, features = jax.eval_shape(module.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, K), jnp.float32)
    shapes = {"stage1": (9, 8, 12), "stage2": (5, 4, 16), "final": (5, 4, 16)}
    assert {name: f.shape[1:] for name, f in features.items()} == shapes
    assert {f.dtype for f in features.values()} == {jnp.dtype(jnp.bfloat16)}
    names = torch_network.state_dict_names(TINY, variables)
    assert names["params"]["stage2_block1"]["conv3"]["kernel"] == "layer2.0.conv3.weight"
    assert names["batch_stats"]["final_bn"]["var"] == "bn_final.running_var"
    assert names["params"]["head"]["bias"] == "fc.bias"


@pytest.mark.parametrize("stride", [1, 2])
def test_shortcut_by_hand(stride):
    """A silent branch leaves the 2x2 mean, odd edges over what exists, and channels of zeros."""

    def norm(name):
        return lambda x, train: jnp.zeros_like(x)

    x = np.arange(15.0, dtype=np.float32).reshape(1, 3, 5, 1)
    block = pyramidnet.Block(1, stride, 0.5, norm)
    run = quick(lambda key, x: block.init_with_output(key, x, False, None)[0])
    out = run(jax.random.key(0), x)
    pooled = [[3, 5, 6.5], [10.5, 12.5, 14]]
    want = x[0, :, :, 0] if stride == 1 else pooled
    np.testing.assert_allclose(out[0, :, :, 0], want, rtol=1e-6)
    assert out.shape[-1] == 4 and not out[..., 1:].any()


@pytest.fixture(scope="module")
def on_meshes():
    """Mesh -> (features, gradients) of three training steps."""
    with jax.enable_x64(True):
        module = models.build(BLOCK, K)
        x = np.random.default_rng(0).normal(size=(1, B, 4, 4, 3))
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
            logits, features, _ = networks.apply(
                dict(variables, params=params), x, train=True, key=jax.random.key(seed)
            )
            return logits.sum(), features

        grads, features = jax.grad(loss, has_aux=True)(params)
        return features, grads

    return [run(variables["params"], seed) for seed in range(3)]


@pytest.mark.slow
def test_a_mesh_equals_one_device(on_meshes):
    """With random coefficients, and one gate of a network for the whole batch."""
    for one, many in zip(*on_meshes.values(), strict=True):
        for got, want in zip(many, one, strict=True):
            got, want = jax.tree.leaves(got), jax.tree.leaves(want)
            error = max(np.abs(g - w).max() for g, w in zip(got, want, strict=True))
            assert error <= 1e-10 * max(np.abs(w).max() for w in want)


@pytest.mark.slow
def test_networks_and_steps_draw_differently(on_meshes):
    """All but those whose gates were open (a tenth, in the last block)."""
    outs = [out for features, _ in on_meshes[1, 1] for out in features["stage1"]]
    assert len({out.round(9).tobytes() for out in outs}) >= len(outs) - 2


@pytest.mark.slow
def test_a_branch_is_scaled_in_evaluation():
    """By 1 - rate."""
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    variables = quick(models.build(BLOCK, K).init)(jax.random.key(0), x)

    def out(rate):
        module = models.build(dataclasses.replace(BLOCK, shake_drop=rate), K)
        return np.asarray(quick(module.apply)(variables, x)[1]["stage1"])

    quiet, half, loud = map(out, (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half, (quiet + loud) / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(loud - quiet).max() > 0.1
