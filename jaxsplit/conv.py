"""A convolution that becomes S dense convolutions when `jax.vmap` maps over S networks.

`jax.vmap` over stacked kernels turns a convolution into one grouped convolution, which is slow on
every backend and makes XLA gather a sharded batch. `conv` is a `custom_vjp` around a `custom_vmap`:
under `vmap` it emits S dense convolutions in the forward and the backward pass, so that a stack of
networks remains one plain `vmap`. A 1x1 convolution is a dot product; `vmap` makes it one batched
dot product.

Inside `lowered("packed")` the S convolutions become one with a block-diagonal kernel on S * C
channels. It computes S times the products. These take a matrix unit no more time as long as S
narrow networks would leave it partly empty. `lowered("grouped")` leaves convolutions to `jax.vmap`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from jaxsplit import compiler
from jaxsplit.sharding import same_axes

Padding = str | Sequence[tuple[int, int]]

LOWERINGS = ("dense", "grouped", "packed")
# On CPU: depthwise kernels with more taps than 5x5, on maps up to this width, are banded matrices.
_MOST_TAPS, _WIDEST_BAND = 25, 64
_lowering = contextvars.ContextVar("lowering", default="dense")
_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def lowered(lowering: str) -> Iterator[None]:
    """A context in which `conv` uses this lowering, one of `LOWERINGS`, under `vmap`.

    With 'grouped', `conv` is the plain `lax` convolution even without `vmap`.
    """
    token = _lowering.set(lowering)
    try:
        yield
    finally:
        _lowering.reset(token)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """A context in which `conv` is the plain `lax` convolution, whatever `lowered` says inside."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


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
      strides: strides of the window, (vertical, horizontal).
      padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
      groups: channel groups within one network, as in ResNeXt; C makes the convolution depthwise.

    Returns:
      float[B, H', W', C'].
    """
    strides = tuple(strides)
    no_padding = isinstance(padding, str) or all(tuple(p) == (0, 0) for p in padding)
    unpadded = groups == 1 and no_padding
    lowering = "grouped" if _plain.get() else _lowering.get()

    def convolve(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    if lowering == "grouped":
        return convolve(x, kernel)
    if unpadded and kernel.shape[:2] == (1, 1) and lowering != "packed":
        if strides != (1, 1):
            x = x[:, :: strides[0], :: strides[1]]
        x = compiler.kept(x)
        return compiler.kept(lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ()))))

    # ceil(n / stride) is about the size of the output, which is the input of the backward pass.
    sizes = zip(x.shape[1:3], strides, kernel.shape[:2], strict=True)
    small = any(-(-n // s) < k for n, s, k in sizes)
    if compiler.platform() == "cpu":
        if groups > 1 and groups == x.shape[-1] == kernel.shape[-1]:
            if math.prod(kernel.shape[:2]) > _MOST_TAPS and x.shape[2] <= _WIDEST_BAND:
                return _depthwise_bands(x, kernel, strides, padding)
            return _depthwise_sum(x, kernel, strides, padding)
        if small:
            return _patch_product(x, kernel, strides, padding, groups)
    packed = lowering == "packed" and groups == 1
    one = _packed(convolve, x.shape, kernel.shape) if packed else _bilinear(convolve)
    return compiler.kept(one(compiler.kept(x), kernel))


def _pads(x: Array, window: tuple[int, int], strides, padding) -> Sequence[tuple[int, int]]:
    """((top, bottom), (left, right)) of a padding in any form."""
    if isinstance(padding, str):
        return lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    return padding


def _patches(x: Array, window: tuple[int, int], strides, padding) -> list[Array]:
    """For each position in the window, row by row, the pixels under it: float[B, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *_pads(x, window, strides, padding), (0, 0)))
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
    """A depthwise convolution as a sum of shifted products.

    XLA's own depthwise convolution on CPU is 3 to 20 times slower.
    """
    wide = jnp.promote_types(jnp.float32, x.dtype)  # the sum is rounded once
    patches = _patches(x.astype(wide), kernel.shape[:2], strides, padding)
    taps = kernel.astype(wide).reshape(len(patches), 1, 1, 1, -1)
    products = (patch * tap for patch, tap in zip(patches, taps, strict=True))
    return jnp.asarray(sum(products), x.dtype)


def _depthwise_bands(x, kernel, strides, padding) -> Array:
    """A depthwise convolution as one matrix product for each channel.

    A row of the kernel, applied to a row of the map, is a banded matrix [W, W'] of each channel.
    For 7x7 kernels on CPU this takes a quarter to three quarters of the time of `_depthwise_sum`,
    whose 49 products also compile slowly.
    """
    (h, w), (top, left) = kernel.shape[:2], strides
    padding = _pads(x, (h, w), strides, padding)
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0)))
    out_h = (x.shape[1] - h) // top + 1
    rows = jnp.stack([x[:, i : i + (out_h - 1) * top + 1 : top] for i in range(h)])
    out_w = (x.shape[2] + sum(padding[1]) - w) // left + 1
    tap = np.arange(x.shape[2])[:, None] + padding[1][0] - left * np.arange(out_w)  # [W, W']
    taps = kernel[:, np.clip(tap, 0, w - 1), 0]  # [h, W, W', C]
    inside = ((tap >= 0) & (tap < w))[None, :, :, None]
    bands = jnp.where(inside, taps, jnp.zeros_like(taps))
    wide = jnp.promote_types(jnp.float32, x.dtype)
    y = jnp.einsum("ibhwc,iwvc->bhvc", rows, bands, preferred_element_type=wide)
    return y.astype(x.dtype)


def _patch_product(x, kernel, strides, padding, groups) -> Array:
    """The convolution as a product of patches and kernel, for maps smaller than the kernel.

    XLA's own convolution of such maps on CPU is slower, at 2x2 40 times.
    """
    h, w, c, features = kernel.shape
    patches = _patches(x, (h, w), strides, padding)
    if groups == 1:
        flat = jnp.concatenate(patches, -1)
        return lax.dot_general(flat, kernel.reshape(-1, features), (((3,), (0,)), ((), ())))
    split = jnp.stack(patches, 3).reshape(*patches[0].shape[:3], h * w, groups, c)
    kernel = kernel.reshape(h * w, c, groups, features // groups)
    return jnp.einsum("byxkgc,kcgf->byxgf", split, kernel).reshape(*patches[0].shape[:3], features)


_Bilinear = Callable[[Array, Array], Array]


def _packed(convolve: _Bilinear, x_shape: Sequence[int], kernel_shape: Sequence[int]) -> _Bilinear:
    """`convolve`, which under `vmap` becomes one convolution, as do its derivatives.

    If all networks see one input, their kernels are concatenated and every product is used.
    Otherwise their kernels are the diagonal blocks of one kernel over all channels, and their
    gradients are the diagonal blocks of its gradient.
    """

    def forward(x, kernel):
        def stacked(size, batched, x, kernel):
            if all(batched):
                return _part(convolve(_side_by_side(x), _on_diagonal(kernel)), size)
            if batched[1]:
                return _part(convolve(x, _side_by_side(kernel)), size)
            return convolve(x.reshape(-1, *x.shape[2:]), kernel).reshape(size, x.shape[1], *shape)

        shape = jax.eval_shape(convolve, x, kernel).shape[1:]
        wrt_x = lambda kernel, g: by_input(kernel, g)  # noqa: E731
        return _bilinear(convolve, (wrt_x, by_kernel), stacked)(x, kernel)

    def by_input(kernel, g):  # the gradient with respect to x
        def of_all(kernel, g, channels):
            like = _like((*x_shape[:-1], channels), g)
            return jax.linear_transpose(lambda x: convolve(x, kernel), like)(g)[0]

        def stacked(size, batched, kernel, g):
            kernel, g = _all_batched(size, batched, kernel, g)
            channels = size * x_shape[-1]
            return _part(of_all(_on_diagonal(kernel), _side_by_side(g), channels), size)

        def one(kernel, g):
            return of_all(kernel, g, x_shape[-1])

        wrt_kernel = lambda g, ct: by_kernel(ct, g)  # noqa: E731
        wrt_g = lambda kernel, ct: forward(ct, kernel)  # noqa: E731
        return _bilinear(one, (wrt_kernel, wrt_g), stacked)(kernel, g)

    def by_kernel(x, g):  # the gradient with respect to the kernel
        c, features = kernel_shape[2:]

        def of_all(x, g, c, features):
            like = _like((*kernel_shape[:2], c, features), g)
            return jax.linear_transpose(lambda kernel: convolve(x, kernel), like)(g)[0]

        def stacked(size, batched, x, g):
            if not batched[0]:
                return _part(of_all(x, _side_by_side(g), c, size * features), size)
            x, g = (_side_by_side(v) for v in _all_batched(size, batched, x, g))
            every = of_all(x, g, size * c, size * features)
            every = every.reshape(*kernel_shape[:2], size, c, size, features)
            return jnp.moveaxis(jnp.diagonal(every, axis1=2, axis2=4), -1, 0)

        def one(x, g):
            return of_all(x, g, c, features)

        wrt_x = lambda g, ct: by_input(ct, g)  # noqa: E731
        return _bilinear(one, (wrt_x, forward), stacked)(x, g)

    return forward


def _side_by_side(x: Array) -> Array:
    """[S, ..., C] -> [..., S * C]."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def _part(x: Array, size: int) -> Array:
    """[..., S * C] -> [S, ..., C]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], size, -1), -2, 0)


def _on_diagonal(kernel: Array) -> Array:
    """[S, h, w, C, F] -> [h, w, S * C, S * F] with zeros between different networks."""
    s, h, w, c, f = kernel.shape
    same = np.eye(s, dtype=bool)[None, None, :, None, :, None]
    kernel = jnp.where(same, jnp.moveaxis(kernel, 0, 2)[:, :, :, :, None], 0)
    return kernel.reshape(h, w, s * c, s * f)


def _all_batched(size: int, batched: Sequence[bool], *arrays: Array) -> list[Array]:
    return [
        x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        for x, is_batched in zip(arrays, batched, strict=True)
    ]


def _like(shape: Sequence[int], x: Array):
    """A type for `linear_transpose`: this shape, with the dtype and mesh axes of `x`."""
    zeros, _ = same_axes(jnp.zeros(shape, x.dtype), x)
    return jax.typeof(zeros)


def _bilinear(
    f: _Bilinear,
    transposes: tuple[_Bilinear, _Bilinear] | None = None,
    stacked: Callable[..., Array] | None = None,
) -> _Bilinear:
    """A function that is linear in each of two arrays; `vmap` unrolls it and its derivatives.

    Args:
      f: (a, b) -> array, linear in a and in b.
      transposes: f transposed with respect to a, (b, cotangent) -> like a, and with respect to b,
        (a, cotangent) -> like b; None: JAX's transposes, unrolled like f.
      stacked: (size, (whether a is batched, whether b is), a, b) -> [size, ...]; `vmap` calls it
        instead of unrolling.
    """

    unrolled = custom_vmap(f)

    @unrolled.def_vmap
    def _(size, batched, a, b):
        if stacked is not None:
            return stacked(size, batched, a, b), True
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
        return op(a, b), (a, b)  # op, not `unrolled`, so that second derivatives exist

    def backward(saved, g):
        a, b = saved
        if transposes is not None:
            return transposes[0](b, g), transposes[1](a, g)
        # The transpose with respect to one operand is bilinear in the other and the cotangent.
        wrt_a = _bilinear(lambda b, g: jax.linear_transpose(lambda t: f(t, b), jax.typeof(a))(g)[0])
        wrt_b = _bilinear(lambda a, g: jax.linear_transpose(lambda t: f(a, t), jax.typeof(b))(g)[0])
        return wrt_a(b, g), wrt_b(a, g)

    op.defvjp(forward, backward)
    return lambda a, b: op(*same_axes(a, b))
