"""A convolution that stays S dense convolutions when S networks are mapped over.

`jax.vmap` over stacked kernels turns a convolution into one grouped convolution, which is slow on
every backend and makes XLA gather the batch when it is sharded. `conv` is a `custom_vjp` around a
`custom_vmap`: under `vmap` it emits S dense convolutions, forwards and backwards, so that models
keep one plain `vmap`. A 1x1 convolution is a dot product, which maps to one batched dot.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

Padding = str | Sequence[tuple[int, int]]

_grouped = contextvars.ContextVar("grouped", default=False)


@contextlib.contextmanager
def grouped_lowering() -> Iterator[None]:
    """While tracing inside, `conv` is the plain `lax` convolution (grouped under `vmap`)."""
    token = _grouped.set(True)
    try:
        yield
    finally:
        _grouped.reset(token)


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    groups: int = 1,
) -> Array:
    """2-D convolution (cross-correlation, as in every deep learning library).

    Args:
      x: float[B, H, W, C].
      kernel: float[h, w, C / groups, C'].
      strides: of the window.
      padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
      groups: channel groups of one network (ResNeXt; C for depthwise).

    Returns:
      float[B, H', W', C'].
    """
    strides = tuple(strides)
    no_padding = isinstance(padding, str) or all(tuple(p) == (0, 0) for p in padding)
    plain = groups == 1 and no_padding
    dense = not _grouped.get()
    if dense and plain and kernel.shape[:2] == (1, 1):
        if strides != (1, 1):
            x = x[:, :: strides[0], :: strides[1]]
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))

    # ceil(n / stride) is the size of the output, or about; it is the input of the backward pass.
    sizes = zip(x.shape[1:3], strides, kernel.shape[:2], strict=True)
    small = any(-(-n // s) < k for n, s, k in sizes)
    if dense and jax.default_backend() == "cpu":
        if groups > 1 and groups == x.shape[-1] == kernel.shape[-1]:
            return _depthwise_sum(x, kernel, strides, padding)
        if small:
            return _patch_product(x, kernel, strides, padding, groups)

    def convolve(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return _bilinear(convolve)(x, kernel) if dense else convolve(x, kernel)


def _patches(x: Array, window: tuple[int, int], strides, padding) -> list[Array]:
    """float[B, H', W', C] for every place in the window, row by row: what the place sees."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    out_h, out_w = (
        (x.shape[1 + i] - k) // s + 1 for i, k, s in zip((0, 1), window, strides, strict=True)
    )
    return [
        x[
            :,
            i : i + (out_h - 1) * strides[0] + 1 : strides[0],
            j : j + (out_w - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(window[0])
        for j in range(window[1])
    ]


def _depthwise_sum(x, kernel, strides, padding) -> Array:
    """A convolution of every channel by itself, as a sum of shifted products.

    XLA's CPU backend has no fast convolution for them (3 to 20 times slower).
    """
    wide = jnp.promote_types(jnp.float32, x.dtype)  # the sum is rounded once
    patches = _patches(x.astype(wide), kernel.shape[:2], strides, padding)
    taps = kernel.astype(wide).reshape(len(patches), 1, 1, 1, -1)
    return sum(patch * tap for patch, tap in zip(patches, taps, strict=True)).astype(x.dtype)


def _patch_product(x, kernel, strides, padding, groups) -> Array:
    """The convolution as a product of patches and kernel, for maps smaller than a kernel.

    XLA's CPU backend has no fast convolution for them (40 times slower at 2x2).
    """
    h, w, c, features = kernel.shape
    patches = _patches(x, (h, w), strides, padding)
    if groups == 1:
        flat = jnp.concatenate(patches, -1)
        return lax.dot_general(flat, kernel.reshape(-1, features), (((3,), (0,)), ((), ())))
    split = jnp.stack(patches, 3).reshape(*patches[0].shape[:3], h * w, groups, c)
    kernel = kernel.reshape(h * w, c, groups, features // groups)
    return jnp.einsum("byxkgc,kcgf->byxgf", split, kernel).reshape(*patches[0].shape[:3], features)


def _bilinear(f: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """`f`, linear in each of its two arrays, unrolled under `vmap`; so are all its derivatives."""

    unrolled = custom_vmap(f)

    @unrolled.def_vmap
    def _(size, batched, a, b):
        rows = range(size)
        pick = [
            lambda i, v=v, is_batched=n: v[i] if is_batched else v
            for v, n in zip((a, b), batched, strict=True)
        ]
        return jnp.stack([unrolled(pick[0](i), pick[1](i)) for i in rows]), True

    @jax.custom_vjp
    def op(a, b):
        return unrolled(a, b)

    def forward(a, b):
        return op(a, b), (a, b)  # op, not unrolled: it stays differentiable a second time

    def backward(saved, g):
        a, b = saved
        # The transpose with respect to one operand is bilinear in the other and the cotangent.
        wrt_a = _bilinear(lambda b, g: jax.linear_transpose(lambda t: f(t, b), jax.typeof(a))(g)[0])
        wrt_b = _bilinear(lambda a, g: jax.linear_transpose(lambda t: f(a, t), jax.typeof(b))(g)[0])
        return wrt_a(b, g), wrt_b(a, g)

    op.defvjp(forward, backward)
    return lambda a, b: op(*_same_axes(a, b))


def _same_axes(a: Array, b: Array) -> tuple[Array, Array]:
    """Inside `shard_map`: both varying over the same mesh axes, before the `custom_vjp`.

    Cast outside of it, so that differentiation itself adds the sum over devices to the gradient of
    an operand that is the same on all of them.
    """
    va, vb = _varying(a), _varying(b)
    if vb - va:
        a = lax.pcast(a, tuple(sorted(vb - va)), to="varying")
    if va - vb:
        b = lax.pcast(b, tuple(sorted(va - vb)), to="varying")
    return a, b


def _varying(x: Array) -> frozenset[str]:
    aval = jax.typeof(x)
    typed = getattr(aval, "mat", None) or getattr(aval, "manual_axis_type", None)  # jax >= 0.12
    return frozenset(typed.varying) if typed is not None else getattr(aval, "vma", frozenset())
