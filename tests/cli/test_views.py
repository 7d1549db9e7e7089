"""--mode=show_views: what is in the picture, and where."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import digits_wrn16_4_x4
from jaxsplit import data
from jaxsplit.errors import ConfigError
from jaxsplit.report import views as show
from tests.support.paths import ROOT


def config_of(**fields):
    config = digits_wrn16_4_x4.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize(("resident", "repeats"), [("device", 1), ("stream", 1), ("device", 3)])
def test_views_without_augmentation_are_the_images(resident, repeats):
    config = config_of(augment__crop_padding=0, augment__flip=False, data__resident=resident)
    config.augment.repeats = repeats
    config.augment.erase_prob = 0.0
    dataset = data.load(config.data)
    originals, views = show.draw(config, dataset)
    order = data.epoch_order(len(dataset.train), config.seed, 0)[:8]
    order = order.repeat(config.augment.repeats)[:8]
    np.testing.assert_array_equal(originals, dataset.train.images[order])
    assert views.shape == (4, *originals.shape)
    np.testing.assert_array_equal(views, np.broadcast_to(originals, views.shape))


def test_views_differ_between_networks():
    originals, views = show.draw(config_of(augment__crop_padding=2), data.load(config_of().data))
    assert views.dtype == originals.dtype == np.uint8
    assert len({view.tobytes() for view in views}) == 4
    assert not (views == originals).all((1, 2, 3, 4)).any()


def test_a_shared_view_is_one_column():
    config = config_of(views="same")
    assert show.draw(config, data.load(config.data))[1].shape[0] == 1


def test_the_picture(tmp_path):
    """Eight rows; a column for the images and one for each network, enlarged without smoothing."""
    config = config_of(data__name="synthetic", data__image_size=16)
    path = show.views(config, tmp_path / "run")
    assert path == tmp_path / "run" / "views.png"
    picture = np.asarray(Image.open(path))
    originals, views = show.draw(config, data.load(config.data))
    zoom, gap = 6, show._GAP
    assert picture.shape[0] == show._HEADER + 8 * (16 * zoom + gap)
    for column, images in enumerate([originals, *views]):
        left = gap + column * (16 * zoom + gap) + (2 * gap if column else 0)
        for row, image in enumerate(images):
            top = show._HEADER + row * (16 * zoom + gap)
            part = picture[top : top + 16 * zoom, left : left + 16 * zoom]
            np.testing.assert_array_equal(part, image.repeat(zoom, 0).repeat(zoom, 1))
    assert (picture[: show._HEADER] != 255).any()  # the names of the columns


def test_from_the_shell(tmp_path):
    command = [sys.executable, "main.py", "--mode=show_views", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config={ROOT / 'configs' / 'digits_wrn16_4_x4.py'}", "--config.seed=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(tmp_path / "run" / "views.png"),
        f"next: jaxsplit train {' '.join(command[4:])} {command[3]}",
    ]
    zoom, columns = 12, 5  # the image and four networks
    width = show._GAP + columns * (8 * zoom + show._GAP) + 2 * show._GAP
    height = show._HEADER + 8 * (8 * zoom + show._GAP)
    with Image.open(tmp_path / "run" / "views.png") as picture:
        assert picture.size == (width, height)


def test_bad_config(tmp_path):
    with pytest.raises(ConfigError, match="^split=3: "):
        show.views(config_of(split=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()
