"""Layers that draw random numbers: their arithmetic, what they draw, and under a mesh.

`golden/stochastic_ops.npz` holds the reference's results of given draws, in PyTorch's layout; a
test says that it is the parity file.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxsplit import sharding
from jaxsplit.models.stochastic import (
    DropBlock,
    Dropout,
    DropPath,
    ShakeDrop,
    ShakeShake,
    drop_block,
    drop_block_gamma,
    keep_scaled,
    shake_drop,
    shake_shake,
)
from tests.support.paths import GOLDEN
from tests.support.samples import first
from tests.support.xla import FAST

FILE = GOLDEN / "stochastic_ops.npz"
OPS = dict(np.load(FILE))
LAYERS = {
    "element": Dropout(0.4),
    "channel": Dropout(0.4, "channel"),
    "example": DropPath(0.4),
    "drop_block": DropBlock(0.4, 3),
    "shake_shake": ShakeShake(),
    "shake_drop": ShakeDrop(0.6),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def apply(layer, x, key, example_ids=None, train=True):
    """The layer on x, and on -x beside it where it mixes two."""
    inputs = (x, -x) if isinstance(layer, ShakeShake) else (x,)
    return layer.apply({}, *inputs, train, example_ids, rngs={"dropout": key})


def random(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


# ---- arithmetic of given draws: the reference's


def nhwc(name: str) -> np.ndarray:
    return OPS[name].transpose(0, 2, 3, 1)


def per_example(name: str) -> np.ndarray:
    return OPS[name].reshape(-1, 1, 1, 1)


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_golden_file_is_the_parity_file(parity):
    assert FILE.read_bytes() == (parity / "stochastic_ops.npz").read_bytes()


def test_shake_shake_is_the_references():
    x1, x2 = nhwc("shake_shake/x1"), nhwc("shake_shake/x2")
    alpha, beta = per_example("shake_shake/alpha"), per_example("shake_shake/beta")
    out, backward = jax.vjp(lambda a, b: shake_shake(a, b, alpha, beta), x1, x2)
    assert_close(out, nhwc("shake_shake/out_train"))
    grads = backward(jnp.asarray(nhwc("shake_shake/grad_out")))
    assert_close(grads[0], nhwc("shake_shake/grad_x1"))
    assert_close(grads[1], nhwc("shake_shake/grad_x2"))
    assert_close(ShakeShake().apply({}, x1, x2, False, None), nhwc("shake_shake/out_eval"))


@pytest.mark.parametrize("gate", [0, 1])
def test_shake_drop_is_the_references(gate):
    x, grad = nhwc("shake_drop/x"), jnp.asarray(nhwc("shake_drop/grad_out"))
    # An open gate ignores them; the file has those of the closed one.
    alpha, beta = per_example("shake_drop/gate0/alpha"), per_example("shake_drop/gate0/beta")
    out, backward = jax.vjp(lambda x: shake_drop(x, jnp.array(gate == 1), alpha, beta), x)
    assert_close(out, nhwc(f"shake_drop/gate{gate}/out"))
    assert_close(backward(grad)[0], nhwc(f"shake_drop/gate{gate}/grad_x"))
    evaluated = ShakeDrop(float(OPS["shake_drop/p_drop"])).apply({}, x, False, None)
    assert_close(evaluated, nhwc("shake_drop/out_eval"))


@pytest.mark.parametrize("size", [14, 7])
def test_drop_block_is_the_references(size):
    case = f"dropblock/{size}x{size}_p0.1_b3"
    gamma = drop_block_gamma(0.1, 3, (size, size))
    assert gamma == pytest.approx(float(OPS[f"{case}/gamma"]), rel=1e-12)
    x, seeds, mask = nhwc(f"{case}/x"), nhwc(f"{case}/noise") < gamma, nhwc(f"{case}/keep_mask")
    np.testing.assert_array_equal(drop_block(np.ones_like(x), seeds, 3) > 0, mask > 0)
    out, backward = jax.vjp(lambda x: drop_block(x, seeds, 3), x)
    assert_close(out, nhwc(f"{case}/out"))
    assert_close(backward(jnp.ones_like(out))[0], mask / mask.mean())


def test_drop_path_and_drop_connect_are_the_references():
    """One operation under two names."""
    x, rate = nhwc("drop_path/x"), float(OPS["drop_path/drop_prob"])
    out = keep_scaled(x, nhwc("drop_path/uniform") >= rate, rate)
    assert_close(out, nhwc("drop_path/out"))
    assert_close(out, nhwc("drop_connect/out_same_x_and_uniform"))


def test_channel_dropout_is_the_references():
    kept = OPS["efficientnet_dropout2d/kept_NC"][:, None, None] > 0
    rate = float(OPS["efficientnet_dropout2d/p"])
    out = keep_scaled(nhwc("efficientnet_dropout2d/x"), kept, rate)
    assert_close(out, nhwc("efficientnet_dropout2d/out"))


# ---- arithmetic by hand


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 6])
def test_a_seed_drops_a_square(block):
    """Also of even size, where the reference fails: it reaches one further down and right."""
    assert "must match the size" in str(OPS["dropblock/block_size_4_error"])
    seeds = np.zeros((1, 11, 9, 2), bool)
    seeds[0, 5, 4, 0] = seeds[0, 0, 8, 1] = True  # within, and in a corner
    out = drop_block(np.ones(seeds.shape, np.float32), seeds, block)
    kept = np.ones(seeds.shape)
    before, after = (block - 1) // 2, block // 2
    kept[0, 5 - before : 5 + after + 1, 4 - before : 4 + after + 1, 0] = 0
    kept[0, : after + 1, 8 - before :, 1] = 0
    assert (kept[..., 0] == 0).sum() == block**2
    assert_close(out, kept / kept.mean())


def test_a_square_is_at_most_the_map():
    assert drop_block_gamma(0.1, 7, (4, 6)) == pytest.approx(0.1 * 24 / 16 / 3)  # 1 x 3 centres
    seeds = np.zeros((2, 4, 6, 1), bool)
    seeds[0, 1, 1] = True
    out = drop_block(np.ones(seeds.shape, np.float32), seeds, 7)
    assert (np.asarray(out[0, :, :, 0]) == 0).sum() == 16  # 4 x 4, from the corner


def test_drop_block_of_everything_is_zero():
    """Not 0 / 0, and no gradient that is."""
    seeds = np.ones((1, 4, 4, 1), bool)
    out, grad = jax.value_and_grad(lambda x: drop_block(x, seeds, 3).sum())(random(1, 4, 4, 1))
    assert out == 0 and not grad.any()


def test_shaking_adds_no_rounding():
    """The value is that of the formula, also where the two coefficients cancel."""
    x1, x2 = jnp.full((1, 2), 3e3, jnp.bfloat16), jnp.ones((1, 2), jnp.bfloat16)
    zero, one = jnp.zeros((1, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
    np.testing.assert_array_equal(shake_shake(x1, x2, zero, one), x2)
    shut = jnp.array(False)
    np.testing.assert_array_equal(shake_drop(x1, shut, one / 1024, one), x1 / 1024)


# ---- what is drawn

N = 4096


def assert_rate(count: int, n: int, rate: float):
    """Within five standard errors of a binomial share."""
    assert abs(count / n - rate) <= 5 * (rate * (1 - rate) / n) ** 0.5


def assert_uniform(values, low, high):
    """Mean and variance within five standard errors; all in [low, high], and near both ends."""
    values = np.asarray(values, np.float64)
    width, n = high - low, values.size
    assert low <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) <= 5 * width * (1 / 12 / n) ** 0.5
    # The fourth central moment of a uniform variable is width^4 / 80.
    error = width**2 * ((1 / 80 - 1 / 144) / n) ** 0.5
    assert abs(values.var() - width**2 / 12) <= 5 * error


def assert_uncorrelated(a, b):
    assert abs(np.corrcoef(a, b)[0, 1]) <= 5 * len(a) ** -0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("unit", ["element", "channel", "example"])
def test_units_are_dropped_at_the_rate(unit, rate):
    x = np.full((512, 2, 3, 4), 3.0, np.float32)
    out = np.asarray(apply(Dropout(rate, unit), x, jax.random.key(1)))
    np.testing.assert_allclose(out[out != 0], 3.0 / (1 - rate), rtol=1e-6)
    dropped = out == 0
    share = {"element": 1, "channel": 6, "example": 24}[unit]
    units = {
        "element": dropped.reshape(-1, 1),
        "channel": dropped.reshape(512, 6, 4).swapaxes(1, 2).reshape(-1, 6),
        "example": dropped.reshape(512, 24),
    }[unit]
    assert units.shape[1] == share
    np.testing.assert_array_equal(units, units[:, :1].repeat(share, 1))
    assert_rate(units[:, 0].sum(), len(units), rate)


@pytest.mark.parametrize("block", [1, 3, 4])
def test_drop_block_draws(block):
    rate, shape = 0.2, (256, 7, 9, 4)
    out = np.asarray(apply(DropBlock(rate, block), np.ones(shape, np.float32), jax.random.key(2)))
    kept = out != 0
    assert out.mean() == pytest.approx(1, rel=1e-5)  # rescaled by the share of what is kept
    # A place is kept if none of the seeds that reach it, cut off at the border, is set.
    before, after = block // 2, (block - 1) // 2

    def reach(n):
        return np.array([min(i + after, n - 1) - max(i - before, 0) + 1 for i in range(n)])

    gamma = drop_block_gamma(rate, block, shape[1:3])
    wanted = (1 - gamma) ** (reach(7)[:, None] * reach(9)[None, :])
    maps = kept.mean((1, 2))  # independent: those of examples and channels
    assert abs(maps.mean() - wanted.mean()) <= 5 * maps.std() / maps.size**0.5
    if block == 1:
        assert wanted.mean() == pytest.approx(1 - rate)
    else:  # more than the rate, for the border
        assert wanted.mean() < 0.95 * (1 - rate)
    assert len({m.tobytes() for m in kept[0].transpose(2, 0, 1)}) == 4  # each channel its own


@functools.cache
def shake_shake_draws():
    """alpha and beta of N examples, whose branches have two elements."""
    one, zero = jnp.ones((N, 2)), jnp.zeros((N, 2))

    def mixed(x1, x2):
        return ShakeShake().apply({}, x1, x2, True, None, rngs={"dropout": jax.random.key(3)})

    out, backward = jax.vjp(mixed, one, zero)
    grads = backward(one)
    np.testing.assert_allclose(grads[0] + grads[1], 1.0, rtol=1e-6)
    return np.asarray(out), np.asarray(grads[0])


def test_shake_shake_draws():
    """Uniform, one an example, and the backward ones say nothing about the forward ones."""
    alpha, beta = shake_shake_draws()
    for draws in (alpha, beta):
        np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
        assert_uniform(draws[:, 0], 0, 1)
    assert_uncorrelated(alpha[:, 0], beta[:, 0])
    assert_uncorrelated(alpha[:-1, 0], alpha[1:, 0])


def test_shake_drop_draws():
    """One gate a step for the whole batch; alpha and beta uniform, one an example."""
    rate, steps, b = 0.3, 2000, 4
    ones = jnp.ones((b, 2))

    @quick
    @jax.vmap
    def factors(key):
        out, backward = jax.vjp(lambda x: apply(ShakeDrop(rate), x, key), ones)
        return out, backward(ones)[0]

    forward, backward = map(np.asarray, factors(jax.random.split(jax.random.key(4), steps)))
    for factor in (forward, backward):
        np.testing.assert_array_equal(factor[..., 0], factor[..., 1])
    forward, backward = forward[..., 0], backward[..., 0]
    shut = (forward != 1).any(1)
    assert ((forward != 1).all(1) == shut).all() and ((backward != 1).all(1) == shut).all()
    assert_rate(shut.sum(), steps, rate)
    alpha, beta = forward[shut], backward[shut]
    assert_uniform(alpha, -1, 1)
    assert_uniform(beta, 0, 1)
    assert_uncorrelated(alpha.ravel(), beta.ravel())
    assert_uncorrelated(alpha[:, 0], alpha[:, 1])
    # In evaluation, the mean of what training multiplies by.
    evaluated = ShakeDrop(rate).apply({}, ones, False, None)
    np.testing.assert_allclose(evaluated, 1 - rate, rtol=1e-6)
    error = forward.mean(1).std() / steps**0.5
    assert abs(forward.mean() - (1 - rate)) <= 5 * error


@pytest.mark.parametrize("name", first(2, LAYERS))
def test_draws_belong_to_the_example(name):
    """A part of a batch, in any order, draws what it draws in the whole; None: 0, 1, ..."""
    x = 1.0 + np.abs(random(6, 5, 5, 4))
    key = jax.random.key(0)  # of which ShakeDrop's gate is shut

    def draws(x, ids):
        out = np.asarray(apply(LAYERS[name], x, key, ids)) / x
        # Its scale, by all that the batch keeps, is not of an example.
        return out != 0 if name == "drop_block" else out

    whole = draws(x, np.arange(6))
    np.testing.assert_allclose(draws(x, None), whole, rtol=1e-6)
    part = np.array([4, 1, 3])
    np.testing.assert_allclose(draws(x[part], part), whole[part], rtol=1e-6)
    # Others draw otherwise: fails for layers that draw one number for all.
    shifted = draws(x, np.arange(6) + 100)
    assert (shifted != whole).reshape(6, -1).any(1).sum() >= 2
    assert len({w.tobytes() for w in whole}) >= (2 if name == "example" else 6)


def test_layers_of_a_network_draw_differently():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [ShakeDrop(0.5, name=f"block{i}")(x, True, None) for i in range(40)]

    outs = Two().apply({}, np.ones((2, 1), np.float32), rngs={"dropout": jax.random.key(0)})
    forward = np.stack(outs)[..., 0]
    shut = (forward != 1).all(1)
    assert 5 < shut.sum() < 35
    assert len(np.unique(forward[shut])) == 2 * shut.sum()


# ---- types, evaluation, under a mesh


@every_layer
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_type_and_shape_stay(name, train, dtype):
    x = jnp.asarray(random(4, 5, 6, 3), dtype)

    def run(x):
        out, backward = jax.vjp(lambda x: apply(LAYERS[name], x, jax.random.key(0), None, train), x)
        return out, *backward(out)

    for value in jax.eval_shape(run, x):
        assert (value.dtype, value.shape) == (x.dtype, x.shape)


@every_layer
def test_evaluation_draws_nothing(name):
    x = random(2, 5, 5, 3)
    inputs = (x, 3 * x) if name == "shake_shake" else (x,)
    out = LAYERS[name].apply({}, *inputs, False, None)  # no stream of random numbers
    factor = {"shake_shake": 2.0, "shake_drop": 0.4}.get(name, 1.0)
    np.testing.assert_allclose(out, factor * x, rtol=1e-6)


@pytest.mark.parametrize("layer", [Dropout(0.0), DropPath(0.0), DropBlock(0.0, 3), ShakeDrop(0.0)])
def test_rate_zero_is_the_identity(layer):
    x = random(2, 5, 5, 3)
    assert layer.apply({}, x, True, None) is x


@functools.cache
def on_mesh(name: str, data: int, net: int, seed: int = 0):
    """Value and gradient of the layer on the same 4 examples in 4 networks, on a mesh."""
    s, b = 4, 4
    layer = LAYERS[name]
    if name == "drop_block":
        layer = layer.clone(axis_name=sharding.DATA)
    mesh = sharding.make(data, net, num_networks=s, batch_size=b)
    x = np.broadcast_to(1.0 + np.abs(random(b, 5, 5, 4)), (s, b, 5, 5, 4))

    def local(x, keys):
        ids = sharding.first_example(x.shape[1]) + jnp.arange(x.shape[1])
        return jax.vmap(lambda x, k: apply(layer, x, k, ids))(x, keys)

    mapped = mesh.map(local, (mesh.views, mesh.networks), mesh.views)

    def run(x, keys):
        out, backward = jax.vjp(lambda x: mapped(x, keys), x)
        return out, backward(jnp.ones_like(out))[0]

    keys = jax.random.split(jax.random.key(seed), s)
    return x, *jax.device_get(quick(run)(x, keys))


@pytest.mark.parametrize("name", first(2, LAYERS))
@pytest.mark.parametrize("mesh", first(1, [(2, 2), (4, 1)]))
def test_on_a_mesh_equals_one_device(name, mesh):
    """Values and gradients, under jit, vmap and shard_map."""
    for got, want in zip(on_mesh(name, *mesh), on_mesh(name, 1, 1), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", first(2, LAYERS))
def test_networks_and_steps_draw_differently(name):
    x, out, grad = on_mesh(name, 1, 1)
    _, other, _ = on_mesh(name, 1, 1, seed=1)
    assert len({(o / x[0]).tobytes() for o in out}) >= 3  # two gates may be open
    assert np.isfinite(grad).all() and len({g.tobytes() for g in grad}) >= 3
    assert sum((a != b).any() for a, b in zip(out, other, strict=True)) >= 2
