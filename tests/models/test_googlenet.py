"""GoogLeNet for CIFAR: dividing, cost, names, and the branch behind a pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import costs, models
from jaxsplit.models import googlenet
from jaxsplit.models.layers import BatchNorm
from jaxsplit.weights import torch_network
from tests.support.xla import FAST


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def widths_of(spec) -> list[int]:
    return [spec.stem, *(w for blocks in spec.stages for block in blocks for w in block)]


def test_half_the_widths_in_four():
    whole, quarter = (models.divided("googlenet", s) for s in (1, 4))
    assert [2 * w for w in widths_of(quarter)] == widths_of(whole)


def test_widths_in_two_are_multiples_of_four():
    spec = models.divided("googlenet", 2)
    assert spec.stem == 136  # 192 / sqrt(2) = 135.8
    assert spec.stages[0][0] == (44, 68, 92, 12, 24, 24)
    for wide, narrow in zip(
        widths_of(models.divided("googlenet", 1)), widths_of(spec), strict=True
    ):
        assert narrow % 4 == 0 and abs(narrow - wide / 2**0.5) <= 2


@pytest.mark.slow
def test_divided_networks_cost_what_the_whole_does():
    shape = dict(num_classes=100, image_shape=(32, 32, 3))
    whole, *parts = (costs.cost(models.divided("googlenet", s), **shape) for s in (1, 2, 4))
    for s, part, ratios in zip((2, 4), parts, ((1.013, 1.010), (1.021, 1.004)), strict=True):
        got = (s * part.params / whole.params, s * part.macs / whole.macs)
        assert got == pytest.approx(ratios, abs=5e-4)
        assert all(0.85 <= ratio <= 1.25 for ratio in got)


def test_names_and_feature_maps():
    spec = models.divided("googlenet", 1)
    module = models.build(spec, 100, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    (logits, features), variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x), x
    )
    assert {name: y.shape[1:] for name, y in features.items()} == {
        "stage1": (32, 32, 480),
        "stage2": (16, 16, 832),
        "stage3": (8, 8, 1024),
        "final": (8, 8, 1024),
    }
    assert (logits.dtype, features["final"].dtype) == (jnp.float32, jnp.bfloat16)
    tensors = jax.tree.leaves(torch_network.state_dict_names(spec, variables))
    assert len(set(tensors)) == len(tensors)
    assert {
        "pre_layers.0.bias",
        "pre_layers.1.weight",
        "inception_a3.branch1x1.1.weight",
        "inception_e4.branch3x3.3.weight",
        "inception_b5.branch5x5.7.bias",
        "inception_c4.branch_pool.1.bias",
        "linear.weight",
    } <= set(tensors)


def test_pool_branch():
    """The largest of 3x3 neighbours; what lies outside of a negative map never wins."""
    block = googlenet.Inception(googlenet.Widths(1, 1, 1, 1, 1, 1), BatchNorm)
    x = jnp.full((1, 5, 5, 1), -2.0).at[0, 1, 1, 0].set(-1.0)
    variables = block.init(jax.random.key(0), x, False)
    # 3 + the pool, which is positive: ReLU leaves it.
    ones = {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.full(1, 3.0)}
    params = variables["params"] | {"pool_conv1": ones}
    y = quick(lambda v, x: block.apply(v, x, False))(variables | {"params": params}, x)
    wanted = np.ones((5, 5))
    wanted[:3, :3] = 2.0
    assert y.shape == (1, 5, 5, 4)
    np.testing.assert_allclose(y[0, :, :, 3], wanted, rtol=1e-5)
