"""AutoAugment and RandAugment: which ops of `pixels` an image gets, and how strongly."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit import compiler
from jaxsplit.augment import levels, pixels
from jaxsplit.augment.ops import Op
from jaxsplit.augment.pixels import ENHANCE, Params
from jaxsplit.errors import ConfigError

RESAMPLE = ("reference", "nearest")
# Sub-policies (arXiv 1805.09501): two ops, each with its probability and magnitude (0 to 9).
AUTOAUGMENT: dict[str, str] = {
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
# Magnitudes 0 to 9. Those of ops in SIGNED get a random sign; rotate turns one way only.
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
AUTOAUGMENT_FILL = 128

# Ops of RandAugment (arXiv 1909.13719), each with its weight where the notation says w0.
RANDAUGMENT: dict[str, float] = {
    "autocontrast": 0.025,
    "equalize": 0.005,
    "invert": 0.0,
    "rotate": 0.3,
    "posterize": 0.0,
    "solarize": 0.005,
    "solarize_add": 0.005,
    "color": 0.025,
    "contrast": 0.005,
    "brightness": 0.005,
    "sharpness": 0.025,
    "shear_x": 0.2,
    "shear_y": 0.2,
    "translate_x": 0.1,
    "translate_y": 0.1,
}
RANDAUGMENT_PROB = 0.5  # of each op that was chosen


class RandAugment(NamedTuple):
    """The meaning of `rand-m9-n2-mstd0.5-inc1-w0`."""

    magnitude: float = 10.0  # m: 0 to 10
    layers: int = 2  # n: ops chosen for an image
    magnitude_std: float = 0.0  # mstd: of the normal distribution, cut at 0 and 10
    increasing: bool = False  # inc: a larger magnitude always means a stronger change
    weighted: bool = False  # w0: ops chosen by their weights, none twice


def policy(augment: Mapping[str, Any], mean: Sequence[float]) -> Op | None:
    """The op that a config asks for: uint8[H, W, C] -> uint8[H, W, C].

    Args:
        augment: `config.augment`; autoaugment, randaugment and resample are read.
        mean: C numbers in units of the full range; RandAugment fills with that colour.

    Returns:
        The op, or None if both policies are off.

    Raises:
        ConfigError: unknown name or notation, both policies at once, or not 1 or 3 channels.
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
    nearest = resample == "nearest"
    if name:
        return autoaugment(name, channels=len(mean), nearest=nearest)
    return randaugment(parse_randaugment(notation), mean, nearest=nearest)


def autoaugment(name: str, *, channels: int = 3, nearest: bool = False) -> Op:
    """One of the policy's sub-policies, each equally likely: two ops, one after the other.

    Shears interpolate by cubic convolution, rotations and translations take the nearest pixel;
    pixels from outside are gray (128).

    Args:
        name: a key of AUTOAUGMENT.
        channels: 1 or 3.
        nearest: shears take the nearest pixel, too.

    Raises:
        ConfigError: unknown `name`.
    """
    if name not in AUTOAUGMENT:
        raise ConfigError(
            f"augment.autoaugment={name!r}: must be '' or one of {', '.join(AUTOAUGMENT)}"
        )
    probs = np.asarray([[p for _, p, _ in pair] for pair in subpolicies(name)], np.float32)

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        table = autoaugment_table(name, (image.shape[0], image.shape[1]), nearest=nearest)
        u = jax.random.uniform(key, (5,))
        chosen = (u[0] * len(probs)).astype(jnp.int32)
        applied = u[1:3] < jnp.asarray(probs)[chosen]
        negative = (u[3:] < 0.5).astype(jnp.int32)
        drawn = jax.tree.map(lambda x: jnp.asarray(x)[chosen, jnp.arange(2), negative], table)
        drawn = drawn._replace(branch=jnp.where(applied, drawn.branch, pixels.KEEP))
        branches = tuple(np.unique(table.branch).tolist())
        return apply_branches(image, drawn, (AUTOAUGMENT_FILL,) * channels, branches)

    return op


def subpolicies(name: str) -> list[list[tuple[str, float, int]]]:
    """The sub-policies of an AutoAugment policy: pairs of (op, probability, magnitude 0 to 9)."""
    lines = AUTOAUGMENT[name].strip().splitlines()
    words = [[part.split() for part in line.split(",")] for line in lines]
    return [[(op, float(prob), int(index)) for op, prob, index in pair] for pair in words]


def autoaugment_table(name: str, shape: tuple[int, int], *, nearest: bool = False) -> Params:
    """Params with leading axes [sub-policy, first or second op, sign + or -], as numpy arrays."""
    return pixels.stack(
        [
            pixels.stack(
                [
                    pixels.stack(
                        [autoaugment_params(op, i, s, shape, nearest=nearest) for s in (1, -1)], np
                    )
                    for op, _, i in pair
                ],
                np,
            )
            for pair in subpolicies(name)
        ],
        np,
    )


def autoaugment_params(
    op: str, index: int, sign: int, shape: tuple[int, int], *, nearest: bool = False
) -> Params:
    """An op of AutoAugment at one of its ten magnitudes, as numpy arrays."""
    magnitude = MAGNITUDES[op][index] * (sign if op in SIGNED else 1)
    cubic = op.startswith("shear") and not nearest
    return pixels.params(
        op,
        1 + magnitude if op in ENHANCE else magnitude,
        shape=shape,
        interpolation=pixels.BICUBIC if cubic else None,
        xp=np,
    )


def parse_randaugment(notation: str) -> RandAugment:
    """`rand`, then in any order and each at most once m, n, mstd, inc, w, parted by '-'.

    Raises:
        ConfigError: another form, or a number out of range.
    """
    head, *parts = notation.split("-")
    matches = [re.fullmatch(r"(mstd|m|n|inc|w)(\d+(?:\.\d+)?)", part) for part in parts]
    given = {match[1]: float(match[2]) for match in matches if match}
    fine = (
        head == "rand"
        and len(given) == len(parts)
        and given.get("m", 0) <= 10
        and given.get("n", 1) in range(1, 11)
        and given.get("inc", 0) in (0, 1)
        and given.get("w", 0) == 0
    )
    if not fine:
        raise ConfigError(
            f"augment.randaugment={notation!r}: must be '' or 'rand' with any of -m<0 to 10> "
            "(magnitude), -mstd<0 or more> (its deviation), -n<1 to 10> (ops an image), -inc<0 or "
            "1> (stronger with magnitude), -w0 (weighted choice), such as rand-m9-mstd0.5"
        )
    return RandAugment(
        magnitude=given.get("m", 10.0),
        layers=int(given.get("n", 2)),
        magnitude_std=given.get("mstd", 0.0),
        increasing=given.get("inc", 0) == 1,
        weighted="w" in given,
    )


def randaugment(settings: RandAugment, mean: Sequence[float], *, nearest: bool = False) -> Op:
    """Ops chosen at random, each applied with probability 1/2 at a random magnitude.

    Geometric ops are bilinear or by cubic convolution, at random.

    Args:
        settings: see `RandAugment`.
        mean: colour of pixels from outside the image; 1 or 3 numbers, units of the full range.
        nearest: geometric ops take the nearest pixel instead.
    """
    fill = np.clip(np.round(255 * np.asarray(mean, np.float64)), 0, 255).astype(np.uint8)
    n, count = settings.layers, len(RANDAUGMENT)
    weights = np.asarray(list(RANDAUGMENT.values()))
    logits = np.log(weights, where=weights > 0, out=np.full(count, -np.inf)).astype(np.float32)
    geometric = pixels.NEAREST if nearest else pixels.FILTERED
    branches = (pixels.KEEP, pixels.POINT, geometric, pixels.BLEND, pixels.LOOKUP)

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, (5 * n + (count if settings.weighted else 0),))
        choice, applied, sign, cubic, level = u[: 5 * n].reshape(5, n)
        if settings.weighted:  # Gumbel: the n largest are a weighted draw without replacement
            chosen = jax.lax.top_k(logits - jnp.log(-jnp.log(u[5 * n :])), n)[1]
        else:
            chosen = (choice * count).astype(jnp.int32)
        deviation = settings.magnitude_std

        def layer(chosen, u, sign, cubic):
            level = settings.magnitude  # a static level stays in double precision
            if deviation:
                level = jnp.clip(level + deviation * jax.scipy.special.ndtri(u), 0, 10)
            return randaugment_params(
                chosen,
                level,
                jnp.where(sign < 0.5, 1, -1),
                (image.shape[0], image.shape[1]),
                interpolation=None if nearest else (cubic < 0.5).astype(jnp.int32),
                increasing=settings.increasing,
            )

        drawn = jax.vmap(layer)(chosen, level, sign, cubic)
        applied = applied < RANDAUGMENT_PROB
        drawn = drawn._replace(branch=jnp.where(applied, drawn.branch, pixels.KEEP))
        return apply_branches(image, drawn, fill, branches)

    return op


def randaugment_params(
    chosen: jax.Array | int,
    level: jax.Array | float,
    sign: jax.Array | int,
    shape: tuple[int, int],
    *,
    interpolation: jax.Array | int | None,
    increasing: bool,
    xp: Any = jnp,
) -> Params:
    """An op of RandAugment.

    Args:
        chosen: its number in RANDAUGMENT.
        level: magnitude, 0 to 10; one that is traced is rounded to a multiple of 2^-16, after which
            all but the geometric ops are the same as for a number.
        sign: 1 or -1, for geometric ops and the enhancing ones if `increasing`.
        shape: height and width.
        interpolation: BILINEAR, BICUBIC, or None: nearest.
        increasing: posterize, solarize and the enhancing ops are stronger with `level`. Otherwise
            the first two are weaker with it (posterize below 2.5 leaves a black image), and 5 is
            where the enhancing ones change nothing.
        xp: numpy or jax.numpy, as in `pixels.params`.
    """

    def signed(v: Any) -> Any:
        return xp.where(sign > 0, v, -v)

    if isinstance(level, int | float):
        share = level / 10
        grown = xp.where(sign > 0, 1 + share * 0.9, 1 - share * 0.9)
        factor = grown if increasing else share * 1.8 + 0.1
        bits, threshold, added = (math.floor(share * n) for n in (4, 256, 110))
    else:
        steps = levels.steps(level)
        share = steps.astype(jnp.float32) / (10 * levels.PER_LEVEL)
        factor = levels.enhancing(steps, sign, increasing)
        bits, threshold, added = (levels.times(n, steps) for n in (4, 256, 110))
    magnitude = {
        "rotate": signed(share * 30),
        "posterize": 4 - bits if increasing else bits,
        "solarize": 256 - threshold if increasing else threshold,
        "solarize_add": added,
        **dict.fromkeys(ENHANCE, factor),
        **{op: signed(share * 0.3) for op in ("shear_x", "shear_y")},
        **{op: signed(share * 0.45) for op in ("translate_x", "translate_y")},
    }
    every = [
        pixels.params(op, magnitude.get(op, 0.0), shape=shape, interpolation=interpolation, xp=xp)
        for op in RANDAUGMENT
    ]
    return jax.tree.map(lambda x: x[chosen], pixels.stack(every, xp))


def apply_branches(
    image: jax.Array, drawn: Params, fill: Sequence[int] | np.ndarray, branches: Sequence[int]
) -> jax.Array:
    """Runs the ops of `drawn`, whose leaves have a leading axis, one after the other."""

    # On an accelerator every branch runs for every image, all at once. A CPU is 20 times faster
    # with a loop over the images that runs only the branch that an image needs.
    loop = compiler.platform() == "cpu"
    choose = jax.lax.switch if loop else pixels.select

    def run(image: jax.Array, drawn: Params) -> jax.Array:
        def step(image: jax.Array, p: Params) -> tuple[jax.Array, None]:
            return pixels.apply(image, p, fill, branches, choose), None

        return jax.lax.scan(step, image, drawn)[0]

    return (jax.custom_batching.sequential_vmap(run) if loop else run)(image, drawn)
