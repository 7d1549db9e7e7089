"""AutoAugment (arXiv 1805.09501): the sub-policies of three data sets, and their magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit.augment import pixels
from jaxsplit.augment.ops import Op
from jaxsplit.augment.pixels import ENHANCE, Params
from jaxsplit.errors import ConfigError

# Data set -> sub-policies: two ops, each with its probability and magnitude (0 to 9).
POLICIES: dict[str, str] = {
    "cifar10": """
        invert 0.1 7, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5 8, equalize 0.9 2
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6 5, equalize 0.5 1
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3 7, autocontrast 0.4 8
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0 3
        equalize 0.2 0, autocontrast 0.6 0
        equalize 0.2 8, equalize 0.6 4
        color 0.9 9, equalize 0.6 6
        autocontrast 0.8 4, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9 3
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9 2, solarize 0.8 3
        equalize 0.8 8, invert 0.1 3
        translate_y 0.7 9, autocontrast 0.9 1
    """,
    "svhn": """
        shear_x 0.9 4, invert 0.2 3
        shear_y 0.9 8, invert 0.7 5
        equalize 0.6 5, solarize 0.6 6
        invert 0.9 3, equalize 0.6 3
        equalize 0.6 1, rotate 0.9 3
        shear_x 0.9 4, autocontrast 0.8 3
        shear_y 0.9 8, invert 0.4 5
        shear_y 0.9 5, solarize 0.2 6
        invert 0.9 6, autocontrast 0.8 1
        equalize 0.6 3, rotate 0.9 3
        shear_x 0.9 4, solarize 0.3 3
        shear_y 0.8 8, invert 0.7 4
        equalize 0.9 5, translate_y 0.6 6
        invert 0.9 4, equalize 0.6 7
        contrast 0.3 3, rotate 0.8 4
        invert 0.8 5, translate_y 0 2
        shear_y 0.7 6, solarize 0.4 8
        invert 0.6 4, rotate 0.8 4
        shear_y 0.3 7, translate_x 0.9 3
        shear_x 0.1 6, invert 0.6 5
        solarize 0.7 2, translate_y 0.6 7
        shear_y 0.8 4, invert 0.8 8
        shear_x 0.7 9, translate_y 0.8 3
        shear_y 0.8 5, autocontrast 0.7 3
        shear_x 0.7 2, invert 0.1 5
    """,
    "imagenet": """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6 5
        equalize 0.8 8, equalize 0.6 3
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4 7, solarize 0.2 4
        equalize 0.4 4, rotate 0.8 8
        solarize 0.6 3, equalize 0.6 7
        posterize 0.8 5, equalize 1 2
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6 8, posterize 0.4 6
        rotate 0.8 8, color 0.4 0
        rotate 0.4 9, equalize 0.6 2
        equalize 0 7, equalize 0.8 8
        invert 0.6 4, equalize 1 8
        color 0.6 4, contrast 1 8
        rotate 0.8 8, color 1 2
        color 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6 8
        shear_x 0.6 5, equalize 1 9
        color 0.4 0, equalize 0.6 3
        equalize 0.4 7, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6 5
        invert 0.6 4, equalize 1 8
        color 0.6 4, contrast 1 8
        equalize 0.8 8, equalize 0.6 3
    """,
}
# The ten magnitudes of each op. Ops in SIGNED get a random sign; rotate turns one way only.
MAGNITUDES: dict[str, np.ndarray] = {
    "shear_x": np.linspace(0, 0.3, 10),
    "shear_y": np.linspace(0, 0.3, 10),
    "translate_x": np.linspace(0, 150 / 331, 10),
    "translate_y": np.linspace(0, 150 / 331, 10),
    "rotate": np.linspace(0, 30, 10),
    "posterize": np.round(np.linspace(8, 4, 10)),
    "solarize": np.linspace(256, 0, 10),
    **{op: np.linspace(0, 0.9, 10) for op in ENHANCE},
    **{op: np.zeros(10) for op in ("invert", "autocontrast", "equalize")},
}
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", *ENHANCE)
FILL = 128


def make(name: str, *, channels: int = 3, resample: str = "reference") -> Op:
    """The op that runs a sub-policy, chosen uniformly: two ops, one after the other.

    Shears interpolate by cubic convolution; rotations and translations take the nearest pixel.
    Pixels from outside the image are gray (128).

    Args:
        name: one of POLICIES.
        channels: 1 or 3.
        resample: 'reference', or 'nearest': shears take the nearest pixel, too.

    Raises:
        ConfigError: `name` is unknown.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"augment.autoaugment={name!r}: must be '' or one of {', '.join(POLICIES)}"
        )
    probs = np.asarray([[p for _, p, _ in pair] for pair in subpolicies(name)], np.float32)

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        rows = table(name, (image.shape[0], image.shape[1]), resample=resample)
        u = jax.random.uniform(key, (5,))
        chosen = (u[0] * len(probs)).astype(jnp.int32)
        applied = u[1:3] < jnp.asarray(probs)[chosen]
        negative = (u[3:] < 0.5).astype(jnp.int32)
        drawn = jax.tree.map(lambda x: jnp.asarray(x)[chosen, jnp.arange(2), negative], rows)
        drawn = drawn._replace(branch=jnp.where(applied, drawn.branch, pixels.KEEP))
        branches = tuple(np.unique(rows.branch).tolist())
        return pixels.apply_branches(image, drawn, (FILL,) * channels, branches)

    return op


def subpolicies(name: str) -> list[list[tuple[str, float, int]]]:
    """The sub-policies of an AutoAugment policy: pairs of (op, probability, magnitude 0 to 9)."""
    lines = POLICIES[name].strip().splitlines()
    words = [[part.split() for part in line.split(",")] for line in lines]
    return [[(op, float(prob), int(index)) for op, prob, index in pair] for pair in words]


def table(name: str, shape: tuple[int, int], *, resample: str = "reference") -> Params:
    """Params of all sub-policies as numpy arrays, with leading axes [sub-policy, op, sign].

    Axis "op": the first or second op. Axis "sign": a positive or negative magnitude.
    """
    return pixels.stack(
        [
            pixels.stack(
                [
                    pixels.stack([params(op, i, s, shape, resample=resample) for s in (1, -1)], np)
                    for op, _, i in pair
                ],
                np,
            )
            for pair in subpolicies(name)
        ],
        np,
    )


def params(
    op: str, index: int, sign: int, shape: tuple[int, int], *, resample: str = "reference"
) -> Params:
    """Params of an op at one of its ten magnitudes, as numpy arrays.

    Args:
        op: one of MAGNITUDES.
        index: of the magnitude, 0 to 9.
        sign: 1 or -1; only ops in SIGNED take it.
        shape: height and width.
        resample: as of `make`.
    """
    magnitude = MAGNITUDES[op][index] * (sign if op in SIGNED else 1)
    cubic = op.startswith("shear") and resample != "nearest"
    return pixels.params(
        op,
        1 + magnitude if op in ENHANCE else magnitude,
        shape=shape,
        interpolation=pixels.BICUBIC if cubic else None,
        xp=np,
    )
