"""Draws a picture of what the networks see: `jaxsplit views`."""

import io
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxsplit import augment, data
from jaxsplit import config as config_lib
from jaxsplit.workdir import files

FILE = "views.png"
_IMAGES = 8
_CELL = 96  # pixels to which small images are enlarged, about
_GAP = 4  # pixels between two images
_HEADER = 20
_BACKGROUND, _TEXT = (255, 255, 255), (60, 60, 60)


def views(config: ConfigDict, workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes <workdir>/views.png: the first training images and their S views.

    A row shows an image as evaluation sees it, then the view of each network after all
    augmentations but mixup and CutMix. If the networks share a view, it is shown once. The
    normalisation of the views is reversed, so erased pixels have the mean colour.

    Args:
      config: see `jaxsplit/defaults.py`.
      workdir: the folder of the picture; made if it does not exist.

    Returns:
      The path of the picture.

    Raises:
      ConfigError: a field has a wrong value.
    """
    config = config_lib.check(config)
    dataset = data.load(config.data)
    originals, made = draw(config, dataset)
    path = config_lib.prepare_workdir(workdir) / FILE
    shared = config_lib.resolve(config).shared_view
    names = ["all networks"] if shared else [f"net{i}" for i in range(config.split)]
    picture = io.BytesIO()
    grid(originals, made, names).save(picture, "PNG")
    files.write_bytes(path, picture.getvalue())
    return path


def draw(config: ConfigDict, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The first images: (originals uint8[B, H, W, C], views uint8[S or 1, B, H, W, C])."""
    num_views = config_lib.resolve(config).num_views
    count = min(_IMAGES, len(dataset.train))
    repeats = min(config.augment.repeats, count)
    feed = data.train_feed(
        dataset,
        batch_size=count,
        num_views=num_views,
        seed=config.seed,
        threads=1,
        scale_min=config.data.scale_min,
        repeats=repeats,
    )
    batches = feed.batches(0)
    batch = next(batches)
    batches.close()
    images = batch["images"] if feed.resident is None else feed.resident.images[batch["index"]]
    originals = data.first_images(dataset, seed=config.seed, count=count, repeats=repeats)
    ops = augment.pipeline(
        config.augment,
        dataset.mean,
        dataset.std,
        crops_on=feed.crops_on,
        scale_min=config.data.scale_min,
    )
    run = jax.jit(lambda key, x: augment.make_views(ops, key, x, num_views=num_views))
    normal = np.asarray(run(jax.random.key(config.seed), images))
    mean, std = (
        np.asarray(x, np.float32).reshape(1, 1, 1, 1, -1) for x in (dataset.mean, dataset.std)
    )
    pixels = np.clip(np.round(255 * (normal * std + mean)), 0, 255)
    return originals, pixels.astype(np.uint8)


def grid(originals: np.ndarray, made: np.ndarray, names: list[str]) -> Any:
    """A PIL image with a column for `originals` and for each of the views `made`.

    Args:
      originals: uint8[B, H, W, C].
      made: uint8[S or 1, B, H, W, C].
      names: the titles of the columns of `made`.
    """
    from PIL import Image, ImageDraw

    columns = np.concatenate([originals[None], made])
    _, count, height, width, channels = columns.shape
    zoom = max(1, round(_CELL / max(height, width)))
    columns = columns.repeat(zoom, 2).repeat(zoom, 3)
    if channels == 1:
        columns = columns.repeat(3, -1)
    step_y, step_x = height * zoom + _GAP, width * zoom + _GAP
    # A wider gap separates the originals from the views.
    left = [_GAP + i * step_x + (2 * _GAP if i else 0) for i in range(len(columns))]
    size = (left[-1] + step_x, _HEADER + count * step_y)
    picture = Image.new("RGB", size, _BACKGROUND)
    text = ImageDraw.Draw(picture)
    for x, name, column in zip(left, ["image", *names], columns, strict=True):
        text.text((x, _GAP), name, fill=_TEXT)
        for row, image in enumerate(column):
            picture.paste(Image.fromarray(image), (x, _HEADER + row * step_y))
    return picture
