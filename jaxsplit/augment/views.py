"""From uint8 images to the S views that the networks see.

All functions are pure and meant for jit. The random numbers of a view depend only on the key, the
number of the network and the number of the example. So they are the same however networks and batch
are split over devices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxsplit.augment import ops as image_ops
from jaxsplit.augment import policies
from jaxsplit.augment.ops import Op
from jaxsplit.errors import ConfigError

# Name -> function of (config.augment, mean, std) that makes the op; None if the config switches it
# off. The ops run in this order. A new op is a factory in `ops` and a line here.
OPS: dict[str, Callable[[Mapping[str, Any], Sequence[float], Sequence[float]], Op | None]] = {
    "random_crop": lambda a, mean, std: (
        image_ops.random_crop(a["crop_padding"], a.get("crop_mode", "zeros"))
        if a["crop_padding"]
        else None
    ),
    "random_resized_crop": lambda a, mean, std: (
        image_ops.random_resized_crop(a["scale_min"]) if a.get("random_resized_crop") else None
    ),
    "random_flip": lambda a, mean, std: image_ops.random_flip() if a["flip"] else None,
    "policy": lambda a, mean, std: policies.policy(a, mean),
    "normalize": lambda a, mean, std: image_ops.normalize(mean, std),
    "random_erase": lambda a, mean, std: (
        image_ops.random_erase(a["erase_prob"], a["erase_area"], a["erase_aspect"])
        if a["erase_prob"]
        else None
    ),
    "cutout": lambda a, mean, std: image_ops.cutout(a["cutout"]) if a.get("cutout") else None,
}
# The ops that a host does, where it cuts the crops out of larger images.
CROPS = ("random_crop", "random_resized_crop")


def pipeline(
    augment: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crops_on: Literal["device", "host"] = "device",
    scale_min: float = 0.1,
) -> list[tuple[str, Op]]:
    """The ops that make a training view, in order.

    Args:
        augment: `config.augment`, or a dict with its fields; an optional op is off if its field is
            missing.
        mean: C numbers, in units of the full range.
        std: C numbers, same units.
        crops_on: what crops; on the host, the crops are left out here.
        scale_min: `config.data.scale_min`, the smallest share of the area that a random-resized
            crop takes.

    Returns:
        (name, op) pairs, without the ops that the config switches off.

    Raises:
        ConfigError: a field is out of range, or both crops are on.
    """
    if augment.get("random_resized_crop") and augment["crop_padding"]:
        raise ConfigError(
            f"augment.crop_padding={augment['crop_padding']}: must be 0 with "
            "augment.random_resized_crop=True, an image is cropped once"
        )
    fields = {**augment, "scale_min": scale_min}
    made = {name: make(fields, mean, std) for name, make in OPS.items()}
    skip = CROPS if crops_on == "host" else ()
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
        images: uint8[B, H, W, C], or uint8[S, B, H, W, C] if each view has its own image.
        num_views: number of views S; 1 if the networks share a view.
        first_network: global number of this device's first network; may be traced.
        first_example: global number of this device's first example; may be traced.

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
    """The view for evaluation: normalises the images and changes nothing else.

    Args:
        images: uint8[B, H, W, C].
        mean: C numbers, in units of the full range.
        std: C numbers, same units.

    Returns:
        float32[B, H, W, C].
    """
    return image_ops.normalize(mean, std)(None, images)
