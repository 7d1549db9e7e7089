"""BatchNorm's statistics on every platform, against float64; parameters of another shape."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsplit import compiler
from jaxsplit.models.layers import BatchNorm, Conv


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


def test_a_parameter_of_another_shape_is_named():
    variables = Conv(4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    wanted = r"kernel.* generate shape \(3, 3, 5, 4\), but .* has shape \(3, 3, 3, 4\)"
    with pytest.raises(flax.errors.ScopeParamShapeError, match=wanted):
        Conv(4).apply(variables, jnp.zeros((1, 8, 8, 5)))
