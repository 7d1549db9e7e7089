"""Mixup and CutMix: blend each image with a partner, in the same way for all S networks.

A step uses one lambda (and one box) on all devices, so the loss needs one scalar. A device pairs
only the images that it holds, so nothing crosses devices. All functions are meant for jit.
"""

import jax
import jax.numpy as jnp

from jaxsplit.errors import ConfigError


def mix(
    views: jax.Array, labels: jax.Array, weight: jax.Array | float, permutation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Blends each view with its partner's view: weight * view + (1 - weight) * partner.

    Args:
        views: float[S, B, H, W, C].
        labels: int[B].
        weight: in [0, 1]; a scalar, or [H, W] with one number for each pixel.
        permutation: int[B], the index of each example's partner.

    Returns:
        Mixed views float[S, B, H, W, C] and the partners' labels int[B].
    """
    weight = jnp.asarray(weight, views.dtype)
    weight = weight.reshape((1, 1, *weight.shape, 1) if weight.ndim else (1,) * 5)
    return weight * views + (1 - weight) * views[:, permutation], labels[permutation]


def mixup(
    lam_key: jax.Array, perm_key: jax.Array, views: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mixup (arXiv 1710.09412) with one lambda and one permutation for all S networks.

    Args:
        lam_key: key of lambda; the same on every device.
        perm_key: key of the permutation; a device pairs the images that it holds.
        views: float[S, B, H, W, C].
        labels: int[B].
        alpha: lambda ~ Beta(alpha, alpha); static, above 0.

    Returns:
        Mixed views float[S, B, H, W, C], the partners' labels int[B], lambda float32[].

    Raises:
        ConfigError: `alpha` is not above 0.
    """
    lam = _lambda(lam_key, alpha, "mixup")
    return (*mix(views, labels, lam, _permutation(perm_key, labels)), lam)


def cutmix(
    lam_key: jax.Array, perm_key: jax.Array, views: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """CutMix (arXiv 1905.04899): a box of the partner's view, the same for all S networks.

    The returned lambda is the share of pixels that an image keeps, computed from the box after the
    border has cut it off. `lam_key` also draws the box. Arguments, results and errors are otherwise
    those of `mixup`.
    """
    lam, keep = _kept_pixels(lam_key, (views.shape[2], views.shape[3]), alpha)
    return (*mix(views, labels, keep, _permutation(perm_key, labels)), lam)


def mixup_or_cutmix(
    lam_key: jax.Array,
    perm_key: jax.Array,
    views: jax.Array,
    labels: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies mixup or CutMix, whichever is on; if both are on, each step draws one of them.

    Args:
        lam_key: key of lambda, the box and the choice between both; the same on every device.
        perm_key: key of the permutation.
        views: float[S, B, H, W, C].
        labels: int[B].
        mixup_alpha: alpha of mixup; static, 0 switches mixup off.
        cutmix_alpha: alpha of CutMix; static, 0 switches CutMix off.
        switch: probability of CutMix if both are on; static.

    Returns:
        As `mixup`.

    Raises:
        ConfigError: both are off, or an alpha is negative.
    """
    if not cutmix_alpha:
        return mixup(lam_key, perm_key, views, labels, mixup_alpha)
    if not mixup_alpha:
        return cutmix(lam_key, perm_key, views, labels, cutmix_alpha)
    choice_key, mixup_key, cutmix_key = jax.random.split(lam_key, 3)
    lam = _lambda(mixup_key, mixup_alpha, "mixup")
    kept, keep = _kept_pixels(cutmix_key, (views.shape[2], views.shape[3]), cutmix_alpha)
    cut = jax.random.bernoulli(choice_key, switch)
    weight = jnp.where(cut, keep, lam)  # one blend serves both
    permutation = _permutation(perm_key, labels)
    return (*mix(views, labels, weight, permutation), jnp.where(cut, kept, lam))


def box_mask(
    height: int, width: int, lam: jax.Array | float, row: jax.Array, column: jax.Array
) -> jax.Array:
    """bool[height, width]: True in a box around pixel (row, column) with the share 1 - lam.

    The sides of the box are those of the image times sqrt(1 - lam), rounded; the border cuts the
    box off. If a side is even, the centre is the first pixel of its second half.
    """
    share = jnp.sqrt(1 - jnp.asarray(lam, jnp.float32))
    inside = []
    for side, centre in ((height, row), (width, column)):
        length = jnp.round(share * side).astype(jnp.int32)
        first = centre - length // 2
        pixels = jnp.arange(side)
        inside.append((pixels >= first) & (pixels < first + length))
    return inside[0][:, None] & inside[1][None, :]


def _kept_pixels(
    key: jax.Array, sides: tuple[int, int], alpha: float
) -> tuple[jax.Array, jax.Array]:
    """(float32[]: share of pixels that an image keeps, float32[H, W]: 1 at those, else 0)."""
    lam_key, centre_key = jax.random.split(key)
    lam = _lambda(lam_key, alpha, "cutmix")
    row, column = jax.random.randint(centre_key, (2,), 0, jnp.asarray(sides))
    keep = 1 - box_mask(*sides, lam, row, column).astype(jnp.float32)
    return keep.mean(), keep


def _lambda(key: jax.Array, alpha: float, name: str) -> jax.Array:
    if not alpha > 0:
        raise ConfigError(f"augment.{name}={alpha}: must be above 0 (0: no {name})")
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _permutation(key: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.random.permutation(key, labels.shape[0])
