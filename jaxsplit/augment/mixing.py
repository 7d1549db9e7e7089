"""Mixup and CutMix: each image with a partner's, drawn once for all S networks.

A step has one lambda (and one box) on all devices, so that the loss needs one scalar; partners come
from the images that a device holds, so that nothing crosses devices. All is meant for jit.
"""

import jax
import jax.numpy as jnp

from jaxsplit.errors import ConfigError


def mix(
    views: jax.Array, labels: jax.Array, weight: jax.Array | float, permutation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """weight * view + (1 - weight) * the view of the partner, for all networks alike.

    Args:
        views: float[S, B, H, W, C].
        labels: int[B].
        weight: in [0, 1]: a scalar, or one for each pixel, [H, W].
        permutation: int[B], the partner of each example.

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

    The lambda that is returned is the share of pixels that an image keeps: that of the box after it
    was cut off at the border, not that of the draw. Arguments, results and errors as `mixup`, with
    the box drawn from `lam_key`, too.
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
    """The one of the two that is on; where both are, one of them in each step.

    Args:
        lam_key: key of lambda, the box and the choice; the same on every device.
        perm_key: key of the permutation.
        views: float[S, B, H, W, C].
        labels: int[B].
        mixup_alpha: of mixup; static, 0 is off.
        cutmix_alpha: of CutMix; static, 0 is off.
        switch: probability of CutMix where both are on; static.

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
    """bool[height, width]: the box of share 1 - lam around pixel (row, column), cut off outside.

    Its sides are those of the image times sqrt(1 - lam), rounded; of an even side the pixel at
    the centre is the first one of the second half.
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
    """(share of the pixels that an image keeps float32[], 1 where it does and else 0 [H, W])."""
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
