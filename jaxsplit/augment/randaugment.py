"""RandAugment (arXiv 1909.13719): its ops and notation, and the random choice of ops."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsplit.augment import levels, pixels
from jaxsplit.augment.ops import Op
from jaxsplit.augment.pixels import ENHANCE, Params
from jaxsplit.errors import ConfigError

# Op -> its probability if the notation says w0; otherwise all are equally likely.
OPS: dict[str, float] = {
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
PROB = 0.5  # with which a chosen op is applied


class RandAugment(NamedTuple):
    """The settings that a notation such as 'rand-m9-n2-mstd0.5-inc1-w0' stands for."""

    magnitude: float = 10.0  # m: 0 to 10
    layers: int = 2  # n: ops chosen for an image
    magnitude_std: float = (
        0.0  # mstd: standard deviation of the magnitude, which is cut at 0 and 10
    )
    increasing: bool = False  # inc: whether a larger magnitude always is a stronger change
    weighted: bool = False  # w0: whether ops are drawn by their weights, without replacement


def parse(notation: str) -> RandAugment:
    """Reads a notation such as 'rand-m9-mstd0.5'.

    It is 'rand', followed by any of m, n, mstd, inc and w, each at most once, separated by '-'.

    Raises:
        ConfigError: the notation has another form, or a number is out of range.
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


def make(settings: RandAugment, mean: Sequence[float], *, resample: str = "reference") -> Op:
    """The op that runs ops chosen at random, each with probability 1/2 at a random magnitude.

    Geometric ops interpolate bilinearly or by cubic convolution, at random.

    Args:
        settings: see `RandAugment`.
        mean: colour of pixels from outside the image; 1 or 3 numbers in units of the full range.
        resample: 'reference', or 'nearest': geometric ops take the nearest pixel.
    """
    fill = np.clip(np.round(255 * np.asarray(mean, np.float64)), 0, 255).astype(np.uint8)
    n, count, nearest = settings.layers, len(OPS), resample == "nearest"
    weights = np.asarray(list(OPS.values()))
    logits = np.log(weights, where=weights > 0, out=np.full(count, -np.inf)).astype(np.float32)
    geometric = pixels.NEAREST if nearest else pixels.FILTERED
    branches = (pixels.KEEP, pixels.POINT, geometric, pixels.BLEND, pixels.LOOKUP)

    def op(key: jax.Array, image: jax.Array) -> jax.Array:
        u = jax.random.uniform(key, (5 * n + (count if settings.weighted else 0),))
        choice, applied, sign, cubic, level = u[: 5 * n].reshape(5, n)
        if (
            settings.weighted
        ):  # Gumbel's trick: the n largest are a weighted draw without replacement
            chosen = jax.lax.top_k(logits - jnp.log(-jnp.log(u[5 * n :])), n)[1]
        else:
            chosen = (choice * count).astype(jnp.int32)
        deviation = settings.magnitude_std

        def layer(chosen, u, sign, cubic):
            level = settings.magnitude  # a static level stays in double precision
            if deviation:
                level = jnp.clip(level + deviation * jax.scipy.special.ndtri(u), 0, 10)
            return params(
                chosen,
                level,
                jnp.where(sign < 0.5, 1, -1),
                (image.shape[0], image.shape[1]),
                interpolation=None if nearest else (cubic < 0.5).astype(jnp.int32),
                increasing=settings.increasing,
            )

        drawn = jax.vmap(layer)(chosen, level, sign, cubic)
        applied = applied < PROB
        drawn = drawn._replace(branch=jnp.where(applied, drawn.branch, pixels.KEEP))
        return pixels.apply_branches(image, drawn, fill, branches)

    return op


def params(
    chosen: jax.Array | int,
    level: jax.Array | float,
    sign: jax.Array | int,
    shape: tuple[int, int],
    *,
    interpolation: jax.Array | int | None,
    increasing: bool,
    xp: Any = jnp,
) -> Params:
    """Params of one op at a magnitude.

    Args:
        chosen: index of the op in OPS.
        level: magnitude, 0 to 10. A traced level is rounded to a multiple of 2^-16; all but the
            geometric ops then equal those of a static level exactly.
        sign: 1 or -1, for geometric ops, and for enhancing ops if `increasing`.
        shape: height and width.
        interpolation: BILINEAR, BICUBIC, or None: nearest.
        increasing: the notation's inc1: a higher `level` makes posterize, solarize and the
            enhancing ops stronger. Without it a higher level makes posterize and solarize weaker
            (posterize below 2.5 leaves a black image), and enhancing ops change nothing at 5.
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
        factor = levels.increasing_factor(steps, sign) if increasing else levels.factor(steps)
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
        for op in OPS
    ]
    return jax.tree.map(lambda x: x[chosen], pixels.stack(every, xp))
