"""Streams whole JPEGs of realistic size from an array_record."""

import numpy as np
import pytest

from bench import data as bench
from configs.common import get_config
from jaxsplit import data

IMAGES = 240


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    size = bench.write(folder, IMAGES, distinct=40)
    assert 60_000 < size < 200_000  # ImageNet's mean: 110 kB
    return folder


@pytest.mark.slow
def test_an_epoch_of_real_sized_jpegs(photos):
    config = get_config().data
    config.update(name=bench.NAMES["tfds"], dir=str(photos), image_size=224)
    dataset = data.load(config)
    feed = data.train_feed(dataset, batch_size=24, num_views=4, seed=1, threads=2)
    assert feed.steps_per_epoch == 10 and feed.crops_on == "host"
    batches = feed.batches(0)
    labels = []
    for _ in range(feed.steps_per_epoch):
        batch = next(batches)
        assert batch["images"].shape == (4, 24, 224, 224, 3)
        views = batch["images"].reshape(4, 24, -1)[:, :, ::97]
        assert views.std(-1).min() > 5 and len(np.unique(views.reshape(96, -1), axis=0)) == 96
        labels.extend(batch["labels"])
    batches.close()
    np.testing.assert_array_equal(np.bincount(labels), [IMAGES // 10] * 10)


@pytest.mark.slow
def test_the_benchmark_measures_it(photos):
    bench.write_hugging_face(photos, IMAGES, distinct=40)
    for source in bench.NAMES:
        speed = bench.measure(photos, views=1, size=64, threads=1, rounds=1, source=source)
        assert speed.wall > 0 and speed.per_core > 0
