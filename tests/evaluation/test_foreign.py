"""Another data set's images: loaded, resized, in other channels."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxsplit import defaults
from jaxsplit.errors import ConfigError
from jaxsplit.evaluation import foreign
from tests.support import hugging_face as hf
from tests.support.data import tiny


@pytest.fixture
def data_config(tmp_path):
    config = defaults.get_config().data
    config.name, config.dir = "digits", str(tmp_path)
    return config


def test_colours_become_gray_as_pillow_makes_them():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    want = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    got = foreign.converted(jnp.asarray(images), (8, 8, 1))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[..., 0], want)


def test_gray_is_repeated_and_sizes_change_as_pillows_do():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    got = np.asarray(foreign.converted(jnp.asarray(images), (8, 8, 3)))
    np.testing.assert_array_equal(got, images.repeat(3, 3))
    for size in (5, 20):
        got = foreign.converted(jnp.asarray(images), (size, size, 1))
        for image, mine in zip(images[..., 0], got[..., 0], strict=True):
            large = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(large).astype(int) - mine).max() <= 1


def test_another_set_is_loaded_with_a_line_on_what_changes(data_config):
    found = foreign.load(data_config, "synthetic", (8, 8, 1))
    assert len(found.examples) == 512 and found.image_shape == (32, 32, 3)
    assert found.note == (
        "images of 'synthetic' are resized from 32x32 to 8x8 (bilinear) and made gray"
    )
    assert foreign.load(data_config, "synthetic", (32, 32, 3)).note == ""


def test_a_set_of_hugging_face_is_loaded_whatever_the_runs_own_columns_are_called(
    data_config, tmp_path
):
    hf.save(tmp_path / "insects", {"train": tiny(5), "test": tiny(3), "validation": tiny(4)})
    data_config.update(name="hf:other", label_column="kind", test_split="validation", subset="s")
    found = foreign.load(data_config, "hf:insects", (8, 8, 1))
    assert len(found.examples) == 3 and found.image_shape == (20, 20, 3)
    assert found.note == (
        "images of 'hf:insects' are resized from 20x20 to 8x8 (bilinear) and made gray"
    )


@pytest.mark.parametrize(
    "name,said",
    [
        ("digits", "eval.ood='digits': must be another data set than data.name"),
        ("nothing", "eval.ood='nothing': data.name='nothing': must be one of digits"),
        ("svhn_cropped", "eval.ood='svhn_cropped': data.dir="),
    ],
)
def test_a_set_that_is_not_there_is_one_line(data_config, name, said):
    with pytest.raises(ConfigError) as error:
        foreign.load(data_config, name, (8, 8, 1))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
