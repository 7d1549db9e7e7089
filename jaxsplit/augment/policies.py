"""The augmentation policy of a config: AutoAugment, RandAugment or none."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxsplit.augment import autoaugment, randaugment
from jaxsplit.augment.ops import Op
from jaxsplit.errors import ConfigError

RESAMPLE = ("reference", "nearest")  # how geometric ops interpolate


def policy(augment: Mapping[str, Any], mean: Sequence[float]) -> Op | None:
    """The op that a config asks for: uint8[H, W, C] -> uint8[H, W, C].

    Args:
        augment: `config.augment`, of which this reads autoaugment, randaugment and resample.
        mean: C numbers in units of the full range: the colour with which RandAugment fills.

    Returns:
        The op, or None if both policies are off.

    Raises:
        ConfigError: a name or notation is unknown, both policies are on, or the images have other
            than 1 or 3 channels.
    """
    name, notation = augment.get("autoaugment", ""), augment.get("randaugment", "")
    resample = augment.get("resample", RESAMPLE[0])
    if resample not in RESAMPLE:
        raise ConfigError(f"augment.resample={resample!r}: must be one of {', '.join(RESAMPLE)}")
    if name and notation:
        raise ConfigError(
            f"augment.randaugment={notation!r}: must be '' with augment.autoaugment={name!r}"
        )
    if not name and not notation:
        return None
    if len(mean) not in (1, 3):
        field = "autoaugment" if name else "randaugment"
        raise ConfigError(
            f"augment.{field}={name or notation!r}: needs images of 1 or 3 channels, "
            f"these have {len(mean)}"
        )
    if name:
        return autoaugment.make(name, channels=len(mean), resample=resample)
    return randaugment.make(randaugment.parse(notation), mean, resample=resample)
