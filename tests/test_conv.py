"""`conv` under vmap: S dense convolutions, equal to a loop of lax's own; so its derivatives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsplit import compiler
from jaxsplit.conv import conv, lowered
from tests.support.samples import first, sampled
from tests.support.xla import FAST

S, B, C = 3, 2, 4  # S is neither C nor a number of groups, so that group counts can be told apart
# name -> (kernel [h, w, C / groups, C'], arguments); "small": the map is smaller than the kernel
CASES = {
    "plain": ((3, 3, 4, 6), {}),
    "strided": ((3, 3, 4, 6), dict(strides=(2, 2))),
    "grouped": ((3, 3, 2, 6), dict(groups=2)),
    "depthwise": ((3, 3, 1, 4), dict(groups=4, strides=(2, 1))),
    "1x1": ((1, 1, 4, 6), {}),
    "strided 1x1": ((1, 1, 4, 6), dict(strides=(2, 2))),
    "padded 1x1": ((1, 1, 4, 6), dict(padding=((1, 0), (0, 2)))),
    "grouped 1x1": ((1, 1, 2, 6), dict(groups=2)),
    "explicit padding": ((3, 2, 4, 6), dict(padding=((2, 1), (0, 1)), strides=(1, 2))),
    "valid": ((3, 3, 4, 6), dict(padding="VALID")),
    "small": ((3, 7, 4, 6), {}),
    "small strided": ((5, 3, 4, 6), dict(strides=(3, 2))),
    "small grouped": ((7, 3, 2, 6), dict(groups=2, padding=((3, 3), (1, 0)), strides=(2, 1))),
    "small depthwise": ((5, 5, 1, 8), dict(groups=4, strides=(2, 2))),
    "large depthwise": ((7, 7, 1, 4), dict(groups=4, padding=((3, 3), (3, 3)))),
    "large depthwise strided": ((7, 5, 1, 4), dict(groups=4, strides=(2, 3), padding="SAME")),
    "small valid": ((5, 3, 4, 6), dict(strides=(2, 2), padding="VALID")),
}
# The others are slow tests.
SAMPLE = ("strided", "grouped", "explicit padding", "small grouped", "large depthwise strided")
IMAGE = (6, 5, C)


@pytest.fixture(params=["dense", "packed"])
def lowering(request):
    """In turn, while a test traces; both equal a loop."""
    with lowered(request.param):
        yield request.param


def quick(fn):
    """jit that compiles fast; on CPU only code generation differs."""
    return jax.jit(fn, compiler_options=FAST)


def lax_conv(x, kernel, *, strides=(1, 1), padding="SAME", groups=1):
    """What `conv` computes, in jax's own words and with jax's own derivatives."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def operands(kernel_shape, *leading, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*leading, B, *IMAGE)).astype(np.float32)
    kernel = rng.normal(size=(*leading, *kernel_shape)).astype(np.float32)
    return x, kernel


def assert_close(got, want, tolerance: float) -> None:
    """Trees; |got - want| <= tolerance * largest |want| of the array."""
    got, want = jax.tree.leaves_with_path(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for (path, g), w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), path
        error = np.abs(g - w).max() / np.abs(w).max()
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


def loss_of(f, kwargs):
    """A loss whose gradients depend on both operands and on the place of every output."""
    return lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel, **kwargs)))


@pytest.mark.parametrize("name", sampled(CASES, SAMPLE))
def test_vmap_equals_a_loop_forward(name, lowering):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)

    def stacked(x, kernel):
        f = lambda x, kernel: conv(x, kernel, **kwargs)  # noqa: E731
        return {
            "both": jax.vmap(f)(x, kernel),
            "kernel": jax.vmap(f, (None, 0))(x[0], kernel),
            "input": jax.vmap(f, (0, None))(x, kernel[0]),
            "neither": f(x[0], kernel[0]),
        }

    def looped(x, kernel):
        f = lambda i, j: lax_conv(x[i], kernel[j], **kwargs)  # noqa: E731
        return {
            "both": jnp.stack([f(i, i) for i in range(S)]),
            "kernel": jnp.stack([f(0, i) for i in range(S)]),
            "input": jnp.stack([f(i, 0) for i in range(S)]),
            "neither": f(0, 0),
        }

    assert_close(quick(stacked)(x, kernel), quick(looped)(x, kernel), 1e-6)


@pytest.mark.parametrize("name", sampled(CASES, SAMPLE))
def test_gradients_equal_a_loop(name, lowering):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)
    loss, expected = loss_of(conv, kwargs), loss_of(lax_conv, kwargs)

    def total(axes):
        return lambda *args: jax.vmap(loss, axes)(*args).sum()

    def stacked(x, kernel):
        return {
            "grad of vmap": jax.grad(total((0, 0)), (0, 1))(x, kernel),
            "vmap of grad": jax.vmap(jax.grad(loss, (0, 1)))(x, kernel),
            "kernel": jax.grad(total((None, 0)), (0, 1))(x[0], kernel),
            "input": jax.grad(total((0, None)), (0, 1))(x, kernel[0]),
        }

    def looped(x, kernel):
        def loop(pick_x, pick_kernel):
            def whole(x, kernel):
                return sum(expected(pick_x(x, i), pick_kernel(kernel, i)) for i in range(S))

            return jax.grad(whole, (0, 1))

        each, same = lambda v, i: v[i], lambda v, i: v
        both = loop(each, each)(x, kernel)
        return {
            "grad of vmap": both,
            "vmap of grad": both,
            "kernel": loop(same, each)(x[0], kernel),
            "input": loop(each, same)(x, kernel[0]),
        }

    assert_close(quick(stacked)(x, kernel), quick(looped)(x, kernel), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "strided", "depthwise", "strided 1x1"])
def test_second_derivatives(name, lowering):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)

    def second(f):
        first = jax.grad(loss_of(f, kwargs), (0, 1))

        def squares(x, kernel):  # all four blocks of the Hessian take part
            return sum(jnp.sum(jnp.square(g)) for g in first(x, kernel))

        return jax.grad(squares, (0, 1))

    def looped(x, kernel):
        grads = [second(lax_conv)(x[i], kernel[i]) for i in range(S)]
        return jax.tree.map(lambda *g: jnp.stack(g), *grads)

    assert_close(quick(jax.vmap(second(conv)))(x, kernel), quick(looped)(x, kernel), 1e-5)


@pytest.mark.parametrize("name", first(2, ["strided", "grouped", "1x1"]))
def test_nested_vmap(name, lowering):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, 2, S)
    x = x[:, 0]  # the inner map has the kernel only
    value = jax.value_and_grad(loss_of(conv, kwargs), (0, 1))
    nested = quick(jax.vmap(jax.vmap(value, (None, 0))))(x, kernel)

    def looped(x, kernel):
        value = jax.value_and_grad(loss_of(lax_conv, kwargs), (0, 1))
        rows = [
            jax.tree.map(lambda *v: jnp.stack(v), *[value(x[i], kernel[i, j]) for j in range(S)])
            for i in range(2)
        ]
        return jax.tree.map(lambda *v: jnp.stack(v), *rows)

    assert_close(nested, quick(looped)(x, kernel), 1e-5)


def test_rematerialised_under_jit():
    shape, kwargs = CASES["strided"]
    x, kernel = operands(shape, S)
    loss = lambda f: lambda x, k: jax.vmap(f)(x, k).sum()  # noqa: E731
    plain = jax.grad(loss(loss_of(conv, kwargs)), (0, 1))
    remat = jax.grad(loss(jax.checkpoint(loss_of(conv, kwargs))), (0, 1))
    assert "remat" in str(jax.make_jaxpr(remat)(x, kernel))
    assert_close(quick(remat)(x, kernel), quick(plain)(x, kernel), 1e-6)


@pytest.mark.parametrize("name", first(2, ["plain", "grouped", "strided 1x1"]))
@pytest.mark.parametrize("differentiate", ["outside", "inside"])
def test_in_shard_map(name, differentiate, lowering):
    """Networks over one mesh axis, the batch over the other: as on one device.

    The kernels are the same on all devices along the batch: their gradient is summed over these.
    """
    shape, kwargs = CASES[name]
    s = 4
    x, kernel = operands(shape, s)
    mesh = jax.make_mesh((2, 2), ("data", "net"), axis_types=(AxisType.Auto,) * 2)
    specs = P("net", "data"), P("net")

    def grads(loss):
        def total(x, kernel):
            return jax.vmap(loss, (0, 0))(x, kernel)

        if differentiate == "inside":
            local = jax.grad(lambda x, k: total(x, k).sum(), (0, 1))
            return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs)

        def f(x, k):
            return jax.vmap(lambda x, k: conv(x, k, **kwargs))(x, k)

        outer = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs[0])
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(outer(x, k))), (0, 1))

    def looped(x, kernel):
        expected = loss_of(lax_conv, kwargs)
        return jax.grad(lambda x, k: sum(expected(x[i], k[i]) for i in range(s)), (0, 1))(x, kernel)

    got = quick(grads(loss_of(conv, kwargs)))(x, kernel)
    assert_close(jax.device_get(got), jax.device_get(quick(looped)(x, kernel)), 1e-5)


def test_shared_input_in_shard_map(lowering):
    """One view for all networks: its gradient is summed over the devices along `net`."""
    x, kernel = operands((3, 3, C, 6), 4)
    mesh = jax.make_mesh((2, 2), ("data", "net"), axis_types=(AxisType.Auto,) * 2)
    local = jax.grad(lambda x, k: jax.vmap(loss_of(conv, {}), (None, 0))(x, k).sum(), (0, 1))
    specs = P("data"), P("net")
    got = quick(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs))(x[0], kernel)
    expected = jax.grad(lambda x, k: sum(loss_of(lax_conv, {})(x, k[i]) for i in range(4)), (0, 1))
    want = quick(expected)(x[0], kernel)
    assert_close(jax.device_get(got), jax.device_get(want), 1e-5)


# ---- what is emitted


def group_counts(fn, *args) -> tuple[set[int], set[int], int]:
    """(feature group counts, batch group counts, number of convolutions) of the lowered program."""
    text = jax.jit(fn).lower(*args).as_text()
    features = re.findall(r"feature_group_count = (\d+)", text)
    batches = re.findall(r"batch_group_count = (\d+)", text)
    assert len(features) == len(batches) == text.count("stablehlo.convolution")
    return set(map(int, features)), set(map(int, batches)), len(features)


def mapped_gradient(kwargs):
    return jax.grad(lambda x, k: jax.vmap(loss_of(conv, kwargs))(x, k).sum(), (0, 1))


@pytest.mark.parametrize("name", ["plain", "strided", "explicit padding"])
def test_emits_dense_convolutions(name):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)
    assert group_counts(mapped_gradient(kwargs), x, kernel) == ({1}, {1}, 3 * S)


@pytest.mark.parametrize("name", ["grouped", "depthwise"])
def test_emits_only_the_groups_of_one_network(name):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)
    with compiler.tracing_for("gpu"):  # on CPU a depthwise one is a sum
        features, batches, n = group_counts(mapped_gradient(kwargs), x, kernel)
    # The gradient of a grouped kernel is a convolution grouped along the batch.
    assert features == batches == {1, kwargs["groups"]}
    assert n == 3 * S


@pytest.mark.parametrize("name", ["1x1", "strided 1x1", "small", "small grouped", "depthwise"])
def test_becomes_a_product(name):
    shape, kwargs = CASES[name]
    x, kernel = operands(shape, S)
    assert group_counts(mapped_gradient(kwargs), x, kernel) == (set(), set(), 0)


def test_packed_is_one_convolution():
    """Of all channels, also with a shared input, whose networks' kernels lie side by side."""
    x, kernel = operands((3, 3, C, 6), S)

    def packed(x, kernel):
        with lowered("packed"):
            return mapped_gradient({})(x, kernel)

    def shapes(fn, *args):
        text = jax.jit(fn).lower(*args).as_text()
        return re.findall(r"stablehlo.convolution.*?: \((.*?)\) ->", text)

    assert group_counts(packed, x, kernel) == ({1}, {1}, 3)
    assert shapes(packed, x, kernel)[0].endswith(f"tensor<3x3x{S * C}x{S * 6}xf32>")

    def shared(x, kernel):
        with lowered("packed"):
            return jax.vmap(conv, (None, 0))(x, kernel)

    assert shapes(shared, x[0], kernel) == [f"tensor<{B}x6x5x{C}xf32>, tensor<3x3x{C}x{S * 6}xf32>"]


def test_grouped_lowering_is_grouped():
    """What the checks above look for is there when it is asked for, and only inside."""
    x, kernel = operands((3, 3, C, 6), S)

    def grouped(x, kernel):
        with lowered("grouped"):
            return mapped_gradient({})(x, kernel)

    assert S in group_counts(grouped, x, kernel)[0]
    assert group_counts(mapped_gradient({}), x, kernel)[0] == {1}
    assert_close(quick(grouped)(x, kernel), quick(mapped_gradient({}))(x, kernel), 1e-5)
