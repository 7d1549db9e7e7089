"""Sums and products on every platform, against float64; parameters of another shape."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import compiler
from jaxsplit.models.layers import BatchNorm, Conv, spread
from jaxsplit.models.tokens import Attention, Mlp


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (64, 3)])
@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "far from zero"])
def test_statistics_keep_their_digits(platform, shape, offset):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * [0.1, 1, 3] + offset).astype(np.float32)
    module = BatchNorm(momentum=0.0)
    variables = module.init(jax.random.key(0), x, False)
    with compiler.tracing_for(platform):
        y, new = module.apply(variables, x, True, mutable=["batch_stats"])
    exact = x.astype(np.float64).reshape(-1, 3)
    mean, var = exact.mean(0), exact.var(0)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats["var"], exact.var(0, ddof=1), rtol=1e-4)
    expected = (x.astype(np.float64) - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-3 if offset else 1e-5)


def test_constant_channels_have_no_variance_on_accelerators():
    module = BatchNorm(momentum=0.0)
    x = jnp.full((4, 2, 2, 3), 0.1)
    variables = module.init(jax.random.key(0), x, False)
    with compiler.tracing_for("gpu"):
        y, new = module.apply(variables, x, True, mutable=["batch_stats"])
    assert np.all(new["batch_stats"]["var"] >= 0)
    np.testing.assert_allclose(y, 0.0, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 20, 3), (6, 3)])
def test_a_parameter_per_channel_has_the_sum_as_gradient(platform, shape):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=shape).astype(np.float32), np.float32([1, -2, 3])

    def product(v):
        return x * spread(v, x)

    with compiler.tracing_for(platform):
        y, pull = jax.vjp(product, v)
    np.testing.assert_array_equal(y, x * v)
    exact = np.square(x, dtype=np.float64).sum(tuple(range(len(shape) - 1)))
    np.testing.assert_allclose(pull(jnp.asarray(x))[0], exact, rtol=1e-6)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 4), ("gpu", 0)])
def test_operands_of_products_stay_in_memory_on_cpu(platform, products):
    """Else the gradient of each kernel computes the layers before it again, column by column."""
    x = jnp.ones((2, 5, 8))
    layers = Mlp(16), Attention(2)
    variables = [layer.init(jax.random.key(0), x) for layer in layers]

    def chain(x):
        for layer, own in zip(layers, variables, strict=True):
            x = layer.apply(own, x)
        return x

    with compiler.tracing_for(platform):
        text = jax.jit(chain).lower(x).as_text()
    assert text.count("optimization_barrier") == 2 * products


def test_a_parameter_of_another_shape_is_named():
    variables = Conv(4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    wanted = r"kernel.* generate shape \(3, 3, 5, 4\), but .* has shape \(3, 3, 3, 4\)"
    with pytest.raises(flax.errors.ScopeParamShapeError, match=wanted):
        Conv(4).apply(variables, jnp.zeros((1, 8, 8, 5)))
