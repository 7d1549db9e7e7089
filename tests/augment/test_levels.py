"""Magnitudes drawn inside a step equal double precision, so integer ops equal Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxsplit.augment import levels, pixels, randaugment
from tests.support.policies import random_image

EVERY = np.arange(levels.PER_LEVEL * 10 + 1)  # all levels that can be drawn
LEVELS = EVERY / levels.PER_LEVEL  # in double precision


def test_every_factor_is_rounded_once():
    """The factor is computed as in the reference, then rounded as in Pillow."""
    made = {
        "inc0": (levels.factor(EVERY), (LEVELS / 10) * 1.8 + 0.1),
        "inc1, up": (levels.increasing_factor(EVERY, 1), 1 + (LEVELS / 10) * 0.9),
        "inc1, down": (levels.increasing_factor(EVERY, -1), 1 - (LEVELS / 10) * 0.9),
    }
    for name, (got, wanted) in made.items():
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("n", [4, 256, 110])  # of posterize, solarize, solarize_add
def test_every_whole_number_is_that_of_double_precision(n):
    np.testing.assert_array_equal(levels.times(n, EVERY), (LEVELS / 10 * n).astype(int))


def test_levels_are_rounded():
    drawn = jnp.float32([0, 1e-5, 0.3, 9.999999, 10])
    assert levels.steps(drawn).tolist() == [0, 1, 19661, 655360, 655360]


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("op", ["brightness", "color", "contrast", "sharpness"])
def test_enhancing_by_a_drawn_level_equals_pillow(op, increasing):
    image = jnp.asarray(random_image(16, 16, 3))
    number = list(randaugment.OPS).index(op)
    drawn = np.random.default_rng(0).uniform(0, 10, 300).astype(np.float32)

    def apply(level, sign):
        p = randaugment.params(
            number, level, sign, (16, 16), interpolation=None, increasing=increasing
        )
        return pixels.apply(image, p, (0, 0, 0), (pixels.BLEND,))

    signs = np.where(np.arange(300) % 2, 1, -1)
    got = np.asarray(jax.jit(jax.vmap(apply))(drawn, signs))
    enhance = getattr(ImageEnhance, op.capitalize())(Image.fromarray(np.asarray(image))).enhance
    for level, sign, ours in zip(np.asarray(levels.steps(drawn)) / 65536, signs, got, strict=True):
        factor = 1.0 + sign * ((level / 10) * 0.9) if increasing else (level / 10) * 1.8 + 0.1
        np.testing.assert_array_equal(ours, np.asarray(enhance(float(factor))), err_msg=str(level))


def test_a_given_level_is_rounded_once():
    """Without a deviation the level is static; only the sign is drawn."""
    for level in (3.0, 7.0, 9.0):
        factor = jax.jit(
            lambda sign, level=level: (
                randaugment.params(
                    9, level, sign, (8, 8), interpolation=None, increasing=True
                ).factor
            )
        )
        assert list(randaugment.OPS)[9] == "brightness"
        for sign in (1, -1):
            assert factor(sign) == np.float32(1 + sign * level / 10 * 0.9)
