"""Helpers for the tests of augmentation policies: names, params and images."""

import numpy as np

from jaxsplit.augment import pixels, randaugment

NAMES = {
    "shearX": "shear_x",
    "shearY": "shear_y",
    "translateX": "translate_x",
    "translateY": "translate_y",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
    "AutoContrast": "autocontrast",
    "SolarizeAdd": "solarize_add",
}


def our_name(theirs: str) -> str:
    return NAMES.get(theirs, theirs.removesuffix("Increasing").lower())


def randaugment_params(op, level, sign, shape, *, interpolation, increasing) -> pixels.Params:
    number = list(randaugment.OPS).index(op)
    return randaugment.params(
        number,
        level,
        sign,
        shape,
        interpolation=interpolation,
        increasing=increasing,
        xp=np,
    )


def random_image(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8, smooth with some noise, so that interpolation matters."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    waves = 90 * np.sin(x / 5 + y / 9)[..., None] + rng.normal(0, 20, shape) + 128
    return np.clip(waves + 15 * np.arange(channels), 0, 255).astype(np.uint8)
