"""From uint8 images to the S views that the networks see, and mixup.

Everything is pure and meant for jit. The random numbers of one view follow from the key, the
network's number and the example's number alone, so that they do not depend on how networks and
batch are cut over devices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsplit.augment import ops as image_ops
from jaxsplit.augment.ops import Op
from jaxsplit.errors import ConfigError

# Name -> what makes the op from (config.augment, mean, std), or None where the config has it off.
# The order is the order of the ops; a new op is a factory in `ops` and a line here.
OPS: dict[str, Callable[[Mapping[str, Any], Sequence[float], Sequence[float]], Op | None]] = {
    "random_crop": lambda a, mean, std: (
        image_ops.random_crop(a["crop_padding"]) if a["crop_padding"] else None
    ),
    "random_flip": lambda a, mean, std: image_ops.random_flip() if a["flip"] else None,
    "normalize": lambda a, mean, std: image_ops.normalize(mean, std),
    "random_erase": lambda a, mean, std: (
        image_ops.random_erase(a["erase_prob"], a["erase_area"], a["erase_aspect"])
        if a["erase_prob"]
        else None
    ),
}
ON_HOST_IF_STREAMED = ("random_crop",)  # streamed images come as random-resized crops


def pipeline(
    augment: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], *, streamed: bool
) -> list[tuple[str, Op]]:
    """The ops that training views go through, in order.

    Args:
        augment: `config.augment` (or a dict with its fields).
        mean: C numbers, in units of the full range.
        std: C numbers, same units.
        streamed: the images were already cropped on the host.

    Returns:
        (name, op) pairs; ops that the config switches off are left out.

    Raises:
        ConfigError: a field is out of range.
    """
    made = {name: make(augment, mean, std) for name, make in OPS.items()}
    skip = ON_HOST_IF_STREAMED if streamed else ()
    return [(name, op) for name, op in made.items() if op is not None and name not in skip]


def make_views(
    ops: Sequence[tuple[str, Op]],
    key: jax.Array,
    images: jax.Array,
    *,
    num_views: int,
    first_network: int | jax.Array = 0,
    first_example: int | jax.Array = 0,
) -> jax.Array:
    """Independent random views of every image, one for each network.

    Args:
        ops: (name, op) pairs, as `pipeline()` returns them.
        key: key of the step, the same on all devices.
        images: uint8[B, H, W, C], or uint8[S, B, H, W, C] with an image for each view already.
        num_views: S here; 1 where the networks share a view.
        first_network: global number of the first network here; may be traced.
        first_example: global number of the first example here; may be traced.

    Returns:
        float32[num_views, B, H, W, C].

    Raises:
        ValueError: `images` has neither shape.
    """
    if images.ndim not in (4, 5) or (images.ndim == 5 and images.shape[0] != num_views):
        raise ValueError(
            f"make_views: images are {images.shape}, allowed are [B, H, W, C] and "
            f"[{num_views}, B, H, W, C]"
        )

    def one(key: jax.Array, example: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, example), len(ops))
        for i, (_, op) in enumerate(ops):
            image = op(keys[i], image)
        return image

    def of_network(network: jax.Array, images: jax.Array) -> jax.Array:
        network_key = jax.random.fold_in(key, network)
        return jax.vmap(one, in_axes=(None, 0, 0))(network_key, examples, images)

    networks = jnp.arange(num_views) + first_network
    examples = jnp.arange(images.shape[-4]) + first_example
    return jax.vmap(of_network, in_axes=(0, 0 if images.ndim == 5 else None))(networks, images)


def eval_view(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """What evaluation sees: the images normalised and nothing else.

    Args:
        images: uint8[B, H, W, C].
        mean: C numbers, in units of the full range.
        std: C numbers, same units.

    Returns:
        float32[B, H, W, C].
    """
    return image_ops.normalize(mean, std)(None, images)


def mix(
    views: jax.Array, labels: jax.Array, lam: jax.Array | float, permutation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """lam * view + (1 - lam) * the view of the partner, for all networks alike.

    Args:
        views: float[S, B, H, W, C].
        labels: int[B].
        lam: scalar in [0, 1].
        permutation: int[B], the partner of each example.

    Returns:
        Mixed views float[S, B, H, W, C] and the partners' labels int[B].
    """
    lam = jnp.asarray(lam, views.dtype)
    return lam * views + (1 - lam) * views[:, permutation], labels[permutation]


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
    if not alpha > 0:
        raise ConfigError(f"augment.mixup={alpha}: must be above 0 (0: no mixup)")
    lam = jax.random.beta(lam_key, alpha, alpha, dtype=jnp.float32)
    permutation = jax.random.permutation(perm_key, labels.shape[0])
    mixed, partner = mix(views, labels, lam, permutation)
    return mixed, partner, lam
